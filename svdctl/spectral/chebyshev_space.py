"""Largest eigenvalues of many matrices from below, in few operations: Krylov spaces spanned by Chebyshev polynomials.

Lanczos steps make each vector of the space orthogonal to all before, in a dozen operations. Polynomials that are
orthogonal on the interval of the eigenvalues are nearly so of themselves, and each takes one product; the whole space
is made orthonormal at the end, by one Cholesky factorisation.
"""

import math

import torch
from torch import Tensor

# For speed: vectors of one space. Rounding leaves little to more of them; the next space begins with the best vector.
_TOGETHER = {torch.float32: 8, torch.float64: 12}
# For speed, in roundings for each vector: what is added to the squares of vectors, so that all factorisations succeed.
_ADDED = 8


def largest_ritz_pairs(matrices: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return Rayleigh quotients `(B,)` that are nearly the largest eigenvalues, and unit vectors `(B, n)` of them.

    Args:
        matrices: positive semidefinite, complex, `(B, n, n)`.
        start: vectors `(B, n)`.
        steps: products with the matrices.
    """
    middle, half = _intervals(matrices)
    # Eigenvalues mostly in [-2, 2].
    shifted = matrices * (2 / half)[:, None, None]
    shifted.diagonal(dim1=-2, dim2=-1).sub_((2 * middle / half)[:, None])
    count = min(steps, matrices.shape[-1], _TOGETHER[half.dtype])
    vectors = start[..., None]
    for _ in range(math.ceil(steps / _TOGETHER[half.dtype])):
        vectors = _best_of_space(matrices, shifted, _unit(vectors), count)
    vectors = _unit(vectors)
    quotients = torch.bmm(vectors.mH, torch.bmm(matrices, vectors))
    return quotients[:, 0, 0].real, vectors[..., 0]


def _intervals(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return middles and half lengths `(B,)` of intervals that hold the eigenvalues, but for a few of the largest.

    With m their mean and s their standard deviation, none is below `m - s sqrt(n - 1)` (Samuelson 1968); those of a
    random matrix end at `m + 2 s + s^2 / m` (Marchenko and Pastur 1967).
    """
    side, finfo = matrices.shape[-1], torch.finfo(matrices.dtype)
    mean = matrices.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    # The squares of a smaller one underflow.
    floor = mean.clamp_min(math.sqrt(finfo.tiny) / finfo.eps)
    square = torch.linalg.vector_norm(torch.view_as_real(matrices).flatten(1), dim=1).square() / side
    spread = torch.maximum(square - mean.square(), finfo.eps * floor.square()).sqrt()
    reach = spread * math.sqrt(side)
    low = (mean - reach).clamp_min(0)
    high = mean + torch.minimum(reach, spread * (2 + spread / floor))
    return (high + low) / 2, (high - low) / 2


def _best_of_space(matrices: Tensor, shifted: Tensor, vectors: Tensor, count: int) -> Tensor:
    """Return the vectors `(B, n, 1)` of the largest Rayleigh quotients in Krylov spaces.

    Args:
        matrices: `(B, n, n)`.
        shifted: the same, as `largest_ritz_pairs` makes them.
        vectors: unit vectors that the spaces begin with, `(B, n, 1)`.
        count: dimension of the spaces.
    """
    finfo = torch.finfo(matrices.dtype)
    columns = [vectors]
    for place in range(1, count):
        # Polynomials of the second kind.
        image = torch.bmm(shifted, vectors) if place == 1 else columns[-2].baddbmm(shifted, columns[-1], beta=-1)
        columns.append(image)
    basis = torch.cat(columns, 2)
    basis /= torch.linalg.vector_norm(basis, dim=1, keepdim=True).clamp(finfo.tiny, math.sqrt(finfo.max))
    squares = torch.bmm(basis.mH, basis)
    squares.diagonal(dim1=-2, dim2=-1).add_(_ADDED * count * finfo.eps)
    factor = torch.linalg.cholesky_ex(squares).L
    basis = torch.linalg.solve_triangular(factor, basis.mH, upper=False).mH
    # What was added makes quotients smaller: of the matrices, which have no negative ones, that is never larger.
    _, coordinates = torch.linalg.eigh(torch.bmm(basis.mH, torch.bmm(matrices, basis)))
    return torch.bmm(basis, coordinates[..., -1:])


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
