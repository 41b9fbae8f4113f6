"""TT, SOC and SOTT layers, by the names of svdctl and by those of the paper's code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from svdctl.checkpoint.parametrized import Effective, effective
from svdctl.checkpoint.stored_layer import Kind, Leaves, StoredLayer, layer_of, wide, without
from svdctl.checkpoint.stored_skew import OWN_VECTORS, PAPER_VECTORS, generator, skew_factor
from svdctl.errors import ShapeError
from svdctl.layers.stiefel import frame_error
from svdctl.layers.tt_bounds import joint_kernel
from svdctl.spectral.bounds import norm_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.rounding import times_power

_LARGEST = 1e100
"""Numbers of a frame whose squares and their sums are numbers of float64."""
_EXACT = 1e-6
"""Tolerance of the norms of frames."""


@dataclass(frozen=True)
class _Form:
    """One way of storing a kernel, with or without frames around it."""

    kind: Kind
    kernel: str
    """Its name; of TT: (r_out, r_in, *k), in the paper's code (r_in, kh, kw, r_out); of others: (c, c, k, k)."""
    told_by: str
    frames: tuple[str, ...] = ()
    """Names of the frames (I, r_in) and (O, r_out); the paper's code stores the latter transposed."""
    vectors: tuple[str, ...] = ()
    """Names of what the norm of a skew kernel is computed from."""
    marker: str = ""
    """A further name that is there."""
    assumption: str = ""
    ndims: tuple[int, ...] = (4,)
    """Numbers of axes that the kernel may have."""

    def fits(self, module: str, leaves: Leaves) -> bool:
        """Return whether a module's tensors are stored so."""
        kernel = leaves.get(self.kernel)
        if kernel is None or kernel.ndim not in self.ndims or not kernel.is_floating_point():
            return False
        return self.marker in ("", *leaves) and not (self.kernel == "core" and module.endswith("weight"))


_OWN = "its factor is svdctl's own, 0.7 (1 of a 1x1 kernel), and its series has 12 terms"
_PAPER = "its series has 12 terms, as in the paper's code"
_OWN_FRAMES, _PAPER_FRAMES = ("frame_in", "frame_out"), ("K1", "K3")
_CORE_VECTORS = tuple(f"core.{name}" for name in OWN_VECTORS)
_SOTT_NAMES = "the names core.kernel, frame_in, frame_out"
_FILTER = "random_conv_filter"
_FORMS = (
    _Form("tt", "core", "the names core, frame_in, frame_out", _OWN_FRAMES, ndims=(3, 4, 5)),
    _Form("soc", "kernel", "the names kernel and right1", (), OWN_VECTORS, "right1", _OWN),
    _Form("soc", _FILTER, f"the name {_FILTER} of the paper's code", (), PAPER_VECTORS, "", _PAPER),
    _Form("sott", "core.kernel", _SOTT_NAMES, _OWN_FRAMES, _CORE_VECTORS, "core.right1", _OWN),
    _Form("sott", "K2", "the names K2 and u1 of the paper's code", _PAPER_FRAMES, PAPER_VECTORS, "u1", _PAPER),
    _Form("tt", "K2", "the names K1, K2, K3 of the paper's code", _PAPER_FRAMES),
)
"""The first that fits counts."""


