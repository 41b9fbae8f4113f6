"""Frames: tall matrices with orthonormal columns, and the ways of keeping them so.

Note, momentum. Retracting a frame U = Q P moves P into the core: the operator stays, its coordinates change. A gradient
is a covector, so with W = U C the chain rule gives `dW/dQ`-coordinates `m_U P^T` and core coordinates `P^-T m_C`. An
optimiser's running mean of gradients is carried along by the same maps; left behind, it would point elsewhere, and
with the sign flips of a plain QR it would point backwards. Of `m_U P^T` only the part tangent to the frames is kept;
the rest, `U S` with S symmetric, would leave the frames and be moved into the core, whose own mean holds it (20
epochs of CIFAR-10, one seed: 92.2 % without it, 90.6 % with it). Adam's second moments have no such map and stay.

Note, polar factors by products. For `X = Q P` with `P = (X^T X)^1/2`, the coupled Newton-Schulz iteration `T = (3 a I
- a^3 Z Y) / 2`, `Y <- Y T`, `Z <- T Z` from `Y = X^T X / s`, `Z = I` has Y tend to `P / sqrt(s)` and Z, the product of
the steps, to its inverse (Higham, Functions of Matrices, 2008, section 6.7): P, its inverse and `Q = X Z` come from
products alone, so that nothing waits for the host. With s at least `||X^T X||_2`, here its largest absolute row sum,
singular values y of `X / sqrt(s)` start in (0, 1] and move by `y <- a y (3 - a^2 y^2) / 2`. The factor `a = sqrt(3 /
(1 + l + l^2))` (Chen and Chow, A stable scaling of Newton-Schulz, 2014) maps [l, 1] into [l', 1], l' the image of l,
so the factors are known beforehand: l goes from `SMALLEST` to 1 in 7 steps of float32 and 8 of float64, the last ones
of which square the distance from 1. All frames whose condition number times `sqrt(s) / ||X||_2` is at most `1 /
SMALLEST` reach it: with `||X - Q||_2 <= 1/2` the condition is at most 3 and `s <= 1 + 5/4 sqrt(r)`, which is enough up
to r = 40,000. Other frames tell by the defect of Q, which is measured.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _OrthMaps, _Orthogonal
from torch.nn.utils.parametrize import register_parametrization

from svdctl.spectral.exact_arithmetic import exact_products
from svdctl.spectral.faster_device import products_are_faster
from svdctl.spectral.gram import on_host
from svdctl.spectral.stacks import stacked

QR_ROUNDINGS = 16
"""For soundness: of a column of `m r` entries, by which R of a QR factorisation errs; docs/theory.md, "Constants"."""

MEANS = ("momentum_buffer", "exp_avg")
"""Names of the mean gradient in the states of torch's optimisers."""

SMALLEST = 1 / 32
"""Singular value, the largest scaled to at most 1, from which Newton-Schulz steps are sure to converge."""

MAX_DEFECT = 1e-3
"""Of a frame that Newton-Schulz steps are said to have retracted: `||U^T U - I||_F`."""

Method = Literal["polar", "qr"]


_ORTHONORMAL = 1e-11  # defect of a stack of frames in float64, of up to 1e9 entries


class Retraction(NamedTuple):
    """Frames `(*, n, r)`, which are the retracted matrices times `inverse`, those being the frames times `factor`."""

    frame: Tensor
    factor: Tensor
    inverse: Tensor
    """Zeros where the matrix has lost its rank, so that there is none."""
    defect: Tensor
    """`||U^T U - I||_F` of the frames, `(*,)`."""


@functools.cache
def newton_schulz_scalings(dtype: torch.dtype) -> tuple[float, ...]:
    """Return the factor of each Newton-Schulz step; see the note above."""
    factors, least = [], SMALLEST
    while 1 - least * least > torch.finfo(dtype).eps:
        factors.append(math.sqrt(3 / (1 + least + least * least)))
        least = factors[-1] * least * (3 - (factors[-1] * least) ** 2) / 2
    return tuple(factors)


