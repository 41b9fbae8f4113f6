"""One layer as a file stores it: its kind, how that was recognised, and its operator."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from svdctl.checkpoint.tensors import holds_weights
from svdctl.layers.spectral_norm import StoredNorm
from svdctl.spectral.convolution import Convolution

Kind = Literal[
    "conv1d", "conv2d", "conv3d", "linear", "batchnorm", "normalize", "tt", "soc", "sott", "embedding", "other"
]

NOTHING = "nothing"
"""What an entry of a file is that is None or empty."""
Leaves = dict[str, Tensor]
"""Tensors of one module by their names in it."""


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer told from names and shapes alone. Stride, padding, dilation and groups are stored nowhere.

    A kernel is read with stride 1 and as one group. Its singular values at stride 1 are then the layer's when it has
    one group; its norm bounds the layer's for every stride, dilation, number of groups, and for the transposed
    convolution, which has the same values. `least_norm` is below the layer's norm for all of them.
    """

    name: str
    """Dotted path of the module; for a parameter of its own, of the parameter."""
    kind: Kind
    told_by: str
    """What told the kind, in words."""
    tensors: tuple[str, ...]
    """Full names of the tensors that belong to the layer."""
    parameters: int
    """Numbers in them, statistics and warm-start vectors counted."""
    shape: tuple[int, ...]
    """Of the kernel that the layer stands for, `(O, I, *k)`; otherwise of its first tensor."""
    reason: str = ""
    """Why the layer is not analysed; empty when it is."""
    assumption: str = ""
    """What the operator rests on and the file does not tell; empty when the tensors alone tell the operator."""
    by_shape: bool = False
    """Whether its name and number of axes alone tell the kind: without a bias, that of a `LayerNorm` has as many."""
    note: str = ""
    """How its numbers are stored, where that is out of the ordinary."""
    has_weights: bool = True
    """Whether it may hold weights of a layer; False of counters and of what is empty."""
    slack: float = 0.0
    """How far the norm of the operator may be from that of the layer: rounding of a TT layer's frames."""
    rank: tuple[int, int] | None = None
    """(rank_in, rank_out) of a TT or SOTT layer."""
    frame_error: float | None = None
    """Largest spectral norm of `U^T U - I` over the frames: 0 when Theorem 1 holds exactly."""
    frame_norms: tuple[float, float] | None = None
    """Spectral norms of (frame_in, frame_out) of a SOTT layer, which multiply the norm of the exponential."""
    scale: Tensor | None = None
    """Factors `(C,)` of a layer that scales channels: BatchNorm in evaluation mode, pixel normalisation."""
    largest_scale: float | None = None
    """At least the norm of a BatchNorm layer for every eps."""
    make: Callable[[], Convolution] | None = None
    """Makes the operator, with the layer's non-zero singular values at stride 1; of TT layers the small kernel.

    It is made anew at each call, so that a large file is never held in memory as a whole.
    """
    norm: StoredNorm | None = None
    """The layer's spectral norm by svdctl, which tells stride, dilation, groups, padding and a maximum."""
    make_generator: Callable[[], Convolution] | None = None
    """Makes the skew convolution J of a SOC or SOTT layer, whose truncated exponential is the operator."""


def least_norm(weight: Tensor, *, pairs: bool = False) -> float:
    """Return a lower bound of the norm of every layer that stores the kernel `(A, B, *k)`, whatever its settings.

    Settings are stride, dilation and number of groups of a convolution, or of a transposed one, with zero padding, over
    every input size. The adjoint takes a unit at one place of output channel a to the kernel's row `W[a]`, its taps at
    places that differ for every stride and dilation, and B channels of the row's own group for every number of groups.
    So the norm is at least `||W[a]||_F` for each a, and with A groups and a stride of at least the kernel's size, where
    no two of these images overlap, it is the largest of them. A transposed convolution with the weight `(I, O / g, *k)`
    of torch is the adjoint of that convolution.

    Args:
        weight: `(A, B, *k)`.
        pairs: the file may store transposed convolutions with the output channels first, so that a row may be a
            column; then only the taps between two channels are sure to stay together, `max ||W[a, b]||_F`.
    """
    rows = weight.double().flatten(2) if pairs else weight.double().flatten(1)
    largest = float(rows.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return 0.0
    norm = float(torch.linalg.vector_norm(rows / largest, dim=-1).max()) * largest
    return norm * (1 - (rows.shape[-1] + 8) * 2.0**-52) if norm > 1e-290 else 0.0


def layer_of(module: str, leaves: Leaves, used: tuple[str, ...], kind: Kind, told_by: str) -> StoredLayer:
    """Return a layer of those tensors of `used` that are there, and its bias; its shape is that of the first."""
    names = tuple(leaf for leaf, tensor in leaves.items() if leaf in used or _is_beside(leaf, tensor))
    full = tuple(f"{module}.{leaf}" if module else leaf for leaf in names)
    count = sum(leaves[leaf].numel() for leaf in names)
    return StoredLayer(module, kind, told_by, full, count, tuple(leaves[used[0]].shape))


def _is_beside(leaf: str, tensor: Tensor) -> bool:
    """Return whether it is a bias, pruned or not, or a counter, which change no norm."""
    return (leaf in ("bias", "bias_orig", "bias_mask") and tensor.ndim == 1) or (
        leaf == "num_batches_tracked" and not holds_weights(tensor)
    )


def without(layer: StoredLayer, reason: str) -> StoredLayer:
    """Return the layer as one that is not analysed, and why."""
    known = (layer.name, layer.kind, layer.told_by, layer.tensors, layer.parameters, layer.shape)
    return StoredLayer(*known, reason=reason)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in at least single precision, in which values are computed."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
