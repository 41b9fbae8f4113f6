"""Kernels moved as little as possible until all singular values are at most a bound, or equal to a value.

Two convex sets meet here: symbols whose matrices have norm at most `max` on a small grid, and symbols of kernels with
the given support. Dykstra's algorithm alternates between their projections and converges to the nearest kernel in
both; its correction is needed for the first set alone, the second being a subspace. A grid of a few points more than
the kernel's taps is enough, since the supremum over all frequencies is what the seal checks at the end.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.spectral.bound import Bracket, is_bounded, scale_to_bound
from svdctl.spectral.operator import Convolution
from svdctl.spectral.symbol import angles, gram, half_grid, kernel_from_symbol, phases, symbol


@dataclass(frozen=True)
class Projected:
    """A changed convolution, its proved bound, and how far the kernel moved (Frobenius norm)."""

    conv: Convolution
    bound: Bracket
    distance: float


@torch.no_grad()
def clip_kernel(conv: Convolution, max: float, *, rounds: int = 10) -> Projected:
    """The kernel with singular values above `max` brought down to it; `norm_bound(...).upper <= max` afterwards.

    A convolution that is proved to be within the bound comes back as it is.
    """
    if is_bounded(conv, max):
        return Projected(conv, Bracket(0.0, max), 0.0)
    fourier = _Fourier(conv)
    current = fourier.forward(conv.polyphase())
    correction = torch.zeros_like(current)
    kernel = conv.polyphase()
    for _ in range(rounds):
        shifted = current + correction
        clipped = _clip_values(shifted, max)
        correction = shifted - clipped
        kernel = fourier.backward(clipped)
        current = fourier.forward(kernel)
    return _sealed(conv, kernel, max)


@torch.no_grad()
def assign_kernel(conv: Convolution, value: float, *, rounds: int = 5) -> Projected:
    """A nearby kernel whose singular values are all close to `value` and proved to be at most that."""
    fourier = _Fourier(conv)
    kernel = conv.polyphase()
    for _ in range(rounds):
        kernel = fourier.backward(_polar_factor(fourier.forward(kernel)) * value)
    return _sealed(conv, kernel, value)


@torch.no_grad()
def divide_kernel(conv: Convolution, max: float) -> Projected:
    """The kernel scaled by `min(1, max / bound)`: the seal on its own."""
    if is_bounded(conv, max):
        return Projected(conv, Bracket(0.0, max), 0.0)
    sealed, bracket = scale_to_bound(conv, max)
    return Projected(sealed, bracket, float((sealed.kernel - conv.kernel).norm()))


def _sealed(conv: Convolution, kernel: Tensor, max: float) -> Projected:
    sealed, bracket = scale_to_bound(conv.from_polyphase(kernel), max)
    return Projected(sealed, bracket, float((sealed.kernel - conv.kernel).norm()))


class _Fourier:
    """Polyphase kernels to symbols on a small half grid, and back onto the support."""

    def __init__(self, conv: Convolution) -> None:
        kernel = conv.polyphase()
        self.shape = kernel.shape
        taps = tuple(kernel.shape[3:])
        sizes = tuple(1 if k == 1 else max(6, 2 * k + 2) for k in taps)
        index, counts = half_grid(sizes)
        self.phase = phases(angles(index, sizes), taps, kernel)
        self.weights = (counts / math.prod(sizes)).to(kernel.device, kernel.dtype)
        inside = torch.ones_like(conv.kernel)
        self.support = conv.with_kernel(inside).polyphase()

    def forward(self, kernel: Tensor) -> Tensor:
        return symbol(kernel, self.phase)

    def backward(self, values: Tensor) -> Tensor:
        return kernel_from_symbol(values, self.phase, self.weights, self.shape) * self.support


def _clip_values(matrices: Tensor, max: float) -> Tensor:
    """Nearest matrices of norm at most `max`: `A f(A^H A)` with `f(x) = min(1, max / sqrt(x))`, where it is needed."""
    wide = matrices.shape[-2] < matrices.shape[-1]
    tall = matrices.mT if wide else matrices
    grams = gram(tall)
    inside = -grams
    inside.diagonal(dim1=-2, dim2=-1).add_(max**2)
    exceeds = torch.linalg.cholesky_ex(inside).info != 0
    chosen = torch.nonzero(exceeds).flatten()
    if len(chosen) == 0:
        return matrices
    squares, vectors = torch.linalg.eigh(grams[chosen])
    factor = (max / squares.clamp_min(max**2).sqrt()).to(vectors.dtype)
    clipped = tall.clone()
    clipped[chosen] = tall[chosen] @ ((vectors * factor[:, None, :]) @ vectors.mH)
    return clipped.mT if wide else clipped


def _polar_factor(matrices: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    return left @ right
