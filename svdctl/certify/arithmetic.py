"""Sums, products with constants, concatenation, matrix products and convolutions given as functions."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.certify.facts import Affine, Arithmetic, Facts, norm_above
from svdctl.certify.gains import linear_gain
from svdctl.certify.plain import batchnorm
from svdctl.certify.rules import Call, rule
from svdctl.certify.trace import Traced
from svdctl.spectral.operator import Convolution


def _terms(call: Call, output: Tensor, operands: list[tuple[Any, float]], kind: str) -> Traced:
    """`sum of factor * operand`, operands traced or constant, stretched to the output's shape."""
    tracer = call.tracer
    lipschitz, largest, constants = 0.0, 0.0, 0.0
    parts: list[tuple[Facts, float]] = []
    for operand, factor in operands:
        stretch = factor * _stretch(operand, output)
        if isinstance(operand, Traced):
            facts = tracer.facts(operand)
            parts.append((facts, stretch))
            lipschitz, largest = lipschitz + facts.lipschitz * stretch, max(largest, facts.lipschitz)
        else:
            constants += norm_above(call.constant(operand)) * stretch

    def error(index: int, arithmetic: Arithmetic) -> Affine:
        total = Affine(constants * 4 * arithmetic.unit)
        for facts, stretch in parts:
            total += facts.errors[index] * stretch + facts.magnitude(index) * (4 * arithmetic.unit * stretch)
        return total

    _note(call, lipschitz, largest, kind)
    return tracer.wrap(output, lipschitz, tracer.errors(error))


def _stretch(operand: Any, output: Tensor) -> float:
    """By how much the norm of an operand grows when it is broadcast to the output's shape."""
    value = operand.value if isinstance(operand, Traced) else torch.as_tensor(operand)
    return math.sqrt(output.numel() / max(value.numel(), 1))


def _root_sum_square(call: Call, output: Tensor, operands: list[Any], kind: str) -> Traced:
    """A function whose squared change is at most the sum of its operands' squared changes, and that is exact."""
    tracer = call.tracer
    parts = [(tracer.facts(operand), _stretch(operand, output)) for operand in operands]
    if kind == "concatenation":
        parts = [(facts, 1.0) for facts, _ in parts]
    lipschitz = math.hypot(*(facts.lipschitz * stretch for facts, stretch in parts)) * (1 + 1e-15)

    def error(index: int, _arithmetic: Arithmetic) -> Affine:
        return Affine.root_sum_square([facts.errors[index] * stretch for facts, stretch in parts])

    _note(call, lipschitz, max(facts.lipschitz for facts, _ in parts), kind)
    return tracer.wrap(output, lipschitz, tracer.errors(error))


def _note(call: Call, lipschitz: float, largest: float, kind: str) -> None:
    if largest > 0 and abs(lipschitz / largest - 1) > 1e-12:
        call.tracer.contribute(call.name, lipschitz / largest, {kind: lipschitz / largest}, lipschitz)


@rule("add", "radd", "sub", "subtract", "rsub")
def _add(call: Call) -> Traced:
    alpha = call.kwargs.get("alpha", 1)
    if isinstance(alpha, Traced):
        raise call.unknown("with a factor that depends on the image")
    if len(call.args) > 2:
        raise call.unknown("with its factor before the other operand (an old form); write alpha=")
    first, second = call.args[0], call.argument(1, "other")
    if call.name.endswith("rsub"):
        first, second = second, first
    return _terms(call, call.run(), [(first, 1.0), (second, abs(float(alpha)))], "sum")


@rule("maximum", "minimum")
def _maximum(call: Call) -> Traced:
    """`|max(a, b) - max(a', b')|^2 <= |a - a'|^2 + |b - b'|^2`, entry by entry."""
    operands = [value for value in (call.args[0], call.argument(1, "other")) if isinstance(value, Traced)]
    return _root_sum_square(call, call.run(), operands, "maximum")


@rule("cat", "concat", "concatenate", "stack", "hstack")
def _concatenate(call: Call) -> Traced:
    operands = [value for value in call.argument(0, "tensors") if isinstance(value, Traced)]
    return _root_sum_square(call, call.run(), operands, "concatenation")


