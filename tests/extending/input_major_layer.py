"""A user's layer: a convolution that stores its kernel with the input channels first."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svdctl
from svdctl.certificates import Gain, linear_gain
from svdctl.config.model_config import LayerConfig, ModelConfig
from svdctl.layers.layer_ops import ConvFactory


class InputMajor(LayerConfig):
    """Convolutions whose kernels have shape `(I, O, kh, kw)`."""

    kind: Literal["input-major"] = "input-major"


class InputMajorConv2d(nn.Module):
    """Convolution with the kernel `(I, O, kh, kw)`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, bias: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.stride, self.padding = in_channels, stride, padding
        deviation = (2 / (out_channels * kernel_size**2)) ** 0.5
        self.kernel = nn.Parameter(deviation * torch.randn(in_channels, out_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def weight(self) -> Tensor:
        """Return the kernel in torch's layout, `(O, I, kh, kw)`."""
        return self.kernel.transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, self.stride, self.padding)


@svdctl.register_layer
class InputMajorOps(svdctl.LayerOps):
    """How it is built, read and written."""

    kind = "input-major"
    config = InputMajor
    modules = (InputMajorConv2d,)

    def factory(self, config: InputMajor, *, group: int, model: ModelConfig) -> ConvFactory:
        return InputMajorConv2d

    def operator(self, layer: InputMajorConv2d) -> svdctl.Convolution:
        return svdctl.Convolution.make(layer.weight().detach(), stride=layer.stride)

    def tensors(self, layer: InputMajorConv2d, optimizer: Any = None) -> list[Tensor]:
        return [layer.kernel]

    def write_(
        self, layers: Sequence[InputMajorConv2d], convs: Sequence[svdctl.Convolution], optimizer: Any = None
    ) -> None:
        for layer, conv in zip(layers, convs, strict=True):
            layer.kernel.copy_(conv.weight.transpose(0, 1))

    def shape(self, layer: InputMajorConv2d) -> tuple[int, ...]:
        return tuple(layer.weight().shape)

    def gain(self, layer: InputMajorConv2d, *, tolerance: float | None = None) -> Gain:
        return linear_gain(self.operator(layer), layer.bias, tolerance)
