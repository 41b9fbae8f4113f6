"""Gains of layers that exponentiate a skew convolution by its truncated Taylor series.

Note, the series. A skew operator J is normal with eigenvalues i t, |t| <= |J|, so that `S_n(J) = sum_{k <= n} J^k / k!`
has norm `max |S_n(i t)|` over its spectrum. `|S_n(i t)|^2` is an even polynomial whose coefficients of t^(2 j) are
`sum_a (-1)^(a - j) / (a! (2 j - a)!)` over a, 2 j - a <= n; for 1 <= j <= n / 2 they vanish (a binomial sum), so the
excess over 1 starts with a power above n. On a piece [a, b] of the interval it is at most its positive terms at b plus
its negative terms at a: a proof, and the sharper the shorter the pieces. For n = 12 the norm is 1 up to t = 3.
"""

import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from svdctl.certificates.error_bounds import gamma, times
from svdctl.certificates.layer_bounds import (
    FINEST,
    Gain,
    Stage,
    absolute_norm,
    chain_enlargement,
    chain_rounding,
    frame_convolution,
    gain_rule,
    layer_gain,
    linear_gain,
    norm_above_of,
    summands,
)
from svdctl.errors import ShapeError
from svdctl.layers.skew import skew_part
from svdctl.layers.soc import SOC, FixedSOC
from svdctl.layers.sott import SOTT
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.matrix import matrix_norm_bound

_PIECES = (256, 4096)
_NEGLIGIBLE = 1e-9


@cache
def squared_modulus(terms: int) -> tuple[float, ...]:
    """Coefficients of t^0, t^2, ..., t^(2 terms) of `|S_terms(i t)|^2`, each rounded once."""
    sums = []
    for j in range(terms + 1):
        pairs = range(max(0, 2 * j - terms), min(terms, 2 * j) + 1)
        shares = (Fraction((-1) ** abs(a - j), math.factorial(a) * math.factorial(2 * j - a)) for a in pairs)
        sums.append(float(sum(shares, Fraction(0))))
    return tuple(sums)


@cache
def series_norm(terms: int, reach: float) -> float:
    """At least `max |sum_{k <= terms} (i t)^k / k!|` over |t| <= reach."""
    coefficients = squared_modulus(terms)
    size = sum(abs(c) * reach ** (2 * j) for j, c in enumerate(coefficients))
    # Some 3 roundings a term, of terms no larger than `size` together.
    rounding = 8 * (terms + 4) * 2.0**-53 * size
    norm = math.inf
    for pieces in _PIECES:
        if norm <= 1 + _NEGLIGIBLE:
            break
        largest = 0.0
        for piece in range(pieces):
            low, high = reach * piece / pieces, reach * (piece + 1) / pieces
            value = sum(c * (high if c > 0 else low) ** (2 * j) for j, c in enumerate(coefficients))
            largest = max(largest, value)
        norm = math.sqrt(largest + rounding) * (1 + 2.0**-50)
    return norm


def reach(kernel: Tensor, terms: int, tolerance: float | None) -> float:
    """At least the norm of a skew convolution; no sharper than its exponential's series needs."""
    taps = kernel.shape[-1]
    # One matrix beside which the symbol's frequencies are k^2 unit phases: its norm times k.
    unfolded = taps * matrix_norm_bound(kernel.detach().double().flatten(1), tolerance=0.05).upper
    if series_norm(terms, unfolded) - 1 <= _NEGLIGIBLE:
        return unfolded
    return min(unfolded, norm_above_of(Convolution.make(kernel.detach().double()), tolerance))


@gain_rule.register
def _fixed(layer: FixedSOC, *, tolerance: float | None = None) -> Gain:
    if layer.is_matrix:
        gain = linear_gain(Convolution.make(layer.kernel), layer.bias, tolerance)
        return Gain({"series": gain.value}, gain.rounding, gain.bias, gain.terms, is_affine=True)
    if not torch.equal(layer.kernel, skew_part(layer.kernel)):
        raise ShapeError("the kernel of a SOC layer is not skew, so that nothing is known of its exponential")
    conv = Convolution.make(layer.kernel)
    rho = reach(layer.kernel, layer.terms, tolerance)
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


@gain_rule.register
def _soc(layer: SOC, *, tolerance: float | None = None) -> Gain:
    return layer_gain(FixedSOC(layer), tolerance=tolerance)


@gain_rule.register
def _sott(layer: SOTT, *, tolerance: float | None = None) -> Gain:
    core = layer_gain(layer.core, tolerance=tolerance)
    terms = core.terms + 1
    if layer.frame_in is None or layer.frame_out is None:
        # The bias is one more addition.
        return Gain(
            core.factors,
            lambda u: core.rounding(u) + gamma(2, u) * core.value,
            layer.bias,
            terms,
            is_affine=True,
            enlarged=core.enlarged,
        )
    frames = [frame.detach().double() for frame in (layer.frame_in, layer.frame_out)]
    norms = [matrix_norm_bound(frame, tolerance=FINEST).upper for frame in frames]
    first, last = frame_convolution(frames[0].T), frame_convolution(frames[1])
    stages = [Stage.of(first, norms[0]), Stage(core.value, core.rounding), Stage.of(last, norms[1])]
    factors = {"frames": math.prod(norms), **core.factors}
    enlarged = core.enlarged * chain_enlargement((*norms, core.value))
    terms = max(summands(first), core.terms, summands(last)) + 1
    return Gain(factors, lambda u: chain_rounding(stages, u), layer.bias, terms, is_affine=True, enlarged=enlarged)
