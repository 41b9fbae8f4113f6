"""Frames: tall matrices with orthonormal columns, and the ways of keeping them so.

Note, momentum. Retracting a frame U = Q P moves P into the core: the operator stays, its coordinates change. A gradient
is a covector, so with W = U C the chain rule gives `dW/dQ`-coordinates `m_U P^T` and core coordinates `P^-T m_C`. An
optimiser's running mean of gradients is carried along by the same maps; left behind, it would point elsewhere, and
with the sign flips of a plain QR it would point backwards. Adam's second moments have no such map and stay.
"""

from typing import Literal

import torch
from torch import Tensor

QR_ROUNDINGS = 16
"""For soundness: of a column of `m r` entries, by which R of a QR factorisation errs; docs/theory.md, "Constants"."""

MEANS = ("momentum_buffer", "exp_avg")
"""Names of the mean gradient in the states of torch's optimisers."""


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(Q, P)` with `matrix = Q P`, Q the nearest frame to a matrix `(n, r)` of full rank, n >= r.

    Newton-Schulz steps find the inverse root of the Gram matrix with products alone, so that nothing waits for the
    host; the QR that follows makes Q a frame whatever they reached. They converge for condition numbers below 10, and
    for a frame after one step of an optimiser that number is near 1.
    """
    gram = matrix.mT @ matrix
    # Of a matrix of zeros the QR below makes a frame.
    scale = torch.linalg.matrix_norm(gram, float("inf")).clamp_min(torch.finfo(gram.dtype).tiny)
    root = gram / scale
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = identity
    for _ in range(10):
        step = 1.5 * identity - 0.5 * (inverse @ root)
        root, inverse = root @ step, step @ inverse
    orthonormal = qr_positive(matrix @ inverse * torch.rsqrt(scale))[0]
    return orthonormal, orthonormal.mT @ matrix


def qr_positive(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(Q, R)` with `matrix = Q R` and the diagonal of R positive, which makes it unique and continuous."""
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(matrix.dtype)
    return q * signs[..., None, :], r * signs[..., :, None]


def retraction(matrix: Tensor, method: Literal["polar", "qr"]) -> tuple[Tensor, Tensor]:
    """Return `(Q, P)` by the named method, in float32 at least."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return polar(wide) if method == "polar" else qr_positive(wide)


def gram_defect(frame: Tensor) -> Tensor:
    """Return `U^T U - I`, `(r, r)`."""
    return frame.mT @ frame - torch.eye(frame.shape[-1], dtype=frame.dtype, device=frame.device)


def frame_error(frame: Tensor) -> Tensor:
    """Return the spectral norm of `U^T U - I`: 0 for a frame (0-d); of half precision, in float32."""
    wide = frame.detach().to(torch.promote_types(frame.dtype, torch.float32))
    return torch.linalg.matrix_norm(gram_defect(wide), 2)


def random_frame(rows: int, columns: int) -> Tensor:
    """Return a frame `(rows, columns)`, uniformly distributed."""
    return qr_positive(torch.randn(rows, columns))[0]


def transport_momentum(
    optimizer: torch.optim.Optimizer, frame: Tensor, core: Tensor, factor: Tensor, core_axis: Literal[0, 1]
) -> None:
    """Carry the optimiser's mean gradients through `frame -> frame P^-1`, `core -> P core` along `core_axis`."""
    for key in MEANS:
        mean = optimizer.state.get(frame, {}).get(key)
        if mean is not None:
            mean.copy_(mean.to(factor.dtype) @ factor.mT)
        mean = optimizer.state.get(core, {}).get(key)
        if mean is not None:
            along = mean.to(factor.dtype).movedim(core_axis, 0)
            # The factor is small and the core is wide: its inverse is faster than solving for each column.
            inverse, info = torch.linalg.inv_ex(factor)
            # Where a frame has lost its rank, no direction of the core can be told: the mean begins anew.
            inverse = torch.where(info == 0, inverse, torch.zeros_like(inverse))
            moved = inverse.mT @ along.flatten(1)
            mean.copy_(moved.reshape(along.shape).movedim(0, core_axis))