def polar_retraction(matrices: Tensor) -> Retraction:
    """Return the nearest frames to a stack of matrices `(L, n, r)` of full rank, n >= r; see the note above."""
    gram = torch.bmm(matrices.mT, matrices)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    tiny = torch.finfo(gram.dtype).tiny
    # Of a matrix of zeros the sum is 0.
    shrink = torch.linalg.vector_norm(gram, 1, dim=-1).amax(-1).clamp_min(tiny).rsqrt()[:, None, None]
    root = gram * shrink.square()
    first, *others = newton_schulz_scalings(gram.dtype)
    inverse = torch.add(1.5 * first * identity, root, alpha=-0.5 * first**3)
    root = torch.bmm(root, inverse)
    for factor in others:
        step = torch.baddbmm(identity, inverse, root, beta=1.5 * factor, alpha=-0.5 * factor**3)
        root, inverse = torch.bmm(root, step), torch.bmm(step, inverse)
    inverse = inverse * shrink
    frames = torch.bmm(matrices, inverse)
    defect = torch.linalg.vector_norm(gram_defect(frames), dim=(-2, -1))
    return Retraction(frames, root / shrink, inverse * (defect <= MAX_DEFECT)[:, None, None], defect)


def qr_retractions(stacks: Sequence[Tensor]) -> list[Retraction]:
    """Return Q, R and the inverse of R of stacks of matrices `(L, n, r)`, n >= r; a GPU is read once for all."""
    found = []
    for frames, factor in qrs_positive(stacks):
        # The factor is small and a core is wide: its inverse is faster than solving for each column.
        inverse, info = torch.linalg.inv_ex(factor)
        inverse = torch.where((info == 0)[:, None, None], inverse, 0.0)
        defect = torch.linalg.vector_norm(gram_defect(frames), dim=(-2, -1))
        found.append(Retraction(frames, factor, inverse, defect))
    return found


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(Q, P)` with `matrix = Q P`, Q the nearest frame to a matrix `(n, r)` of full rank, n >= r."""
    frame, factor, *_ = polar_retraction(matrix[None])
    return frame[0], factor[0]


def qr_positive(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(Q, R)` with `matrix = Q R` and the diagonal of R positive, which makes it unique and continuous.

    Args:
        matrix: `(*, n, r)`, n >= r; with one leading axis, a GPU takes all of the stack at once.
    """
    return qrs_positive([matrix])[0]


def qrs_positive(matrices: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return `qr_positive` of each matrix or stack; a GPU factorises their Gram matrices, and is read once for all."""
    by_products = {
        place: _qr_by_products(matrix) for place, matrix in enumerate(matrices) if products_are_faster(matrix.device)
    }
    defects = dict(zip(by_products, on_host([defect for *_, defect in by_products.values()]), strict=True))
    found = []
    for place, matrix in enumerate(matrices):
        # No number where a factorisation failed.
        if place in defects and float(defects[place]) <= _ORTHONORMAL:
            q, r, _ = by_products[place]
        else:
            q, r = torch.linalg.qr(matrix)
            signs = _signs(r)
            q, r = q * signs[..., None, :], r * signs[..., :, None]
        found.append((q, r))
    return found


