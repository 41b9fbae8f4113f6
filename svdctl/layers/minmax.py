"""MinMax: the activation of networks that keep the norm of gradients (Anil, Lucas and Grosse 2019).

Note, derivative. MinMax keeps a pair or exchanges its members, and its derivative does to a tangent or gradient what
was done to the pair. Which it was is all that has to be remembered: one boolean a pair, an eighth of the bytes of a
float32 input. Where both members are equal the derivative is still a permutation, not a mean of two.
"""

from typing import Any

import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError


class MinMax(nn.Module):
    """Minimum and maximum of the two halves of the channels of `(N, C, ...)`: a permutation of each pair, 1-Lipschitz.

    Raises:
        ShapeError: an odd number of channels.

    >>> import torch
    >>> svdctl.MinMax()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
    tensor([[2., 1., 3., 5.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2:
            raise ShapeError(f"MinMax takes (N, C, ...), not a tensor of shape {tuple(x.shape)}")
        if x.shape[1] % 2:
            raise ShapeError(f"MinMax pairs channels, so their number is even, not {x.shape[1]}; change the width")
        # The compiler refuses functions that know forward-mode derivatives.
        function = _MinMax if torch.compiler.is_compiling() else _MinMaxWithTangents
        return function.apply(x)[0]


class _MinMax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, 1)
        return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), 1), first <= second

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        kept = output[1]
        ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        return _exchange(gradient, *ctx.saved_tensors)


class _MinMaxWithTangents(_MinMax):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        return _exchange(tangent, *ctx.saved_tensors), None


def _exchange(x: Tensor, kept: Tensor) -> Tensor:
    """Return the pairs of x that are not kept, exchanged."""
    first, second = x.chunk(2, 1)
    # A weight of 0 or 1 gives one end exactly; `where`, which branches at each entry, takes four times as long.
    weight = kept.to(x.dtype)
    return torch.cat((torch.lerp(second, first, weight), torch.lerp(first, second, weight)), 1)
