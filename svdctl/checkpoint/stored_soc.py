"""SOC and SOTT layers, by the names of svdctl and by those of the paper's code."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from svdctl.checkpoint.parametrized import effective
from svdctl.checkpoint.stored_layer import Leaves, StoredLayer, layer_of, wide, without
from svdctl.checkpoint.stored_skew import OWN_VECTORS, PUBLIC_VECTORS, generator, own_factor, public_factor
from svdctl.checkpoint.stored_tt import frames_assumption, is_matrix, largest_frame_error
from svdctl.spectral.bounds import norm_bound
from svdctl.spectral.convolution import Convolution

_OWN = "its factor is svdctl's own, 0.7 (1 of a 1x1 kernel), and its series has 12 terms"
_PUBLIC = "its series has 12 terms, as in the paper's code"
_EXACT = 1e-6
"""Tolerance of the norms of frames."""


def soc(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """svdctl's SOC layer: kernel (c, c, k, k) and its vectors."""
    if "right1" not in leaves or not _is_kernel(leaves.get("kernel")):
        return None
    layer = layer_of(module, leaves, ("kernel", *OWN_VECTORS), "soc", "the names kernel and right1")
    return _exponential(replace(_bare(layer, leaves), assumption=_OWN), leaves, "kernel", own_factor)


def public_soc(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """Return the paper's SOC layer: random_conv_filter (c, c, k, k) and its vectors."""
    free = "random_conv_filter"
    if not _is_kernel(leaves.get(free)):
        return None
    layer = layer_of(
        module, leaves, (free, "correction", *PUBLIC_VECTORS), "soc", f"the name {free} of the paper's code"
    )
    return _exponential(replace(_bare(layer, leaves), assumption=_PUBLIC), leaves, free, public_factor)


def sott(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """svdctl's SOTT layer: frame_in (I, r_in), a SOC layer called core, frame_out (O, r_out)."""
    if "core.right1" not in leaves or not _is_kernel(leaves.get("core.kernel")):
        return None
    frames = [effective(leaves, name) for name in ("frame_in", "frame_out")]
    parts = tuple(part for frame in frames if frame for part in frame.parts)
    used = ("core.kernel", *(f"core.{name}" for name in OWN_VECTORS), *parts)
    layer = layer_of(module, leaves, used, "sott", "the names core.kernel, frame_in, frame_out")
    layer = replace(layer, assumption="; ".join(filter(None, (_OWN, frames_assumption(frames)))))
    if frames[0] is None and frames[1] is None:
        layer = replace(_bare(layer, leaves), frame_error=0.0, frame_norms=(1.0, 1.0))
    elif any(frame is not None and frame.value is None for frame in frames):
        layer = _between(
            layer, *(leaves.get(f"parametrizations.{name}.original") for name in ("frame_in", "frame_out"))
        )
        if not layer.reason:  # orthonormal by construction, whatever their coordinates say
            layer = replace(layer, frame_error=0.0, frame_norms=(1.0, 1.0))
    else:
        layer = _between(layer, *(None if frame is None else frame.value for frame in frames))
    return _exponential(layer, leaves, "core.kernel", own_factor)


def public_sott(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """Return the paper's SOTT layer: K1 (I, r_in), K2 (c, c, k, k) with its vectors, K3 (r_out, O)."""
    if "u1" not in leaves or not _is_kernel(leaves.get("K2")):
        return None
    used = ("K2", "K1", "K3", "correction", *PUBLIC_VECTORS)
    layer = layer_of(module, leaves, used, "sott", "the names K2 and u1 of the paper's code")
    layer = replace(layer, assumption=_PUBLIC)
    first, last = leaves.get("K1"), leaves.get("K3")
    if first is None and last is None:
        layer = replace(_bare(layer, leaves), frame_error=0.0, frame_norms=(1.0, 1.0))
    else:
        layer = _between(layer, first, last.T if is_matrix(last) else last)
    return _exponential(layer, leaves, "K2", public_factor)


def _is_kernel(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 4 and tensor.is_floating_point()


def _bare(layer: StoredLayer, leaves: Leaves) -> StoredLayer:
    """Return a layer without frames in its shape: the bias alone tells how many of the kernel's channels come out."""
    bias = leaves.get("bias")
    return layer if bias is None else replace(layer, shape=(bias.numel(), *layer.shape[1:]))


def _between(layer: StoredLayer, frame_in: Tensor | None, frame_out: Tensor | None) -> StoredLayer:
    if not (is_matrix(frame_in) and is_matrix(frame_out)):
        return without(layer, "one of its frames is missing or no matrix")
    shape = (frame_out.shape[0], frame_in.shape[0], *layer.shape[2:])
    layer = replace(layer, shape=shape, rank=(frame_in.shape[1], frame_out.shape[1]))
    frames = frame_in.double(), frame_out.double()
    if not all(frame.numel() and bool(torch.isfinite(frame).all()) for frame in frames):
        return layer  # told by name, with all other tensors
    norms = [norm_bound(Convolution.make(frame[:, :, None]), tolerance=_EXACT).upper for frame in frames]
    return replace(layer, frame_error=largest_frame_error(*frames), frame_norms=(norms[0], norms[1]))


def _exponential(
    layer: StoredLayer, leaves: Leaves, free: str, factor_of: Callable[[Leaves, str], float | str]
) -> StoredLayer:
    finite = all(bool(torch.isfinite(wide(part)).all()) for part in leaves.values() if part.is_floating_point())
    if layer.reason or not finite:
        return layer  # told by name, with all other tensors
    factor = factor_of(leaves, free)
    if isinstance(factor, str):
        return without(layer, factor)
    return replace(layer, make_generator=partial(generator, leaves[free], factor))
