"""The exponential's series with a backward pass that computes the powers again instead of keeping them.

Note, memory. `torch.utils.checkpoint` does the same work, but holds its inputs until the whole graph is freed and
leaves the heap in pieces: a step of LipConvNet-30 (SOTT 128, batch 128) added 950 MiB to a process, and adds 560 here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.layers.skew import exponential_series, series_kernel


def recomputed_series(x: Tensor, kernel: Tensor, terms: int, outputs: int) -> Tensor:
    """Return `exponential_series`, of whose powers none is kept for the backward pass."""
    y = _Series.apply(x, kernel, terms, outputs)
    assert isinstance(y, Tensor)
    return y


class _Series(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, terms: int, outputs: int) -> Tensor:
        return exponential_series(x, kernel, terms, outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        x, kernel, ctx.terms, ctx.outputs = inputs
        ctx.precision = _precision(x)
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        padding = [kernel.shape[-1] // 2] * 2

        def factor(power: int) -> Tensor:
            return series_kernel(kernel, power, ctx.terms, x.shape[1], ctx.outputs).to(ctx.precision)

        powers = [x]
        for i in range(1, ctx.terms):
            powers.append(F.conv2d(powers[-1].to(ctx.precision), factor(i), padding=padding))
        # What reaches a power comes from the one after it and, in the channels that are kept, from the sum.
        of_sum = F.pad(gradient, (0, 0, 0, 0, 0, len(kernel) - ctx.outputs))
        of_power: Tensor | None = gradient.to(ctx.precision)
        of_kernel: Tensor | None = None
        for i in range(ctx.terms, 0, -1):
            power = powers.pop()
            wanted = [i > 1 or ctx.needs_input_grad[0], True, False]
            of_power, of_factor, _ = torch.ops.aten.convolution_backward(
                of_power, power.to(ctx.precision), factor(i), None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
            )
            if of_power is not None:
                of_power = of_power.to(power.dtype) + of_sum[:, : power.shape[1]].to(power.dtype)
            part = of_factor.to(kernel.dtype).div_(i)
            rows, columns = (len(kernel) - n for n in part.shape[:2])
            if rows or columns:
                part = F.pad(part, (0, 0, 0, 0, 0, columns, 0, rows))
            of_kernel = part if of_kernel is None else of_kernel.add_(part)
        return of_power, of_kernel, None, None


def _precision(x: Tensor) -> torch.dtype:
    """Return the precision that convolutions of x are computed in where this is called."""
    kind = x.device.type
    lowered = kind != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lowered else x.dtype
