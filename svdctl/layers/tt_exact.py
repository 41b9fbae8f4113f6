"""Small kernels of TT layers for proofs: triangular factors of frames by Cholesky factorisation, for many at once.

A QR factorisation is what a GPU is slow at; the factor R of the Gram matrix of a frame is the same, and what rounding
makes of it is measured by one product. docs/theory.md, "Tensor-train layers", has the proof.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from svdctl.layers.tt import TTConv
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.gram import UNIT64, on_host
from svdctl.spectral.stacks import in_stacks

# For soundness; docs/theory.md, "Constants".
_OTHER_ROUNDINGS = 8
# For speed: the least share of the mean squared singular value of a frame that its smallest one is proved to have.
_SMALLEST_SHARE = 0.25
# For soundness: second order terms of shares up to this are within the tenth that is added to errors.
_LARGEST_SHARE = 0.01
# For soundness: squares of frames within these sizes neither over- nor underflow so that it is felt.
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-100, 1e100


def _share(frame: Tensor, numbers: list[float]) -> float:
    """Return the share of `|R x|^2` within which it is of `|U x|^2`, for a frame U `(m, r)`; nan: not known."""
    square, apart, left_over, failed = numbers
    rows, rank = frame.shape
    # Of the Gram matrix, and of the products that measure what the factorisations left over.
    rounding = (rows + 2 * rank + _OTHER_ROUNDINGS) * UNIT64 * square * 1.1
    apart = apart * (1 + 1e-10) + rounding
    # `R^T R >= least - ...`, where the second factorisation ran to its end.
    least = square * (_SMALLEST_SHARE / rank) * (1 - 1e-10) - left_over * (1 + 1e-10) - apart - rounding
    sound = failed == 0 and apart < _LARGEST_SHARE * least and _LEAST_SQUARE < square < _LARGEST_SQUARE
    return apart / least if sound else math.nan


@torch.no_grad()
@exact_arithmetic()
def exact_kernels(layers: Sequence[TTConv]) -> list[tuple[Tensor, float]]:
    """Return `TTConv.exact_kernel` of each layer, those of one shape computed together, with one read of a device.

    Of frames that are far from orthonormal it is that of the layer itself.
    """
    found: dict[int, tuple[Tensor, float]] = {}
    framed, frames, cores = [], [], []
    for place, layer in enumerate(layers):
        core, frame_in, frame_out = layer.core.detach(), layer.frame_in, layer.frame_out
        if frame_in is None or frame_out is None:
            found[place] = core, 0.0
            continue
        framed.append(place)
        cores.append(core)
        frames += [frame_out.detach(), frame_in.detach()]
    factors = in_stacks(_triangular, frames)
    left, right = factors[::2], factors[1::2]
    kernels = in_stacks(_small_kernels, cores, [factor for factor, _ in left], [factor for factor, _ in right])
    read = on_host([numbers for _, numbers in [*factors, *kernels]])
    for turn, place in enumerate(framed):
        out, into = ((frames[side], read[side].tolist()) for side in (2 * turn, 2 * turn + 1))
        error = _error(out, into, *read[len(factors) + turn].tolist())
        found[place] = (kernels[turn][0], error) if math.isfinite(error) else layers[place].exact_kernel()
    return [found[place] for place in range(len(layers))]


def _error(
    out: tuple[Tensor, list[float]],
    into: tuple[Tensor, list[float]],
    largest: float,
    kernel: float,
    core_largest: float,
    core: float,
) -> float:
    """Return how far the norm of a kernel of `_small_kernels` can be from the layer's; not finite: not known.

    Args:
        out, into: a frame each, and the numbers of its factor.
        largest, kernel, core_largest, core: numbers of `_small_kernels`.
    """
    left, right = _share(*out), _share(*into)
    joint = left + right + left * right
    # sqrt(1 + x) - 1 <= x / 2; the two products add their rounding.
    norms = math.sqrt(out[1][0] * into[1][0])
    rounding = 2 * (into[0].shape[1] + out[0].shape[1] + 4) * UNIT64 * norms
    return (joint / 2 * largest * kernel + rounding * core_largest * core) * (1 + 1e-10) * 1.1


def _small_kernels(cores: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return kernels `(L, r_out, r_in, *k)` in float64, and of these and of the cores `_taps_norms`, `(L, 4)`.

    Args:
        cores: `(L, r_out, r_in, *k)`.
        left: R of the output frames, `(L, r_out, r_out)`.
        right: R of the input frames, `(L, r_in, r_in)`.
    """
    layers, rank_out, rank_in, *taps = cores.shape
    wide = cores.flatten(3).mT.double().reshape(layers, -1, rank_in)
    moved = torch.bmm(wide, right.mT).reshape(layers, rank_out, -1)
    moved = torch.bmm(left, moved)
    both = torch.stack((moved.reshape(layers, rank_out, -1, rank_in), wide.reshape(layers, rank_out, -1, rank_in)))
    kernels = both[0].mT.reshape(layers, rank_out, rank_in, *taps)
    return kernels, _taps_norms(both).transpose(0, 1).flatten(1)


def _triangular(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors R `(L, r, r)` of frames `(L, m, r)`, and numbers `(L, 4)` that tell how good they are.

    The numbers: the frame's squared Frobenius norm; how far `R^T R`, and the product of the factors of the shifted Gram
    matrix, are from what was factorised; the info of the second factorisation. Nothing waits for the host.
    """
    frames = frames.double()
    gram = frames.mT @ frames
    squares = frames.square().sum((1, 2))
    both = torch.stack((gram, gram))
    both[1].diagonal(dim1=-2, dim2=-1).sub_((squares * (_SMALLEST_SHARE / frames.shape[2]))[:, None])
    factors, failed = torch.linalg.cholesky_ex(both, upper=False)
    apart = torch.linalg.vector_norm(factors @ factors.mT - both, dim=(2, 3))
    return factors[0].mT, torch.stack((squares, *apart, failed[1].double()), 1)


def _taps_norms(kernels: Tensor) -> Tensor:
    """Return of kernels `(*, L, O, taps, I)` the largest entry and `sum_p ||K_p||_F` over it, but for 1e-10."""
    largest = kernels.abs().amax((-3, -2, -1)).clamp_min(torch.finfo(torch.float64).tiny)
    scaled = kernels / largest[..., None, None, None]
    return torch.stack((largest, torch.linalg.vector_norm(scaled, dim=(-3, -1)).sum(-1)), -1)