def framed(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return a TT, SOC or SOTT layer."""
    form = next((form for form in _FORMS if form.fits(module, leaves)), None)
    if form is None:
        return None
    is_papers = form.frames == _PAPER_FRAMES
    found = [None if is_papers and name not in leaves else effective(leaves, name) for name in form.frames]
    parts = tuple(part for frame in found if frame for part in frame.parts)
    layer = layer_of(module, leaves, (form.kernel, *form.vectors, *parts), form.kind, form.told_by)
    layer = replace(layer, assumption="; ".join(filter(None, (form.assumption, _frames_assumption(found)))))
    kernel = leaves[form.kernel]
    if form.kind == "tt" and is_papers:
        kernel = kernel.permute(3, 0, 1, 2)
    # Orthonormal by construction, whatever their coordinates say; only the widths are needed of them.
    by_construction = any(frame is not None and frame.may_be_orthonormal for frame in found)
    if by_construction:
        frames = [leaves.get(f"parametrizations.{name}.original") for name in form.frames]
    else:
        frames = [None if frame is None else frame.value for frame in found]
    matrices = [frame for frame in frames if _is_matrix(frame)]
    if all(frame is None for frame in found):
        matrices, by_construction = [], True
        bias = leaves.get("bias")
        if form.kind == "tt":
            layer = replace(layer, shape=tuple(kernel.shape), rank=(kernel.shape[1], kernel.shape[0]))
        elif bias is not None:  # it alone tells how many of the kernel's channels come out
            layer = replace(layer, shape=(bias.numel(), *layer.shape[1:]))
    elif len(matrices) < 2:
        return without(layer, "one of its frames is missing or no matrix")
    else:
        if is_papers:
            matrices[1] = matrices[1].T
        (inputs, rank_in), (outputs, rank_out) = (matrix.shape for matrix in matrices)
        if form.kind == "tt" and (rank_out, rank_in) != tuple(kernel.shape[:2]):
            return without(layer, "its frames and its core have different ranks")
        layer = replace(layer, shape=(outputs, inputs, *kernel.shape[2:]), rank=(rank_in, rank_out))
    if form.kind == "tt":
        return _tensor_train(layer, kernel, [] if by_construction else matrices)
    if form.kind == "sott":
        layer = _with_norms(layer, [] if by_construction else matrices)
    if not all(bool(torch.isfinite(wide(part)).all()) for part in leaves.values() if part.is_floating_point()):
        return layer  # told by name, with all other tensors
    factor = skew_factor(leaves, form.kernel, form.vectors)
    if isinstance(factor, str):
        return without(layer, factor)
    return replace(layer, make_generator=partial(generator, kernel, factor))


def _tensor_train(layer: StoredLayer, core: Tensor, frames: Sequence[Tensor]) -> StoredLayer:
    """Return the layer with its operator; without `frames` they are orthonormal, and the core has its values."""
    if not frames:
        return replace(layer, frame_error=0.0, make=lambda: Convolution.make(wide(core)))
    layer = replace(layer, make=partial(_small, frames[0], core, frames[1]))
    if not _are_numbers(core, *frames):
        return layer  # told by name
    _, slack, exponent = joint_kernel(frames[0], core, frames[1])
    return replace(layer, frame_error=_largest_frame_error(frames), slack=times_power(slack, exponent))


def _small(frame_in: Tensor, core: Tensor, frame_out: Tensor) -> Convolution:
    kernel, _, exponent = joint_kernel(frame_in, core, frame_out)
    if not -900 < exponent < 900:
        raise ShapeError("the numbers of its core and frames make products beyond float64")
    return Convolution.make(kernel * 2.0**exponent)


def _with_norms(layer: StoredLayer, frames: Sequence[Tensor]) -> StoredLayer:
    """Return the layer with what its frames stretch by; without `frames` they are orthonormal."""
    if not frames:
        return replace(layer, frame_error=0.0, frame_norms=(1.0, 1.0))
    if not _are_numbers(*frames):
        return layer  # told by name
    matrices = (Convolution.make(frame.double()[:, :, None]) for frame in frames)
    norms = [norm_bound(matrix, tolerance=_EXACT).upper for matrix in matrices]
    return replace(layer, frame_error=_largest_frame_error(frames), frame_norms=(norms[0], norms[1]))


def _are_numbers(*parts: Tensor) -> bool:
    return all(part.numel() and bool(torch.isfinite(part.double()).all()) for part in parts)


def _largest_frame_error(frames: Sequence[Tensor]) -> float | None:
    """Return the largest spectral norm of `U^T U - I`; None where its numbers are beyond float64."""
    wide = [frame.double() for frame in frames]
    if any(float(frame.abs().max()) > _LARGEST for frame in wide):
        return None
    return max(float(frame_error(frame)) for frame in wide)


def _frames_assumption(frames: Sequence[Effective | None]) -> str:
    """Return the assumption that frames stored in parts rest on."""
    if any(frame is not None and frame.may_be_orthonormal for frame in frames):
        return "torch's orthogonal parametrization makes its frames orthonormal, and nothing changes them afterwards"
    return next((frame.assumption for frame in frames if frame is not None and frame.rule), "")


def _is_matrix(frame: Tensor | None) -> TypeGuard[Tensor]:
    return frame is not None and frame.ndim == 2 and frame.is_floating_point()
