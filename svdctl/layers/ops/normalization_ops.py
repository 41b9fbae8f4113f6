"""Layers that scale each channel by a number."""

import math
from typing import Any

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import NormalizationOps, register_layer


@register_layer
class BatchNormOps(NormalizationOps):
    """`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d` in evaluation mode."""

    kind = "batchnorm"
    title = "BatchNorm"
    modules = (
        *(f"torch.nn.modules.batchnorm:BatchNorm{axes}d" for axes in (1, 2, 3)),
        "svdctl.layers.batchnorm:GlobalBatchNorm2d",
    )

    def channel_gain(self, layer: Any) -> float:
        import torch

        from svdctl.layers.layer_operator import batchnorm_gain

        gain = float(batchnorm_gain(layer, torch.float64))
        if not math.isfinite(gain):
            raise ShapeError("its statistics or weights are not finite")
        return gain

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.num_features,)


@register_layer
class NormalizeOps(NormalizationOps):
    """`Normalize`."""

    kind = "normalize"
    title = "Normalize"
    modules = ("svdctl.layers.normalize:Normalize",)

    def channel_gain(self, layer: Any) -> float:
        gain = float((1 / layer.std.double()).abs().max())
        if not math.isfinite(gain):
            raise ShapeError("its deviations are 0 or not finite")
        return gain

    def shape(self, layer: Any) -> tuple[int, ...]:
        return tuple(layer.std.shape)
