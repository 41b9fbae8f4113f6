"""Skew orthogonal convolutions."""

import math
from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from svdctl.spectral.convolution import Convolution

REFINE_EVERY = 200
"""Steps between two times that many power steps are taken for the norms of the skew kernels."""


@register_layer
class SocOps(LayerOps):
    """`SOC`."""

    kind = "soc"
    modules = ("svdctl.layers.soc:SOC",)
    can_control = False

    def generator(self, layer: Any) -> "tuple[Convolution, int]":
        from svdctl.spectral.convolution import Convolution

        return Convolution.make(layer.skew_kernel()), layer.series_terms(training=False)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)

    def frozen(self, layer: Any) -> "nn.Module":
        from svdctl.layers.soc import FixedSOC

        return FixedSOC(layer)

    def cost(self, layer: Any, size: tuple[int, ...]) -> float:
        return float(math.prod(-(-length // layer.stride) for length in size)) * layer.width**3

    def after_optimizer_step_(self, layer: Any, *, step: int, optimizer: "torch.optim.Optimizer | None") -> None:
        if step % REFINE_EVERY == 0:
            layer.refine_norm_estimate_()
