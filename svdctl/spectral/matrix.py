"""Singular values and norms of plain matrices, with the guarantees of the convolutions."""

import torch
from torch import Tensor

from svdctl.spectral.bounds import TOLERANCE, Bracket, norm_bound
from svdctl.spectral.convolution import Convolution


def matrix_norm_bound(matrix: Tensor, *, tolerance: float = TOLERANCE, floor: float | None = None) -> Bracket:
    """Bracket of the spectral norm of a real matrix `(O, I)`: a convolution of one tap."""
    return norm_bound(Convolution.make(matrix[:, :, None]), tolerance=tolerance, floor=floor)


@torch.no_grad()
def matrix_singular_values(matrix: Tensor) -> Tensor:
    """All singular values `(min(O, I),)` of a real matrix, descending, in its own dtype."""
    return torch.linalg.svdvals(matrix)
