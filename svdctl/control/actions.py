"""Clip, assign or divide the singular values of one layer, in place, on its own device and dtype."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from svdctl.control.shared_memory import groups_by_memory
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import (
    BatchNorm,
    batchnorm_gains,
    exact_operator,
    exact_operators,
    operator_of,
    why_not_writable,
)
from svdctl.layers.layer_ops import is_controllable, layers_of_types, ops_of
from svdctl.layers.norms import is_layer_bounded, kernel_limit, layer_norm
from svdctl.layers.padding import padding_factor
from svdctl.spectral.bounds import Bracket, are_bounded, norm_bounds, taps_norms, upper_ends
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.power_iteration import paper_clip, paper_sigma
from svdctl.spectral.projection import CLIP_ROUNDS, SEAL_TOLERANCE, assigned_kernels, frobenius_norms, project_kernels
from svdctl.spectral.stacks import multiply_

Optimizer = torch.optim.Optimizer | None
_MARGIN = 1e-4
_OUTWARD = 1e-12  # of a product of float64 numbers, and of the differences whose norm is added to it
_CLOSEST = 1e-5  # below a maximum: what proves the maximum again cannot tell norms within 1e-6 of it
_MOST_ROUNDS = 20
T = TypeVar("T")


def clip_layers_(layers: Sequence[nn.Module], max_sigma: Sequence[float], optimizer: Optimizer = None) -> list[float]:
    """Bring singular values above each layer's maximum down to it, the bounds proved; return the distances moved.

    No two of the layers share memory. On a GPU layers of one shape are clipped at once, and all proved together.
    """
    read = exact_operators(layers)
    limits = [
        kernel_limit(layer, limit, error) for layer, limit, (_, error) in zip(layers, max_sigma, read, strict=True)
    ]
    bounded = are_bounded([conv for conv, _ in read], limits)
    above = [place for place, proved in enumerate(bounded) if not proved]
    chosen = [layers[place] for place in above]
    convs = [_as_stored(layers[place], read[place][0]) for place in above]
    inside = [_room_for_rounding(layers[place], max_sigma[place]) for place in above]
    kernels = project_kernels(convs, inside, rounds=CLIP_ROUNDS)
    distances = _replace_(chosen, convs, kernels, [max_sigma[place] for place in above], optimizer)
    found = dict(zip(above, distances, strict=True))
    return [found.get(place, 0.0) for place in range(len(layers))]


def assign_layers_(layers: Sequence[nn.Module], values: Sequence[float], optimizer: Optimizer = None) -> list[float]:
    """Set all singular values close to each layer's value, the bounds proved; return the distances moved.

    No two of the layers share memory. On a GPU layers of one shape are assigned at once, and all proved together.
    """
    convs = [_as_stored(layer, conv) for layer, (conv, _) in zip(layers, exact_operators(layers), strict=True)]
    inside = [_room_for_rounding(layer, value) for layer, value in zip(layers, values, strict=True)]
    try:
        kernels = assigned_kernels(convs, inside)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, not declared
        raise ShapeError("a kernel holds values that are not finite; it has no singular values") from error
    return _replace_(layers, convs, kernels, values, optimizer)


def _as_stored(layer: nn.Module, conv: Convolution) -> Convolution:
    """Return the layer's operator in the precision of its weights, of float16 and bfloat16 in float32."""
    stored = ops_of(layer).tensors(layer)[0].dtype
    return conv.with_kernel(conv.kernel.to(torch.promote_types(stored, torch.float32)))


def coarse_unit(weight: Tensor) -> float:
    """Return the spacing of float16 or bfloat16 numbers above 1 if a weight holds such, 0 if it holds finer ones.

    Half of it is the largest relative change by rounding, and the least factor off 1 that changes every entry.
    """
    return torch.finfo(weight.dtype).eps if weight.itemsize < 4 else 0.0


def _room_for_rounding(layer: nn.Module, max_sigma: float) -> float:
    """Return what the norm of a kernel may be that is rounded to a layer's weights next."""
    return kernel_limit(layer, max_sigma) * (1 - coarse_unit(ops_of(layer).tensors(layer)[0]) / 2)