def _qr_by_products(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `qr_positive` by two rounds of `R = Cholesky factor of U^T U`, and the defect of Q (0-d).

    In float64 the first round leaves a defect of some eps times the squared condition number, the second one of eps
    (Yamamoto et al., Roundoff error analysis of the CholeskyQR2 algorithm, 2015). Where columns are nearly dependent
    the defect is large or no number.
    """
    frames, total = matrix.double(), None
    for _ in range(2):
        factor, _info = torch.linalg.cholesky_ex(frames.mT @ frames, upper=True)
        frames = torch.linalg.solve_triangular(factor, frames, upper=True, left=False)
        total = factor if total is None else factor @ total
    assert total is not None
    defect = torch.linalg.vector_norm(gram_defect(frames))
    return frames.to(matrix.dtype), total.to(matrix.dtype), defect


def positive_factor(matrix: Tensor) -> Tensor:
    """Return the R of `qr_positive` alone, in about half of the time."""
    r = torch.linalg.qr(matrix, mode="r").R
    return r * _signs(r)[..., :, None]


def _signs(factor: Tensor) -> Tensor:
    return torch.where(factor.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(factor.dtype)


def retractions(frames: Sequence[Tensor], method: Method, *, dtype: torch.dtype | None = None) -> list[Retraction]:
    """Return the retraction of each matrix `(n, r)` by the named method, those of one shape in a stack.

    Args:
        frames: the matrices.
        method: `polar` or `qr`.
        dtype: in which it is computed; the matrices' own, and float32 of half precision, if not given.
    """
    alike = stacked([frame.detach() for frame in frames])
    wide = [stack.to(dtype or torch.promote_types(stack.dtype, torch.float32)) for _, (stack,) in alike]
    done = [polar_retraction(stack) for stack in wide] if method == "polar" else qr_retractions(wide)
    found: dict[int, Retraction] = {}
    for (places, _), retraction in zip(alike, done, strict=True):
        each = zip(*(part.unbind() for part in retraction), strict=True)
        found |= dict(zip(places, (Retraction(*parts) for parts in each), strict=True))
    return [found[place] for place in range(len(frames))]


def tangent_parts(means: Tensor, frames: Tensor) -> Tensor:
    """Return `m - U sym(U^T m)` of stacks `(L, n, r)`: what of mean gradients can move frames along frames."""
    inner = torch.bmm(frames.mT, means)
    return torch.baddbmm(means, frames, inner + inner.mT, alpha=-0.5)


def gram_defect(frame: Tensor) -> Tensor:
    """Return `U^T U - I`, `(*, r, r)`."""
    identity = torch.eye(frame.shape[-1], dtype=frame.dtype, device=frame.device)
    if frame.ndim == 2:
        return torch.addmm(identity, frame.mT, frame, beta=-1)
    return torch.baddbmm(identity, frame.mT, frame, beta=-1)


@exact_products()
def frame_error(frame: Tensor) -> Tensor:
    """Return the spectral norm of `U^T U - I`: 0 for a frame (0-d); of half precision, in float32."""
    wide = frame.detach().to(torch.promote_types(frame.dtype, torch.float32))
    return torch.linalg.matrix_norm(gram_defect(wide), 2)


def random_frame(rows: int, columns: int) -> Tensor:
    """Return a frame `(rows, columns)`, uniformly distributed; on the meta device its shape alone."""
    drawn = torch.randn(rows, columns)
    return drawn if drawn.is_meta else qr_positive(drawn)[0]


def mean_gradients(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> list[Tensor]:
    """Return the optimiser's running means of a parameter's gradient, which move with the parameter."""
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    return [state[key] for key in MEANS if state.get(key) is not None]


class OrthogonalFrame(_Orthogonal):
    """torch's orthogonal parametrization by products of reflections, with signs that are fixed.

    torch reads them from the parameter's diagonal, where each is -1 and stays so without a gradient; weight decay would
    turn them into zeros and so the frame.
    """

    def forward(self, matrix: Tensor) -> Tensor:
        count = min(matrix.shape[-2:])
        found: Tensor = super().forward(torch.diagonal_scatter(matrix, matrix.new_full((count,), -1.0)))
        return found


def parametrize_frames_(layer: nn.Module) -> None:
    """Give a layer's `frame_in` and `frame_out` torch's orthogonal parametrization, by products of reflections.

    Of square matrices too, where torch takes `matrix_exp` by default, which waits for the host.
    """
    for name in ("frame_in", "frame_out"):
        frame = OrthogonalFrame(getattr(layer, name), _OrthMaps.householder)
        register_parametrization(layer, name, frame, unsafe=True)
