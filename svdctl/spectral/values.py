"""Exact singular values of a convolution with circular padding; docs/theory.md, "The operator"."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.batched import eigenvalues_of, parallel_batched
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic, float32_is_exact
from svdctl.spectral.faster_device import device_for_values, few_batches_are_faster
from svdctl.spectral.gram import GramField, gram_fields, on_host
from svdctl.spectral.symbol import angles, grid_product, half_grid, phases, symbol

# For speed: bytes for the matrices that are held at once.
_BYTES_AT_ONCE = {"cpu": 1 << 27}
_BYTES_ON_DEVICE = 1 << 32


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
    return all_singular_values([conv], [input_size], accuracy=accuracy)[0]


@torch.no_grad()
@exact_arithmetic()
def all_singular_values(
    convs: Sequence[Convolution],
    input_sizes: Sequence[tuple[int, ...]],
    *,
    accuracy: Literal["full", "fast"] = "full",
) -> list[Tensor]:
    """Return `singular_values` of each convolution; matrices of one side on one device are computed together.

    Args:
        convs: any number.
        input_sizes: of each.
        accuracy: of all.

    Raises:
        ShapeError: as `singular_values`, of any of them.
    """
    if accuracy not in ("full", "fast"):
        raise ShapeError(f"accuracy is full or fast, not {accuracy!r}")
    for conv, input_size in zip(convs, input_sizes, strict=True):
        _require_fitting(conv, input_size)
    if not all(bool(each) for each in on_host([torch.isfinite(conv.kernel).all() for conv in convs])):
        raise ShapeError("the kernel holds values that are not finite; it has no singular values")
    found: dict[int, Tensor] = {}
    by_gram: dict[tuple[int, torch.device, torch.dtype], list[int]] = {}
    for place, conv in enumerate(convs):
        if conv.kernel.dtype == torch.float64 and accuracy == "full":
            found[place] = _values_by_svd(conv, input_sizes[place])
        else:
            by_gram.setdefault((_side(conv), conv.kernel.device, conv.kernel.dtype), []).append(place)
    for (side, device, _dtype), places in by_gram.items():
        chosen, sizes = [convs[place] for place in places], [input_sizes[place] for place in places]
        there = device_for_values(side, device, count=sum(map(_count, chosen, sizes)))
        moved = [conv.with_kernel(conv.kernel.to(there)) for conv in chosen]
        found |= dict(zip(places, _values_by_gram(moved, sizes, accuracy), strict=True))
    return [
        found[place].to(conv.kernel.device, conv.kernel.dtype).sort(descending=True).values
        for place, conv in enumerate(convs)
    ]


def _require_fitting(conv: Convolution, input_size: tuple[int, ...]) -> None:
    if len(input_size) != conv.axes or min(input_size) < 1:
        raise ShapeError(f"the input needs {conv.axes} positive sizes, not {input_size}")
    for size, stride in zip(input_size, conv.stride, strict=True):
        if size % stride:
            raise ShapeError(f"the stride {stride} does not divide the input's {size}; pad or crop the input")


def _side(conv: Convolution) -> int:
    """Return the smaller side of the matrix at one output frequency, of the reduced stride."""
    return min(conv.polyphase_shape[1:3])


def _full_side(conv: Convolution) -> int:
    """Return how many singular values the layer has by its shape at one output frequency."""
    return min(conv.kernel.shape[1], conv.kernel.shape[2] * math.prod(conv.stride))


def _output_size(conv: Convolution, input_size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // stride for size, stride in zip(input_size, conv.stride, strict=True))


def _count(conv: Convolution, input_size: tuple[int, ...]) -> int:
    """Return at least how many matrices have the layer's values, those of mirrored frequencies left out."""
    return conv.kernel.shape[0] * (math.prod(_differing_size(conv, input_size)) // 2 + 1)


def _differing_size(conv: Convolution, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of output frequencies, of one point along axes with one tap, where all have the same values."""
    taps = conv.polyphase_shape[3:]
    return tuple(1 if k == 1 else n for n, k in zip(_output_size(conv, input_size), taps, strict=True))


def operations_of_values(conv: Convolution, input_size: tuple[int, ...]) -> float:
    """Return about how many real operations `singular_values` takes."""
    # Eigenvalues alone; of complex matrices four times as many as of real ones.
    each = 4 / 3 * _side(conv) ** 3 * (4 if max(conv.polyphase_shape[3:], default=1) > 1 else 1)
    return each * _count(conv, input_size)


def bytes_of_values(shape: tuple[int, ...], input_size: tuple[int, ...]) -> int:
    """Return about how much memory the values of a kernel `(O, I, *k)` on one input take on a CPU besides its bound."""
    matrices = math.prod(input_size) // 2 + 1
    return min(_BYTES_AT_ONCE["cpu"], 64 * matrices * min(shape[:2]) ** 2) + 8 * math.prod(input_size) * min(shape[:2])


def _bytes_at_once(device: torch.device) -> int:
    return _BYTES_AT_ONCE.get(device.type, _BYTES_ON_DEVICE)


def _values_by_svd(conv: Convolution, input_size: tuple[int, ...]) -> Tensor:
    """Return singular values by SVD of the symbols, in any order, on the device where that is the fastest."""
    conv = conv.with_kernel(conv.kernel.to(device_for_values(_side(conv), conv.kernel.device, by="svd")))
    sizes = _differing_size(conv, input_size)
    index, counts = half_grid(sizes)
    same = math.prod(_output_size(conv, input_size)) // math.prod(sizes)
    # The frequencies that are their own mirror image have real symbols: half the work, and exactly real values.
    pieces = [
        _values_at(conv, input_size, chosen, real=repeats == 1).repeat(repeats * same)
        for repeats in (1, 2)
        if len(chosen := index[counts == repeats])
    ]
    return torch.cat(pieces)


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
    for part in index.split(max(1, _bytes_at_once(kernel.device) // point)):
        # All w with w = w_out mod (H / s): the aliases of one output frequency.
        finer = (part[:, None, :] + aliases * sizes) * dilation % torch.tensor(input_size)
        phase = phases(angles(finer.flatten(0, 1), input_size), conv.taps, kernel)
        matrices = symbol(kernel, phase).unflatten(0, (len(part), folds, groups))
        matrices = matrices.permute(0, 2, 3, 1, 4).reshape(-1, out, folds * channels) / math.sqrt(folds)
        # With a stride the aliases of a real frequency come in conjugate pairs, which are not real one by one.
        matrices = matrices.real.contiguous() if real and folds == 1 else matrices
        pieces.append(parallel_batched(torch.linalg.svdvals, matrices).flatten())
    return torch.cat(pieces)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some frequencies `(F, d)` of one layer, and how many frequencies have the values of each, `(F,)`."""

    place: int
    field: GramField
    frequencies: Tensor
    counts: Tensor
    is_real: bool

    def matrices(self, dtype: torch.dtype) -> Tensor:
        found = self.field.matrices(self.frequencies, dtype).flatten(0, 1)
        return found.real.contiguous() if self.is_real else found

    def values(self, squares: Tensor) -> Tensor:
        """Return the singular values, given the eigenvalues of `matrices`."""
        values = (squares.clamp_min(0).sqrt().double() * self.field.scale).unflatten(0, (len(self.counts), -1))
        repeats, total = self.counts.to(values.device), int(self.counts.sum())
        return values.repeat_interleave(repeats, 0, output_size=total).flatten()


def _values_by_gram(
    convs: Sequence[Convolution], input_sizes: Sequence[tuple[int, ...]], accuracy: Literal["full", "fast"]
) -> list[Tensor]:
    """Return the singular values of layers of one side and device, in any order, float64.

    They are roots of eigenvalues of interpolated Gram matrices, and err by sqrt(unit roundoff) of the largest value:
    1e-8 in float64, finer than float32 itself; 3e-4 in float32.
    """
    device = convs[0].kernel.device
    single = accuracy == "fast" and (float32_is_exact(device) or convs[0].kernel.dtype == torch.float32)
    dtype = torch.float32 if single else torch.float64
    fields = gram_fields(convs, [torch.float64] * len(convs))
    point = 8 * dtype.itemsize * fields[0].side ** 2
    most = _bytes_at_once(device) // point
    found: list[list[Tensor]] = [[] for _ in convs]
    batch: list[_Part] = []

    def compute() -> None:
        matrices = [part.matrices(dtype) for part in batch]
        lengths = [len(each) for each in matrices]
        joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        matrices.clear()
        for part, squares in zip(batch, eigenvalues_of(joined).split(lengths), strict=True):
            found[part.place].append(part.values(squares))
        batch.clear()

    held = 0
    for place, (conv, input_size, field) in enumerate(zip(convs, input_sizes, fields, strict=True)):
        frequencies = math.prod(_output_size(conv, input_size)) * field.groups
        # Inputs that a stride with dilation reads twice, or not at all, can leave more outputs than inputs.
        missing = frequencies * (_full_side(conv) - field.side)
        if field.is_zero:
            missing = frequencies * _full_side(conv)
        if missing:
            found[place].append(torch.zeros(missing, dtype=torch.float64, device=device))
        if field.is_zero:
            continue
        for part in _parts(place, conv, input_size, field, max(1, most // field.groups)):
            size = len(part.counts) * field.groups
            if batch and (held + size > most or not few_batches_are_faster(device)):
                compute()
                held = 0
            batch.append(part)
            held += size
    if batch:
        compute()
    return [torch.cat(pieces) for pieces in found]


def _parts(place: int, conv: Convolution, input_size: tuple[int, ...], field: GramField, most: int) -> Iterator[_Part]:
    """Yield all frequencies of a layer, at most so many in a part.

    A dilation, less what it has in common with the stride, multiplies frequencies (docs/theory.md, "The operator"):
    along an axis of N frequencies it leaves every g-th, g its greatest common divisor with N, each g times. An axis of
    one tap leaves one.
    """
    taps = conv.polyphase_shape[3:]
    repeated = [
        size if k == 1 else math.gcd(dilation // math.gcd(dilation, stride), size)
        for dilation, stride, size, k in zip(
            conv.dilation, conv.stride, _output_size(conv, input_size), taps, strict=True
        )
    ]
    sizes = tuple(size // g for size, g in zip(_output_size(conv, input_size), repeated, strict=True))
    index, counts = half_grid(sizes)
    # One tap along an axis: no frequency there.
    kept = [axis for axis, k in enumerate(taps) if k > 1]
    frequencies = angles(index, sizes)[:, kept]
    # The frequencies that are their own mirror image have real Gram matrices, which is half the work for each.
    chosen = (counts > 0,) if few_batches_are_faster(field.device) else (counts == 1, counts == 2)
    for mask in chosen:
        is_real = len(chosen) == 2 and mask is chosen[0]
        repeats = counts[mask] * math.prod(repeated)
        for some, times in zip(frequencies[mask].split(most), repeats.split(most), strict=True):
            if len(some):
                yield _Part(place, field, some, times, is_real)
