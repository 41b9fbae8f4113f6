"""Divide exactly: kernels are scaled by the maximum over a proved bound of their norm."""

from collections.abc import Sequence
from typing import Literal

from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod, register_control


class DivideExact(ControlConfig):
    """As `divide`, with the exact sigma_max of the rigorous engine at each application."""

    kind: Literal["divide-exact"] = "divide-exact"


@register_control
class DivideExactControl(ControlMethod):
    """What the seal does, at every application."""

    kind = "divide-exact"
    config = DivideExact
    writes_operator = False

    def step_(self, layers: Sequence[ControlledLayer], config: DivideExact, context: ControlContext) -> list[bool]:
        from svdctl.control.actions import divide_exact_layer_

        return [divide_exact_layer_(layer.module, layer.max_sigma) != 1 for layer in layers]
