"""Move kernels as little as possible until all singular values are at most a bound, or equal to a value.

The nearest kernel in two convex sets, symbols of norm at most `max_sigma` on a grid and symbols of kernels with the
given support, is found by Dykstra's alternating projections, accelerated by restarted Nesterov momentum.
The constants decide speed and the distance moved alone: callers scale the result until the bound is proved at every
frequency. See docs/theory.md, "Clip, assign, divide, seal".
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svdctl.spectral.batched import clip_singular_values, is_positive_definite, on_tall, polar_factors
from svdctl.spectral.bounds import is_bounded, scale_to_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.faster_device import products_are_faster
from svdctl.spectral.gram import on_host
from svdctl.spectral.lower_bounds import quick_lower_bound
from svdctl.spectral.matrix_sign import clip_by_products, norm_limits
from svdctl.spectral.stacks import in_stacks
from svdctl.spectral.symbol import angles, gram, grid_product, kernel_from_symbol, phases, symbol, unique_up_to_sign

# Tolerance of the proved bound by which a projected kernel is scaled; half of it moves the kernel 0.5 % less far and
# takes twice the time.
SEAL_TOLERANCE = 0.01
CLIP_ROUNDS = 4
# How far above a bound values may be that are clipped in one step: its square times the unit roundoff is small.
_WIDEST_STEP = 1e4
_WIDEST_STEP_FLOAT32 = 64.0
# By what factor symbols may exceed the largest on the grid, between its points and on the way; steps for more are made.
_ROOM = 1.25
# Of values that are clipped by products. Between the points of the grid they end 10 % above the maximum in any case.
_ACCURACY = {torch.float32: 2.0**-9, torch.float64: 2.0**-28}
# Of the symbols of one stack.
_STACK_BYTES = 1 << 28


@torch.no_grad()
def clip_kernel(
    conv: Convolution, max_sigma: float, *, rounds: int = CLIP_ROUNDS, oversampling: float = 1.0
) -> Convolution:
    """Return the convolution with singular values above `max_sigma` brought down to it, proved to be at most that.

    One that is proved to be within the bound comes back as it is.

    Args:
        conv: any stride, dilation, groups and number of axes.
        max_sigma: the largest singular value allowed.
        rounds: projections; with more of them, and a finer grid, the result nears the true projection.
        oversampling: factor on the points of the grid, `2 k - 1` an axis.
    """
    if is_bounded(conv, max_sigma):
        return conv
    projected = conv.from_polyphase(project_kernel(conv, max_sigma, rounds=rounds, oversampling=oversampling))
    return scale_to_bound(projected, max_sigma, tolerance=SEAL_TOLERANCE)[0]


def project_kernels(convs: Sequence[Convolution], max_sigma: Sequence[float], *, rounds: int) -> list[Tensor]:
    """Return `project_kernel` of each convolution, each with its own maximum; on a GPU those of one shape at once.

    A GPU is read once, before the first stack is projected.
    """
    stacks = _stacks(convs, max_sigma)
    read = on_host([_largest_value(stack.conv, stack.numbers) for stack in stacks])
    return _unstacked(
        [
            (stack, project_kernel(stack.conv, stack.numbers, rounds=rounds, largest=float(largest)))
            for stack, largest in zip(stacks, read, strict=True)
        ]
    )


def assigned_kernels(convs: Sequence[Convolution], values: Sequence[float]) -> list[Tensor]:
    """Return `assigned_kernel` of each convolution, each with its own value; on a GPU those of one shape at once."""
    stacks = _stacks(convs, values)
    return _unstacked([(stack, assigned_kernel(stack.conv, stack.numbers)) for stack in stacks])


class _Stack(NamedTuple):
    """Convolutions of one shape as groups of one."""

    places: list[int]
    """Of each among those that were given."""
    conv: Convolution
    numbers: list[float]
    """One for each group."""


def _stacks(convs: Sequence[Convolution], numbers: Sequence[float]) -> list[_Stack]:
    """Return stacks of convolutions, each with its number.

    Where factorisations are faster than products a stack is one convolution: threads work on several layers.
    """
    places_alike: dict[tuple[Any, ...], list[int]] = {}
    for place, conv in enumerate(convs):
        kernel = conv.kernel
        alike = (kernel.shape, kernel.dtype, kernel.device, conv.stride, conv.dilation)
        places_alike.setdefault((*alike, None if products_are_faster(kernel.device) else place), []).append(place)
    found = []
    for places in places_alike.values():
        groups, rows, columns, *taps = convs[places[0]].kernel.shape
        symbols = math.prod(2 * k for k in taps) * groups * rows * columns * convs[places[0]].kernel.itemsize
        size = max(1, _STACK_BYTES // symbols)
        for part in (places[at : at + size] for at in range(0, len(places), size)):
            conv = convs[part[0]].with_kernel(torch.cat([convs[place].kernel for place in part]))
            found.append(_Stack(part, conv, [numbers[place] for place in part for _ in range(groups)]))
    return found


def _unstacked(results: Sequence[tuple[_Stack, Tensor]]) -> list[Tensor]:
    """Return the kernel of each convolution from those of stacks."""
    found: dict[int, Tensor] = {}
    for stack, kernels in results:
        found |= dict(zip(stack.places, kernels.split(len(kernels) // len(stack.places)), strict=True))
    return [found[place] for place in range(len(found))]


@torch.no_grad()
@exact_arithmetic()
def project_kernel(
    conv: Convolution,
    max_sigma: float | Sequence[float],
    *,
    rounds: int,
    oversampling: float = 1.0,
    largest: float | None = None,
) -> Tensor:
    """Return a polyphase kernel near the projection; values between grid points may exceed `max_sigma`.

    Args:
        conv: the convolution; its groups are projected each on its own.
        max_sigma: the largest singular value allowed, or one for each group.
        rounds, oversampling: as of `clip_kernel`.
        largest: `_largest_value` of these, where it is known.
    """
    if largest is None:
        largest = float(_largest_value(conv, max_sigma, oversampling))
    limits = _for_groups(max_sigma, conv)
    # In units where the maximum is 1, and squares can be held.
    wide = conv.polyphase().double() / limits
    support, by_products = conv.support(), products_are_faster(wide.device)
    # A Gram matrix has squares, and none below its rounding: values far above the maximum come down in steps.
    levels = [1.0]
    while largest > _WIDEST_STEP * levels[-1]:
        levels.append(_WIDEST_STEP * levels[-1])
    for level in reversed(levels):
        coarse = conv.kernel.dtype == torch.float32 and largest < _WIDEST_STEP_FLOAT32
        start = (wide / level).to(torch.float32 if coarse else torch.float64)
        widest = max(_ROOM * min(largest / level, _WIDEST_STEP), 1.0) if by_products else None
        grid = _Fourier(start, support, oversampling)
        kernel = _nearest(grid, start, widest, max(1, rounds - 2))
        # What is still too large lies between the points: one pass there, then one on the grid, which that pass moved.
        between = _Fourier(start, support, oversampling, midpoints=True)
        for fourier in (between, grid)[: rounds - 1]:
            kernel = fourier.backward(fourier.clip(fourier.forward(kernel), widest))
        wide = kernel.double() * level
    return (wide * limits).to(conv.kernel.dtype)


def _for_groups(numbers: float | Sequence[float], conv: Convolution) -> Tensor:
    """Return numbers, one or one for each group, float64 `(G, 1, 1, ...)` on the convolution's device."""
    values = torch.tensor([numbers] if isinstance(numbers, float | int) else list(numbers), dtype=torch.float64)
    return values.reshape(-1, *(1,) * (conv.kernel.ndim - 1)).to(conv.kernel.device)


