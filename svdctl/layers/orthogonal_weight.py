"""Orthonormal rows or columns of a 1 x 1 convolution's matrix, as a parametrization of its weight."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import _Orthogonal
from torch.nn.utils.parametrize import is_parametrized


class OrthogonalWeight(nn.Module):
    """Weight `(O, I / g, 1, ..)` whose matrix `(O / g, I / g)` of each group has orthonormal rows or columns.

    torch's own parametrization works on the last two axes, which of a convolution are those of the kernel. The map is
    its Householder map; what is stored is the matrix, `(O, I)` or `(g, O / g, I / g)` of several groups.

    Args:
        shape: of the weight.
        groups: of the convolution.
    """

    def __init__(self, shape: torch.Size, groups: int) -> None:
        super().__init__()
        self.shape = shape
        self.matrix_shape = (groups, shape[0] // groups, shape[1]) if groups > 1 else tuple(shape[:2])
        holder = nn.Module()
        holder.register_parameter("weight", nn.Parameter(torch.zeros(self.matrix_shape)))
        parametrizations.orthogonal(holder, "weight", orthogonal_map="householder", use_trivialization=False)
        (self.map,) = holder.parametrizations.weight  # type: ignore[union-attr, misc]

    def forward(self, matrix: Tensor) -> Tensor:
        found: Tensor = self.map(matrix)
        return found.reshape(self.shape)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what the map takes to the nearest such weight that a QR decomposition gives."""
        found: Tensor = self.map.right_inverse(weight.reshape(self.matrix_shape))
        return found.contiguous()


def is_orthogonal_by_parametrization(layer: nn.Module) -> bool:
    """Return whether a parametrization keeps the matrix of a linear layer or 1 x 1 convolution orthonormal.

    torch's own keeps the last two axes of a weight so, which are the matrix of linear layers only.
    """
    if not is_parametrized(layer, "weight"):
        return False
    last = layer.parametrizations.weight[-1]  # type: ignore[union-attr, index]
    return isinstance(last, OrthogonalWeight) or (isinstance(last, _Orthogonal) and isinstance(layer, nn.Linear))
