"""Divide each: every factor of a layer is divided by its own norm."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from svdctl.config.base import Config
from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlledLayer, register_control
from svdctl.control.divide import DivideControl
from svdctl.layers.layer_ops import LayerOps
from svdctl.registry import LAYERS

if TYPE_CHECKING:
    from torch import Tensor

    from svdctl.spectral.power_iteration import FactoredOperators


class DivideEach(ControlConfig):
    """Every factor of a TT layer is divided on its own; other layers as `divide`."""

    kind: Literal["divide-each"] = "divide-each"


@register_control
class DivideEachControl(DivideControl):
    """The core is brought to at most the maximum and each frame to at most 1."""

    kind = "divide-each"
    config = DivideEach

    def has_factors(self, config: ControlConfig) -> bool:
        return True

    def faults(self, config: ControlConfig, layer: Config) -> list[str]:
        ops = LAYERS.find(getattr(layer, "kind", ""))
        if ops is not None and type(ops).core_operator is not LayerOps.core_operator:
            return []
        return [
            "`control.kind = divide-each` divides the factors of TT layers; add `layer.kind = tt` and "
            "`layer.rank = R`, or use `control.kind = divide`"
        ]

    def followed(self, layers: Sequence[ControlledLayer]) -> "list[tuple[str, FactoredOperators, float | None]]":
        from svdctl.spectral.convolution import Convolution
        from svdctl.spectral.power_iteration import FactoredOperators

        found = [layer.ops.core_operator(layer.module) for layer in layers]
        cores = [core for core in found if core is not None]
        if not cores:
            return super().followed(layers)
        parts: list[tuple[str, FactoredOperators, float | None]] = [("vectors", FactoredOperators.of(cores), None)]
        for number, frames in enumerate(zip(*(self.tensors(layer)[1:] for layer in layers), strict=True)):
            matrices = [Convolution.make(frame.detach()[:, :, None]) for frame in frames]
            parts.append((f"frame {number} vectors", FactoredOperators.of(matrices), 1.0))
        return parts

    def tensors(self, layer: ControlledLayer) -> "list[Tensor]":
        return layer.ops.tensors(layer.module)