@torch.no_grad()
@exact_arithmetic()
def _largest_value(conv: Convolution, max_sigma: float | Sequence[float], oversampling: float = 1.0) -> Tensor:
    """Return about the largest singular value over its maximum (0-d), the one number that is read of a stack.

    By products it is the largest `norm_limits` on the grid.
    """
    limits = _for_groups(max_sigma, conv)
    if not products_are_faster(conv.kernel.device):
        found = quick_lower_bound(conv.with_kernel(conv.kernel / limits.to(conv.kernel.dtype)))
        return torch.tensor(found, dtype=torch.float64)
    wide = conv.polyphase().double() / limits
    # At most the number of taps, so that no power overflows.
    peak = wide.abs().amax().clamp_min(torch.finfo(torch.float64).tiny) * math.sqrt(wide.shape[1] * wide.shape[2])
    narrow = (wide / peak).float()
    phase, _ = _half_grid_on(tuple(narrow.shape[3:]), oversampling, False, narrow.device, narrow.dtype)
    return norm_limits(symbol(narrow, phase)).amax().double() * peak


def _nearest(fourier: "_Fourier", kernel: Tensor, widest: float | None, rounds: int) -> Tensor:
    """Return nearly the nearest kernel whose values on the grid are at most 1, by accelerated Dykstra."""
    start = fourier.forward(kernel)
    correction = ahead = torch.zeros_like(start)
    weight = 1.0
    for done in range(1, rounds + 1):
        # Where `ahead` is zero this is one clip of the start itself.
        corrected = fourier.project_on_support(start - ahead) + ahead if done > 1 else start
        previous, correction = correction, corrected - fourier.clip(corrected, widest)
        if done == rounds:
            break
        moved = correction - previous
        uphill = fourier.sum_of_groups(((ahead - correction).conj() * moved).real) > 0
        weight, last = (1 + math.sqrt(1 + 4 * weight**2)) / 2, weight
        # No host synchronisation: the restart of a group is a factor.
        ahead = correction + torch.where(uphill, 0.0, (last - 1) / weight).to(kernel.dtype) * moved
    return fourier.backward(start - correction)


@torch.no_grad()
@exact_arithmetic()
def assigned_kernel(conv: Convolution, value: float | Sequence[float], *, rounds: int = 5) -> Tensor:
    """Return a polyphase kernel whose singular values are all close to `value`; no bound of them is proved.

    Args:
        conv: the convolution.
        value: one for all groups, or one for each.
        rounds: of projections.
    """
    kernel = conv.polyphase()
    values = _for_groups(value, conv).to(kernel.dtype)
    fourier = _Fourier(kernel, conv.support())
    for _ in range(rounds):
        kernel = fourier.backward(polar_factors(fourier.forward(kernel))) * values
    return kernel


