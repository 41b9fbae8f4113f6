"""Functions of each entry: their largest slope, and a bound on the error of their evaluation.

Slopes that are no round numbers are the derivative at its stationary point, rounded up: constants for soundness, which
the tests prove on a grid; docs/theory.md, "Whole networks". Errors presume that exp, log, log1p, tanh, atan, asinh and
erf err by at most 8 unit roundoffs, relatively: the libraries in use promise 1 to 4.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

from svdctl.certificates.error_bounds import Affine, Arithmetic
from svdctl.certificates.op_rules import Call, Constant, Image, Like, Number, Setting, rule
from svdctl.certificates.traced_tensor import Traced

GELU = 1.1289042
"""At sqrt(2): `Phi(sqrt 2) + sqrt(2) phi(sqrt 2)`."""
GELU_TANH = 1.1289931
SILU = 1.0998394
MISH = 1.0884982
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


FIXED: tuple[tuple[str, float, float, float], ...] = (
    ("relu relu6 abs absolute neg negative", 1.0, 0.0, 0.0),
    ("tanh tanhshrink sin softsign atan arctan asinh arcsinh", 1.0, 24.0, 0.0),
    ("cos logsigmoid", 1.0, 24.0, 1.0),
    ("erf", 2 / math.sqrt(math.pi) * (1 + 2.0**-50), 16.0, 0.0),
    ("sigmoid", 0.25, 16.0, 1.0),
    # torch's derivative has 1/6 in single precision, rounded up.
    ("hardsigmoid", 0.16666667163372042, 8.0, 1.0),
    ("hardswish", 1.5, 16.0, 0.0),
    ("silu", SILU, 32.0, 0.0),
    ("mish", MISH, 64.0, 0.0),
    ("selu", SELU_SCALE * SELU_ALPHA * (1 + 1e-15), 32.0, 0.0),
)
"""Functions without settings: their names, largest slope, and the `units` and `offset` of `Call.elementwise`."""


def _fixed(gain: float, units: float, offset: float) -> Callable[[Call, Traced], Traced]:
    def evaluate(call: Call, x: Image) -> Traced:
        return call.elementwise(gain, units, offset)

    return evaluate


for _names, *_numbers in FIXED:
    rule(_names)(_fixed(*_numbers))


@rule("hardtanh clamp clip clamp_min clamp_max")
def _between(call: Call, x: Image, min: Constant = None, max: Constant = None) -> Traced:
    # Bounds that are tensors may have more entries than x: each entry of x is then compared with several.
    return call.elementwise(1.0, levels=(min, max))


@rule("threshold", spaces=[torch, F, torch._C._nn])
def _threshold(call: Call, x: Image, threshold: Number, value: Number) -> Traced:
    if threshold != value:
        raise call.unknown("with a value that is not its threshold, where it jumps")
    return call.elementwise(1.0, levels=(value,))


@rule("exp exp2 expm1 square reciprocal log log2 log10 log1p sqrt rsqrt pow rpow tan cumprod prod logcumsumexp")
def _steep(call: Call, x: Like, *rest: Like, **more: Like) -> Traced:
    raise call.unknown("(its slope has no bound without one of its values, which certificates do not carry)")


@rule("leaky_relu")
def _leaky_relu(call: Call, x: Image, negative_slope: Number = 0.01) -> Traced:
    slope = abs(negative_slope)
    return call.elementwise(max(1.0, slope), units=2 * slope)


@rule("prelu")
def _prelu(call: Call, x: Image, weight: Constant) -> Traced:
    slope = float(call.constant(weight).abs().max())
    return call.elementwise(max(1.0, slope), units=2 * slope)


@rule("gelu")
def _gelu(call: Call, x: Image, *, approximate: Literal["none", "tanh"] = "none") -> Traced:
    return call.elementwise(GELU_TANH if approximate == "tanh" else GELU, units=64)


@rule("elu")
def _elu(call: Call, x: Image, alpha: Number = 1.0) -> Traced:
    return call.elementwise(max(1.0, abs(alpha)), units=16 * max(1.0, abs(alpha)))


@rule("celu")
def _celu(call: Call, x: Image, alpha: Number = 1.0) -> Traced:
    if alpha <= 0:
        raise call.unknown("with an alpha that is not positive (its slope has no bound)")
    return call.elementwise(1.0, units=32)


@rule("softplus")
def _softplus(call: Call, x: Image, beta: Number = 1.0, threshold: Number = 20.0) -> Traced:
    if beta <= 0 or threshold < 10:
        raise call.unknown("with a beta that is not positive or a threshold below 10, where it jumps")
    # torch returns x itself past the threshold: a jump, which is no slope but an error.
    jump = math.log1p(math.exp(-threshold)) / beta
    return call.elementwise(1.0, units=24, offset=1 / beta, jump=jump)


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

    return call.unary(x, output, 0.5, local, "activation")
