"""Largest singular values by power steps whose vectors are kept from one training step to the next."""

import math

import torch
from torch import Tensor

from svdctl.spectral.convolution import Convolution
from svdctl.spectral.symbol import angles, half_grid, kernel_from_symbol, phases, symbol


class KernelPower:
    """Power iteration at each frequency of a small half grid; no host synchronisation after construction.

    Every value it returns is a lower bound of the convolution's norm, because the vectors have norm 1.
    """

    def __init__(self, conv: Convolution) -> None:
        kernel = conv.polyphase()
        taps = tuple(kernel.shape[3:])
        sizes = tuple(1 if k == 1 else max(4, 2 * k) for k in taps)
        index, _ = half_grid(sizes)
        self._phase = phases(angles(index, sizes), taps, kernel)
        start = torch.randn(
            len(index) * kernel.shape[0], kernel.shape[2], 1, 2, generator=torch.Generator().manual_seed(0)
        )
        self.vectors = torch.view_as_complex(start).to(self._phase.device, self._phase.dtype)
        self.vectors = self.vectors / self.vectors.norm(dim=-2, keepdim=True)
        self.step(conv, steps=10)

    @torch.no_grad()
    def step(self, conv: Convolution, steps: int = 1) -> Tensor:
        """Return a lower bound of the norm (0-d) after some more power steps on the convolution as it is now."""
        matrices = symbol(conv.polyphase().detach(), self._phase)
        for _ in range(steps):
            forward = matrices @ self.vectors
            backward = matrices.mH @ forward
            lengths = backward.norm(dim=-2, keepdim=True)
            # A vector that a layer of zeros swallows is kept: the layer may grow again.
            self.vectors = torch.where(lengths > torch.finfo(lengths.dtype).tiny, backward / lengths, self.vectors)
        return forward.norm(dim=-2).max()


@torch.no_grad()
def paper_sigma(conv: Convolution, input_size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return the estimate of the paper's code, for comparisons: two power steps from a new random vector (0-d).

    It lies below the true value, by about 15 % on random kernels.
    """
    index, _ = half_grid(input_size)
    kernel = conv.polyphase().detach()
    matrices = symbol(kernel, phases(angles(index, input_size), tuple(kernel.shape[3:]), kernel))
    start = torch.randn(len(matrices), kernel.shape[2], 1, generator=generator, dtype=torch.float32)
    vectors = start.to(matrices.device, matrices.dtype)
    vectors = vectors / vectors.norm()
    forward = vectors
    for _ in range(2):
        forward = matrices @ vectors
        vectors = matrices.mH @ forward
        vectors = vectors / vectors.norm().clamp_min(torch.finfo(kernel.dtype).tiny)
    return (matrices @ vectors).norm()


def clip_grid(conv: Convolution, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of `paper_clip`: the layer's own, on every axis at least as long as the kernel."""
    taps = conv.polyphase().shape[3:]
    return tuple(max(n, k) for n, k in zip(input_size, taps, strict=True))


@torch.no_grad()
def paper_clip(conv: Convolution, max_sigma: float, input_size: tuple[int, ...]) -> Convolution:
    """Return the convolution after one clip pass of the paper: transform, clip, cut to the support; no seal.

    The grid is the layer's own. An input smaller than the kernel would fold the kernel's taps onto each other, so that
    they could not be told apart again; there the grid is the smallest one that holds the kernel. A kernel without a
    value above `max_sigma` on the grid comes back bit for bit.

    Args:
        conv: the convolution.
        max_sigma: the limit.
        input_size: of the layer, one number an axis.
    """
    kernel = conv.polyphase()
    size = clip_grid(conv, input_size)
    index, counts = half_grid(size)
    phase = phases(angles(index, size), tuple(kernel.shape[3:]), kernel)
    left, values, right = torch.linalg.svd(symbol(kernel, phase), full_matrices=False)
    # What is above the maximum is taken off, so that a kernel without any stays as it is.
    excess = (left * (values - max_sigma).clamp_min(0).to(left.dtype)[:, None, :]) @ right
    weights = (counts / math.prod(size)).to(kernel.device, kernel.dtype)
    return conv.from_polyphase(kernel - kernel_from_symbol(excess, phase, weights, kernel.shape))
