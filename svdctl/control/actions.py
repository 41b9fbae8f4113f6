"""Clip, assign or divide the singular values of one layer, in place, on its own device and dtype."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from svdctl.control.shared_memory import groups_by_memory
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import BatchNorm, batchnorm_gain, exact_operator, operator_of, why_not_writable
from svdctl.layers.layer_ops import is_controllable, ops_of
from svdctl.layers.norms import is_layer_bounded, kernel_limit, layer_norm
from svdctl.layers.padding import padding_factor
from svdctl.spectral.bounds import TOLERANCE, norm_bound, taps_norm
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.power_iteration import paper_clip, paper_sigma
from svdctl.spectral.projection import CLIP_ROUNDS, SEAL_TOLERANCE, assigned_kernel, frobenius_norm, project_kernel

Optimizer = torch.optim.Optimizer | None
_MARGIN = 1e-4
_OUTWARD = 1e-12  # of a product of float64 numbers, and of the differences whose norm is added to it
_MOST_ROUNDS = 20
T = TypeVar("T")


def clip_layer_(layer: nn.Module, max_sigma: float, optimizer: Optimizer = None) -> float:
    """Bring singular values above `max_sigma` down to it, the bound proved; returns the distance moved."""
    if is_layer_bounded(layer, max_sigma):
        return 0.0
    conv = operator_of(layer)
    return _replace_(
        layer, conv, project_kernel(conv, kernel_limit(layer, max_sigma), rounds=CLIP_ROUNDS), max_sigma, optimizer
    )


def assign_layer_(layer: nn.Module, value: float, optimizer: Optimizer = None) -> float:
    """Set all singular values close to `value`, the bound proved; returns the distance moved."""
    conv = operator_of(layer)
    return _replace_(layer, conv, assigned_kernel(conv, kernel_limit(layer, value)), value, optimizer)


def _replace_(layer: nn.Module, before: Convolution, kernel: Tensor, max_sigma: float, optimizer: Optimizer) -> float:
    """Write a polyphase kernel, then scale until the bound is proved of the written weights; returns the distance."""
    before = before.with_kernel(before.kernel.clone())  # the layer's own memory may be behind it
    ops_of(layer).write_(layer, before.from_polyphase(kernel), optimizer)
    scale_below_(layer, max_sigma, tolerance=SEAL_TOLERANCE)
    return frobenius_norm(operator_of(layer).kernel.double() - before.kernel.double())


def divide_exact_layer_(layer: nn.Module, max_sigma: float) -> float:
    """Scale by `min(1, max_sigma / bound)` until the bound is proved of the written weights; returns the factor."""
    return 1.0 if is_layer_bounded(layer, max_sigma) else scale_below_(layer, max_sigma)


def scale_below_(layer: nn.Module, max_sigma: float, *, tolerance: float = TOLERANCE) -> float:
    """Scale by the bound of this tolerance until the layer is proved to be at most `max_sigma`; returns the factor."""
    total = 1.0
    conv, error = exact_operator(layer)
    padding = padding_factor(layer)
    kernel_norm = norm_bound(conv, tolerance=tolerance).upper
    ops = ops_of(layer)
    unit = torch.finfo(ops.tensors(layer)[0].dtype).eps
    while not layer_norm(kernel_norm, error, padding) <= max_sigma:
        if not math.isfinite(kernel_norm):
            raise ShapeError("the layer's norm is above 1.8e308, the largest number of float64; scale its weight first")
        wanted = conv.kernel.double().clone()  # the layer's own memory may be behind it
        # Rounding moves the scaled kernel by at most a unit of each entry; the next round checks what it did.
        # The margin makes that round, and later brackets of this width, find nothing left to do.
        room = layer_norm(kernel_norm * (1 + _MARGIN) + unit * taps_norm(conv.kernel), error, padding)
        factor = max_sigma / room * (1 - 4 * unit)
        with torch.no_grad():
            ops.scale_([layer], [factor])
        total *= factor
        conv, error = exact_operator(layer)
        moved = taps_norm(conv.kernel.double() - wanted * factor)
        kernel_norm = kernel_norm * factor * (1 + _OUTWARD) + moved
    return total


def paper_divide_layer_(layer: nn.Module, max_sigma: float, size: tuple[int, ...], generator: torch.Generator) -> None:
    """Divide as the paper does, by two power steps from a new random vector, some 15 % too low; nothing is proved."""
    ops = ops_of(layer)
    sigma = paper_sigma(ops.operators_assuming_orthonormal([layer])[0], size, generator)
    ops.scale_([layer], [shrink(sigma, max_sigma)])


def paper_clip_layer_(layer: nn.Module, max_sigma: float, size: tuple[int, ...], optimizer: Optimizer = None) -> None:
    """Clip as the paper does, once on the grid of the layer's input, or of its kernel if larger; nothing is proved."""
    ops_of(layer).write_(layer, paper_clip(operator_of(layer), max_sigma, size), optimizer)