def _scaled(call: Call, x: Traced, factor: float) -> Traced:
    output = call.run()
    factor *= _stretch(x, output) * (1 + 2.0**-50)
    factor = 1.0 if abs(factor - 1) < 1e-14 else factor

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        return size * (4 * factor * arithmetic.unit) + Affine(arithmetic.tiny * output.numel())

    return call.through(x, output, factor, local, "scale")


@rule("mul", "multiply", "rmul")
def _multiply(call: Call) -> Traced:
    first, second = call.args[0], call.argument(1, "other")
    if isinstance(first, Traced) and isinstance(second, Traced):
        raise call.unknown("of two values that both depend on the image (a product has no global constant)")
    x, constant = (first, second) if isinstance(first, Traced) else (second, first)
    return _scaled(call, x, float(call.constant(constant).abs().max()))


@rule("div", "divide", "true_divide", "truediv")
def _divide(call: Call) -> Traced:
    x, divisor = call.args[0], call.argument(1, "other")
    if not isinstance(x, Traced) or isinstance(divisor, Traced) or call.kwargs.get("rounding_mode") is not None:
        raise call.unknown("by a value that depends on the image, or with a rounding mode")
    smallest = float(call.constant(divisor).abs().min())
    if smallest == 0:
        raise call.unknown("by zero")
    return _scaled(call, x, 1 / smallest)


@rule("linear")
def _linear(call: Call) -> Traced:
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    return _affine(call, Convolution.make(weight.detach()[:, :, None]), bias, "linear")


@rule("matmul", "mm")
def _matmul(call: Call) -> Traced:
    x, matrix = call.args[0], call.argument(1, "other")
    if not isinstance(x, Traced) or isinstance(matrix, Traced) or matrix.ndim != 2 or x.value.ndim < 2:
        raise call.unknown("other than of a value that depends on the image with a constant matrix on its right")
    return _affine(call, Convolution.make(matrix.detach().T[:, :, None]), None, "matmul")


@rule("conv1d", "conv2d", "conv3d")
def _conv(call: Call) -> Traced:
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    stride, dilation = call.argument(3, "stride", 1), call.argument(5, "dilation", 1)
    groups = call.argument(6, "groups", 1)
    if isinstance(weight, Traced):
        raise call.unknown("with a kernel that depends on the image")
    conv = Convolution.make(weight.detach(), stride=_size(stride), dilation=_size(dilation), groups=groups)
    return _affine(call, conv, bias, f"conv{conv.axes}d")


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(call: Call) -> Traced:
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    stride, groups = call.argument(3, "stride", 1), call.argument(6, "groups", 1)
    dilation = call.argument(7, "dilation", 1)
    if isinstance(weight, Traced):
        raise call.unknown("with a kernel that depends on the image")
    conv = Convolution.make(weight.detach(), stride=_size(stride), dilation=_size(dilation), groups=groups)
    return _affine(call, conv, bias, f"conv_transpose{conv.axes}d")


def _size(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, int):
        return value
    return int(value[0]) if len(value) == 1 else tuple(int(part) for part in value)


def _affine(call: Call, conv: Convolution, bias: Tensor | None, kind: str) -> Traced:
    x, tracer = call.source(), call.tracer
    weight = call.argument(1, "weight" if "weight" in call.kwargs else "other")
    key = (id(weight), weight._version, conv.stride, conv.dilation, conv.kernel.shape, id(bias))
    gain = tracer.once(key, lambda: linear_gain(conv, bias, tracer.tolerance), (weight, bias))
    return tracer.layer(kind, x, call.run(), gain, call.rerun)


@rule("batch_norm", spaces=[F])
def _batch_norm(call: Call) -> Traced:
    mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
    if call.argument(5, "training", False) or mean is None or variance is None:
        raise call.unknown("with statistics of the batch (use running statistics, in evaluation mode)")
    weight, bias = call.argument(3, "weight"), call.argument(4, "bias")
    gain = batchnorm(mean, variance, weight, bias, float(call.argument(7, "eps", 1e-5)))
    return call.tracer.layer("batch_norm", call.source(), call.run(), gain, call.rerun)
