"""Exact singular values of a convolution with circular padding; docs/theory.md, "The operator"."""

import math
from typing import Literal

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.batched import eigenvalues_of, parallel_batched
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic, float32_is_exact
from svdctl.spectral.faster_device import device_for_values
from svdctl.spectral.gram import GramField
from svdctl.spectral.symbol import angles, grid_product, half_grid, phases, symbol

_MEMORY_BUDGET = 1 << 27  # bytes for the matrices that are held at once, for speed


@torch.no_grad()
@exact_arithmetic()
def singular_values(
    conv: Convolution,
    input_size: tuple[int, ...],
    *,
    accuracy: Literal["full", "fast"] = "full",
) -> Tensor:
    """Return all singular values of the layer with circular padding on one input, descending.

    Source: Sedghi, Gupta and Long 2019 for stride 1; with stride s the aliased symbols stand side by side, divided by
    sqrt(s^d).

    Args:
        conv: the convolution.
        input_size: spatial size of the input, divisible by the stride.
        accuracy: `full`: right to some roundings of the largest value in the kernel's dtype; `fast`: to 1e-3 of it.

    Returns:
        `(G * prod(input_size / stride) * min(O, I * prod(stride)),)` in the kernel's dtype, on its device; computed
        there or on the host, whichever is faster.

    Raises:
        ShapeError: sizes that do not fit the convolution or its stride, or a kernel that is not finite.
    """
    if accuracy not in ("full", "fast"):
        raise ShapeError(f"accuracy is full or fast, not {accuracy!r}")
    if len(input_size) != conv.axes or min(input_size) < 1:
        raise ShapeError(f"the input needs {conv.axes} positive sizes, not {input_size}")
    for size, stride in zip(input_size, conv.stride, strict=True):
        if size % stride:
            raise ShapeError(f"the stride {stride} does not divide the input's {size}; pad or crop the input")
    if not bool(torch.isfinite(conv.kernel).all()):
        raise ShapeError("the kernel holds values that are not finite; it has no singular values")
    device, by_svd = conv.kernel.device, conv.kernel.dtype == torch.float64 and accuracy == "full"
    side = min(conv.kernel.shape[1], conv.kernel.shape[2] * math.prod(conv.stride))
    conv = conv.with_kernel(conv.kernel.to(device_for_values(side, device, by="svd" if by_svd else "eigenvalues")))
    sizes = tuple(size // stride for size, stride in zip(input_size, conv.stride, strict=True))
    index, counts = half_grid(sizes)
    own_mirror = counts == 1
    single = accuracy == "fast" and (float32_is_exact(conv.kernel.device) or conv.kernel.dtype == torch.float32)
    precision = torch.float32 if single else torch.float64
    pieces = []
    # The frequencies that are their own mirror image have real symbols: half the work, and exactly real values.
    for chosen in (own_mirror, ~own_mirror):
        if bool(chosen.any()):
            repeats = 1 if chosen is own_mirror else 2
            if by_svd:
                found = _values_at(conv, input_size, index[chosen], real=repeats == 1)
            else:
                found = _values_by_gram(conv, input_size, index[chosen], precision, real=repeats == 1)
            pieces += [found] * repeats
    return torch.cat(pieces).to(device, conv.kernel.dtype).sort(descending=True).values


def _values_at(conv: Convolution, input_size: tuple[int, ...], index: Tensor, *, real: bool) -> Tensor:
    """Return singular values by SVD of the symbols at output frequencies `(F, d)`."""
    kernel = conv.kernel
    groups, out, channels = kernel.shape[:3]
    sizes = torch.tensor([size // stride for size, stride in zip(input_size, conv.stride, strict=True)])
    aliases = grid_product([torch.arange(s) for s in conv.stride]).long()
    folds = len(aliases)
    dilation = torch.tensor(conv.dilation)
    point = kernel.element_size() * 2 * groups * 5 * out * channels * folds
    pieces = []
    for part in index.split(max(1, _MEMORY_BUDGET // point)):
        # All w with w = w_out mod (H / s): the aliases of one output frequency.
        finer = (part[:, None, :] + aliases * sizes) * dilation % torch.tensor(input_size)
        phase = phases(angles(finer.flatten(0, 1), input_size), conv.taps, kernel)
        matrices = symbol(kernel, phase).unflatten(0, (len(part), folds, groups))
        matrices = matrices.permute(0, 2, 3, 1, 4).reshape(-1, out, folds * channels) / math.sqrt(folds)
        # With a stride the aliases of a real frequency come in conjugate pairs, which are not real one by one.
        matrices = matrices.real.contiguous() if real and folds == 1 else matrices
        pieces.append(parallel_batched(torch.linalg.svdvals, matrices).flatten())
    return torch.cat(pieces)


def _values_by_gram(
    conv: Convolution, input_size: tuple[int, ...], index: Tensor, dtype: torch.dtype, *, real: bool
) -> Tensor:
    """Return singular values as roots of eigenvalues of interpolated Gram matrices.

    They err by sqrt(unit roundoff) of the largest value: 1e-8 in float64, finer than float32 itself; 3e-4 in float32.
    """
    field = GramField(undilated(conv))
    side, groups = field.side, field.groups
    if field.is_zero:
        return torch.zeros(len(index) * groups * side, dtype=torch.float64, device=conv.kernel.device)
    sizes = torch.tensor([size // stride for size, stride in zip(input_size, conv.stride, strict=True)])
    # One tap along an axis: no frequency there.
    kept = [axis for axis, taps in enumerate(undilated(conv).polyphase().shape[3:]) if taps > 1]
    frequencies = (index.double() * (2 * math.pi / sizes))[:, kept]
    pieces = []
    for part in frequencies.split(max(1, _MEMORY_BUDGET // (8 * dtype.itemsize * groups * side**2))):
        grams = field.matrices(part, dtype).flatten(0, 1)
        grams = grams.real.contiguous() if real else grams
        pieces.append(eigenvalues_of(grams).clamp_min(0).sqrt().double().flatten())
    return torch.cat(pieces) * field.scale


def undilated(conv: Convolution) -> Convolution:
    """Return the same convolution without dilation, its kernel filled up with zeros; itself where there is none."""
    if max(conv.dilation) == 1:
        return conv
    taps = [(k - 1) * d + 1 for k, d in zip(conv.taps, conv.dilation, strict=True)]
    kernel = conv.kernel.new_zeros(*conv.kernel.shape[:3], *taps)
    kernel[(slice(None),) * 3 + tuple(slice(None, None, d) for d in conv.dilation)] = conv.kernel
    return Convolution(kernel, conv.stride, (1,) * conv.axes, conv.transposed)
