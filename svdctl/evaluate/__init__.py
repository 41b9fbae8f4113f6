"""The parts of `eval-robust`: checkpoints found, measured one by one, their results kept, compared and drawn."""
