"""MinMax, the activation of LipConvNet."""

from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    from torch import nn

    from svdctl.layers.layer_bounds import Gain


@register_layer
class MinMaxOps(LayerOps):
    """`MinMax`."""

    kind = "minmax"
    modules = ("svdctl.layers.minmax:MinMax",)
    can_control = False
    has_spectrum = False

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module":
        from svdctl.layers.plain_layers import plain_minmax

        return plain_minmax()

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.layer_bounds import Gain, exact

        # Sorting pairs of entries: |sort(a) - sort(b)| <= |a - b|.
        return Gain({"activation": 1.0}, exact)
