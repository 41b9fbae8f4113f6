"""Functions of each entry: their largest slope, and a bound on the error of their evaluation.

Slopes that are no round numbers are the derivative at its stationary point, rounded up: constants for soundness, which
the tests prove on a grid; docs/theory.md, "Whole networks". Errors presume that exp, log, log1p, tanh, atan, asinh and
erf err by at most 8 unit roundoffs, relatively: the libraries in use promise 1 to 4.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from svdctl.certificates.error_bounds import Affine, Arithmetic
from svdctl.certificates.intervals import UNBOUNDED, Interval, at_or
from svdctl.certificates.op_rules import Call, Constant, Either, Image, Like, Number, Setting, is_number, number, rule
from svdctl.certificates.traced_tensor import Traced
from svdctl.spectral.rounding import gamma

GELU = 1.1289042
"""At sqrt(2): `Phi(sqrt 2) + sqrt(2) phi(sqrt 2)`."""
GELU_TANH = 1.1289931
SILU = 1.0998394
MISH = 1.0884982
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@dataclass(frozen=True)
class Smooth:
    """A function of each entry whose slope is bounded everywhere."""

    names: str
    gain: float
    """Its largest slope."""
    units: float = 0.0
    offset: float = 0.0
    """Of its error, see `Call.elementwise`."""
    image: Callable[[Interval], Interval] | None = None
    """Gives where its values lie; None: its values keep no range."""


def _monotone(function: Callable[[float], float], *turns: float) -> Callable[[Interval], Interval]:
    return lambda interval: interval.image(function, *turns)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus_of(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _elu_of(x: float, positive: float, negative: float) -> float:
    return positive * x if x > 0 else negative * math.expm1(x)


SMOOTH = (
    Smooth("relu", 1.0, image=_monotone(lambda x: max(x, 0.0))),
    Smooth("relu6", 1.0, image=_monotone(lambda x: min(max(x, 0.0), 6.0))),
    Smooth("abs absolute", 1.0, image=_monotone(abs, 0.0)),
    Smooth("neg negative", 1.0, image=lambda interval: -interval),
    Smooth("tanh", 1.0, 24.0, image=_monotone(math.tanh)),
    Smooth("sin", 1.0, 24.0, image=lambda _: Interval(-1.0, 1.0)),
    Smooth("cos", 1.0, 24.0, 1.0, image=lambda _: Interval(-1.0, 1.0)),
    Smooth("atan arctan", 1.0, 24.0, image=_monotone(math.atan)),
    Smooth("asinh arcsinh", 1.0, 24.0, image=_monotone(math.asinh)),
    Smooth("softsign", 1.0, 24.0, image=lambda _: Interval(-1.0, 1.0)),
    Smooth("tanhshrink", 1.0, 24.0),
    Smooth("logsigmoid", 1.0, 24.0, 1.0, image=_monotone(lambda x: -_softplus_of(-x))),
    Smooth("erf", 2 / math.sqrt(math.pi) * (1 + 2.0**-50), 16.0, image=_monotone(math.erf)),
    Smooth("sigmoid", 0.25, 16.0, 1.0, image=_monotone(_sigmoid)),
    # torch's derivative has 1/6 in single precision, rounded up.
    Smooth("hardsigmoid", 0.16666667163372042, 8.0, 1.0, image=_monotone(lambda x: min(max(x + 3, 0.0), 6.0) / 6)),
    Smooth("hardswish", 1.5, 16.0),
    Smooth("silu", SILU, 32.0),
    Smooth("mish", MISH, 64.0),
    Smooth(
        "selu",
        SELU_SCALE * SELU_ALPHA * (1 + 1e-15),
        32.0,
        image=_monotone(lambda x: _elu_of(x, SELU_SCALE, SELU_SCALE * SELU_ALPHA), 0.0),
    ),
)
"""Functions without settings whose slope is bounded everywhere."""


def _everywhere(function: Smooth) -> Callable[[Call, Traced], Traced]:
    def evaluate(call: Call, x: Image) -> Traced:
        interval = UNBOUNDED if function.image is None else function.image(call.interval(x))
        if function.units:
            interval = call.rounded(interval, function.units)
        return call.elementwise(function.gain, function.units, function.offset, interval=interval)

    return evaluate


for _function in SMOOTH:
    rule(_function.names)(_everywhere(_function))


@dataclass(frozen=True)
class Steep:
    """A function of each entry whose slope is bounded on ranges alone, where its absolute value is largest at an end.

    It is where it is monotone or convex; docs/theory.md, "Ranges of values".
    """

    names: str
    value: Callable[[float], float]
    slope: Callable[[float], float]
    least: float = -math.inf
    """No input may be smaller."""
    turn: float = math.nan
    """Where it turns from falling to rising, if it does."""


STEEP = (
    Steep("exp", math.exp, math.exp),
    Steep("exp2", lambda x: 2.0**x, lambda x: math.log(2) * 2.0**x),
    Steep("expm1", math.expm1, math.exp),
    Steep("sinh", math.sinh, math.cosh),
    Steep("cosh", math.cosh, math.sinh, turn=0.0),
    Steep("square", lambda x: x * x, lambda x: 2 * x, turn=0.0),
    Steep("log", math.log, lambda x: 1 / x, least=0.0),
    Steep("log2", math.log2, lambda x: 1 / (x * math.log(2)), least=0.0),
    Steep("log10", math.log10, lambda x: 1 / (x * math.log(10)), least=0.0),
    Steep("log1p", math.log1p, lambda x: 1 / (1 + x), least=-1.0),
    Steep("sqrt", math.sqrt, lambda x: 0.5 / math.sqrt(x), least=0.0),
    Steep("rsqrt", lambda x: 1 / math.sqrt(x), lambda x: 0.5 / (x * math.sqrt(x)), least=0.0),
)
"""Functions without settings whose slope is bounded on ranges."""


def _on_range(call: Call, function: Steep, moved: Callable[[Interval], float] = lambda _: 0.0) -> Traced:
    """Return a function of values whose range bounds its slope.

    Args:
        call, function: the call, its function.
        moved: what rounding of its settings moves its values by at most, given the range of its input.
    """
    interval = call.interval(call.x)
    low, high = (abs(at_or(function.slope, end, math.inf)) for end in (interval.lo, interval.hi))
    needed = []
    if interval.lo < function.least or not low < math.inf:
        needed.append("a larger lower bound" if math.isfinite(interval.lo) else "a lower bound")
        if math.isfinite(function.least):
            pole = at_or(function.slope, function.least, math.inf) == math.inf
            needed[-1] += f" {'above' if pole else 'of at least'} {function.least:g}"
    if not high < math.inf:
        needed.append("a smaller upper bound" if math.isfinite(interval.hi) else "an upper bound")
    if needed:
        raise call.unknown(
            f"of values with {interval.description} (its slope is bounded where they have {' and '.join(needed)}, "
            "which a clamp before it would give)"
        )
    jump, arithmetic = moved(interval), call.tracer.arithmetic
    if not jump < math.inf:
        raise call.unknown(
            f"of values with {interval.description} (a setting that {arithmetic.dtype} rounds needs both bounds, "
            "which a clamp before it would give)"
        )
    # Powers round their exponent, which moves them by at most 710 roundings: larger ones overflow. A slope that is no
    # normal number may have lost its digits, or all of itself.
    gain = max(low, high, sys.float_info.min) * (1 + 2.0**-40)
    image = interval.image(function.value, function.turn)
    found = call.rounded(image, 16, jump)
    if image.is_bounded:
        jump += 16 * arithmetic.unit * image.largest + 8 * arithmetic.tiny
        return call.elementwise(gain, jump=jump, interval=found)
    # |f(x)| is at most |f(a)| + gain |x - a| for any a of the range.
    a = next((end for end in (interval.lo, interval.hi) if math.isfinite(end)), 0.0)
    return call.elementwise(gain, 16 * gain, abs(a) + abs(function.value(a)) / gain, jump, interval=found)


def _steep(function: Steep) -> Callable[[Call, Traced], Traced]:
    def evaluate(call: Call, x: Image) -> Traced:
        return _on_range(call, function)

    return evaluate


for _one in STEEP:
    rule(_one.names)(_steep(_one))


@rule("pow")
def _power(call: Call, x: Either, exponent: Either) -> Traced:
    if isinstance(x, Traced) and is_number(exponent):
        return _power_of(call, number(exponent))
    if is_number(x) and isinstance(exponent, Traced):
        call.first = exponent
        return _exponential(call, number(x))
    raise call.unknown("of two tensors (known are one number as exponent, or as base)")


@rule("rpow")
def _power_to(call: Call, x: Image, base: Number) -> Traced:
    return _exponential(call, base)


def _power_of(call: Call, exponent: float) -> Traced:
    interval, rounding = call.interval(call.x), call.rounding([exponent], call.tracer.arithmetic)
    whole = exponent.is_integer() and rounding == 0 and (exponent >= 0 or interval.hi < 0)

    def slope(x: float) -> float:
        return 0.0 if exponent == 0 else abs(exponent) * abs(x) ** (exponent - 1)

    def moved(interval: Interval) -> float:
        """Bound the derivative by the exponent, `x^p |log x|`, times its rounding; `1 / (e |p|)` where `x^p < 1`."""
        if rounding == 0:
            return 0.0
        end = interval.hi if exponent > 0 else interval.lo
        steep = end if end <= 0 else at_or(lambda x: x**exponent * abs(math.log(x)), end, math.inf)
        return 2 * rounding * (steep + 1 / abs(exponent))

    return _on_range(
        call,
        Steep("pow", lambda x: x**exponent, slope, least=-math.inf if whole else 0.0, turn=0.0),
        moved,
    )


def _exponential(call: Call, base: float) -> Traced:
    if not base > 0:
        raise call.unknown("of a base that is not positive")
    rounding, steepness = call.rounding([base], call.tracer.arithmetic), math.log(base)

    def moved(interval: Interval) -> float:
        """Bound the derivative by the base, `x b^(x - 1)`, times its rounding."""
        if rounding == 0:
            return 0.0
        image = interval.image(lambda x: base**x)
        return 2 * rounding * interval.largest * image.largest / base

    return _on_range(call, Steep("pow", lambda x: base**x, lambda x: steepness * base**x), moved)


@rule("clamp clip clamp_min")
def _between(call: Call, x: Image, min: Constant = None, max: Constant = None) -> Traced:
    # Bounds that are tensors may have more entries than x: each entry of x is then compared with several.
    interval = call.interval(x)
    if min is not None:
        interval = interval.maximum(call.interval(min))
    if max is not None:
        interval = interval.minimum(call.interval(max))
    return call.elementwise(1.0, levels=(min, max), interval=interval)


@rule("hardtanh")
def _hard_tanh(call: Call, x: Image, min: Constant = -1.0, max: Constant = 1.0) -> Traced:
    return _between(call, x, min, max)


@rule("clamp_max")
def _at_most(call: Call, x: Image, max: Constant) -> Traced:
    return _between(call, x, None, max)


@rule("threshold", spaces=[torch, F, torch._C._nn])
def _threshold(call: Call, x: Image, threshold: Number, value: Number) -> Traced:
    if threshold != value:
        raise call.unknown("with a value that is not its threshold, where it jumps")
    return call.elementwise(1.0, levels=(value,), interval=call.interval(x).maximum(call.interval(value)))


@rule("tan cumprod prod logcumsumexp")
def _unbounded(call: Call, x: Like, *rest: Like, **more: Like) -> Traced:
    raise call.unknown("(its slope has no bound, and no rule gives one on a range)")


@rule("leaky_relu")
def _leaky_relu(call: Call, x: Image, negative_slope: Number = 0.01) -> Traced:
    slope = call.largest(negative_slope)
    interval = call.interval(x).image(lambda x: x if x > 0 else negative_slope * x, 0.0)
    return call.elementwise(max(1.0, slope), units=2 * slope, interval=call.rounded(interval, 4))


@rule("prelu")
def _prelu(call: Call, x: Image, weight: Constant) -> Traced:
    slope = call.largest(weight)
    return call.elementwise(max(1.0, slope), units=2 * slope)


@rule("gelu")
def _gelu(call: Call, x: Image, *, approximate: Literal["none", "tanh"] = "none") -> Traced:
    return call.elementwise(GELU_TANH if approximate == "tanh" else GELU, units=64)


@rule("elu")
def _elu(call: Call, x: Image, alpha: Number = 1.0) -> Traced:
    interval = call.rounded(call.interval(x).image(lambda x: _elu_of(x, 1.0, alpha), 0.0), 16)
    slope = max(1.0, call.largest(alpha))
    return call.elementwise(slope, units=16 * slope, interval=interval)


@rule("celu")
def _celu(call: Call, x: Image, alpha: Number = 1.0) -> Traced:
    if alpha <= 0:
        raise call.unknown("with an alpha that is not positive (its slope has no bound)")
    interval = call.interval(x).image(lambda x: x if x > 0 else alpha * math.expm1(x / alpha))
    return call.elementwise(1.0, units=32, interval=call.rounded(interval, 32))


@rule("softplus")
def _softplus(call: Call, x: Image, beta: Number = 1.0, threshold: Number = 20.0) -> Traced:
    if beta <= 0 or threshold < 10:
        raise call.unknown("with a beta that is not positive or a threshold below 10, where it jumps")
    # torch returns x itself past the threshold: a jump, which is no slope but an error.
    jump = math.log1p(math.exp(-threshold)) / beta
    # The product with beta shifts the exponent by u |beta x|, which small values feel more than their size.
    lost = jump + 24 * call.tracer.arithmetic.unit / beta
    interval = call.rounded(call.interval(x).image(lambda x: _softplus_of(beta * x) / beta), 24, lost)
    return call.elementwise(1.0, units=24, offset=1 / beta, jump=jump, interval=interval)


@rule("softshrink")
def _softshrink(call: Call, x: Image, lambd: Number = 0.5) -> Traced:
    return call.elementwise(1.0, units=2, offset=abs(lambd))


@rule("softmax")
def _softmax(call: Call, x: Image, dim: Setting = None, *rest: Setting, **more: Setting) -> Traced:
    """Bound softmax: its Jacobian is the covariance of a random unit vector, at most 1/2 in any direction."""
    output = call.run()
    root = math.sqrt(output.numel())

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        # Rounding x - max shifts each exponent by u (|x| + |max|), and so the outputs by half of it in norm.
        return size * (4 * root * arithmetic.unit) + Affine(arithmetic.unit * (output.numel() + 32) * root)

    interval = Interval(0.0, 1.0).widened(gamma(output.numel() + 64, call.tracer.arithmetic.unit))
    return call.unary(x, output, 0.5, local, "activation", interval=interval)
