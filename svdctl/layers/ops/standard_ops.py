"""Torch's convolutions."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from svdctl.config.base import Config
from svdctl.config.model_config import ConvInit, LayerConfig
from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    from svdctl.layers.layer_bounds import Gain
    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.spectral.convolution import Convolution


class Standard(LayerConfig):
    """Ordinary convolutions."""

    kind: Literal["standard"] = "standard"
    init: ConvInit | None = None
    """Draw the weights of all convolutions anew in this way. Absent: the network's own way."""


@register_layer
class StandardOps(LayerOps):
    """`Conv1d`, `Conv2d`, `Conv3d`."""

    kind = "standard"
    config: ClassVar[type[Config] | None] = Standard
    modules = tuple(f"torch.nn.modules.conv:Conv{axes}d" for axes in (1, 2, 3))

    def operator(self, layer: Any) -> "Convolution":
        from svdctl.layers.stored_weight import computed_weight
        from svdctl.spectral.convolution import Convolution

        weight = computed_weight(layer)
        return Convolution.make(weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)

    def factory(self, config: Standard, *, group: int, model: Config) -> "ConvFactory":
        import torch

        return torch.nn.Conv2d

    def text(self, config: Standard) -> str:
        return "ordinary convolutions"

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.torch_bounds import convolution_gain

        return convolution_gain(layer, self.operator(layer), tolerance)
