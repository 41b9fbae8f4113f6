"""Control of singular values: methods, actions on one layer, and a controller for a network in training."""