def frobenius_norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the root of the sum of squares of each tensor, of entries of any size, as float64; one read of a device.

    Args:
        tensors: all on one device.
    """
    norms = in_stacks(_frobenius_norms, tensors)
    return torch.stack([norm for (norm,) in norms]).tolist() if norms else []


def _frobenius_norms(tensors: Tensor) -> tuple[Tensor]:
    """Return the norms of a stack `(L, ...)`, `(L,)`, float64."""
    wide = tensors.double().flatten(1)
    if wide.shape[1] == 0:
        return (wide.new_zeros(len(wide)),)
    largest = wide.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return ((wide / largest).norm(dim=1) * largest[:, 0],)


class _Fourier:
    """Transform polyphase kernels to their symbols on a grid of frequencies, and back to kernels with the support.

    Of two frequencies w and -w the grid has one, as their symbols are complex conjugates.

    Args:
        kernel: one of the kernels to transform; gives their shape, dtype and device.
        support: 1 where an entry of the kernel may be nonzero, else 0.
        oversampling: factor on the points of the grid, `2 k - 1` an axis.
        midpoints: shift the grid by half the distance of its points along each axis.
    """

    def __init__(self, kernel: Tensor, support: Tensor, oversampling: float = 1.0, *, midpoints: bool = False) -> None:
        self.shape, self.support = kernel.shape, support
        taps = tuple(kernel.shape[3:])
        self.phase, self.weights = _half_grid_on(taps, oversampling, midpoints, kernel.device, kernel.dtype)
        _, _, own_mirror = _half_grid(taps, oversampling, midpoints)
        self.real = own_mirror[:, None].expand(-1, self.shape[0]).flatten()

    def forward(self, kernel: Tensor) -> Tensor:
        """Return the symbols of a polyphase kernel at the grid's frequencies."""
        return symbol(kernel, self.phase)

    def backward(self, values: Tensor) -> Tensor:
        """Return the kernel with these symbols, its entries outside the support set to zero."""
        return kernel_from_symbol(values, self.phase, self.weights, self.shape) * self.support

    def clip(self, values: Tensor, widest: float | None) -> Tensor:
        """Return the nearest symbol of norm at most 1: by products, given what `clip_by_products` asks.

        Without it by eigenvectors, real ones where w = -w, for a quarter of the work.
        """
        if widest is not None:
            return on_tall(lambda tall: clip_by_products(tall, widest, _ACCURACY[self.weights.dtype]), values)
        clipped = torch.empty_like(values)
        clipped[self.real] = on_tall(_clip_values, values[self.real].real.contiguous()).to(values.dtype)
        clipped[~self.real] = on_tall(_clip_values, values[~self.real])
        return clipped

    def sum_of_groups(self, values: Tensor) -> Tensor:
        """Return the sum over frequencies, rows and columns for each group, `(F * G, 1, 1)`."""
        groups = self.shape[0]
        return values.sum((1, 2)).reshape(-1, groups).sum(0).repeat(len(values) // groups)[:, None, None]

    def project_on_support(self, values: Tensor) -> Tensor:
        """Return the nearest symbol that a kernel with the support has."""
        return self.forward(self.backward(values))


@lru_cache(maxsize=64)
def _half_grid_on(
    taps: tuple[int, ...], oversampling: float, midpoints: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `_Fourier`'s phases and weights on a device, for kernels of this precision."""
    phase, weights, _ = _half_grid(taps, oversampling, midpoints)
    return phase.to(device, dtype.to_complex()), weights.to(device, dtype)


@lru_cache(maxsize=64)
def _half_grid(taps: tuple[int, ...], oversampling: float, midpoints: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return `_Fourier`'s phases `(F, prod(k))`, weights `(F,)` and whether w = -w `(F,)`, in float64 on the host."""
    sizes = tuple(1 if k == 1 else math.ceil((2 * k - 1) * oversampling) for k in taps)
    halves = tuple(2 * n if n > 1 else 1 for n in sizes)
    starts = [int(midpoints and n > 1) for n in halves]
    index = grid_product([torch.arange(at, n, min(n, 2)) for at, n in zip(starts, halves, strict=True)]).long()
    index, counts = unique_up_to_sign(index, halves)
    phase = phases(angles(index, halves), taps, torch.zeros(0, dtype=torch.float64))
    return phase, counts.double() / math.prod(sizes), counts == 1


def _clip_values(tall: Tensor) -> Tensor:
    """Return the nearest matrices of norm at most 1; those within it cost a Cholesky factorisation alone."""
    grams = gram(tall)
    slack = -grams
    slack.diagonal(dim1=-2, dim2=-1).add_(1)
    chosen = torch.nonzero(~is_positive_definite(slack)).flatten()
    if len(chosen) == 0:
        return tall
    clipped = tall.clone()
    clipped[chosen] = clip_singular_values(tall[chosen], grams[chosen], 1.0)
    return clipped