def _replace_(
    layers: Sequence[nn.Module],
    before: Sequence[Convolution],
    kernels: Sequence[Tensor],
    max_sigma: Sequence[float],
    optimizer: Optimizer,
) -> list[float]:
    """Write polyphase kernels, then scale until the bounds are proved of the written weights; return the distances."""
    if not layers:
        return []
    # The layers' own memory may be behind them.
    before = [conv.with_kernel(conv.kernel.to(torch.float64, copy=True)) for conv in before]
    after = [conv.from_polyphase(kernel) for conv, kernel in zip(before, kernels, strict=True)]
    for ops, places in layers_of_types(layers):
        ops.write_([layers[place] for place in places], [after[place] for place in places], optimizer)
    read = exact_operators(layers)
    # Rounding to half precision has its room, and often nothing is above.
    limits = [
        kernel_limit(layer, limit, error) if coarse_unit(ops_of(layer).tensors(layer)[0]) else None
        for layer, limit, (_, error) in zip(layers, max_sigma, read, strict=True)
    ]
    brackets = norm_bounds([conv for conv, _ in read], tolerance=SEAL_TOLERANCE, at_most=limits)
    factors = [factor for factor, _ in _scale_below_(layers, max_sigma, read, brackets)]
    return frobenius_norms(_apart([conv.kernel for conv in after], factors, [conv.kernel for conv in before]))


def _apart(kernels: Sequence[Tensor], factors: Sequence[float], others: Sequence[Tensor]) -> list[Tensor]:
    """Return `kernel * factor - other` of each, in float64."""
    scaled = torch._foreach_mul([kernel.double() for kernel in kernels], list(factors))
    torch._foreach_sub_(scaled, [other.double() for other in others])
    return list(scaled)


def divide_exact_layers_(layers: Sequence[nn.Module], max_sigma: Sequence[float]) -> list[float]:
    """Scale each layer by `min(1, maximum / bound)` until the bound is proved of the written weights; return factors.

    No two of the layers share memory.
    """
    factors = [1.0] * len(layers)
    operators = exact_operators(layers)
    inside = [
        kernel_limit(layer, limit, error) for layer, limit, (_, error) in zip(layers, max_sigma, operators, strict=True)
    ]
    uppers = upper_ends([conv for conv, _ in operators], inside)
    above = [place for place, (upper, limit) in enumerate(zip(uppers, inside, strict=True)) if upper > limit]
    chosen, limits = [layers[place] for place in above], [max_sigma[place] for place in above]
    read = [operators[place] for place in above]
    # A lower end is not asked for.
    brackets = [Bracket(0.0, uppers[place]) for place in above]
    for place, (factor, _) in zip(above, _scale_below_(chosen, limits, read, brackets), strict=True):
        factors[place] = factor
    return factors


def measure_and_divide_layers_(layers: Sequence[nn.Module], max_sigma: Sequence[float]) -> list[tuple[float, Bracket]]:
    """Do what `divide_exact_layers_` does, and return the factor and a sharp bracket of each layer's norm."""
    read = exact_operators(layers)
    limits = [
        kernel_limit(layer, limit, error) for layer, limit, (_, error) in zip(layers, max_sigma, read, strict=True)
    ]
    return _scale_below_(layers, max_sigma, read, norm_bounds([conv for conv, _ in read], at_most=limits))


