"""Torch's linear layer: the convolution with one tap."""

from typing import TYPE_CHECKING, Any

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    from svdctl.layers.layer_bounds import Gain
    from svdctl.spectral.convolution import Convolution


@register_layer
class LinearOps(LayerOps):
    """`Linear`."""

    kind = "linear"
    modules = ("torch.nn.modules.linear:Linear",)
    is_linear = True

    def operator(self, layer: Any) -> "Convolution":
        from svdctl.layers.stored_weight import computed_weight
        from svdctl.spectral.convolution import Convolution

        weight = computed_weight(layer)
        if weight.ndim != 2:
            raise ShapeError(f"the weight of a Linear is a matrix (O, I), not of shape {tuple(weight.shape)}")
        return Convolution.make(weight[:, :, None])

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.layer_bounds import linear_gain, proved_norm
        from svdctl.layers.norms import stated_maximum

        return linear_gain(self.operator(layer), layer.bias, tolerance, proved_norm(), stated_maximum(layer))
