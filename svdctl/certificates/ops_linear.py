"""Sums, products with constants, concatenation, matrix products and convolutions given as functions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from svdctl.certificates.error_bounds import Affine, Arithmetic, ValueBounds
from svdctl.certificates.op_rules import Call, Constant, Either, Image, Number, Setting, Several, rule
from svdctl.certificates.traced_tensor import Traced
from svdctl.layers.layer_bounds import linear_gain
from svdctl.layers.torch_bounds import batchnorm
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.rounding import norm_above, times


def _sum_of(call: Call, output: Tensor, operands: list[tuple[Any, float]], kind: str) -> Traced:
    """Return `sum of factor * operand`, operands traced or constant, stretched to the output's shape."""
    tracer = call.tracer
    lipschitz, largest, constants = 0.0, 0.0, 0.0
    parts: list[tuple[ValueBounds, float]] = []
    for operand, factor in operands:
        stretch = times(factor, call.broadcast_factor(operand, output))
        if isinstance(operand, Traced):
            bounds = tracer.bounds(operand)
            parts.append((bounds, stretch))
            lipschitz, largest = lipschitz + times(bounds.lipschitz, stretch), max(largest, bounds.lipschitz)
        else:
            constants += times(norm_above(call.constant(operand)), stretch)

    unit, tiny = tracer.arithmetic.unit, tracer.arithmetic.tiny
    error = Affine(constants * 4 * unit + tiny * output.numel())
    for bounds, stretch in parts:
        error += bounds.error * stretch + bounds.magnitude * (4 * unit * stretch + tiny)
    _contribute(call, lipschitz, largest, kind)
    return tracer.traced(output, lipschitz, error)


def _root_sum_square(
    call: Call, output: Tensor, operands: Sequence[Any], constants: Sequence[Any], kind: str, *, broadcast: bool
) -> Traced:
    """Return a function that picks each output from its operands and constants: squared changes add up."""
    tracer = call.tracer
    parts = [
        (tracer.bounds(operand), call.broadcast_factor(operand, output) if broadcast else 1.0) for operand in operands
    ]
    lipschitz = math.hypot(*(times(bounds.lipschitz, stretch) for bounds, stretch in parts)) * (1 + 1e-15)

    rounded = Affine(math.sqrt(output.numel()) * call.rounding(constants, tracer.arithmetic))
    error = Affine.root_sum_square([bounds.error * stretch for bounds, stretch in parts]) + rounded
    _contribute(call, lipschitz, max(bounds.lipschitz for bounds, _ in parts), kind)
    return tracer.traced(output, lipschitz, error)


def _contribute(call: Call, lipschitz: float, largest: float, kind: str) -> None:
    if largest > 0 and abs(lipschitz / largest - 1) > 1e-12:
        call.tracer.contribute(call.name, lipschitz / largest, {kind: lipschitz / largest}, lipschitz)


@rule("add radd sub subtract rsub")
def _add(call: Call, x: Either, other: Either, *, alpha: Number = 1.0) -> Traced:
    first, second = (other, x) if call.name.endswith(("rsub", "rsub__")) else (x, other)
    return _sum_of(call, call.run(), [(first, 1.0), (second, abs(alpha))], "sum")


def _split(values: Sequence[Any]) -> tuple[list[Traced], list[Any]]:
    """Return the traced ones, and the constants."""
    traced = [value for value in values if isinstance(value, Traced)]
    return traced, [value for value in values if not isinstance(value, Traced)]


@rule("maximum minimum")
def _maximum(call: Call, x: Either, other: Either) -> Traced:
    """Bound a maximum: `|max(a, b) - max(a', b')|^2 <= |a - a'|^2 + |b - b'|^2`, entry by entry."""
    return _root_sum_square(call, call.run(), *_split([x, other]), "maximum", broadcast=True)


@rule("cat concat concatenate stack hstack")
def _concatenate(call: Call, tensors: Several, dim: Setting = 0) -> Traced:
    return _root_sum_square(call, call.run(), *_split(tensors), "concatenation", broadcast=False)


