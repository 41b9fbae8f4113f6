"""One layer as a file stores it: what it is, how that was told, and its operator."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from svdctl.spectral.operator import Convolution

Kind = Literal[
    "conv1d", "conv2d", "conv3d", "linear", "batchnorm", "normalize", "tt", "soc", "sott", "embedding", "other"
]

Leaves = dict[str, Tensor]
"""Tensors of one module by their names in it."""
_COUNTED = ("bias", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer told from names and shapes alone. Stride, padding, dilation and groups are stored nowhere.

    A kernel is read with stride 1 and as one group. Its singular values at stride 1 are then the layer's when it has
    one group; its norm bounds the layer's for every stride, dilation, number of groups, and for the transposed
    convolution, which has the same values.
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
    rank: tuple[int, int] | None = None
    """(rank_in, rank_out) of a TT or SOTT layer."""
    frame_error: float | None = None
    """Largest spectral norm of `U^T U - I` over the frames: 0 when Theorem 1 holds exactly."""
    frame_norms: tuple[float, float] | None = None
    """Spectral norms of (frame_in, frame_out) of a SOTT layer, which multiply the norm of the exponential."""
    scale: Tensor | None = None
    """Factors `(C,)` of a layer that scales channels: BatchNorm in evaluation mode, pixel normalisation."""
    make: Callable[[], Convolution] | None = None
    """Makes `convolution`."""
    make_generator: Callable[[], Convolution] | None = None
    """Makes `generator`."""

    @property
    def convolution(self) -> Convolution | None:
        """The operator, with the non-zero singular values of the layer at stride 1; made anew at each call, so that a
        large file is never held in memory as a whole. Of TT layers the small kernel, frames moved into it.
        """
        return None if self.make is None else self.make()

    @property
    def generator(self) -> Convolution | None:
        """Of SOC and SOTT layers the skew convolution J whose truncated exponential is the operator; made anew."""
        return None if self.make_generator is None else self.make_generator()


def layer_of(module: str, leaves: Leaves, used: tuple[str, ...], kind: Kind, told_by: str) -> StoredLayer:
    """A layer that takes the tensors `used`, as far as they are there, and its bias; its shape is that of the first."""
    names = tuple(leaf for leaf in leaves if leaf in used or leaf in _COUNTED)
    full = tuple(f"{module}.{leaf}" if module else leaf for leaf in names)
    count = sum(leaves[leaf].numel() for leaf in names)
    return StoredLayer(module, kind, told_by, full, count, tuple(leaves[used[0]].shape))


def without(layer: StoredLayer, reason: str) -> StoredLayer:
    """The layer without its operator, and why."""
    return replace(layer, reason=reason, make=None, make_generator=None, scale=None, frame_error=None, frame_norms=None)


def wide(tensor: Tensor) -> Tensor:
    """At least single precision, in which values are computed."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
