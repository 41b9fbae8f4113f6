"""Divide each: every factor of a layer is divided by its own norm."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from svdctl.config.base import Config
from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, register_control
from svdctl.control.divide import DivideControl
from svdctl.layers.layer_ops import LayerOps
from svdctl.registry import LAYERS

if TYPE_CHECKING:
    from torch import Tensor

    from svdctl.spectral.convolution import Convolution


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

    def operators(self, layers: Sequence[ControlledLayer]) -> "list[Convolution]":
        whole = super().operators
        return [layer.ops.core_operator(layer.module) or whole([layer])[0] for layer in layers]

    def tensors(self, layer: ControlledLayer) -> "list[Tensor]":
        return layer.ops.tensors(layer.module)

    def factors(
        self, layers: Sequence[ControlledLayer], config: ControlConfig, context: ControlContext
    ) -> "list[list[Tensor]]":
        import torch

        from svdctl.control.actions import shrink
        from svdctl.layers.stiefel import qr_positive

        found = super().factors(layers, config, context)
        for layer, factors in zip(layers, found, strict=True):
            for frame in self.tensors(layer)[1:]:
                factors.append(shrink(torch.linalg.matrix_norm(qr_positive(frame.detach())[1], 2), 1.0))
        return found
