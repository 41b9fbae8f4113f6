"""The symbol `A(w) = sum_p K[p] exp(-i w p)` of a kernel, grids of frequencies, and the way back to a kernel."""

import math

import torch
from torch import Tensor

# For speed: a CPU computes Gram matrices from this side on strip by strip, and mirrors them.
_HALVED_FROM = 256
_STRIPS = 8
_COPIED = 2**22
"""Entries of one matrix that a CPU copies for a product: 32 MiB in float64. Few are larger: VGG's linear layers."""


def tap_positions(taps: tuple[int, ...]) -> Tensor:
    """Return the positions of all taps `(prod(k), d)`, float64, counted from 0: a shift changes no singular value."""
    return grid_product([torch.arange(k, dtype=torch.float64) for k in taps])


def grid_product(axes: list[Tensor]) -> Tensor:
    """Return all combinations `(prod(n), d)` of coordinates, the last axis fastest; one empty one of no axes."""
    if not axes:
        return torch.zeros(1, 0, dtype=torch.float64)
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def half_grid(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return one of every pair w, -w of a grid: indices `(F, d)` and how often each counts `(F,)`, 1 or 2."""
    full = grid_product([torch.arange(n) for n in sizes]).long()
    return unique_up_to_sign(full, sizes)


def unique_up_to_sign(index: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return grid indices `(F, d)` without repetitions and without -w where w is there; multiplicities `(F',)`."""
    size = torch.tensor(sizes, dtype=torch.int64)
    place = torch.tensor([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))], dtype=torch.int64)
    flat = ((index % size) * place).sum(1)
    mirrored = ((-index % size) * place).sum(1)
    kept = torch.minimum(flat, mirrored).unique()
    chosen = (kept[:, None] // place) % size
    own_mirror = ((-chosen % size) * place).sum(1) == kept
    return chosen, torch.where(own_mirror, 1, 2)


def angles(index: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return frequencies `(F, d)` in radians, float64, of grid indices."""
    return index.double() * (2 * math.pi / torch.tensor(sizes, dtype=torch.float64))


def phases(frequencies: Tensor, taps: tuple[int, ...], like: Tensor) -> Tensor:
    """Return `exp(-i w p)` at frequencies `(F, d)`, complex `(F, prod(k))`, of precision and device of `like`."""
    turn = frequencies @ tap_positions(taps).T
    return torch.polar(torch.ones_like(turn), -turn).to(like.device, _complex(like.dtype))


def symbol(kernel: Tensor, phase: Tensor) -> Tensor:
    """Return the symbol `(F * G, O, I)` of a kernel `(G, O, I, *k)` at the frequencies of `phase`, groups innermost."""
    groups, out, channels = kernel.shape[:3]
    flat = kernel.reshape(groups * out * channels, -1).T
    # Two real products: half the work of one complex product with a real kernel.
    values = torch.complex(phase.real @ flat, phase.imag @ flat)
    return values.reshape(-1, out, channels)


def kernel_from_symbol(values: Tensor, phase: Tensor, weights: Tensor, shape: torch.Size) -> Tensor:
    """Return the least-squares kernel for a symbol on a half grid: inverse transform, cut to the support.

    Args:
        values: `(F * G, O, I)`.
        phase: `(F, prod(k))`.
        weights: `(F,)`, multiplicity over number of grid points.
        shape: `(G, O, I, *k)`.
    """
    weighted = (phase * weights[:, None]).T
    flat = values.reshape(len(weights), -1)
    # Re(conj(e) a) = Re e Re a + Im e Im a
    taps = weighted.real @ flat.real + weighted.imag @ flat.imag
    return taps.T.reshape(shape)


def gram(matrices: Tensor, block: int | None = None) -> Tensor:
    """Return `A^H A` on the smaller side, `(B, n, n)`.

    Args:
        matrices: `(B, m, n)`.
        block: length of the inner products that are summed apart and then added up, for less rounding; one if None.
    """
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = matrices.mT
    side = matrices.shape[-1]
    if matrices.device.type != "cpu" or side < _HALVED_FROM:
        return _summed_product(matrices, matrices, block)
    found = matrices.new_empty(len(matrices), side, side)
    width = math.ceil(side / _STRIPS)
    for first in range(0, side, width):
        last = min(first + width, side)
        found[:, first:last, first:] = _summed_product(matrices[..., first:last], matrices[..., first:], block)
        found[:, last:, first:last] = found[:, first:last, last:].mH
    return found


def _summed_product(left: Tensor, right: Tensor, block: int | None) -> Tensor:
    """Return `A^H B`, the inner products summed in blocks as `gram` says.

    Products of large matrices are summed in blocks too, which round less: a CPU copies what it multiplies.
    """
    length = block or max(left.shape[-2], 1)
    if left.device.type == "cpu":
        length = min(length, max(_COPIED // right.shape[-1], 1))
    (first, beside), *others = zip(left.split(length, -2), right.split(length, -2), strict=True)
    total = adjoint_product(first, beside)
    for part, other in others:
        # Not `baddbmm`: its order of summation may begin with the sum so far.
        total += adjoint_product(part, other)
    return total


def adjoint_product(left: Tensor, right: Tensor) -> Tensor:
    """Return `A^H B` of matrices `(B, m, n)`; on a view of the conjugate a CPU takes four times as long."""
    adjoint = left.mH.resolve_conj().contiguous() if left.device.type == "cpu" else left.mH
    return torch.bmm(adjoint, right.contiguous())


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64
