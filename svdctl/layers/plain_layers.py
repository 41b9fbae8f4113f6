"""What svdctl's layers compute in evaluation mode, as modules of torch alone: convolutions and graphs of functions."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from svdctl.layers.normalize import Normalize
from svdctl.layers.skew import exponential_matrix
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv, ordinary_conv


def plain_tt(layer: TTConv, size: Sequence[int] | None) -> nn.Module:
    """Return one convolution, or three, whichever multiplies less for an image of this size; None: at each pixel."""
    if layer.frame_in is None or layer.frame_out is None or _is_whole_cheaper(layer, size):
        return layer.to_conv()
    return nn.Sequential(
        ordinary_conv(layer.ordinary, layer.pointwise(layer.frame_in.T), None),
        ordinary_conv(layer.ordinary, layer.core, None, layer.stride, layer.padding, layer.dilation),
        ordinary_conv(layer.ordinary, layer.pointwise(layer.frame_out), layer.bias),
    )


def _is_whole_cheaper(layer: TTConv, size: Sequence[int] | None) -> bool:
    taps, (rank_in, rank_out) = math.prod(layer.kernel_size), layer.rank
    if size is None:
        inputs, outputs = math.prod(layer.stride), 1
    else:
        inputs, outputs = math.prod(size), 1
        sides = zip(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        for length, kernel, stride, padding, dilation in sides:
            outputs *= (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    apart = inputs * layer.in_channels * rank_in + outputs * rank_out * (taps * rank_in + layer.out_channels)
    return outputs * taps * layer.in_channels * layer.out_channels <= apart


def plain_soc(layer: SOC, bias: Tensor | None = None) -> nn.Module:
    """Return the chain of the series of a SOC layer, for a 1x1 kernel the convolution that it is.

    Args:
        layer: without a bias if one is given.
        bias: added at every pixel.
    """
    bias = layer.bias if bias is None else bias
    kernel, terms, inputs = layer.skew_kernel(), layer.series_terms(training=False), layer.in_channels * layer.stride**2
    if layer.kernel_size > 1:
        return fx.symbolic_trace(_HornerSeries(kernel, terms, inputs, layer.out_channels, layer.stride, bias))
    matrix = exponential_matrix(kernel[:, :, 0, 0], terms)[: layer.out_channels, :inputs]
    conv: nn.Module = ordinary_conv(nn.Conv2d, matrix[:, :, None, None], bias)
    return conv if layer.stride == 1 else nn.Sequential(nn.PixelUnshuffle(layer.stride), conv)


class _HornerSeries(nn.Module):
    """`sum_{i <= terms} J^i x / i!` by Horner's rule, `x + J (x + J / 2 (x + ...))`, without a branch on the input."""

    def __init__(self, kernel: Tensor, terms: int, inputs: int, outputs: int, stride: int, bias: Tensor | None) -> None:
        super().__init__()
        self.kernel, self.bias = _constant(kernel), None if bias is None else _constant(bias)
        self.terms, self.inputs, self.outputs, self.stride = terms, inputs, outputs, stride
        self.width, self.padding = kernel.shape[0], kernel.shape[-1] // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.pixel_unshuffle(x, self.stride)
        # Missing channels are zeros, of which the first convolution needs none.
        wide = F.pad(x, (0, 0, 0, 0, 0, self.width - self.inputs)) if self.inputs < self.width else x
        total = x
        for i in range(self.terms, 0, -1):
            kernel: Tensor = self.kernel
            if i == self.terms and self.inputs < self.width:
                kernel = kernel[:, : self.inputs]
            if i == 1 and self.outputs < self.width:
                wide, kernel = wide[:, : self.outputs], kernel[: self.outputs]
            bias = self.bias if i == 1 else None
            total = torch.add(wide, F.conv2d(total, kernel, bias, padding=self.padding), alpha=1 / i)
        return total


def plain_sott(layer: SOTT) -> nn.Module:
    """Return the chain of a SOTT layer between two convolutions by its frames."""
    if layer.frame_in is None or layer.frame_out is None:
        return plain_soc(layer.core, layer.bias)
    return nn.Sequential(
        ordinary_conv(nn.Conv2d, layer.frame_in.T[:, :, None, None], None),
        plain_soc(layer.core),
        ordinary_conv(nn.Conv2d, layer.frame_out[:, :, None, None], layer.bias),
    )


class _SortedPairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), 1)


def plain_minmax() -> nn.Module:
    """Return the minimum and the maximum of the two halves of the channels."""
    return fx.symbolic_trace(_SortedPairs())


class _Scores(nn.Module):
    def __init__(self, layer: Normalize) -> None:
        super().__init__()
        self.mean, self.std = _constant(layer.mean), _constant(layer.std)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


def plain_normalize(layer: Normalize) -> nn.Module:
    """Return the standard scores by a difference and a quotient."""
    return fx.symbolic_trace(_Scores(layer))


def plain_batchnorm(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return torch's layer with the same statistics and weights."""
    settings = (layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    made = nn.BatchNorm2d(*settings, device="meta")
    for name, tensor in layer.named_parameters():
        made.register_parameter(name, _constant(tensor))
    for name, buffer in layer.named_buffers():
        made.register_buffer(name, buffer.clone())
    return made


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
