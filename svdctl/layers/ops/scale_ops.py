"""Factors of channels: LayerScale, as a layer and as a parameter of a block."""

import math
from typing import Any

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import NormalizationOps, register_layer


@register_layer
class LayerScaleOps(NormalizationOps):
    """`LayerScale`, and the blocks of ConvNeXt, which multiply what their layers return by such factors.

    The row is about the factors alone; the layers of a block have rows of their own.
    """

    kind = "layerscale"
    title = "LayerScale"
    modules = (
        "timm.layers.layer_scale:LayerScale",
        "timm.layers.layer_scale:LayerScale2d",
        "timm.models.convnext:ConvNeXtBlock",
        "torchvision.models.convnext:CNBlock",
    )

    def channel_gain(self, layer: Any) -> float:
        gain = float(_tensor(layer).detach().double().abs().max())
        if not math.isfinite(gain):
            raise ShapeError("its factors are not finite")
        return gain

    def has_row(self, layer: Any) -> bool:
        return _tensor(layer) is not None

    def factors(self, layer: Any) -> tuple[str, ...]:
        return (_name(layer),)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (_tensor(layer).numel(),)


def _name(layer: Any) -> str:
    return "layer_scale" if hasattr(layer, "layer_scale") else "gamma"


def _tensor(layer: Any) -> Any:
    """Return the factors, one for each channel; None: the block has none."""
    return getattr(layer, _name(layer))