def _scale_below_(
    layers: Sequence[nn.Module],
    max_sigma: Sequence[float],
    read: Sequence[tuple[Convolution, float]],
    kernels: Sequence[Bracket],
) -> list[tuple[float, Bracket]]:
    """Scale each layer by its bound until it is proved to be at most its maximum.

    Args:
        layers: what is scaled; no two share memory.
        max_sigma: the maximum of each.
        read: what `exact_operators` gives of them.
        kernels: proved of the norm of each kernel.

    Returns:
        The factor, and a bracket of the layer's norm, of each.
    """
    convs, errors = [conv for conv, _ in read], [error for _, error in read]
    lower, upper = [kernel.lower for kernel in kernels], [kernel.upper for kernel in kernels]
    padding = [padding_factor(layer) for layer in layers]
    stored = [ops_of(layer).tensors(layer)[0] for layer in layers]
    coarse = [coarse_unit(weight) for weight in stored]
    factors = [1.0] * len(layers)

    def is_within(place: int) -> bool:
        limit = kernel_limit(layers[place], max_sigma[place], errors[place])
        found = layer_norm(upper[place], errors[place], padding[place])
        return upper[place] <= limit or found <= max_sigma[place]

    left = [place for place in range(len(layers)) if not is_within(place)]
    rounds = 0
    while left:
        if rounds == _MOST_ROUNDS:
            place = left[0]
            raise ShapeError(
                f"a weight of {stored[place].dtype} is too coarse to be brought to {max_sigma[place]:g}: it was scaled "
                f"{rounds} times, and rounding kept its norm above; convert the network with .float() first"
            )
        steps = []
        for place, taps in zip(left, taps_norms([convs[place].kernel for place in left]), strict=True):
            if not math.isfinite(upper[place]):
                raise ShapeError(
                    "the layer's norm is above 1.8e308, the largest number of float64; scale its weight first"
                )
            # Rounding moves the scaled kernel by at most a unit of each entry; the next round checks what it did.
            # The margin makes that round, and later brackets of this width, find nothing left to do.
            # Of half precision a unit of each entry is a tenth of the norm, and what it truly does is far less: half a
            # unit is left for it, and more in each round that was not enough or changed nothing.
            unit = torch.finfo(stored[place].dtype).eps
            moved = 0.0 if coarse[place] else unit * taps
            room = layer_norm(upper[place] * (1 + _MARGIN) + moved, errors[place], padding[place])
            step = max_sigma[place] / room * (1 - (coarse[place] / 2 or 4 * unit))
            if coarse[place] and rounds:
                step = min(step, 1 - min(coarse[place] * 2 ** (rounds - 1), 0.5))
            steps.append(step)
        chosen = [layers[place] for place in left]
        # Before: the layers' own memory may be behind them.
        wanted = torch._foreach_mul([convs[place].kernel.double() for place in left], steps)
        with torch.no_grad():
            for ops, places in layers_of_types(chosen):
                ops.scale_([chosen[place] for place in places], [steps[place] for place in places])
        written = exact_operators(chosen)
        moved_by = taps_norms(_apart([conv.kernel for conv, _ in written], [1.0] * len(left), wanted))
        for place, (conv, error), step, apart in zip(left, written, steps, moved_by, strict=True):
            convs[place], errors[place] = conv, error
            factors[place] *= step
            lower[place] = lower[place] * step * (1 - _OUTWARD) - apart
            upper[place] = upper[place] * step * (1 + _OUTWARD) + apart
        again = [place for place in left if coarse[place]]
        limits = [kernel_limit(layers[place], max_sigma[place], errors[place]) * (1 - _CLOSEST) for place in again]
        for place, bracket in zip(again, norm_bounds([convs[place] for place in again], at_most=limits), strict=True):
            lower[place], upper[place] = bracket.lower, bracket.upper
        left = [place for place in left if not is_within(place)]
        rounds += 1
    found = []
    for place, factor in enumerate(factors):
        # What was scaled is within by less than the margin.
        norm = layer_norm(upper[place], errors[place], padding[place])
        highest = max_sigma[place] if factor != 1 else min(norm, max_sigma[place])
        found.append((factor, Bracket(max(lower[place] - errors[place], 0.0), highest)))
    return found


