"""What can be done to the singular values of one layer; every action leaves the layer on its device and dtype."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from svdctl.layers.frames import MEANS, qr_positive
from svdctl.layers.operator import (
    BatchNorm,
    batchnorm_gain,
    operator_of,
    quick_operator,
    scale_,
    weight_of,
    write_operator_,
)
from svdctl.layers.tt import TTConv2d
from svdctl.spectral.bound import Bracket, is_bounded, norm_bound, taps_norm
from svdctl.spectral.operator import Convolution
from svdctl.spectral.power import KernelPower, paper_clip, paper_sigma
from svdctl.spectral.project import assign_kernel, clip_kernel

Optimizer = torch.optim.Optimizer | None
_MARGIN = 1e-4


def clip_layer_(layer: nn.Module, max: float, optimizer: Optimizer = None) -> float:
    """Bring singular values above `max` down to it, the bound proved; returns the distance moved."""
    clipped = clip_kernel(operator_of(layer), _inside(layer, max))
    if clipped.distance:
        _write_proved_(layer, clipped.conv, max, optimizer)
    return clipped.distance


def assign_layer_(layer: nn.Module, value: float, optimizer: Optimizer = None) -> float:
    """Set all singular values close to `value`, the bound proved; returns the distance moved."""
    assigned = assign_kernel(operator_of(layer), _inside(layer, value))
    _write_proved_(layer, assigned.conv, value, optimizer)
    return assigned.distance


def _inside(layer: nn.Module, max: float) -> float:
    """A little less than `max` where writing a kernel rounds: into a TT layer, whose frames are not exact frames."""
    rounds = isinstance(layer, TTConv2d) and layer.has_frames
    return max * (1 - 1024 * torch.finfo(weight_of(layer).dtype).eps) if rounds else max


def _write_proved_(layer: nn.Module, conv: Convolution, max: float, optimizer: Optimizer) -> None:
    """Write a kernel that is proved to be within `_inside(max)`; what rounding moved is proved to fit in the rest."""
    write_operator_(layer, conv, optimizer)
    if isinstance(layer, TTConv2d) and layer.has_frames:
        written = operator_of(layer)
        # Frames are unique up to signs, so that the kernels can be compared entry by entry.
        moved = taps_norm(written.kernel.double() - conv.kernel.double())
        if _inside(layer, max) * (1 + 1e-12) + moved > max:
            divide_exact_layer_(layer, max)


def divide_factors(layer: nn.Module, max: float, power: KernelPower) -> list[Tensor]:
    """`min(1, max / sigma)`, sigma from a power step with kept vectors; no host synchronisation."""
    return [shrink(power.step(quick_operator(layer)), max)]


def divide_each_factors(layer: TTConv2d, max: float, power: KernelPower) -> list[Tensor]:
    """What brings the core of a TT layer to at most `max` and its frames to at most 1, each on its own."""
    core, *frames = factors_of(layer)
    sigma = power.step(operator_of(layer).with_kernel(core.detach()[None]))
    norms = [torch.linalg.matrix_norm(qr_positive(frame.detach())[1], 2) for frame in frames]
    return [shrink(sigma, max), *(shrink(norm, 1.0) for norm in norms)]


def factors_of(layer: TTConv2d) -> list[Tensor]:
    """The core of a TT layer and those of its frames that can be written."""
    frames = () if layer.frames_kind == "parametrize" else (layer.frame_in, layer.frame_out)
    return [layer.core, *(frame for frame in frames if frame is not None)]


def divide_exact_layer_(layer: nn.Module, max: float) -> float:
    """The seal: scale by `min(1, max / bound)`, the bound proved afterwards; returns the factor."""
    total = 1.0
    conv = operator_of(layer)
    if is_bounded(conv, max):
        return total
    bracket = norm_bound(conv)
    while bracket.upper > max:
        wanted = conv.kernel.double().clone()  # the layer's own memory may be behind it
        # Rounding moves the scaled kernel by at most a unit of each entry; the next round checks what it did.
        # The margin makes that round, and later brackets of this width, find nothing left to do.
        room = bracket.upper * (1 + _MARGIN) + torch.finfo(conv.kernel.dtype).eps * taps_norm(conv.kernel)
        factor = max / room * (1 - 4 * torch.finfo(conv.kernel.dtype).eps)
        scale_(layer, factor)
        total *= factor
        conv = operator_of(layer)
        moved = taps_norm(conv.kernel.double() - wanted * factor)
        bracket = Bracket(0.0, bracket.upper * factor * (1 + 1e-12) + moved)
    return total


def paper_divide_layer_(layer: nn.Module, max: float, size: tuple[int, ...], generator: torch.Generator) -> None:
    """The paper's division: two power steps from a new random vector, too low by some 15 %; no seal."""
    scale_(layer, shrink(paper_sigma(quick_operator(layer), size, generator), max))


def paper_clip_layer_(layer: nn.Module, max: float, size: tuple[int, ...], optimizer: Optimizer = None) -> None:
    """The paper's clip: one pass on the grid of the layer's input, or of its kernel if that is larger; no seal."""
    write_operator_(layer, paper_clip(operator_of(layer), max, size), optimizer)


def limit_batchnorm_(layer: BatchNorm, max: float) -> None:
    """Scale gamma so that `max |gamma / sqrt(running_var + eps)| <= max`; no host synchronisation."""
    if layer.weight is not None:
        layer.weight.data.mul_(shrink(batchnorm_gain(layer), max))


def written(layer: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Everything that an action on the layer may change: its operator, and the optimiser's means of frames."""
    if not isinstance(layer, TTConv2d):
        return [weight_of(layer)]
    tensors = factors_of(layer)
    states = [] if optimizer is None else [optimizer.state.get(tensor, {}) for tensor in tensors]
    return tensors + [state[key] for state in states for key in MEANS if state.get(key) is not None]


def expected_cost(layer: nn.Module) -> float:
    """About how long an action on the layer takes, against other layers: products of matrices at some frequencies."""
    weight = weight_of(layer)
    out, into = weight.shape[:2]
    points = math.prod(2 * k + 2 if k > 1 else 1 for k in weight.shape[2:])
    # A stride puts several shifted inputs side by side.
    into *= math.prod(getattr(layer, "stride", ())) if weight.ndim > 2 else 1
    return float(points * min(out, into) * out * into)


def on_cpu(layers: Iterable[nn.Module]) -> bool:
    """Whether all of the layers are on the CPU, where several can be worked on at a time."""
    return all(weight_of(layer).device.type == "cpu" for layer in layers)


def shrink(sigma: Tensor, max: float) -> Tensor:
    """`min(1, max / sigma)`, a little smaller when below 1 so that rounding cannot pass `max` (0-d)."""
    inside = max * (1 - 8 * torch.finfo(sigma.dtype).eps)
    return torch.where(sigma > max, inside / sigma, torch.ones_like(sigma))


def is_layer_bounded(layer: nn.Module, max: float) -> bool:
    """Whether the layer's norm is proved to be at most `max`, at every input size."""
    return is_bounded(operator_of(layer), max)


def layer_bracket(layer: nn.Module, allowed: float | None) -> tuple[float, float]:
    """(largest value found, proved bound) of a layer; the bound is `allowed` where that is proved and sharper."""
    conv = operator_of(layer)
    bracket = norm_bound(conv)
    upper = bracket.upper
    if allowed is not None and bracket.lower <= allowed < upper and is_bounded(conv, allowed):
        upper = allowed
    return bracket.lower, upper
