"""Move kernels as little as possible until all singular values are at most a bound, or equal to a value.

The nearest kernel in two convex sets, symbols of norm at most `max_sigma` on a grid and symbols of kernels with the
given support, is found by Dykstra's alternating projections, accelerated by restarted Nesterov momentum.
The constants decide speed and the distance moved alone: callers scale the result until the bound is proved at every
frequency. See docs/theory.md, "Clip, assign, divide, seal".
"""

import math

import torch
from torch import Tensor

from svdctl.spectral.batched import clip_singular_values, is_positive_definite, polar_factors
from svdctl.spectral.bounds import is_bounded, scale_to_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.gram import power_of_two
from svdctl.spectral.lower_bounds import quick_lower_bound
from svdctl.spectral.symbol import angles, gram, grid_product, kernel_from_symbol, phases, symbol, unique_up_to_sign

# Tolerance of the proved bound by which a projected kernel is scaled; half of it moves the kernel 0.5 % less far and
# takes twice the time.
SEAL_TOLERANCE = 0.01
CLIP_ROUNDS = 4
# How far above a bound values may be that are clipped in one step: its square times the unit roundoff is small.
_WIDEST_STEP = 1e4
_WIDEST_STEP_FLOAT32 = 64.0


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


@torch.no_grad()
@exact_arithmetic()
def project_kernel(conv: Convolution, max_sigma: float, *, rounds: int, oversampling: float = 1.0) -> Tensor:
    """Return a polyphase kernel near the projection; values between grid points may exceed `max_sigma`."""
    largest = quick_lower_bound(conv)
    # A Gram matrix has squares, and none below its rounding: values far above `max_sigma` come down in steps.
    levels = [max_sigma]
    while largest > _WIDEST_STEP * levels[-1]:
        levels.append(_WIDEST_STEP * levels[-1])
    wide = conv.polyphase().double()
    for level in reversed(levels):
        # In units where the squares can be held.
        unit = power_of_two(level)
        coarse = conv.kernel.dtype == torch.float32 and largest < _WIDEST_STEP_FLOAT32 * max_sigma
        start = (wide / unit).to(torch.float32 if coarse else torch.float64)
        grid = _Fourier(start, conv.support(), oversampling)
        kernel = _nearest(grid, start, level / unit, max(1, rounds - 2))
        # What is still too large lies between the points: one pass there, then one on the grid, which that pass moved.
        between = _Fourier(start, conv.support(), oversampling, midpoints=True)
        for fourier in (between, grid)[: rounds - 1]:
            kernel = fourier.backward(fourier.clip(fourier.forward(kernel), level / unit))
        wide = kernel.double() * unit
    return wide.to(conv.kernel.dtype)


def _nearest(fourier: "_Fourier", kernel: Tensor, max_sigma: float, rounds: int) -> Tensor:
    """Return nearly the nearest kernel whose values on the grid are at most `max_sigma`, by accelerated Dykstra."""
    start = fourier.forward(kernel)
    correction = ahead = torch.zeros_like(start)
    weight = 1.0
    for done in range(1, rounds + 1):
        # Where `ahead` is zero this is one clip of the start itself.
        corrected = fourier.project_on_support(start - ahead) + ahead if done > 1 else start
        previous, correction = correction, corrected - fourier.clip(corrected, max_sigma)
        if done == rounds:
            break
        uphill = torch.sum(torch.view_as_real((ahead - correction).conj() * (correction - previous))) > 0
        weight, last = (1 + math.sqrt(1 + 4 * weight**2)) / 2, weight
        # No host synchronisation: the restart is a factor.
        ahead = correction + torch.where(uphill, 0.0, (last - 1) / weight).to(start.real.dtype) * (
            correction - previous
        )
    return fourier.backward(start - correction)


@torch.no_grad()
@exact_arithmetic()
def assigned_kernel(conv: Convolution, value: float, *, rounds: int = 5) -> Tensor:
    """Return a polyphase kernel whose singular values are all close to `value`; no bound of them is proved."""
    kernel = conv.polyphase()
    fourier = _Fourier(kernel, conv.support())
    for _ in range(rounds):
        kernel = fourier.backward(polar_factors(fourier.forward(kernel)) * value)
    return kernel


def frobenius_norm(tensor: Tensor) -> float:
    """Return the square root of the sum of squares, of entries of any size, as a float64 number."""
    wide = tensor.double()
    scale = power_of_two(float(wide.abs().max())) if wide.numel() else 1.0
    return float((wide / scale).norm()) * scale


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
        self.shape = kernel.shape
        taps = tuple(kernel.shape[3:])
        sizes = tuple(1 if k == 1 else math.ceil((2 * k - 1) * oversampling) for k in taps)
        halves = tuple(2 * n if n > 1 else 1 for n in sizes)
        starts = [int(midpoints and n > 1) for n in halves]
        index = grid_product([torch.arange(at, n, min(n, 2)) for at, n in zip(starts, halves, strict=True)]).long()
        index, counts = unique_up_to_sign(index, halves)
        self.phase = phases(angles(index, halves), taps, kernel)
        self.real = (counts == 1).repeat_interleave(self.shape[0])
        self.weights = (counts / math.prod(sizes)).to(kernel.device, kernel.dtype)
        self.support = support

    def forward(self, kernel: Tensor) -> Tensor:
        """Return the symbols of a polyphase kernel at the grid's frequencies."""
        return symbol(kernel, self.phase)

    def backward(self, values: Tensor) -> Tensor:
        """Return the kernel with these symbols, its entries outside the support set to zero."""
        return kernel_from_symbol(values, self.phase, self.weights, self.shape) * self.support

    def clip(self, values: Tensor, max_sigma: float) -> Tensor:
        """Return the nearest symbol of norm at most `max_sigma`; real where w = -w, for a quarter of the work."""
        clipped = torch.empty_like(values)
        clipped[self.real] = _clip_values(values[self.real].real.contiguous(), max_sigma).to(values.dtype)
        clipped[~self.real] = _clip_values(values[~self.real], max_sigma)
        return clipped

    def project_on_support(self, values: Tensor) -> Tensor:
        """Return the nearest symbol that a kernel with the support has."""
        return self.forward(self.backward(values))


def _clip_values(matrices: Tensor, max_sigma: float) -> Tensor:
    """Return the nearest matrices of norm at most `max_sigma`; those within it cost a Cholesky factorisation alone."""
    wide = matrices.shape[-2] < matrices.shape[-1]
    tall = matrices.mT if wide else matrices
    grams = gram(tall)
    slack = -grams
    slack.diagonal(dim1=-2, dim2=-1).add_(max_sigma**2)
    chosen = torch.nonzero(~is_positive_definite(slack)).flatten()
    if len(chosen) == 0:
        return matrices
    clipped = tall.clone()
    clipped[chosen] = clip_singular_values(tall[chosen], grams[chosen], max_sigma)
    return clipped.mT if wide else clipped
