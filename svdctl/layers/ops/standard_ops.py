"""Torch's convolutions."""

from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    from svdctl.spectral.convolution import Convolution


@register_layer
class StandardOps(LayerOps):
    """`Conv1d`, `Conv2d`, `Conv3d`."""

    kind = "standard"
    modules = tuple(f"torch.nn.modules.conv:Conv{axes}d" for axes in (1, 2, 3))

    def operator(self, layer: Any) -> "Convolution":
        from svdctl.layers.stored_weight import computed_weight
        from svdctl.spectral.convolution import Convolution

        weight = computed_weight(layer)
        return Convolution.make(weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
