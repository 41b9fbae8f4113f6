"""The `Controller` of a callback, made when its trainer has a network and an optimiser."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from svdctl.control.controller import Controller
from svdctl.errors import UsageError


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a TypeError if these are not keyword arguments of `Controller`."""
    signature(Controller).bind(None, None, **settings)


def start_controller(
    network: nn.Module, optimizer: torch.optim.Optimizer | None, settings: Mapping[str, Any]
) -> Controller:
    """Return the controller of a network.

    Args:
        network: the module whose layers are controlled.
        optimizer: which steps them.
        settings: the other arguments of `Controller`.

    Raises:
        UsageError: nothing in the network would be controlled, or as `Controller` raises it.
        ShapeError: as `Controller` raises it.
    """
    controller = Controller(network, optimizer, **settings)
    if not controller.controlled() and controller.batchnorm is None and controller.config.kind != "none":
        raise UsageError(
            f"no layer of the {type(network).__name__} would be controlled: max_sigma is for convolutions, linear "
            "layers are left alone without linear_max, and layers= may match none"
        )
    return controller
