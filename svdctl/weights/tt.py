"""TT layers, by the names of svdctl and by those of the paper's code."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from svdctl.layers.frames import frame_error, qr_positive
from svdctl.spectral.operator import Convolution
from svdctl.weights.parametrized import Effective, effective
from svdctl.weights.stored import Leaves, StoredLayer, layer_of, wide, without


def tt(module: str, leaves: Leaves, eps: float) -> StoredLayer | None:
    """svdctl's TT layer: core (r_out, r_in, kh, kw), frame_in (I, r_in), frame_out (O, r_out)."""
    core = leaves.get("core")
    if core is None or core.ndim != 4 or not core.is_floating_point() or module.endswith("weight"):
        return None
    frames = [effective(leaves, name) for name in ("frame_in", "frame_out")]
    parts = tuple(part for frame in frames if frame for part in frame.parts)
    layer = layer_of(module, leaves, ("core", *parts), "tt", "the names core, frame_in, frame_out")
    layer = replace(layer, assumption=frames_assumption(frames))
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
    if not all(bool(torch.isfinite(part.double()).all()) for part in (core, frame_in, frame_out)):
        return replace(layer, shape=shape, make=partial(_small, core, frame_in, frame_out))  # told by name
    error = max(float(frame_error(frame.double())) for frame in (frame_in, frame_out))
    slack = _rounding(core, frame_in, frame_out)
    return replace(layer, shape=shape, frame_error=error, slack=slack, make=partial(_small, core, frame_in, frame_out))


def frames_assumption(frames: Sequence[Effective | None]) -> str:
    """What frames that are stored in parts rest on."""
    if any(frame is not None and frame.value is None for frame in frames):
        return "torch's orthogonal parametrization makes its frames orthonormal, and nothing changes them afterwards"
    return next((frame.assumption for frame in frames if frame is not None and frame.rule), "")


def is_matrix(frame: Tensor | None) -> TypeGuard[Tensor]:
    """Whether it can be a frame."""
    return frame is not None and frame.ndim == 2 and frame.is_floating_point()


def _transposed(frame: Tensor | None) -> Tensor | None:
    return frame.T if is_matrix(frame) else frame


def _rank(core: Tensor) -> tuple[int, int]:
    return core.shape[1], core.shape[0]


def _small(core: Tensor, frame_in: Tensor, frame_out: Tensor) -> Convolution:
    r_in, r_out = (qr_positive(frame.double())[1] for frame in (frame_in, frame_out))
    return Convolution.make(torch.einsum("cb,bahw,da->cdhw", r_out, core.double(), r_in))


def _rounding(core: Tensor, frame_in: Tensor, frame_out: Tensor) -> float:
    """How far rounding moves the norm of `_small` from that of the layer.

    Householder QR is exact for a frame off by gamma in each column (Higham 2002, Theorem 19.4), and so is the product
    of the factors but for fewer roundings; the kernel's norm is at most the sum of the Frobenius norms of its taps.
    """
    roundings = 16 * max(frame_in.numel(), frame_out.numel()) * 2.0**-53
    taps = float(torch.linalg.vector_norm(core.double(), dim=(0, 1)).sum())
    frames = float(frame_in.double().norm()) * float(frame_out.double().norm())
    return roundings / (1 - roundings) * taps * frames * (1 + 1e-6)
