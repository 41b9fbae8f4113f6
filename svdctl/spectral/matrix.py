"""Norms of plain matrices, with the guarantees of the convolutions."""

from torch import Tensor

from svdctl.spectral.bounds import TOLERANCE, Bracket, norm_bound
from svdctl.spectral.convolution import Convolution


def matrix_norm_bound(matrix: Tensor, *, tolerance: float = TOLERANCE, floor: float | None = None) -> Bracket:
    """Return a bracket of the spectral norm of a real matrix `(O, I)`: a convolution of one tap."""
    return norm_bound(Convolution.make(matrix[:, :, None]), tolerance=tolerance, floor=floor)
