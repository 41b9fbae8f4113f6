"""Eigenvalues of many Hermitian matrices at once by whole-batch operations, for devices whose own routine loops.

Householder reflectors make all matrices tridiagonal together (Golub and Van Loan, 8.3.1; updates of several columns
are put off, as in LAPACK's `latrd`), and Sturm counts, which say how many eigenvalues are below a number, close in on
all eigenvalues of all matrices together (as LAPACK's `stebz`). Nothing waits for the host.
"""

import math

import torch
from torch import Tensor

# For speed.
_PANEL = 8  # columns whose updates are put off: more read the matrix less often, and the panel more often
_POINTS = 3  # that divide the interval of an eigenvalue in each round
# For soundness: off-diagonal entries below the root of this count as that root, so that no count divides 0 by 0.
_LEAST_SQUARE = 2.0**-900


def eigenvalues_by_bisection(matrices: Tensor) -> Tensor:
    """Return the eigenvalues `(B, n)` of Hermitian matrices `(B, n, n)`, ascending, in their real precision.

    Both triangles are read. The error is a few `n * eps * norm`. Entries that are not finite give values that are not.
    """
    precision = matrices.dtype.to_real()
    if matrices.numel() == 0:
        return matrices.new_zeros(matrices.shape[:2], dtype=precision)
    largest = matrices.abs().amax((1, 2))
    # A power of two, so that no square over- or underflows.
    scale = torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1.0)[:, None]
    diagonal, beside = _tridiagonal(matrices / scale[:, :, None])
    bits = round(-math.log2(torch.finfo(precision).eps)) + 1
    return _eigenvalues_of_tridiagonal(diagonal.double(), beside.double(), bits).to(precision) * scale


