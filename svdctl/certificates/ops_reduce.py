"""Functions that order or reduce an axis: largest values, sorting, norms, logarithms of sums of exponentials."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.certificates.error_bounds import Affine, Arithmetic
from svdctl.certificates.intervals import Interval
from svdctl.certificates.op_rules import Call, Either, Image, Like, Number, Setting, rule
from svdctl.certificates.ops_linear import maximum_of_two
from svdctl.certificates.ops_shape_pool import axes_of, window_overlap
from svdctl.certificates.traced_tensor import Traced
from svdctl.spectral.rounding import gamma

# For speed: the entries of longer axes are not told apart.
_MOST_VIEWS = 64


@rule("amax amin")
def _extremes(call: Call, x: Image, dim: Setting = (), keepdim: Setting = False) -> Traced:
    axes = dim if isinstance(dim, Sequence) else (dim,)
    return _largest(call, call.run(), int(axes[0]) if len(axes) == 1 else None)


@rule("max min")
def _max(call: Call, x: Either, other: Like = None, keepdim: Setting = False, *, dim: Setting = None) -> Any:
    """Bound all three functions of this name: of one value, along an axis, and of two values."""
    if isinstance(other, Tensor):
        return maximum_of_two(call, x, other)
    axis = other if dim is None else dim
    output = call.run()
    if axis is None:
        return call.unary(x, output, 1.0, None, "pooling", interval=call.interval(x))
    return _with_places(call, output, _largest(call, output[0], int(axis)))


def _largest(call: Call, output: Tensor, axis: int | None) -> Traced:
    """Return the largest or smallest entries along an axis, which differ by no more than any of the entries."""
    x = call.x
    result = call.unary(x, output, 1.0, None, "pooling", interval=call.interval(x))
    if axis is not None and x.value.ndim and 1 < x.value.shape[axis] <= _MOST_VIEWS:
        picks = "largest" if "max" in call.name else "smallest"
        result.origin = call.tracer.origin(x).of_views(x.value.unbind(axis), picks)
    return result


def _with_places(call: Call, output: Any, values: Traced) -> Any:
    """Return values with their places, which jump and may only be looked at for their shape."""
    return type(output)((values, call.tracer.places(call.name, output[1])))


@rule("sort msort kthvalue median nanmedian")
def _sorted(call: Call, x: Image, *rest: Setting, **more: Setting) -> Any:
    """Bound order statistics: sorting moves no two lists apart, `|sort(a) - sort(b)| <= |a - b|`."""
    output, interval = call.run(), call.interval(x)
    if isinstance(output, Tensor):
        return call.unary(x, output, 1.0, None, "pooling", interval=interval)
    return _with_places(call, output, call.unary(x, output[0], 1.0, None, "pooling", interval=interval))


@rule("topk")
def _top(
    call: Call, x: Image, k: Setting, dim: Setting = -1, largest: Setting = True, sorted: Literal[True] = True
) -> Any:
    return _sorted(call, x)


@rule("argsort argmax argmin")
def _places(call: Call, x: Image, *rest: Setting, **more: Setting) -> Traced:
    return call.tracer.places(call.name, call.run())


@rule("logsumexp", spaces=[torch, Tensor, torch.special])
def _log_sum_exp(call: Call, x: Image, dim: Setting, keepdim: Setting = False) -> Traced:
    """Bound a logarithm of a sum of exponentials: its gradient, softmax, has entries >= 0 of sum 1."""
    output = call.run()
    count = x.value.numel() // max(output.numel(), 1)

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        # Rounding x - max shifts the exponents by 2 u |x|, and so the output; the sum is at least 1.
        constant = 2 * gamma(count + 64, arithmetic.unit) + count * arithmetic.tiny
        return size * (8 * arithmetic.unit) + Affine(constant * math.sqrt(output.numel()))

    return call.unary(x, output, 1.0, local, "activation")


@rule("log_softmax")
def _log_softmax(call: Call, x: Image, dim: Setting = None, *rest: Setting, **more: Setting) -> Traced:
    """Bound log-softmax: its Jacobian `I - 1 p^T` is a projection along 1, of norm `sqrt(n) |p| <= sqrt(n)`."""
    output = call.run()
    axis = dim if isinstance(dim, int) else (0 if x.value.ndim in (0, 1, 3) else 1)
    count = output.shape[axis] if output.ndim else 1
    gain = math.sqrt(count) * (1 + 2.0**-50)

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        constant = 2 * gamma(4 * count + 128, arithmetic.unit) + count * arithmetic.tiny
        return size * (16 * gain * arithmetic.unit) + Affine(constant * math.sqrt(output.numel()))

    return call.unary(x, output, gain, local, "activation", interval=Interval(hi=0.0))


def _norm_of_entries(call: Call, order: Any) -> Traced:
    """Return the p-norms of parts of the input, for p of 1, 2 or infinity: `sqrt(n)` for p = 1, else 1.

    Squares underflow below the root of the smallest normal number and overflow beyond the root of the largest.
    """
    if isinstance(order, bool) or not isinstance(order, int | float) or order not in (1, 2, math.inf):
        raise call.unknown(f"of order {order!r} (known are 1, 2 and inf, of vectors)")
    x, output = call.x, call.run()
    count = x.value.numel() // max(output.numel(), 1)
    gain = math.sqrt(count) * (1 + 2.0**-50) if order == 1 else 1.0

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        lost = math.sqrt(x.value.numel() * arithmetic.tiny) if order == 2 else 0.0
        return size * (gamma(count + 8, arithmetic.unit) * gain) + Affine(lost)

    largest = math.sqrt(call.tracer.arithmetic.largest) if order == 2 else gain
    local_or_exact = None if order == math.inf else local
    return call.unary(x, output, gain, local_or_exact, "norm", math.ceil(largest), interval=Interval(lo=0.0))


@rule("norm", spaces=[torch, Tensor])
def _norm(
    call: Call,
    x: Image,
    p: Setting = "fro",
    dim: Setting = None,
    keepdim: Setting = False,
    dtype: Literal[None] = None,
) -> Traced:
    return _norm_of_entries(call, 2 if p == "fro" else p)


@rule("vector_norm", spaces=[torch.linalg])
def _vector_norm(call: Call, x: Image, ord: Setting = 2, dim: Setting = None, keepdim: Setting = False) -> Traced:
    return _norm_of_entries(call, ord)


@rule("norm", spaces=[torch.linalg])
def _linalg_norm(call: Call, x: Image, ord: Setting = None, dim: Setting = None, keepdim: Setting = False) -> Traced:
    axes = x.value.ndim if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord is not None and ord != "fro" and axes != 1:
        raise call.unknown(f"of order {ord!r} of matrices (known is 'fro')")
    return _norm_of_entries(call, 2 if ord in (None, "fro") else ord)


@rule("normalize", spaces=[F])
def _normalized(call: Call, x: Image, p: Setting = 2.0, dim: Setting = 1, eps: Number = 1e-12) -> Traced:
    """Bound `x / max(|x|, eps)`: the projection onto the ball of radius eps, over eps, so `1 / eps`."""
    unit, tiny = call.tracer.arithmetic.unit, call.tracer.arithmetic.tiny
    if p != 2 or not tiny < eps < math.inf or not isinstance(dim, int):
        raise call.unknown("of an order that is not 2, of several axes or without a positive eps")
    output = call.run()
    count = x.value.shape[dim] if x.value.ndim else 1
    # Squares that underflow are missing in the norm, which is at least eps.
    relative = gamma(count + 16, unit) + 2 * math.sqrt((count + 1) * tiny) / eps

    def local(_size: Affine, _arithmetic: Arithmetic) -> Affine:
        return Affine(2 * relative * math.sqrt(x.value.numel() / max(count, 1)) + tiny * output.numel())

    interval = Interval(-1.0, 1.0).widened(2 * relative)
    largest = math.ceil(math.sqrt(call.tracer.arithmetic.largest))
    return call.unary(x, output, 1 / eps * (1 + 2.0**-50), local, "normalization", largest, interval=interval)


@rule("lp_pool1d lp_pool2d lp_pool3d", spaces=[F])
def _power_pooling(
    call: Call,
    x: Image,
    norm_type: Number,
    kernel_size: Setting,
    stride: Setting = None,
    ceil_mode: Literal[False] = False,
) -> Traced:
    """Bound Euclidean norms of windows: 1 each, and entries lie in `overlap` of them."""
    if norm_type != 2:
        raise call.unknown(f"of order {norm_type:g} (known is 2)")
    output = call.run()
    axes = axes_of(call, x.value, output)
    sizes = (kernel_size,) * len(axes) if isinstance(kernel_size, int) else tuple(kernel_size)
    gain = math.sqrt(window_overlap(axes, sizes, stride or sizes)) * (1 + 2.0**-50)
    count = math.prod(sizes)

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        lost = math.sqrt(output.numel() * count * count * arithmetic.tiny)
        return size * (gamma(count + 16, arithmetic.unit) * gain) + Affine(lost)

    largest = math.sqrt(call.tracer.arithmetic.largest) * math.sqrt(count)
    return call.unary(x, output, gain, local, "pooling", math.ceil(largest), interval=Interval(lo=0.0))