def _scaled(call: Call, x: Traced, factor: float, underflows: Callable[[Arithmetic], float]) -> Traced:
    """Return a product with constants of at most `factor`.

    Args:
        call, x, factor: the call, the operand that depends on the image, the largest constant.
        underflows: what an entry of x may err by, relatively, since the constant is rounded to zero or nearly.
    """
    output = call.run()
    stretch = call.broadcast_factor(x, output)
    factor = times(factor, stretch) * (1 + 2.0**-50)
    factor = 1.0 if abs(factor - 1) < 1e-14 else factor

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        relative = 4 * factor * arithmetic.unit + stretch * underflows(arithmetic)
        return size * relative + Affine(arithmetic.tiny * output.numel())

    return call.unary(x, output, factor, local, "scale")


@rule("mul multiply rmul")
def _multiply(call: Call, x: Either, other: Either) -> Traced:
    traced, constants = _split([x, other])
    if len(traced) > 1:
        raise call.unknown("of two values that both depend on the image (a product has no global constant)")
    largest = float(call.constant(constants[0]).abs().max())
    return _scaled(call, traced[0], largest, lambda arithmetic: arithmetic.tiny)


@rule("div divide true_divide truediv")
def _divide(call: Call, x: Image, other: Constant, *, rounding_mode: Literal[None] = None) -> Traced:
    smallest = float(call.constant(other).abs().min())
    if smallest == 0:
        raise call.unknown("by zero")

    def underflows(arithmetic: Arithmetic) -> float:
        return 0.0 if smallest >= arithmetic.tiny else math.inf

    return _scaled(call, x, 1 / smallest, underflows)


@rule("linear")
def _linear(call: Call, x: Image, weight: Constant, bias: Constant = None) -> Traced:
    return _affine(call, Convolution.make(weight.detach().reshape(-1, weight.shape[-1], 1)), bias, "linear")


@rule("matmul mm")
def _matmul(call: Call, x: Image, other: Constant) -> Traced:
    if other.ndim != 2 or x.value.ndim < 2:
        raise call.unknown("other than of a value that depends on the image with a constant matrix on its right")
    return _affine(call, Convolution.make(other.detach().T[:, :, None]), None, "matmul")


@rule("conv1d conv2d conv3d")
def _conv(
    call: Call,
    x: Image,
    weight: Constant,
    bias: Constant = None,
    stride: Setting = 1,
    padding: Setting = 0,
    dilation: Setting = 1,
    groups: Setting = 1,
) -> Traced:
    conv = Convolution.make(weight.detach(), stride=_size(stride), dilation=_size(dilation), groups=groups)
    return _affine(call, conv, bias, call.name.rpartition(".")[2])


@rule("conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv_transpose(
    call: Call,
    x: Image,
    weight: Constant,
    bias: Constant = None,
    stride: Setting = 1,
    padding: Setting = 0,
    output_padding: Setting = 0,
    groups: Setting = 1,
    dilation: Setting = 1,
) -> Traced:
    return _conv(call, x, weight, bias, stride, padding, dilation, groups)


def _size(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, int):
        return value
    return int(value[0]) if len(value) == 1 else tuple(int(part) for part in value)


def _affine(call: Call, conv: Convolution, bias: Tensor | None, kind: str) -> Traced:
    tracer = call.tracer
    gain = tracer.cached_gain(
        (kind, conv.stride, conv.dilation), (conv.kernel, bias), lambda: linear_gain(conv, bias, tracer.tolerance)
    )
    return tracer.layer(kind, call.x, call.run(), gain, call.rerun)


@rule("batch_norm", spaces=[F])
def _batch_norm(
    call: Call,
    x: Image,
    running_mean: Constant,
    running_var: Constant,
    weight: Constant = None,
    bias: Constant = None,
    training: Literal[True, False] = False,
    momentum: Number = 0.1,
    eps: Number = 1e-5,
) -> Traced:
    if training or running_mean is None or running_var is None:
        raise call.unknown("with statistics of the batch (use running statistics, in evaluation mode)")
    gain = batchnorm(running_mean, running_var, weight, bias, eps)
    return call.tracer.layer("batch_norm", x, call.run(), gain, call.rerun)
