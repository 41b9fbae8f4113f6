"""Sums, products with constants, concatenation, matrix products and convolutions given as functions."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.certificates.error_bounds import Affine, Arithmetic, ValueBounds
from svdctl.certificates.intervals import UNBOUNDED, Interval
from svdctl.certificates.op_rules import Call, Constant, Either, Image, Number, Setting, Several, rule
from svdctl.certificates.traced_tensor import Origin, Traced
from svdctl.layers.layer_bounds import Gain, absolute_norm, chain_rounding, linear_gain
from svdctl.layers.torch_bounds import batchnorm
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.rounding import norm_above, times, tiny_of


def _sum_of(
    call: Call,
    output: Tensor,
    operands: list[tuple[Any, float]],
    kind: str,
    rounded: float = 0.0,
    interval: Interval = UNBOUNDED,
) -> Traced:
    """Return what moves by at most the sum of factor * operand, operands traced or constant, stretched to the output.

    Args:
        call, output, operands, kind: the call, its numbers, (operand, factor) each, its kind for the report.
        rounded: each operand is rounded as if its factor were this, where that is more.
        interval: where the output's entries lie, if known.
    """
    tracer = call.tracer
    lipschitz, largest, constants = 0.0, 0.0, 0.0
    parts: list[tuple[ValueBounds, float, float]] = []
    for operand, factor in operands:
        broadcast = call.broadcast_factor(operand, output)
        stretch, widest = times(factor, broadcast), times(max(factor, rounded), broadcast)
        if isinstance(operand, Traced):
            bounds = tracer.bounds(operand)
            parts.append((bounds, stretch, widest))
            lipschitz, largest = lipschitz + times(bounds.lipschitz, stretch), max(largest, bounds.lipschitz)
        else:
            constants += times(norm_above(call.constant(operand)), widest)

    unit, tiny = tracer.arithmetic.unit, tracer.arithmetic.tiny
    error = Affine(constants * 4 * unit + tiny * output.numel())
    for bounds, stretch, widest in parts:
        error += bounds.error * stretch + bounds.magnitude * (4 * unit * widest + tiny)
    _contribute(call, lipschitz, largest, kind)
    return tracer.traced(output, lipschitz, error, interval=interval)


def _root_sum_square(
    call: Call,
    output: Tensor,
    operands: Sequence[Any],
    constants: Sequence[Any],
    kind: str,
    *,
    broadcast: bool,
    interval: Interval,
    of: Origin | None = None,
    together: Sequence[tuple[ValueBounds, float]] = (),
) -> Traced:
    """Return a function that picks each output from its operands and constants: squared changes add up.

    Args:
        call, output, operands, constants, kind: the call, its numbers, what it picks from, its kind for the report.
        broadcast: whether operands are broadcast to the output's shape.
        interval: where the output's entries lie.
        of: where all operands come from, if known.
        together: earlier values that the operands come from, and the joint constant of these operands for each.
    """
    tracer = call.tracer
    parts = [
        (tracer.bounds(operand), call.broadcast_factor(operand, output) if broadcast else 1.0) for operand in operands
    ]
    largest = max(bounds.lipschitz for bounds, _ in parts)
    if of is not None:
        together = [(of.bounds, Origin.joint_gain([of]))]
    if together and _root_sum(together) < _root_sum(parts):
        parts = list(together)
    lipschitz = _root_sum(parts)

    rounded = Affine(math.sqrt(output.numel()) * call.rounding(constants, tracer.arithmetic))
    error = Affine.root_sum_square([bounds.error * stretch for bounds, stretch in parts]) + rounded
    _contribute(call, lipschitz, largest, kind)
    return tracer.traced(output, lipschitz, error, interval=interval)


def _root_sum(parts: Sequence[tuple[ValueBounds, float]]) -> float:
    return math.hypot(*(times(bounds.lipschitz, stretch) for bounds, stretch in parts)) * (1 + 1e-15)


def _contribute(call: Call, lipschitz: float, largest: float, kind: str) -> None:
    if largest > 0 and abs(lipschitz / largest - 1) > 1e-12:
        call.tracer.contribute(call.name, lipschitz / largest, {kind: lipschitz / largest}, lipschitz)


@rule("add radd sub subtract rsub")
def _add(call: Call, x: Either, other: Either, *, alpha: Number = 1.0) -> Traced:
    first, second = (other, x) if call.name.endswith(("rsub", "rsub__")) else (x, other)
    added = call.interval(second) * call.interval(alpha if "sub" not in call.name else -alpha)
    # The product with alpha is rounded before; a single sum has the sign of the exact one.
    arithmetic = call.tracer.arithmetic
    error = 0.0 if alpha == 1 else 4 * arithmetic.unit * added.largest + arithmetic.tiny
    interval = call.rounded(call.interval(first) + (added + Interval(-error, error)), 4)
    return _sum_of(call, call.run(), [(first, 1.0), (second, abs(alpha))], "sum", interval=interval)


def _split(values: Sequence[Any]) -> tuple[list[Traced], list[Any]]:
    """Return the traced ones, and the constants."""
    traced = [value for value in values if isinstance(value, Traced)]
    return traced, [value for value in values if not isinstance(value, Traced)]


@rule("lerp")
def _interpolate_between(call: Call, x: Either, end: Either, weight: Constant) -> Traced:
    """Bound `(1 - w) x + w end`, which torch computes from the nearer end: errors of both have the larger factor."""
    weights = call.constant(weight)
    near, far = (call.largest(part) for part in (1 - weights, weights))
    return _sum_of(call, call.run(), [(x, near), (end, far)], "sum", rounded=2 * max(near, far))


@rule("maximum minimum")
def _maximum(call: Call, x: Either, other: Either) -> Traced:
    return maximum_of_two(call, x, other)


def maximum_of_two(call: Call, x: Any, other: Any) -> Traced:
    """Bound a maximum: `|max(a, b) - max(a', b')|^2 <= |a - a'|^2 + |b - b'|^2`, entry by entry."""
    traced, constants = _split([x, other])
    output, picks = call.run(), "largest" if "max" in call.name else "smallest"
    first, second = call.interval(x), call.interval(other)
    interval = first.maximum(second) if picks == "largest" else first.minimum(second)
    if len(traced) == 2 and x.value.shape == other.value.shape:
        one, two = (call.tracer.origin(operand) for operand in traced)
        if one.root is two.root and one.picks == two.picks == "entry":
            origin = one.of_views((*one.views, *two.views), picks)
            result = _root_sum_square(
                call, output, traced, constants, "maximum", broadcast=True, interval=interval, of=origin
            )
            result.origin = origin
            return result
    return _root_sum_square(call, output, traced, constants, "maximum", broadcast=True, interval=interval)


@rule("where", spaces=[torch])
def _where(call: Call, condition: Setting, x: Either, other: Either) -> Traced:
    """Bound a choice that does not depend on the image."""
    interval = call.interval(x).hull(call.interval(other))
    return _root_sum_square(call, call.run(), *_split([x, other]), "choice", broadcast=True, interval=interval)


@rule("where", spaces=[Tensor])
def _where_of_tensor(call: Call, x: Either, condition: Setting, other: Either) -> Traced:
    return _where(call, condition, x, other)


@rule("cat concat concatenate stack hstack")
def _concatenate(call: Call, tensors: Several, dim: Setting = 0) -> Traced:
    traced, constants = _split(tensors)
    groups: dict[int, list[Origin]] = {}
    for tensor in traced:
        origin = call.tracer.origin(tensor)
        groups.setdefault(id(origin.root), []).append(origin)
    parts = [(origins[0].bounds, Origin.joint_gain(origins)) for origins in groups.values()]
    interval = reduce(Interval.hull, (call.interval(tensor) for tensor in tensors))
    return _root_sum_square(
        call, call.run(), traced, constants, "concatenation", broadcast=False, interval=interval, together=parts
    )


def _scaled(
    call: Call, x: Traced, factor: float, underflows: Callable[[Arithmetic], float], interval: Interval
) -> Traced:
    """Return a product with constants of at most `factor`.

    Args:
        call, x, factor: the call, the operand that depends on the image, the largest constant.
        underflows: what an entry of x may err by, relatively, since the constant is rounded to zero or nearly.
        interval: where the constants lie.
    """
    output = call.run()
    stretch = call.broadcast_factor(x, output)
    factor = times(factor, stretch) * (1 + 2.0**-50)
    factor = 1.0 if abs(factor - 1) < 1e-14 else factor

    def local(size: Affine, arithmetic: Arithmetic) -> Affine:
        relative = 4 * factor * arithmetic.unit + stretch * underflows(arithmetic)
        return size * relative + Affine(arithmetic.tiny * output.numel())

    return call.unary(x, output, factor, local, "scale", interval=call.rounded(call.interval(x) * interval, 8))


@rule("mul multiply rmul")
def _multiply(call: Call, x: Either, other: Either) -> Traced:
    traced, constants = _split([x, other])
    if len(traced) > 1:
        return _product(call, x, other)
    largest = call.largest(constants[0])
    return _scaled(call, traced[0], largest, lambda arithmetic: arithmetic.tiny, call.interval(constants[0]))


def _product(call: Call, x: Traced, other: Traced) -> Traced:
    """Bound a product: `|a b - a' b'| <= |a| |b - b'| + |b'| |a - a'|`, entry by entry."""
    first, second = call.interval(x), call.interval(other)
    if not (first.is_bounded and second.is_bounded):
        which = [
            f"its {place} has {interval.description}"
            for place, interval in (("first factor", first), ("second factor", second))
            if not interval.is_bounded
        ]
        raise call.unknown(
            f"of two values that both depend on the image (a product has a constant where both are bounded, and "
            f"{' and '.join(which)}, which a clamp before it would give)"
        )
    interval = call.rounded(first * second, 4)
    return _sum_of(call, call.run(), [(x, second.largest), (other, first.largest)], "product", interval=interval)


@rule("div divide true_divide truediv")
def _divide(call: Call, x: Either, other: Either, *, rounding_mode: Literal[None] = None) -> Traced:
    if isinstance(other, Traced):
        return quotient(call, x, other)
    smallest = float(call.constant(other).abs().min())
    if smallest == 0:
        raise call.unknown("by zero")

    def underflows(arithmetic: Arithmetic) -> float:
        return 0.0 if smallest >= arithmetic.tiny else math.inf

    return _scaled(call, x, 1 / smallest, underflows, inverse(call.interval(other)))


def inverse(interval: Interval) -> Interval:
    """Return where the reciprocals of entries lie that are not 0."""
    return Interval.of(1 / interval.lo, 1 / interval.hi) if interval.smallest > 0 else UNBOUNDED


def quotient(call: Call, x: Any, other: Traced) -> Traced:
    """Bound a quotient as the product with `1 / b`, whose slope is at most `1 / min(b)^2`."""
    first, second = call.interval(x), call.interval(other)
    if second.smallest == 0:
        raise call.unknown(
            f"by a value that depends on the image and is not proved to stay away from 0 (it has {second.description}; "
            "clamp(min=...) with a positive number before it, or a positive constant added to what is not negative, "
            "would give one)"
        )
    if not first.is_bounded:
        raise call.unknown(
            f"of a value by another that depends on the image (what is divided has {first.description}, which a clamp "
            "before it would give)"
        )
    slope = times(first.largest, 1 / second.smallest, 1 / second.smallest) * (1 + 2.0**-50)
    # Some devices multiply with 1 / b, which does not underflow where b is far enough from overflow.
    interval = call.rounded(first * inverse(second), 8)
    operands = [(x, 1 / second.smallest * (1 + 2.0**-50)), (other, slope)]
    return _sum_of(call, call.run(), operands, "quotient", interval=interval)


@rule("reciprocal")
def _reciprocal(call: Call, x: Image) -> Traced:
    return quotient(call, 1.0, x)


@rule("rdiv rtruediv")
def _divide_by(call: Call, x: Image, other: Constant) -> Traced:
    return quotient(call, other, x)


@rule("linear")
def _linear(call: Call, x: Image, weight: Constant, bias: Constant = None) -> Traced:
    return _affine(call, Convolution.make(weight.detach().reshape(-1, weight.shape[-1], 1)), bias, "linear")


@rule("matmul rmatmul mm bmm mv")
def _matmul(call: Call, x: Either, other: Either) -> Traced:
    first, second = (other, x) if "rmatmul" in call.name else (x, other)
    return _contraction(call, (first, second), *_labels_of_product(first.ndim, second.ndim))


@rule("addmm baddbmm addmv")
def _add_product(
    call: Call, x: Either, mat1: Either, other: Either, *, beta: Number = 1.0, alpha: Number = 1.0
) -> Traced:
    if isinstance(x, Traced):
        raise call.unknown("with a first argument that depends on the image (add it to the product instead)")
    added = call.constant(x) * beta
    operands, labels = (mat1, other), _labels_of_product(mat1.ndim, other.ndim)
    return _contraction(call, operands, *labels, alpha=alpha, added=added)


def _labels_of_product(first: int, second: int) -> tuple[list[Sequence[Hashable]], list[Hashable]]:
    """Return labels for the axes of both factors of `torch.matmul`, with so many axes, and of the product."""
    stacked = [list(range(max(axes - 2, 0), 0, -1)) for axes in (first, second)]
    left = ["k"] if first == 1 else [*stacked[0], "m", "k"]
    right = ["k"] if second == 1 else [*stacked[1], "k", "n"]
    return [left, right], [*max(stacked, key=len), *left[-2:-1], *right[-1:][second == 1 :]]


@rule("einsum")
def _einsum(call: Call, equation: Setting, *operands: Either) -> Any:
    if not isinstance(equation, str):
        raise call.unknown("with axes given as lists (write an equation)")
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands) or len(operands) > 2:
        raise call.unknown(f"of {len(operands)} operands (multiply the constants first)")
    labels = [_labels_of_term(term, operand.ndim) for term, operand in zip(terms, operands, strict=True)]
    if arrow:
        wide = max(labels, key=lambda axes: sum(isinstance(axis, int) for axis in axes))
        dots = [axis for axis in wide if isinstance(axis, int)]
        before, ellipsis, after = result.partition("...")
        out: list[Hashable] = [*before, *(dots if ellipsis else ()), *after]
    else:
        named = [axis for axes in labels for axis in axes if isinstance(axis, str)]
        dots = sorted({axis for axes in labels for axis in axes if isinstance(axis, int)}, reverse=True)
        out = [*dots, *sorted(axis for axis in set(named) if named.count(axis) == 1)]
    if len(operands) == 1:
        call.first = operands[0]
        output = call.run()
        return call.non_negative(operands[0].numel() // max(output.numel(), 1), "sum")
    return _contraction(call, operands, labels, out)


def _labels_of_term(term: str, axes: int) -> list[Hashable]:
    """Return labels for each axis of an operand of einsum, those of an ellipsis counted from its end."""
    before, ellipsis, after = term.partition("...")
    return [*before, *(range(axes - len(before) - len(after), 0, -1) if ellipsis else ()), *after]


def _contraction(
    call: Call,
    operands: Sequence[Any],
    labels: Sequence[Sequence[Hashable]],
    out: Sequence[Hashable],
    *,
    alpha: float = 1.0,
    added: Tensor | None = None,
) -> Traced:
    """Return `alpha * product + added` of a value and a constant, summed over the axes that are not in `out`.

    For each index of the axes that both have and that stay, it is a matrix from the axes that are summed to those of
    the constant: the norm is the largest of theirs, that of a grouped convolution of one tap.
    """
    if all(isinstance(operand, Traced) for operand in operands):
        raise call.unknown("of two values that both depend on the image (a product has no global constant)")
    place = 0 if isinstance(operands[0], Traced) else 1
    call.first, constant = operands[place], operands[1 - place].detach().double()
    mine, others = labels[place], labels[1 - place]
    if len(set(mine)) < len(mine) or len(set(others)) < len(others):
        raise call.unknown("that takes a diagonal of one operand (take it before)")
    batched = len(mine) > 0 and len(out) > 0 and mine[0] == out[0] and mine[0] not in others
    # Axes of one entry are broadcast: their operand does not depend on them.
    wide = {axis for axis, size in zip(mine, call.x.value.shape, strict=True) if size > 1}
    others_wide = {axis for axis, size in zip(others, constant.shape, strict=True) if size > 1}
    summed = (wide | others_wide) - set(out)
    if summed - (wide & others_wide):
        raise call.unknown("that sums an axis of one operand alone (sum it before)")
    stacked, rows = (
        [axis for axis in others if axis in kept] for kept in ((wide & others_wide) - summed, others_wide - wide)
    )
    order = [others.index(axis) for axis in (*stacked, *rows, *(axis for axis in others if axis in summed))]
    order = [axis for axis in range(constant.ndim) if axis not in order] + order
    groups = math.prod(constant.shape[others.index(axis)] for axis in stacked)
    height = groups * math.prod(constant.shape[others.index(axis)] for axis in rows)
    matrices = constant.permute(order).reshape(height, -1, 1)
    conv = Convolution.make(matrices * alpha, groups=groups)

    def compute() -> Gain:
        gain, absolute = linear_gain(conv, added, call.tracer.tolerance), absolute_norm(conv)
        unscaled = absolute_norm(conv.with_kernel(matrices.reshape(conv.kernel.shape)))

        def rounding(unit: float) -> float:
            return gain.rounding(unit) + (0.0 if alpha == 1 else 4 * unit * absolute + tiny_of(unit) * unscaled)

        return replace(gain, rounding=rounding, terms=gain.terms + 4, is_affine=batched)

    kind = call.name.rpartition(".")[2]
    gain = call.tracer.cached_gain((kind, groups, alpha, batched), (matrices, added), compute)
    return call.tracer.layer(kind, call.x, call.run(), gain, call.rerun)


# For speed: longer axes are bounded without their matrix.
_LONGEST_AXIS = 2048


@rule("cumsum")
def _cumulative_sum(call: Call, x: Image, dim: Setting) -> Any:
    if not x.value.ndim or x.value.shape[dim] > _LONGEST_AXIS:
        return call.non_negative(x.value.numel(), "sum")
    return _along_one_axis(call, torch.eye(x.value.shape[dim], dtype=torch.float64).cumsum(0))


@rule("diff")
def _difference(call: Call, x: Image, n: Setting = 1, dim: Setting = -1) -> Any:
    if x.value.shape[dim] > _LONGEST_AXIS:
        raise call.unknown(f"of an axis of more than {_LONGEST_AXIS} entries")
    return _along_one_axis(call, torch.eye(x.value.shape[dim], dtype=torch.float64).diff(n, 0))


def _along_one_axis(call: Call, matrix: Tensor) -> Traced:
    """Return a linear function that takes this matrix to one axis of its input."""
    kind = call.name.rpartition(".")[2]
    conv = Convolution.make(matrix[:, :, None])
    gain = call.tracer.cached_gain(kind, matrix, lambda: linear_gain(conv, None, call.tracer.tolerance))
    return call.tracer.layer(kind, call.x, call.run(), replace(gain, is_affine=False), call.rerun)


@rule("interpolate")
def _interpolate(
    call: Call,
    x: Image,
    size: Setting = None,
    scale_factor: Setting = None,
    mode: Setting = "nearest",
    align_corners: Setting = None,
    recompute_scale_factor: Setting = None,
    antialias: Literal[False] = False,
) -> Any:
    """Bound what is one matrix along each axis: its norm is the product of theirs."""
    if mode in ("nearest", "nearest-exact"):
        return call.non_negative(1, "copies")
    output = call.run()
    sides = list(zip(x.value.shape[2:], output.shape[2:], strict=True))
    if mode == "area":
        return call.non_negative(math.prod(-(-before // after) + 1 for before, after in sides), "pooling")
    factors = [scale_factor] * len(sides) if isinstance(scale_factor, float | int) else scale_factor
    matrices = []
    for axis, (before, after) in enumerate(sides):
        # In two axes, of which one has a single entry, where the mode asks for two.
        flat = (1,) if mode in ("bilinear", "bicubic") else ()
        unit_images = torch.eye(before, dtype=torch.float64, device=x.value.device).reshape(before, 1, before, *flat)
        images = F.interpolate(
            unit_images,
            size=(after, *flat) if factors is None else None,
            scale_factor=None if factors is None else (float(factors[axis]), *map(float, flat)),
            mode="linear" if mode == "trilinear" else mode,
            align_corners=align_corners,
            recompute_scale_factor=recompute_scale_factor,
        )
        matrices.append(images.reshape(before, after).T)
    _require_separable(call, matrices)

    def compute() -> Gain:
        stages = [_interpolation_gain(matrix, call.tracer.tolerance) for matrix in matrices]
        norm = times(*(stage.value for stage in stages))
        terms = sum(stage.terms for stage in stages)
        return Gain(
            {"interpolation": norm}, lambda unit: chain_rounding(stages, unit), terms=terms, enlarged=4 * max(norm, 1.0)
        )

    gain = call.tracer.cached_gain(("interpolate", mode), matrices, compute)
    return call.tracer.layer("interpolate", x, output, gain, call.rerun)


def _require_separable(call: Call, matrices: Sequence[Tensor]) -> None:
    """Raise a ShapeError unless the function is these matrices along its axes, as a random input tells."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(call.x.value.shape, generator=generator, dtype=torch.float64).to(call.x.value.device)
    found, wanted = call.rerun(start), start
    for axis, matrix in enumerate(matrices):
        wanted = torch.tensordot(wanted, matrix, dims=([2 + axis], [1])).movedim(-1, 2 + axis)
    if found.shape != wanted.shape or float((found - wanted).norm()) > 1e-9 * float(start.norm()):
        raise call.unknown("with these settings (it is not one matrix for each axis)")


def _interpolation_gain(matrix: Tensor, tolerance: float | None) -> Gain:
    """Return the gain along one axis; torch computes places in the input, and so weights, to a few u times its size."""
    gain = linear_gain(Convolution.make(matrix[:, :, None]), None, tolerance)
    rows, columns = (float((matrix != 0).sum(axis).max()) + 2 for axis in (1, 0))
    moved = 16 * (max(matrix.shape) + 2) * math.sqrt(2 * rows * columns)
    return replace(gain, rounding=lambda unit: gain.rounding(unit) + moved * unit)


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


@rule("instance_norm", spaces=[F])
def _instance_norm(
    call: Call,
    x: Image,
    running_mean: Constant = None,
    running_var: Constant = None,
    weight: Constant = None,
    bias: Constant = None,
    use_input_stats: Literal[True, False] = True,
    momentum: Number = 0.1,
    eps: Number = 1e-5,
) -> Traced:
    if use_input_stats or running_mean is None or running_var is None:
        raise call.unknown("with statistics of the image (use track_running_stats=True, in evaluation mode)")
    gain = batchnorm(running_mean, running_var, weight, bias, eps)
    return call.tracer.layer("instance_norm", x, call.run(), gain, call.rerun)
