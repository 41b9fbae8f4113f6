"""TT layers, by the names of svdctl and by those of the paper's code."""

from dataclasses import replace
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from svdctl.layers.frames import frame_error, qr_positive
from svdctl.spectral.operator import Convolution
from svdctl.weights.parametrized import effective
from svdctl.weights.stored import Leaves, StoredLayer, layer_of, wide, without


def tt(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """svdctl's TT layer: core (r_out, r_in, kh, kw), frame_in (I, r_in), frame_out (O, r_out)."""
    core = leaves.get("core")
    if core is None or core.ndim != 4 or not core.is_floating_point() or module.endswith("weight"):
        return None
    frames = [effective(leaves, name) for name in ("frame_in", "frame_out")]
    parts = tuple(part for frame in frames if frame for part in frame.parts)
    layer = layer_of(module, leaves, ("core", *parts), "tt", "the names core, frame_in, frame_out")
    if any(frame is not None and frame.value is None for frame in frames):
        # Orthonormal by construction, so that the core has the layer's values; only the widths are needed of them.
        stored = [leaves.get(f"parametrizations.{name}.original") for name in ("frame_in", "frame_out")]
        widths = [frame.shape[0] for frame in stored if frame is not None and frame.ndim == 2]
        if len(widths) < 2:
            return without(layer, "one of its frames is missing or no matrix")
        layer = replace(layer, shape=(widths[1], widths[0], *core.shape[2:]), frame_error=0.0, rank=_rank(core))
        return replace(layer, make=lambda: Convolution.make(wide(core)))
    frame_in, frame_out = (frame.value if frame else None for frame in frames)
    return _framed(layer, core, frame_in, frame_out)


def paper_tt(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """The paper's TT layer: K1 (I, r_in), K2 (r_in, kh, kw, r_out), K3 (r_out, O)."""
    middle = leaves.get("K2")
    if middle is None or middle.ndim != 4 or not middle.is_floating_point() or "u1" in leaves:
        return None
    first, last = leaves.get("K1"), leaves.get("K3")
    layer = layer_of(module, leaves, ("K2", "K1", "K3"), "tt", "the names K1, K2, K3 of the paper's code")
    return _framed(layer, middle.permute(3, 0, 1, 2), first, _transposed(last))


def _framed(layer: StoredLayer, core: Tensor, frame_in: Tensor | None, frame_out: Tensor | None) -> StoredLayer:
    layer = replace(layer, rank=_rank(core))
    if frame_in is None and frame_out is None:
        layer = replace(layer, shape=tuple(core.shape), frame_error=0.0)
        return replace(layer, make=lambda: Convolution.make(wide(core)))
    if not (is_matrix(frame_in) and is_matrix(frame_out)):
        return without(layer, "one of its frames is missing or no matrix")
    if (frame_out.shape[1], frame_in.shape[1]) != tuple(core.shape[:2]):
        return without(layer, "its frames and its core have different ranks")
    shape = (frame_out.shape[0], frame_in.shape[0], *core.shape[2:])
    finite = all(bool(torch.isfinite(frame).all()) for frame in (frame_in, frame_out))
    error = max(float(frame_error(wide(frame))) for frame in (frame_in, frame_out)) if finite else None
    return replace(layer, shape=shape, frame_error=error, make=partial(_small, core, frame_in, frame_out))


def is_matrix(frame: Tensor | None) -> TypeGuard[Tensor]:
    """Whether it can be a frame."""
    return frame is not None and frame.ndim == 2 and frame.is_floating_point()


def _transposed(frame: Tensor | None) -> Tensor | None:
    return frame.T if is_matrix(frame) else frame


def _rank(core: Tensor) -> tuple[int, int]:
    return core.shape[1], core.shape[0]


def _small(core: Tensor, frame_in: Tensor, frame_out: Tensor) -> Convolution:
    precise = torch.float64 in (core.dtype, frame_in.dtype, frame_out.dtype)
    core, frame_in, frame_out = (part.double() if precise else part.float() for part in (core, frame_in, frame_out))
    r_in, r_out = (qr_positive(frame)[1] for frame in (frame_in, frame_out))
    return Convolution.make(torch.einsum("cb,bahw,da->cdhw", r_out, core, r_in))
