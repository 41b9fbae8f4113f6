"""Functions of each entry: their largest slope, and a bound on the error of their evaluation.

Slopes that are no round numbers are the derivative at its stationary point, rounded up: constants for soundness, which
the tests prove on a grid; docs/theory.md, "Whole networks". Errors presume that exp, log1p, tanh and erf err by at most
8 unit roundoffs, relatively: the libraries in use promise 1 to 4.
"""

import math
from functools import partial

from svdctl.certificates.error_bounds import Affine, Arithmetic
from svdctl.certificates.op_rules import CONSTANT, IMAGE, NUMBER, SETTING, Call, one_of, rule
from svdctl.certificates.traced_tensor import Traced

GELU = 1.1289042
"""At sqrt(2): `Phi(sqrt 2) + sqrt(2) phi(sqrt 2)`."""
GELU_TANH = 1.1289931
SILU = 1.0998394
MISH = 1.0884982
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


FIXED: tuple[tuple[tuple[str, ...], float, float, float], ...] = (
    (("relu", "relu6", "abs", "absolute", "neg", "negative"), 1.0, 0.0, 0.0),
    (("tanh", "tanhshrink", "sin", "softsign"), 1.0, 24.0, 0.0),
    (("cos", "logsigmoid"), 1.0, 24.0, 1.0),
    (("erf",), 2 / math.sqrt(math.pi) * (1 + 2.0**-50), 16.0, 0.0),
    (("sigmoid",), 0.25, 16.0, 1.0),
    # torch's derivative has 1/6 in single precision, rounded up.
    (("hardsigmoid",), 0.16666667163372042, 8.0, 1.0),
    (("hardswish",), 1.5, 16.0, 0.0),
    (("silu",), SILU, 32.0, 0.0),
    (("mish",), MISH, 64.0, 0.0),
    (("selu",), SELU_SCALE * SELU_ALPHA * (1 + 1e-15), 32.0, 0.0),
)
"""Functions without settings: their names, largest slope, and the `units` and `offset` of `Call.elementwise`."""

for _names, _gain, _units, _offset in FIXED:
    rule(*_names, takes={"x": IMAGE})(partial(Call.elementwise, gain=_gain, units=_units, offset=_offset))


@rule("hardtanh", takes={"x": IMAGE, "min_val": NUMBER, "max_val": NUMBER})
@rule("clamp", "clip", takes={"x": IMAGE, "min": CONSTANT, "max": CONSTANT})
@rule("clamp_min", takes={"x": IMAGE, "min": CONSTANT})
@rule("clamp_max", takes={"x": IMAGE, "max": CONSTANT})
def _between(call: Call) -> Traced:
    # Bounds that are tensors may have more entries than x: each entry of x is then compared with several.
    return call.elementwise(1.0, levels=[call[name] for name in ("min", "max", "min_val", "max_val")])


@rule("leaky_relu", takes={"x": IMAGE, "negative_slope": NUMBER})
def _leaky_relu(call: Call) -> Traced:
    slope = abs(call.get("negative_slope", 0.01))
    return call.elementwise(max(1.0, slope), units=2 * slope)


@rule("prelu", takes={"x": IMAGE, "weight": CONSTANT})
def _prelu(call: Call) -> Traced:
    slope = float(call.constant(call["weight"]).abs().max())
    return call.elementwise(max(1.0, slope), units=2 * slope)


@rule("gelu", takes={"x": IMAGE, "*approximate": one_of("none", "tanh")})
def _gelu(call: Call) -> Traced:
    return call.elementwise(GELU_TANH if call["approximate"] == "tanh" else GELU, units=64)


@rule("elu", takes={"x": IMAGE, "alpha": NUMBER})
def _elu(call: Call) -> Traced:
    alpha = abs(call.get("alpha", 1.0))
    return call.elementwise(max(1.0, alpha), units=16 * max(1.0, alpha))


@rule("celu", takes={"x": IMAGE, "alpha": NUMBER})
def _celu(call: Call) -> Traced:
    if call.get("alpha", 1.0) <= 0:
        raise call.unknown("with an alpha that is not positive (its slope has no bound)")
    return call.elementwise(1.0, units=32)


@rule("softplus", takes={"x": IMAGE, "beta": NUMBER, "threshold": NUMBER})
def _softplus(call: Call) -> Traced:
    beta, threshold = call.get("beta", 1.0), call.get("threshold", 20.0)
    if beta <= 0 or threshold < 10:
        raise call.unknown("with a beta that is not positive or a threshold below 10, where it jumps")
    # torch returns x itself past the threshold: a jump, which is no slope but an error.
    jump = math.log1p(math.exp(-threshold)) / beta
    return call.elementwise(1.0, units=24, offset=1 / beta, jump=jump)


@rule("softshrink", takes={"x": IMAGE, "lambd": NUMBER})
def _softshrink(call: Call) -> Traced:
    return call.elementwise(1.0, units=2, offset=abs(call.get("lambd", 0.5)))


@rule("softmax", takes={"x": IMAGE, "dim": SETTING, "argument 3": SETTING, "dtype": SETTING, "_stacklevel": SETTING})
def _softmax(call: Call) -> Traced:
    """Its Jacobian is the covariance of a random unit vector, whose variance along any direction is at most 1/2."""
    x, output = call.x, call.run()
    root = math.sqrt(output.numel())

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        # Rounding x - max shifts each exponent by u (|x| + |max|), and so the outputs by half of it in norm.
        return size * (4 * root * arithmetic.unit) + Affine(arithmetic.unit * (output.numel() + 32) * root)

    return call.unary(x, output, 0.5, local, "activation")
