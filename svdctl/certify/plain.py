"""Gains of torch's own layers, of the normalisation and of MinMax."""

import math

import torch
from torch import Tensor, nn

from svdctl.certify.facts import gamma
from svdctl.certify.gains import Gain, exact, layer_gain, linear_gain
from svdctl.errors import ShapeError
from svdctl.layers.minmax import MinMax
from svdctl.layers.normalize import Normalize
from svdctl.layers.operator import BatchNorm, operator_of
from svdctl.spectral.operator import Convolution

Convolutional = nn.Conv1d | nn.Conv2d | nn.Conv3d


@layer_gain.register(nn.Linear)
@layer_gain.register(nn.ConvTranspose1d)
@layer_gain.register(nn.ConvTranspose2d)
@layer_gain.register(nn.ConvTranspose3d)
def _linear(layer: nn.Linear, *, tolerance: float | None = None) -> Gain:
    return linear_gain(operator_of(layer), layer.bias, tolerance)


@layer_gain.register(nn.Conv1d)
@layer_gain.register(nn.Conv2d)
@layer_gain.register(nn.Conv3d)
def _conv(layer: nn.Conv2d, *, tolerance: float | None = None) -> Gain:
    gain = linear_gain(operator_of(layer), layer.bias, tolerance)
    if layer.padding_mode == "zeros":
        return gain
    sides = padded_sides(layer)
    if layer.padding_mode == "circular" and is_cyclic(layer):
        # Every output is one of the cyclic convolution, each at most once; its stride-1 norm holds at every size.
        unstrided = Convolution.make(layer.weight.detach(), dilation=layer.dilation, groups=layer.groups)
        plain = gain if max(layer.stride) == 1 else linear_gain(unstrided, layer.bias, tolerance)
        overlap = math.prod(3 if sum(side) else 1 for side in sides)
        if plain.factors["norm"] <= gain.factors["norm"] * math.sqrt(overlap):
            return plain
    elif layer.padding_mode == "replicate":
        overlap = math.prod(1 + sum(side) for side in sides)
    else:
        overlap = math.prod(3 if sum(side) else 1 for side in sides)
    root = math.sqrt(overlap)
    return Gain({**gain.factors, "padding": root}, lambda u: gain.rounding(u) * root, gain.bias, gain.terms, True)


def padded_sides(layer: Convolutional) -> list[tuple[int, int]]:
    """How much is padded before and after each axis."""
    both = layer._reversed_padding_repeated_twice
    return list(zip(both[::2], both[1::2], strict=True))[::-1]


def is_cyclic(layer: Convolutional) -> bool:
    """Whether circular padding gives no more outputs (at stride 1) than inputs, along each axis."""
    reach = [dilation * (taps - 1) for taps, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    return all(sum(sides) <= axis for sides, axis in zip(padded_sides(layer), reach, strict=True))


@layer_gain.register(nn.BatchNorm1d)
@layer_gain.register(nn.BatchNorm2d)
@layer_gain.register(nn.BatchNorm3d)
def _batchnorm(layer: BatchNorm, *, tolerance: float | None = None) -> Gain:
    if layer.running_mean is None or layer.running_var is None:
        raise ShapeError("BatchNorm without running statistics has no fixed gain; use track_running_stats=True")
    return batchnorm(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)


def batchnorm(mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Gain:
    """Gain of `(x - mean) / sqrt(variance + eps) * weight + bias` by channel, in whatever order it is computed."""
    scale = torch.rsqrt(variance.double() + eps).abs()
    if weight is not None:
        scale = scale * weight.detach().double().abs()
    shift = scale * mean.double().abs()
    if bias is not None:
        shift = shift + bias.detach().double().abs()
    largest = float(scale.max()) * (1 + 1e-14)
    return Gain({"batchnorm": largest}, lambda unit: gamma(8, unit) * largest, shift, 8, True)


@layer_gain.register
def _normalize(layer: Normalize, *, tolerance: float | None = None) -> Gain:
    scale = 1 / float(layer.std.double().abs().min()) * (1 + 2.0**-50)
    shift = (layer.mean.double() / layer.std.double()).abs().flatten()
    return Gain({"normalisation": scale}, lambda unit: gamma(4, unit) * scale, shift, 4, True)


@layer_gain.register
def _minmax(layer: MinMax, *, tolerance: float | None = None) -> Gain:
    # Sorting pairs of entries: |sort(a) - sort(b)| <= |a - b|.
    return Gain({"activation": 1.0}, exact)
