"""The control method `divide-exact`: scale kernels by the maximum over a proved bound of their norm."""

from collections.abc import Sequence
from typing import Literal

from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod, register_control


class DivideExact(ControlConfig):
    """Settings of `divide` with a proved bound of the spectral norm, in place of an estimate, at each application."""

    kind: Literal["divide-exact"] = "divide-exact"


@register_control
class DivideExactControl(ControlMethod):
    """Scale each layer, at every application, until its norm is proved to be at most its maximum."""

    kind = "divide-exact"
    config = DivideExact
    writes_operator = False

    def notices(self, layers: Sequence[ControlledLayer], config: DivideExact) -> list[str]:
        if config.procedure != "paper" or not layers:
            return []
        return [
            "`control.procedure = paper` changes nothing in how `control.kind = divide-exact` scales layers, by proved "
            "bounds; it leaves out the seal, so that no maximum is proved at evaluations and checkpoints"
        ]

    def step_(self, layers: Sequence[ControlledLayer], config: DivideExact, context: ControlContext) -> list[bool]:
        from svdctl.control.actions import divide_exact_layers_

        modules, limits = [layer.module for layer in layers], [layer.max_sigma for layer in layers]
        return [factor != 1 for factor in divide_exact_layers_(modules, limits)]