def paper_divide_layer_(
    layer: nn.Module, max_sigma: float, size: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Divide as the paper does, by two power steps from a new random vector, some 15 % too low; nothing is proved.

    Returns:
        The factor (0-d), which is not read.
    """
    ops = ops_of(layer)
    conv = ops.operator(layer)
    sigma = paper_sigma(conv, size, generator, padding=_zeros_beside(layer, conv))
    factor = shrink(sigma, max_sigma, coarse_unit(ops.tensors(layer)[0]))
    ops.scale_([layer], [factor])
    return factor


def _zeros_beside(layer: nn.Module, conv: Convolution) -> tuple[int, ...]:
    """Return how many entries a layer pads on both sides of each axis, whatever it pads them with."""
    padding: Any = getattr(layer, "padding", 0)
    if isinstance(padding, str):
        reach = tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.taps, strict=True))
        return tuple(r // 2 if padding == "same" else 0 for r in reach)
    return (padding,) * conv.axes if isinstance(padding, int) else tuple(padding)


def paper_clip_layer_(layer: nn.Module, max_sigma: float, size: tuple[int, ...], optimizer: Optimizer = None) -> bool:
    """Clip as the paper does, once on the grid of the layer's input over its strides; nothing is proved.

    A grid smaller than the kernel is enlarged to hold it. Return whether a value was above the maximum. Frames of TT
    layers become orthonormal in any case, as in the paper's code, so that the steps that follow are its steps.
    """
    before = operator_of(layer)
    after = paper_clip(before, max_sigma, size)
    changed = not torch.equal(after.kernel, before.kernel)
    ops_of(layer).write_([layer], [after], optimizer)
    return changed


@torch.no_grad()
def limit_batchnorms_(layers: Sequence[BatchNorm], max_sigma: float) -> list[Tensor]:
    """Scale each gamma so that `max |gamma / sqrt(running_var + eps)| <= max_sigma`; no host synchronisation.

    Returns:
        The factor (0-d) of each layer that has a gamma.
    """
    affine = [layer for layer in layers if layer.weight is not None]
    found: dict[int, Tensor] = {}
    for unit in dict.fromkeys(coarse_unit(layer.weight) for layer in affine):
        places = [place for place, layer in enumerate(affine) if coarse_unit(layer.weight) == unit]
        alike = [affine[place] for place in places]
        gains = batchnorm_gains(alike)
        # Not one whose gain seems to be within its maximum by rounding alone.
        factors = shrink(gains, max_sigma, unit, doubt=4 * torch.finfo(gains.dtype).eps)
        multiply_([layer.weight for layer in alike], factors.unbind())
        found |= zip(places, factors.unbind(), strict=True)
    return [found[place] for place in range(len(affine))]


class LayerGroups:
    """Layers in groups that share memory; each group is one piece of work, known by the name of its first layer.

    Args:
        layers: by name.
        max_sigma: the maximum of each.
    """

    def __init__(self, layers: Mapping[str, nn.Module], max_sigma: Mapping[str, float]) -> None:
        self.layers, self.max_sigma = layers, max_sigma
        self.tensors = {name: ops_of(layer).tensors(layer) for name, layer in layers.items()}
        self.names = {names[0]: names for names in groups_by_memory(self.tensors)}
        self.costs = {first: sum(expected_cost(layers[name]) for name in names) for first, names in self.names.items()}

    def act_(
        self, firsts: Sequence[str], work: Callable[[list[str]], Sequence[T]], *, writes_operator: bool
    ) -> dict[str, T]:
        """Run `work` on groups, and prove all layers of those of several to be within their maxima.

        Args:
            firsts: which groups.
            work: takes names of layers, and brings each within its maximum; layers that share memory one after another.
            writes_operator: whether `work` writes new kernels, for which frames that TT layers share must be
                orthonormal.

        Raises:
            ShapeError: what lowers the norm of one raises that of another, again and again.
        """
        with naming_what_is_not_finite({name: self.layers[name] for first in firsts for name in self.names[first]}):
            return self._act_(firsts, work, writes_operator=writes_operator)

    def _act_(
        self, firsts: Sequence[str], work: Callable[[list[str]], Sequence[T]], *, writes_operator: bool
    ) -> dict[str, T]:
        alone = [first for first in firsts if len(self.names[first]) == 1]
        found = dict(zip(alone, work(alone), strict=True)) if alone else {}
        for first in firsts:
            group = {name: self.layers[name] for name in self.names[first]}
            if len(group) == 1:
                continue
            if writes_operator and not all(
                is_layer_bounded(layer, self.max_sigma[name]) for name, layer in group.items()
            ):
                orthonormalize_frames_(group)
            found |= {name: work([name])[0] for name in group}
        self.seal_([first for first in firsts if len(self.names[first]) > 1], sharp=False)
        return found

    def seal_(self, firsts: Sequence[str], *, sharp: bool) -> dict[str, tuple[float, dict[str, Bracket]]]:
        """Scale the layers of groups until all are proved to be within their maxima.

        Args:
            firsts: which groups.
            sharp: find brackets as sharp as a measurement, instead of those from 0 to the maximum.

        Returns:
            Of each group the smallest factor that scaled a layer, 1 where none was changed, and a bracket of each
            layer's norm.

        Raises:
            ShapeError: as `act_`.
        """
        found: dict[str, tuple[float, dict[str, Bracket]]] = {}
        smallest = dict.fromkeys(firsts, 1.0)
        left = list(firsts)
        for _ in range(_MOST_ROUNDS):
            results = self._scale_once_(left, sharp=sharp)
            for first in left:
                factors = {results[name][0] for name in self.names[first]}
                smallest[first] = min(smallest[first], *factors)
                # A bracket that is shown is measured of the final weights: a run that goes on from them finds the same.
                if (len(self.names[first]) == 1 and not sharp) or factors == {1.0}:
                    brackets = {name: results[name][1] for name in self.names[first]}
                    found[first] = smallest[first], brackets
            left = [first for first in left if first not in found]
            if not left:
                return found
        names = self.names[left[0]]
        limits = " and ".join(dict.fromkeys(f"{self.max_sigma[name]:g}" for name in names))
        raise ShapeError(f"layers {', '.join(names)} share parts of their weights, and are not brought to {limits}")

    def _scale_once_(self, firsts: Sequence[str], *, sharp: bool) -> dict[str, tuple[float, Bracket]]:
        """Scale each layer of groups within its maximum: first ones of all groups together, then second ones."""
        found: dict[str, tuple[float, Bracket]] = {}
        for turn in range(max((len(self.names[first]) for first in firsts), default=0)):
            names = [self.names[first][turn] for first in firsts if turn < len(self.names[first])]
            layers, limits = [self.layers[name] for name in names], [self.max_sigma[name] for name in names]
            with naming_what_is_not_finite(dict(zip(names, layers, strict=True))):
                if sharp:
                    results = measure_and_divide_layers_(layers, limits)
                else:
                    results = [
                        (factor, Bracket(0.0, limit))
                        for factor, limit in zip(divide_exact_layers_(layers, limits), limits, strict=True)
                    ]
            found |= dict(zip(names, results, strict=True))
        return found


@contextmanager
def naming_what_is_not_finite(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put the name of the first layer with weights that are not finite before a ShapeError about them."""
    try:
        yield
    except ShapeError as error:
        for name, layer in layers.items():
            start = f"layer {name or '(top)'}: "
            with_values = (
                parameter
                for parameter in layer.parameters()
                if not (is_lazy(parameter) or parameter.is_meta or parameter.layout is not torch.strided)
            )
            is_finite = all(bool(parameter.isfinite().all()) for parameter in with_values)
            if not is_finite and not str(error).startswith(start):
                raise ShapeError(f"{start}{error}") from error
        raise


def orthonormalize_frames_(layers: Mapping[str, nn.Module]) -> None:
    """Make the frames of TT layers orthonormal without changing any layer's operator, also where layers share frames.

    Raises:
        ShapeError: layers with a common core between different frames, whose operators cannot both be kept.
    """
    framed = {name: layer for name, layer in layers.items() if ops_of(layer).frames(layer)}
    tensors = {name: ops_of(layer).tensors(layer) for name, layer in framed.items()}
    for names in groups_by_memory({name: [core] for name, (core, *_) in tensors.items()}):
        if len({tuple(map(_address, tensors[name][1:])) for name in names}) > 1:
            raise ShapeError(
                f"TT layers {', '.join(names)} share a core between different frames, so that none can be clipped "
                "alone; give each its own core, or use divide_"
            )
    operators = {name: exact_operator(layer)[0] for name, layer in framed.items()}
    for name, layer in framed.items():
        ops_of(layer).write_([layer], [operators[name]])


def refuse_unwritable(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise a ShapeError if a layer of a network cannot be changed, or not without a layer that is not among them."""
    for name, layer in layers.items():
        reason = why_not_writable(layer)
        if reason is not None:
            raise ShapeError(f"layer {name or '(top)'} cannot be changed: {reason}; or leave it out with layers=")
    tensors = {name: ops_of(layer).tensors(layer) for name, layer in layers.items()}
    others = {name: layer for name, layer in model.named_modules() if is_controllable(layer) and name not in layers}
    tensors |= {name: list(layer.parameters()) for name, layer in others.items()}
    for names in groups_by_memory(tensors):
        left_out = [name for name in names if name in others]
        if left_out and len(left_out) < len(names):
            first = next(name for name in names if name in layers)
            raise ShapeError(
                f"layer {left_out[0]} shares memory with layer {first} and would change with it; choose both or neither"
            )


def _address(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return what identifies the memory that a tensor views."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def expected_cost(layer: nn.Module) -> float:
    """Return the relative cost of an action on the layer: multiplications in matrix products at its frequencies.

    Raises:
        ShapeError: a layer without a weight, as a lazy one before its first forward pass.
    """
    ops = ops_of(layer)
    weight = ops.tensors(layer)[0]
    if weight is None or is_lazy(weight):
        raise ShapeError(f"a {type(layer).__name__} has no weight yet; run the network once first, or give it one")
    out, into = (*weight.shape, 1, 1)[:2]
    points = math.prod(2 * k + 2 if k > 1 else 1 for k in weight.shape[2:])
    # A stride puts several shifted inputs side by side.
    into *= math.prod(ops.stride(layer))
    return float(points * min(out, into) * out * into)


def on_cpu(layers: Iterable[nn.Module]) -> bool:
    """Return whether all of the layers are on the CPU, where several threads can work on different layers."""
    return all(ops_of(layer).tensors(layer)[0].device.type == "cpu" for layer in layers)


def shrink(sigma: Tensor, max_sigma: float, unit: float = 0.0, *, doubt: float = 0.0) -> Tensor:
    """Return `min(1, max_sigma / sigma)`, a little less when below 1: rounding must not exceed `max_sigma`.

    Args:
        sigma: norms.
        max_sigma: their maximum.
        unit: `coarse_unit` of what is multiplied.
        doubt: how far norms may be above what they seem, as a share; at most 4 units of their precision.
    """
    inside = max_sigma * (1 - 8 * torch.finfo(sigma.dtype).eps) * (1 - unit / 2)
    return torch.where(sigma > max_sigma * (1 - doubt), inside / sigma, torch.ones_like(sigma))
