"""TT layers, by the names of svdctl and by those of the paper's code."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from svdctl.checkpoint.parametrized import Effective, effective
from svdctl.checkpoint.stored_layer import Leaves, StoredLayer, layer_of, wide, without
from svdctl.errors import ShapeError
from svdctl.layers.stiefel import frame_error, qr_positive
from svdctl.spectral.convolution import Convolution

_LARGEST = 1e100
"""Numbers of a frame whose squares and their sums are numbers of float64."""


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
    """Return the paper's TT layer: K1 (I, r_in), K2 (r_in, kh, kw, r_out), K3 (r_out, O)."""
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
    if not all(part.numel() and bool(torch.isfinite(part.double()).all()) for part in (core, frame_in, frame_out)):
        return replace(layer, shape=shape, make=partial(_small, core, frame_in, frame_out))  # told by name
    error = largest_frame_error(frame_in, frame_out)
    slack = _rounding(core, frame_in, frame_out)
    return replace(layer, shape=shape, frame_error=error, slack=slack, make=partial(_small, core, frame_in, frame_out))


def largest_frame_error(*frames: Tensor) -> float | None:
    """Return the largest spectral norm of `U^T U - I`; None where its numbers are beyond float64."""
    wide = [frame.double() for frame in frames]
    if any(float(frame.abs().max()) > _LARGEST for frame in wide):
        return None
    return max(float(frame_error(frame)) for frame in wide)


def frames_assumption(frames: Sequence[Effective | None]) -> str:
    """Return the assumption that frames stored in parts rest on."""
    if any(frame is not None and frame.value is None for frame in frames):
        return "torch's orthogonal parametrization makes its frames orthonormal, and nothing changes them afterwards"
    return next((frame.assumption for frame in frames if frame is not None and frame.rule), "")


def is_matrix(frame: Tensor | None) -> TypeGuard[Tensor]:
    """Return whether it can be a frame."""
    return frame is not None and frame.ndim == 2 and frame.is_floating_point()


def _transposed(frame: Tensor | None) -> Tensor | None:
    return frame.T if is_matrix(frame) else frame


def _rank(core: Tensor) -> tuple[int, int]:
    return core.shape[1], core.shape[0]


def _small(core: Tensor, frame_in: Tensor, frame_out: Tensor) -> Convolution:
    parts, exponent = _near_one(core, frame_in, frame_out)
    r_in, r_out = (qr_positive(frame)[1] for frame in parts[1:])
    kernel = torch.einsum("cb,bahw,da->cdhw", r_out, parts[0], r_in)
    if not -900 < exponent < 900:
        raise ShapeError("the numbers of its core and frames make products beyond float64")
    return Convolution.make(kernel * 2.0**exponent)


def _rounding(core: Tensor, frame_in: Tensor, frame_out: Tensor) -> float:
    """Return how far rounding moves the norm of `_small` from that of the layer, as `TTConv2d.exact_kernel` has it.

    Householder QR is exact for a frame that is off by `c m n u` of its norm (Higham 2002, Theorem 19.4), and the
    product of the factors and the core errs by less; the kernel's norm is at most the sum of those of its taps.
    """
    parts, exponent = _near_one(core, frame_in, frame_out)
    error = 16 * max(frame_in.numel(), frame_out.numel()) * 2.0**-53
    taps = float(torch.linalg.vector_norm(parts[0], dim=(0, 1)).sum())
    frames = math.prod(float(frame.norm()) for frame in parts[1:])
    return error / (1 - error) * taps * frames * (1 + 1e-6) * 2.0 ** min(max(exponent, -900), 900)


def _near_one(*parts: Tensor) -> tuple[list[Tensor], int]:
    """Return the parts in float64, each over a power of two that brings its largest entry near 1; the exponents' sum.

    So nothing overflows on the way, and nothing that counts underflows.
    """
    wide = [part.double() for part in parts]
    exponents = [math.frexp(float(part.abs().max()))[1] for part in wide]
    # In two steps, as 2 to the power of 1074 is no number.
    halves = [(exponent // 2, exponent - exponent // 2) for exponent in exponents]
    return [part * 2.0**-a * 2.0**-b for part, (a, b) in zip(wide, halves, strict=True)], sum(exponents)
