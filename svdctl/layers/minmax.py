"""MinMax: the activation of networks that keep the norm of gradients (Anil, Lucas and Grosse 2019)."""

import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError


class MinMax(nn.Module):
    """Minimum and maximum of the two halves of the channels of `(N, C, ...)`: a permutation of each pair, 1-Lipschitz.

    Raises:
        ShapeError: an odd number of channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise ShapeError(f"MinMax pairs channels, so their number is even, not {x.shape[1]}; change the width")
        first, second = x.chunk(2, 1)
        return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), 1)
