"""SOTT, a skew orthogonal convolution between two frames."""

from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import register_layer
from svdctl.layers.ops.soc_ops import SocOps
from svdctl.layers.ops.tt_ops import FramedOps

if TYPE_CHECKING:
    from torch import nn

    from svdctl.spectral.convolution import Convolution


@register_layer
class SottOps(FramedOps):
    """`SOTT`."""

    kind = "sott"
    modules = ("svdctl.layers.sott:SOTT",)
    can_control = False

    def generator(self, layer: Any) -> "tuple[Convolution, int]":
        return SocOps().generator(layer.core)

    def parts(self, layer: Any) -> "tuple[nn.Module, ...]":
        return (layer.core,)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)
