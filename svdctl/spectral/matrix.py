"""Norms of plain matrices: linear layers and frames."""

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.bound import ROUNDOFF, Bracket


@torch.no_grad()
def matrix_norm_bound(matrix: Tensor) -> Bracket:
    """Spectral norm of a matrix `(m, n)`: `svdvals` in float64, widened by its backward error.

    LAPACK's computed values differ from the true ones by at most `p(m, n) u ||A||` with p a modest polynomial
    (Users' Guide, section 4.9); `p = 10 (m + n)^1.5` is far above what is ever seen.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise ShapeError("the matrix holds values that are not finite; its norm has no bound")
    if matrix.numel() == 0:
        return Bracket(0.0, 0.0)
    largest = float(torch.linalg.svdvals(matrix.double())[0])
    error = 10 * sum(matrix.shape) ** 1.5 * ROUNDOFF * largest
    return Bracket(largest - error, largest + error)


@torch.no_grad()
def scale_matrix_to_bound(matrix: Tensor, max: float) -> Tensor:
    """The matrix, scaled down if it must be, so that its proved norm is at most `max` after rounding."""
    upper = matrix_norm_bound(matrix).upper
    while upper > max:
        matrix = matrix * (max / upper * (1 - 4 * torch.finfo(matrix.dtype).eps))
        upper = matrix_norm_bound(matrix).upper
    return matrix


@torch.no_grad()
def clip_matrix(matrix: Tensor, max: float) -> Tensor:
    """The nearest matrix of norm at most `max`."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if float(values[0]) <= max:
        return scale_matrix_to_bound(matrix, max)
    return scale_matrix_to_bound((left * values.clamp_max(max)) @ right, max)
