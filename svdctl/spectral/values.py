"""Exact singular values of a convolution with circular padding."""

import math

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.operator import Convolution
from svdctl.spectral.symbol import angles, gram, half_grid, phases, symbol


@torch.no_grad()
def singular_values(
    conv: Convolution, input_size: tuple[int, ...], *, accuracy: str = "full", memory_budget: int = 1 << 28
) -> Tensor:
    """All singular values of the layer with circular padding on one input, descending.

    Source: Sedghi, Gupta and Long 2019 for stride 1; with stride s the aliased symbols stand side by side, divided by
    sqrt(s^d).

    Args:
        conv: the convolution.
        input_size: spatial size of the input, divisible by the stride.
        accuracy: `full`, or `fast` through Gram matrices: right to sqrt(eps) of the largest value.
        memory_budget: bytes for the matrices that are held at once.

    Returns:
        `(G * prod(input_size / stride) * min(O, I * prod(stride)),)` in the kernel's dtype.
    """
    if len(input_size) != conv.axes or min(input_size) < 1:
        raise ShapeError(f"the input needs {conv.axes} positive sizes, not {input_size}")
    for size, stride in zip(input_size, conv.stride, strict=True):
        if size % stride:
            raise ShapeError(f"the stride {stride} does not divide the input's {size}; pad or crop the input")
    kernel = conv.kernel
    groups, out, channels = kernel.shape[:3]
    sizes = tuple(size // stride for size, stride in zip(input_size, conv.stride, strict=True))
    index, counts = half_grid(sizes)
    aliases = torch.cartesian_prod(*(torch.arange(s) for s in conv.stride)).reshape(-1, conv.axes)
    folds = len(aliases)
    dilation = torch.tensor(conv.dilation)
    side = min(out, channels * folds)
    point = kernel.element_size() * 2 * groups * (3 * out * channels * folds + 2 * side**2)
    pieces = []
    for part, count in zip(*_split(index, counts, max(1, memory_budget // point)), strict=True):
        # All w with w = w_out mod (H / s): the aliases of one output frequency.
        finer = (part[:, None, :] + aliases * torch.tensor(sizes)) * dilation % torch.tensor(input_size)
        phase = phases(angles(finer.flatten(0, 1), input_size), conv.taps, kernel)
        matrices = symbol(kernel, phase).unflatten(0, (len(part), folds, groups))
        matrices = matrices.permute(0, 2, 3, 1, 4).reshape(-1, out, folds * channels) / math.sqrt(folds)
        values = matrix_values(matrices, accuracy).unflatten(0, (len(part), groups)).flatten(1)
        pieces.append(values.repeat_interleave(count.to(values.device), dim=0).flatten())
    return torch.cat(pieces).sort(descending=True).values


def matrix_values(matrices: Tensor, accuracy: str) -> Tensor:
    """Singular values `(B, min(m, n))` of a batch; the one place that chooses the algorithm.

    Small matrices and full accuracy go to `svdvals`; `fast` takes the Hermitian eigenvalues of the Gram matrices.
    """
    if accuracy == "full":
        return torch.linalg.svdvals(matrices)
    if accuracy == "fast":
        return torch.linalg.eigvalsh(gram(matrices)).clamp_min(0).sqrt()
    raise ValueError(f"accuracy is 'full' or 'fast', not {accuracy!r}")


def _split(index: Tensor, counts: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    starts = range(0, len(index), size)
    return [index[start : start + size] for start in starts], [counts[start : start + size] for start in starts]