@torch.no_grad()
def limit_batchnorm_(layer: BatchNorm, max_sigma: float) -> None:
    """Scale gamma so that `max |gamma / sqrt(running_var + eps)| <= max`; no host synchronisation."""
    if layer.weight is not None:
        layer.weight.mul_(shrink(batchnorm_gain(layer), max_sigma))


def act_on_group_(
    layers: Mapping[str, nn.Module], max_sigma: Mapping[str, float], work: Callable[[str], T], *, writes_operator: bool
) -> dict[str, T]:
    """Run `work` on layers that share memory, one after another, and prove all of them to be within their maxima.

    Args:
        layers: by name.
        max_sigma: of each layer.
        work: takes the name of a layer, and brings that layer within its maximum.
        writes_operator: whether `work` writes new kernels, for which frames that TT layers share must be orthonormal.

    Raises:
        ShapeError: what lowers the norm of one raises that of another, again and again.
    """
    if len(layers) == 1:
        return {name: work(name) for name in layers}
    if writes_operator and not all(is_layer_bounded(layer, max_sigma[name]) for name, layer in layers.items()):
        orthonormalize_frames_(layers)
    found = {name: work(name) for name in layers}
    divide_group_(layers, max_sigma)
    return found


def divide_group_(layers: Mapping[str, nn.Module], max_sigma: Mapping[str, float]) -> bool:
    """Scale layers, which may share memory, until all are proved to be within their maxima; returns whether any was.

    Raises:
        ShapeError: as `act_on_group_`.
    """
    for done in range(_MOST_ROUNDS):
        factors = [divide_exact_layer_(layer, max_sigma[name]) for name, layer in layers.items()]
        if len(layers) == 1 or set(factors) == {1.0}:
            return done > 0 or set(factors) != {1.0}
    limits = " and ".join(dict.fromkeys(f"{max_sigma[name]:g}" for name in layers))
    raise ShapeError(f"layers {', '.join(layers)} share parts of their weights, and are not brought to {limits}")


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
        ops_of(layer).write_(layer, operators[name])


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
    """Return the relative cost of an action on the layer: multiplications in matrix products at its frequencies."""
    ops = ops_of(layer)
    weight = ops.tensors(layer)[0]
    out, into = (*weight.shape, 1, 1)[:2]
    points = math.prod(2 * k + 2 if k > 1 else 1 for k in weight.shape[2:])
    # A stride puts several shifted inputs side by side.
    into *= math.prod(ops.stride(layer))
    return float(points * min(out, into) * out * into)


def on_cpu(layers: Iterable[nn.Module]) -> bool:
    """Return whether all of the layers are on the CPU, where several threads can work on different layers."""
    return all(ops_of(layer).tensors(layer)[0].device.type == "cpu" for layer in layers)


def shrink(sigma: Tensor, max_sigma: float) -> Tensor:
    """Return `min(1, max_sigma / sigma)` (0-d), a little less when below 1: rounding must not exceed `max_sigma`."""
    inside = max_sigma * (1 - 8 * torch.finfo(sigma.dtype).eps)
    return torch.where(sigma > max_sigma, inside / sigma, torch.ones_like(sigma))
