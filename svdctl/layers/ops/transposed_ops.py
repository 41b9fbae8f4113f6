"""Torch's transposed convolutions: each is the adjoint of the convolution with the same weight."""

from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import register_layer
from svdctl.layers.ops.standard_ops import StandardOps

if TYPE_CHECKING:
    from svdctl.layers.layer_bounds import Gain


@register_layer
class TransposedOps(StandardOps):
    """`ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`."""

    kind = "transposed"
    config = None
    modules = tuple(f"torch.nn.modules.conv:ConvTranspose{axes}d" for axes in (1, 2, 3))
    is_adjoint = True

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.layer_bounds import linear_gain
        from svdctl.layers.norms import stated_maximum

        return linear_gain(self.operator(layer), layer.bias, tolerance, at_most=stated_maximum(layer))
