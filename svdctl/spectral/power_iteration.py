"""Largest singular values by power steps whose vectors are kept from one training step to the next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.spectral.convolution import Convolution
from svdctl.spectral.symbol import angles, half_grid, kernel_from_symbol, phases, symbol


@dataclass(frozen=True)
class FactoredOperators:
    """Operators `out C into^T` of layers of one shape: convolutions C, side by side as groups, between two frames.

    Only the frames' Gram matrices are held: norms need no more. Without frames C is the operator.

    Args:
        conv: the kernels of all layers, `(layers * G, O, I, *k)`.
        layers: their number L.
        gram_in, gram_out: `U^T U` of the frames on both sides of each, `(L, r, r)`; None: there are none, or they are
            taken to be orthonormal.
    """

    conv: Convolution
    layers: int
    gram_in: Tensor | None = None
    gram_out: Tensor | None = None

    @classmethod
    def of(cls, convs: Sequence[Convolution]) -> Self:
        """Return convolutions of one shape without frames."""
        kernels = [conv.kernel for conv in convs]
        return cls(convs[0].with_kernel(kernels[0] if len(kernels) == 1 else torch.cat(kernels)), len(convs))


class KernelPower:
    """Power iteration at each frequency of a small half grid, for layers of one shape; `step` never waits for the host.

    The vectors are kept by the caller: `(L, F * G, I, 1)`, I of the polyphase kernel, F of the frequencies. Every value
    is a lower bound of the layer's norm, because it is what the operator does to a unit vector.

    Note, frames. A unit vector in the range of `into` is `into z / sqrt(z^H G_in z)`; the operator brings it to a
    vector of norm `sqrt(y^H G_out y)` over the same root, with `y = C G_in z`, and its adjoint from there to
    `into C^H G_out y` but for the root. So a step needs the Gram matrices alone, orthonormal or not, and no QR.

    Args:
        operators: layers of the shape.
    """

    def __init__(self, operators: FactoredOperators) -> None:
        kernel = operators.conv.polyphase()
        taps = tuple(kernel.shape[3:])
        sizes = tuple(1 if k == 1 else max(4, 2 * k) for k in taps)
        index, _ = half_grid(sizes)
        self.frequencies = angles(index, sizes)
        phase = phases(self.frequencies, taps, kernel).T[:, None, :]
        self._phase, self._opposite = phase.contiguous(), phase.conj().resolve_conj().contiguous()

    def start(self, operators: FactoredOperators) -> Tensor:
        """Return vectors after ten steps from those that a fixed seed gives every layer."""
        kernel = operators.conv.polyphase()
        rows = self._phase.shape[-1] * (len(kernel) // operators.layers)
        drawn = torch.randn(rows, kernel.shape[2], 1, 2, generator=torch.Generator().manual_seed(0))
        vectors = torch.view_as_complex(drawn).to(kernel.device, self._phase.dtype)
        vectors = vectors / vectors.norm(dim=-2, keepdim=True)
        return self.step(operators, vectors.expand(operators.layers, -1, -1, -1), steps=10)[1]

    @torch.no_grad()
    def step(self, operators: FactoredOperators, vectors: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return a lower bound of each layer's norm `(L,)`, and the vectors after some more power steps."""
        lengths, kept = self.step_each(operators, vectors, steps)
        return lengths.amax((1, 2)), kept

    @torch.no_grad()
    def step_each(self, operators: FactoredOperators, vectors: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return a lower bound of each symbol's norm `(L, G, F)`, and the vectors after some more power steps."""
        kernel = operators.conv.polyphase().detach()
        groups, out, channels = kernel.shape[:3]
        # Taps outermost: one real product with all of them and with all frequencies' vectors.
        matrices = kernel.flatten(3).permute(0, 3, 1, 2).reshape(groups, -1, channels)
        # (L, F, G, I) complex to (L * G, I, F, 2)
        split = torch.view_as_real(vectors).view(operators.layers, self._phase.shape[-1], -1, channels, 2)
        packed = split.permute(0, 2, 3, 1, 4).flatten(0, 1)
        for _ in range(steps):
            pulled = _between_frames(operators.gram_in, packed)
            forward = torch.view_as_complex(
                torch.bmm(matrices, pulled.flatten(2)).view(groups, -1, out, *packed.shape[2:])
            )
            forward = torch.view_as_real((forward * self._phase).sum(1))
            pushed = _between_frames(operators.gram_out, forward)
            lengths = _lengths(forward, pushed)
            if operators.gram_in is not None:
                lengths = lengths / _lengths(packed, pulled).clamp_min(torch.finfo(lengths.dtype).tiny)
            spread = torch.view_as_complex(pushed)[:, None] * self._opposite
            backward = torch.bmm(matrices.mT, torch.view_as_real(spread).flatten(1, 2).flatten(2)).view(packed.shape)
            sizes = torch.linalg.vector_norm(backward, dim=(1, 3), keepdim=True)
            # A vector that a layer of zeros swallows is kept: the layer may grow again.
            packed = torch.where(sizes > torch.finfo(sizes.dtype).tiny, backward / sizes, packed)
        kept = packed.unflatten(0, (operators.layers, -1)).permute(0, 3, 1, 2, 4).contiguous()
        return lengths.unflatten(0, (operators.layers, -1)), torch.view_as_complex(kept).view(vectors.shape)


def _between_frames(gram: Tensor | None, packed: Tensor) -> Tensor:
    """Return `(L, r s, F, 2)` multiplied by Gram matrices `(L, r, r)`, the s channels of a stride each on its own."""
    return packed if gram is None else torch.bmm(gram, packed.reshape(len(gram), gram.shape[-1], -1)).view(packed.shape)


def _lengths(packed: Tensor, image: Tensor) -> Tensor:
    """Return norms `(L, F)` of complex vectors `(L, I, F, 2)` from their images by the metric's matrix."""
    if image is packed:
        return torch.linalg.vector_norm(packed, dim=(1, 3))
    return (packed * image).sum((1, 3)).clamp_min(0).sqrt()


def paper_start(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return the random input `(1, C, *n)` from which `paper_sigma` starts."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


@torch.no_grad()
def paper_sigma(
    conv: Convolution, input_size: tuple[int, ...], generator: torch.Generator, *, padding: int | tuple[int, ...] = 0
) -> Tensor:
    """Return the estimate of the paper's code, for comparisons: two power steps from a new random vector (0-d).

    The steps are made with the layer as it runs, padded with zeros, on an input whose sides the stride divides. The
    estimate lies below the true value, by about 15 % on random kernels.

    Args:
        conv: the convolution.
        input_size: of the layer, one number an axis.
        generator: of the vector.
        padding: of the layer, with zeros on both sides of each axis.
    """
    weight, groups = conv.weight.detach(), len(conv.kernel)
    pads = (padding,) * conv.axes if isinstance(padding, int) else padding
    if conv.transposed:
        # A transposed convolution is the adjoint of this one, and its input is what this one returns.
        axes = zip(input_size, conv.stride, pads, conv.dilation, conv.taps, strict=True)
        size = tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in axes)
    else:
        size = tuple(-(-n // s) * s for n, s in zip(input_size, conv.stride, strict=True))
    forward, backward = _TORCH_CONVOLUTIONS[conv.axes - 1]
    geometry: dict[str, Any] = {
        "stride": conv.stride,
        "padding": pads,
        "dilation": conv.dilation,
        "groups": groups,
    }
    vector = paper_start((1, groups * conv.kernel.shape[2], *size), generator).to(weight)
    for _ in range(2):
        vector = vector / vector.norm().clamp_min(torch.finfo(weight.dtype).tiny)
        vector = backward(forward(vector, weight, **geometry), weight, **geometry)
    return forward(vector, weight, **geometry).norm() / vector.norm().clamp_min(torch.finfo(weight.dtype).tiny)


_TORCH_CONVOLUTIONS: tuple[tuple[Any, Any], ...] = (
    (F.conv1d, F.conv_transpose1d),
    (F.conv2d, F.conv_transpose2d),
    (F.conv3d, F.conv_transpose3d),
)
"""Convolution and its adjoint, by axes."""


def input_grid(conv: Convolution, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of the frequencies that a layer has on its input: the input's sides over the strides, up."""
    if conv.transposed:
        return input_size
    return tuple(-(-n // s) for n, s in zip(input_size, conv.reduced_stride, strict=True))


def clip_grid(conv: Convolution, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of `paper_clip`: the layer's own, on every axis at least as long as the kernel."""
    taps = conv.polyphase_shape[3:]
    return tuple(max(n, k) for n, k in zip(input_grid(conv, input_size), taps, strict=True))


@torch.no_grad()
def paper_clip(conv: Convolution, max_sigma: float, input_size: tuple[int, ...]) -> Convolution:
    """Return the convolution after one clip pass of the paper: transform, clip, cut to the support; no seal.

    The grid is the layer's own, its input's sides over the strides. One smaller than the kernel would fold the kernel's
    taps onto each other, so that they could not be told apart again; then the grid is the smallest one that holds the
    kernel. A kernel without a value above `max_sigma` on the grid comes back bit for bit.

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
