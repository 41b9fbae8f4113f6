"""Gains of torch's own layers and of the normalisation."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.layers.layer_bounds import Gain, linear_gain, proved_norm
from svdctl.layers.normalize import Normalize
from svdctl.layers.norms import kernel_limit, stated_maximum
from svdctl.layers.padding import Convolutional, padded_sides, padding_factor
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.rounding import gamma, tiny_of


def convolution_gain(layer: Convolutional, conv: Convolution, tolerance: float | None) -> Gain:
    """Return the gain of torch's convolution with the operator `conv`, its padding counted."""
    stated = stated_maximum(layer)
    at_most = None if stated is None else kernel_limit(layer, stated)
    if layer.padding_mode == "zeros":
        return linear_gain(conv, layer.bias, tolerance, proved_norm(), at_most)
    gain = linear_gain(conv, layer.bias, tolerance, at_most=at_most)
    factor = padding_factor(layer)
    if layer.padding_mode == "circular" and max(conv.stride) > 1:
        # For sizes that the stride does not divide: some outputs of the layer without stride, or of a padded signal.
        plain = linear_gain(replace(conv, stride=(1,) * conv.axes), layer.bias, tolerance)
        sides = math.prod(3 if max(padded) > 0 else 1 for padded in padded_sides(layer))
        of_padded = math.sqrt(sides) * (1 + 2.0**-50)
        if plain.factors["norm"] * factor <= gain.factors["norm"] * of_padded:
            gain = plain
        else:
            factor = of_padded
    if factor == 1.0:
        return gain
    factors = {**gain.factors, "padding": factor}
    return Gain(factors, lambda unit: gain.rounding(unit) * factor, gain.bias, gain.terms, True)


def batchnorm(mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Gain:
    """Return the gain of `(x - mean) / sqrt(variance + eps) * weight + bias` by channel, computed in any order."""
    scale = torch.rsqrt(variance.double() + eps).abs()
    steepest = 1.0
    if weight is not None:
        sizes = weight.detach().double().abs()
        steepest = max(steepest, float(sizes.max()))
        # A product of normal numbers that is none itself is rounded up.
        scale = torch.where(sizes > 0, (scale * sizes).clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    shift = scale * mean.double().abs()
    if bias is not None:
        shift = shift + bias.detach().double().abs()
    largest = float(scale.max()) * (1 + 1e-14)

    def rounding(unit: float) -> float:
        # Scale and weight may be multiplied first, and their product may underflow.
        return gamma(8, unit) * largest + tiny_of(unit)

    return Gain({"batchnorm": largest}, rounding, shift, 8, True, enlarged=steepest)


def normalization_gain(layer: Normalize) -> Gain:
    """Return the gain of a normalisation of pixels."""
    smallest = float(layer.std.double().abs().min())
    if smallest == 0:
        raise ShapeError("a normalisation divides by a standard deviation of 0; the network has no bound")
    scale = 1 / smallest * (1 + 2.0**-50)
    shift = (layer.mean.double() / layer.std.double()).abs().flatten()
    return Gain({"normalisation": scale}, lambda unit: gamma(4, unit) * scale, shift, 4, True, is_broadcast=True)
