"""A skew kernel over its norm, of which autograd keeps one copy, not two.

Note, derivative. Of `K = scale / norm S` a gradient G becomes `scale / norm G` for S and `-<G, K> / norm` for the norm:
K is enough, which the layer's convolutions keep anyway, where torch's product would keep S beside it.
"""

from typing import Any

import torch
from torch import Tensor


def normalized_skew(skew: Tensor, norm: Tensor, scale: float) -> Tensor:
    """Return `scale / norm * skew` for a kernel and a positive 0-d tensor."""
    # The compiler refuses functions that know forward-mode derivatives.
    function = _OverNorm if torch.compiler.is_compiling() else _OverNormWithTangents
    kernel = function.apply(skew, norm, scale)
    assert isinstance(kernel, Tensor)
    return kernel


class _OverNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(skew: Tensor, norm: Tensor, scale: float) -> Tensor:
        return skew * (scale / norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        _, norm, ctx.scale = inputs
        ctx.save_for_backward(output, norm)
        ctx.save_for_forward(output, norm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        kernel, norm = ctx.saved_tensors
        return gradient * (ctx.scale / norm), -(gradient * kernel).sum() / norm, None


class _OverNormWithTangents(_OverNorm):
    @staticmethod
    def jvp(ctx: Any, skew: Tensor, norm: Tensor, _: None) -> Tensor:
        kernel, divisor = ctx.saved_tensors
        return skew * (ctx.scale / divisor) - kernel * (norm / divisor)