def _tridiagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonals `(B, n)` and the absolute values beside them `(B, n - 1)` of similar tridiagonal matrices.

    The matrices are overwritten. A reflector `I - 2 u u^H` maps what is below the diagonal of a column to its first
    entry; of that, eigenvalues depend on the absolute value alone. It makes `A - u w^H - w u^H` of A, with
    `w = 2 (A u - u (u^H A u))`. Within a panel the matrix in hand is `A - P Q^H`, where P holds all u and then all w,
    and Q all w and then all u.
    """
    count, side = matrices.shape[:2]
    finfo = torch.finfo(matrices.dtype)
    # A shorter column would lose digits to underflow, and its reflector would not be one; it counts as zero.
    shortest = math.sqrt(finfo.tiny / finfo.eps)
    beside = matrices.new_zeros(count, side - 1, dtype=matrices.dtype.to_real())
    panel = matrices.new_empty(count, side, 3 * _PANEL)
    p, q = panel[..., : 2 * _PANEL], panel[..., _PANEL:]
    for start in range(0, side - 1, _PANEL):
        end = min(start + _PANEL, side - 1)
        panel.zero_()
        for column in range(start, end):
            below = column + 1
            matrices[:, column:, column:below].baddbmm_(p[:, column:], q[:, column:below].mH, alpha=-1)
            entries = matrices[:, below:, column]
            length = torch.linalg.vector_norm(entries, dim=1, keepdim=True, out=beside[:, column:below])
            rows, place = panel[:, below:], column - start
            u, w = rows[..., place : place + 1], rows[..., _PANEL + place : _PANEL + place + 1]
            u[..., 0].copy_(entries)
            # Of the sign of the first entry, so that nothing cancels.
            u[:, 0].add_(_with_sign(length, entries[:, :1]))
            norm = torch.linalg.vector_norm(u, dim=1, keepdim=True)
            u.div_(torch.nn.functional.threshold(norm, shortest, math.inf))
            torch.bmm(matrices[:, below:, below:], u, out=w)
            w.baddbmm_(p[:, below:], q[:, below:].mH @ u, beta=2, alpha=-2)
            w.baddbmm_(u, u.mH @ w, alpha=-1)
            rows[..., 2 * _PANEL + place].copy_(u[..., 0])
        matrices[:, end:, end:].baddbmm_(p[:, end:], q[:, end:].mH, alpha=-1)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    return diagonal.real if matrices.is_complex() else diagonal, beside


def _with_sign(length: Tensor, entry: Tensor) -> Tensor:
    """Return numbers of given absolute values and of the signs (phases) of others; that of zero is 1."""
    return torch.polar(length, entry.angle()) if entry.is_complex() else torch.copysign(length, entry)


def _eigenvalues_of_tridiagonal(diagonal: Tensor, beside: Tensor, bits: int) -> Tensor:
    """Return the eigenvalues `(B, n)` of real symmetric tridiagonal matrices, ascending, float64.

    Args:
        diagonal: `(B, n)`, float64, of about unit size.
        beside: `(B, n - 1)`, float64.
        bits: how often Gershgorin's interval is halved.
    """
    count, side = diagonal.shape
    radius = torch.nn.functional.pad(beside.abs(), (1, 1))
    radius = radius[:, 1:] + radius[:, :-1]
    low, width = (diagonal - radius).amin(1, keepdim=True), (diagonal + radius).amax(1, keepdim=True)
    width = width - low
    counts = _SturmCounts(diagonal, beside.square(), side * _POINTS)
    order = torch.arange(side, dtype=torch.int32, device=diagonal.device)
    # The first round divides the interval that all eigenvalues share by all points.
    parts = side * _POINTS + 1
    grid = torch.arange(1, parts, dtype=torch.float64, device=diagonal.device)
    width = width / parts
    below = torch.searchsorted(counts.below(low + width * grid), order.expand(count, -1).contiguous(), right=True)
    low = low + width * below
    grid = grid[:_POINTS]
    for _ in range(math.ceil((bits - math.log2(parts)) / math.log2(_POINTS + 1))):
        width = width / (_POINTS + 1)
        points = low[..., None] + (width * grid)[:, None]
        found = counts.below(points.flatten(1)).unflatten(1, (side, _POINTS))
        low = low + width * (found <= order[:, None]).sum(2)
    return (low + width / 2).sort(1).values


class _SturmCounts:
    """Counts how many eigenvalues of tridiagonal matrices are below numbers: the negative pivots of `T - x I`.

    Pivots run from both ends to the middle at once, which halves the number of operations. A pivot of zero makes the
    next one infinite and of the other sign, which counts rightly (Demmel, Dhillon and Ren 1995).

    Args:
        diagonal: `(B, n)`.
        squares: of the entries beside it, `(B, n - 1)`.
        points: in each question.
    """

    def __init__(self, diagonal: Tensor, squares: Tensor, points: int) -> None:
        count, side = diagonal.shape
        half = (side + 1) // 2
        # Adding 0 leaves no -0, by which a quotient would have the wrong sign.
        diagonal = torch.nn.functional.pad(diagonal + 0.0, (0, 2 * half - side), value=math.inf)
        squares = torch.nn.functional.pad(squares, (0, 2 * half - side)).clamp_min(_LEAST_SQUARE)
        self._diagonal = _from_both_ends(diagonal, half)
        self._squares = _from_both_ends(squares, half - 1).unbind()
        self._middle = squares[:, half - 1, None]
        self._pivots = diagonal.new_empty(half, 2, count, points)
        self._rows = self._pivots.unbind()

    def below(self, numbers: Tensor) -> Tensor:
        """Return the number of eigenvalues below numbers `(B, points)`, int32."""
        torch.sub(self._diagonal, numbers, out=self._pivots)
        for before, row, square in zip(self._rows[:-1], self._rows[1:], self._squares, strict=True):
            row.addcdiv_(square, before, value=-1)
        forward, backward = self._rows[-1].unbind()
        backward.addcdiv_(self._middle, forward, value=-1)
        return (self._pivots < 0).sum((0, 1), dtype=torch.int32)


def _from_both_ends(rows: Tensor, count: int) -> Tensor:
    """Return the first entries of rows `(B, m)` and the last ones, reversed, `(count, 2, B, 1)`."""
    return torch.stack((rows[:, :count], rows.flip(1)[:, :count])).permute(2, 0, 1)[..., None].contiguous()
