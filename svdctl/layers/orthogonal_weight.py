"""Orthonormal rows or columns of a layer's matrix by products of reflections, as a parametrization of its weight."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal
from torch.nn.utils.parametrize import is_parametrized

_STORED_SIGN = 127
"""Size of stored signs: means of copies, which torch rounds towards zero in whole numbers, keep the sign."""


class OrthogonalWeight(nn.Module):
    """Weight `(O, I / g, 1, ..)` or `(O, I)` whose matrix of each group has orthonormal rows or columns.

    What is stored has the weight's shape: below the diagonals of its matrices, those of fewer rows than columns
    transposed, stand the vectors of Householder's reflections, and every value there gives an orthonormal matrix. The
    rest is not read. So weight decay, means of weights and conversions leave the weight orthonormal.

    Args:
        shape: of the weight.
        groups: of the convolution.
    """

    signs: Tensor
    """Of the columns of each group `(g, min(O / g, I))`, int8; fixed once a weight is assigned."""

    def __init__(self, shape: torch.Size, groups: int) -> None:
        super().__init__()
        count = min(shape[0] // groups, shape[1])
        self.register_buffer("signs", torch.full((groups, count), _STORED_SIGN, dtype=torch.int8))

    def forward(self, stored: Tensor) -> Tensor:
        return orthonormal_weight(stored, self.signs)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what gives the factor Q, of a QR decomposition with a positive diagonal of R, and keep its signs.

        Of a weight that has lost its rank it gives some orthonormal matrix.
        """
        matrices, is_wide = _tall(weight.to(torch.promote_types(weight.dtype, torch.float32)), len(self.signs))
        found, factors = torch.geqrf(matrices)
        # A factor of 0 stands for no reflection, where the map has one that changes the column's sign.
        is_negative = (found.diagonal(dim1=1, dim2=2) < 0) ^ (factors == 0)
        self.signs = torch.where(is_negative, -_STORED_SIGN, _STORED_SIGN).to(torch.int8)
        below = found.tril(-1)
        return (below.mT if is_wide else below).reshape(weight.shape).to(weight.dtype).contiguous()


def orthonormal_weight(stored: Tensor, signs: Tensor) -> Tensor:
    """Return the weight, in the shape and type of what is stored of it; half precision is computed in float32.

    Args:
        stored: as of `OrthogonalWeight`.
        signs: positive or negative numbers `(g, columns)`.
    """
    matrices, is_wide = _tall(stored.to(torch.promote_types(stored.dtype, torch.float32)), len(signs))
    below = matrices.tril(-1)
    found = torch.linalg.householder_product(below, 2 / (1 + below.square().sum(1)))
    found = torch.where((signs < 0)[:, None], -found, found)
    return (found.mT if is_wide else found).reshape(stored.shape).to(stored.dtype)


def _tall(weight: Tensor, groups: int) -> tuple[Tensor, bool]:
    """Return the matrix of each group `(g, n, k)`, transposed if it has fewer rows than columns, and whether it is."""
    matrices = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1])
    is_wide = matrices.shape[1] < matrices.shape[2]
    return (matrices.mT if is_wide else matrices), is_wide


def is_orthogonal_by_parametrization(layer: nn.Module) -> bool:
    """Return whether a parametrization keeps the matrix of a linear layer or 1 x 1 convolution orthonormal.

    torch's own keeps the last two axes of a weight so, which are the matrix of linear layers only.
    """
    if not is_parametrized(layer, "weight"):
        return False
    last = layer.parametrizations.weight[-1]  # type: ignore[union-attr, index]
    return isinstance(last, OrthogonalWeight) or (isinstance(last, _Orthogonal) and isinstance(layer, nn.Linear))
