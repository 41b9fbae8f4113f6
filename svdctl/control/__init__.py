"""Control of singular values: actions on one layer, and a controller for a network in training."""

from svdctl.control.controller import Controller, LayerReport

__all__ = ["Controller", "LayerReport"]
