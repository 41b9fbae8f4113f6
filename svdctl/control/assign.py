"""Assign: all singular values become the maximum."""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod, register_control


class Assign(ControlConfig):
    """All singular values become `max_sigma`."""

    kind: Literal["assign"] = "assign"
    every_steps: PositiveInt = 100
    """Steps between two applications of the control."""


@register_control
class AssignControl(ControlMethod):
    """Polar factors at each frequency, and a proof."""

    kind = "assign"
    config = Assign

    def step_(self, layers: Sequence[ControlledLayer], config: Assign, context: ControlContext) -> list[bool]:
        from svdctl.control.actions import assign_layers_

        assign_layers_([layer.module for layer in layers], [layer.max_sigma for layer in layers], context.optimizer)
        return [True] * len(layers)
