"""Layers that normalise: their rows have a gain."""

import math
from typing import TYPE_CHECKING, Any

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import NormalizationOps, register_layer

if TYPE_CHECKING:
    from torch import nn

    from svdctl.layers.layer_bounds import Gain


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

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module | None":
        from svdctl.layers.batchnorm import GlobalBatchNorm2d
        from svdctl.layers.plain_layers import plain_batchnorm

        return plain_batchnorm(layer) if isinstance(layer, GlobalBatchNorm2d) else None

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.torch_bounds import batchnorm

        if layer.running_mean is None or layer.running_var is None:
            raise ShapeError("BatchNorm without running statistics has no fixed gain; use track_running_stats=True")
        return batchnorm(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)


@register_layer
class LayerNormOps(NormalizationOps):
    """`LayerNorm`, and the classes by which torchvision and timm apply it to channels of images."""

    kind = "layernorm"
    title = "LayerNorm"
    modules = (
        "torch.nn.modules.normalization:LayerNorm",
        "torchvision.models.convnext:LayerNorm2d",
        "timm.layers.norm:LayerNorm",
        "timm.layers.norm:LayerNorm2d",
    )

    def channel_gain(self, layer: Any) -> float:
        from svdctl.layers.layer_operator import layernorm_gain

        gain = layernorm_gain(layer)
        if not math.isfinite(gain):
            raise ShapeError("its weights are not finite, or its eps is 0: it has no largest gain")
        return gain

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (math.prod(layer.normalized_shape),)


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

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module":
        from svdctl.layers.plain_layers import plain_normalize

        return plain_normalize(layer)

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.torch_bounds import normalization_gain

        return normalization_gain(layer)
