"""Gains of layers that exponentiate a skew convolution by its truncated Taylor series.

docs/theory.md, "Skew orthogonal layers", has the proofs. More pieces give a smaller bound of the series: constants are
for speed.
"""

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.layers.layer_bounds import (
    Gain,
    absolute_norm,
    chain_enlargement,
    chain_rounding,
    frame_convolution,
    linear_gain,
    norm_above_of,
    summands,
)
from svdctl.layers.skew import skew_part
from svdctl.layers.soc import SOC, FixedSOC
from svdctl.layers.sott import SOTT
from svdctl.spectral.bounds import norm_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.rounding import gamma, times

_PIECES = (256, 4096)
_NEGLIGIBLE = 1e-9


@cache
def squared_modulus(terms: int) -> tuple[float, ...]:
    """Return the coefficients of t^0, t^2, ..., t^(2 terms) of `|S_terms(i t)|^2`, each rounded once."""
    sums = []
    for j in range(terms + 1):
        pairs = range(max(0, 2 * j - terms), min(terms, 2 * j) + 1)
        shares = (Fraction((-1) ** abs(a - j), math.factorial(a) * math.factorial(2 * j - a)) for a in pairs)
        sums.append(float(sum(shares, Fraction(0))))
    return tuple(sums)


@cache
def series_norm(terms: int, norm: float) -> float:
    """Return at least `max |sum_{k <= terms} (i t)^k / k!|` over |t| <= norm."""
    coefficients = squared_modulus(terms)
    size = sum(abs(c) * norm ** (2 * j) for j, c in enumerate(coefficients))
    # Some 3 roundings a term, of terms no larger than `size` together.
    rounding = 8 * (terms + 4) * 2.0**-53 * size
    found = math.inf
    for pieces in _PIECES:
        if found <= 1 + _NEGLIGIBLE:
            break
        largest = 0.0
        for piece in range(pieces):
            low, high = norm * piece / pieces, norm * (piece + 1) / pieces
            value = sum(c * (high if c > 0 else low) ** (2 * j) for j, c in enumerate(coefficients))
            largest = max(largest, value)
        found = math.sqrt(largest + rounding) * (1 + 2.0**-50)
    return found


def skew_norm_bound(kernel: Tensor, terms: int, tolerance: float | None) -> float:
    """Return at least the norm of a skew convolution, no sharper than its exponential's series needs."""
    taps = kernel.shape[-1]
    unfolded = taps * norm_bound(frame_convolution(kernel.flatten(1)), tolerance=0.05).upper
    if series_norm(terms, unfolded) - 1 <= _NEGLIGIBLE:
        return unfolded
    return min(unfolded, norm_above_of(Convolution.make(kernel.detach().double()), tolerance))


def soc_gain(layer: SOC | FixedSOC, tolerance: float | None) -> Gain:
    """Return the gain of a SOC layer."""
    if isinstance(layer, SOC):
        layer = FixedSOC(layer)
    if layer.is_matrix:
        gain = linear_gain(Convolution.make(layer.kernel), layer.bias, tolerance)
        return replace(gain, factors={"series": gain.value})
    if not torch.equal(layer.kernel, skew_part(layer.kernel)):
        raise ShapeError("the kernel of a SOC layer is not skew, so that nothing is known of its exponential")
    conv = Convolution.make(layer.kernel)
    rho = skew_norm_bound(layer.kernel, layer.terms, tolerance)
    norm = series_norm(layer.terms, rho)
    absolute, terms, last = absolute_norm(conv), summands(conv) + 2, layer.terms

    def rounding(unit: float) -> float:
        # Powers one after the other, each added to the total; the kernel is divided by i, which is one rounding more.
        error, size, total_error, total = 0.0, 1.0, 0.0, 1.0
        for i in range(1, last + 1):
            local = gamma(terms, unit) * absolute / i * size
            error, size = rho / i * error + local, rho / i * size + local
            total_error, total = total_error + error, total + size
        return total_error + gamma(last + 2, unit) * total

    return Gain(
        {"series": norm}, rounding, layer.bias, last + 2, is_affine=True, enlarged=last * times(*[1 + rho] * last)
    )


def sott_gain(layer: SOTT, tolerance: float | None) -> Gain:
    """Return the gain of a SOTT layer."""
    core = soc_gain(layer.core, tolerance)
    if layer.frame_in is None or layer.frame_out is None:
        # The bias is one more addition.
        return replace(
            core,
            rounding=lambda unit: core.rounding(unit) + gamma(2, unit) * core.value,
            bias=layer.bias,
            terms=core.terms + 1,
        )
    frames = (layer.frame_in.T, layer.frame_out)
    first, last = (linear_gain(frame_convolution(frame), None, tolerance) for frame in frames)
    stages = (first, core, last)
    factors = {"frames": first.factors["norm"] * last.factors["norm"], **core.factors}
    enlarged = core.enlarged * chain_enlargement(stages)
    terms = max(first.terms, core.terms + 1, last.terms)
    return Gain(factors, lambda u: chain_rounding(stages, u), layer.bias, terms, is_affine=True, enlarged=enlarged)
