"""Small kernels of TT layers for proofs: triangular factors of frames by Cholesky factorisation, for many at once.

A QR factorisation is what a GPU is slow at; the factor R of the Gram matrix of a frame is the same, and what rounding
makes of it is measured by one product. docs/theory.md, "Tensor-train layers", has the proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.layers.tt import TTConv2d
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.gram import UNIT64, on_host

# For soundness; docs/theory.md, "Constants".
_OTHER_ROUNDINGS = 8
# For speed: the least share of the mean squared singular value of a frame that its smallest one is proved to have.
_SMALLEST_SHARE = 0.25
# For soundness: second order terms of shares up to this are within the tenth that is added to errors.
_LARGEST_SHARE = 0.01
# For soundness: squares of frames within these sizes neither over- nor underflow so that it is felt.
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-100, 1e100


@dataclass(frozen=True)
class _Triangular:
    """Factors R `(L, r, r)` of frames, and what is known of them `(L,)`."""

    factors: Tensor
    squares: Tensor
    """Squared Frobenius norms of the frames."""
    shares: Tensor
    """`|R x|^2` and `|U x|^2` differ by no more than this share of `|R x|^2`; negative or not finite: not known."""


@torch.no_grad()
@exact_arithmetic()
def exact_kernels(layers: Sequence[TTConv2d]) -> list[tuple[Tensor, float]]:
    """Return `TTConv2d.exact_kernel` of each layer, those of one shape computed together, with one read of a device.

    Of frames that are far from orthonormal it is that of the layer itself.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    found: dict[int, tuple[Tensor, float]] = {}
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for place, layer in enumerate(layers):
        core, frame_in, frame_out = layer.core.detach(), layer.frame_in, layer.frame_out
        if frame_in is None or frame_out is None:
            found[place] = core, 0.0
            continue
        parts[place] = core, frame_in.detach(), frame_out.detach()
        alike.setdefault((core.device, *(tuple(part.shape) for part in parts[place])), []).append(place)
    kernels: dict[int, Tensor] = {}
    errors: dict[int, Tensor] = {}
    for places in alike.values():
        core, frame_in, frame_out = (
            torch.stack([parts[place][part].double() for place in places]) for part in range(3)
        )
        kernel, error = _small_kernels(core, frame_in, frame_out)
        kernels |= dict(zip(places, kernel, strict=True))
        errors |= dict(zip(places, error, strict=True))
    for place, error in zip(errors, on_host(list(errors.values())), strict=True):
        total = float(error)
        found[place] = (kernels[place], total) if total >= 0 else layers[place].exact_kernel()
    return [found[place] for place in range(len(layers))]


def _small_kernels(core: Tensor, frame_in: Tensor, frame_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return kernels `(L, r_out, r_in, kh, kw)` and how far their norms are from the layers', `(L,)`; -1: not known.

    Args:
        core: `(L, r_out, r_in, kh, kw)`, float64.
        frame_in: `(L, I, r_in)`.
        frame_out: `(L, O, r_out)`.
    """
    left, right = _triangular(frame_out), _triangular(frame_in)
    layers, rank_out, rank_in = core.shape[:3]
    taps = core.shape[3:]
    moved = (left.factors @ core.flatten(2)).reshape(layers, rank_out, rank_in, -1)
    moved = right.factors[:, None] @ moved
    kernel = moved.reshape(layers, rank_out, rank_in, *taps)
    joint = left.shares + right.shares + left.shares * right.shares
    # sqrt(1 + x) - 1 <= x / 2; the two products add their rounding.
    frames = (left.squares * right.squares).sqrt()
    rounding = 2 * (rank_in + rank_out + 4) * UNIT64 * frames
    error = (joint / 2 * _taps_norms(kernel) + rounding * _taps_norms(core)) * 1.1
    known = (left.shares >= 0) & (right.shares >= 0) & error.isfinite()
    return kernel, torch.where(known, error, -1.0)


def _triangular(frames: Tensor) -> _Triangular:
    """Return the factors of frames `(L, m, r)`; nothing waits for the host."""
    rows, rank = frames.shape[1:]
    gram = frames.mT @ frames
    squares = frames.square().sum((1, 2))
    factors, _ = torch.linalg.cholesky_ex(gram, upper=True)
    factors = factors.triu()
    # Of the Gram matrix, and of the products that measure what the factorisations left over.
    rounding = (rows + 2 * rank + _OTHER_ROUNDINGS) * UNIT64 * squares * 1.1
    apart = _distance(factors, gram) + rounding
    least = _SMALLEST_SHARE * squares / rank
    shifted = gram.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(least[:, None])
    root, failed = torch.linalg.cholesky_ex(shifted, upper=True)
    # `R^T R >= least - ...`, where the second factorisation ran to its end.
    least = least * (1 - 1e-10) - _distance(root.triu(), shifted) - apart - rounding
    sound = (failed == 0) & (apart < _LARGEST_SHARE * least) & (squares > _LEAST_SQUARE) & (squares < _LARGEST_SQUARE)
    return _Triangular(factors, squares, torch.where(sound, apart / least, -1.0))


def _distance(factors: Tensor, matrices: Tensor) -> Tensor:
    """Return the Frobenius norms of `R^T R - M`, `(L,)`."""
    return torch.linalg.matrix_norm(factors.mT @ factors - matrices) * (1 + 1e-10)


def _taps_norms(kernels: Tensor) -> Tensor:
    """Return `sum_p ||K_p||_F` of kernels `(L, O, I, kh, kw)`, `(L,)`, rounded up."""
    largest = kernels.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    scaled = kernels / largest[:, None, None, None, None]
    return scaled.square().sum((1, 2)).sqrt().sum((1, 2)) * largest * (1 + 1e-10)
