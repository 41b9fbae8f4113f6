"""The norm of a convolution over every input size, as a proof: floating point included.

Let S be the supremum of sigma_max over all frequencies and m = (k - 1) / 2 the half-width of the kernel along an axis.

Note 1, one axis. For unit u, v the function `Re u^H A(w) v` is, up to a phase, a trigonometric polynomial of degree m
along the axis, and one that is at most S is at least `S cos(m x)` at distance x from a point where it is S (M. Riesz;
Ehlich and Zeller 1964; half-integer m by the substitution w = 2v). Let P(y) be the supremum of sigma_max over all
frequencies whose coordinate on this axis is y. If S > t, the cell (centre y, half-width h) around a maximiser of P has
`P(y) > t cos(m h)`. So a cell with `P(y) <= t cos(m h)` holds no maximiser, and when no cell is left, S <= t.

Note 2, several axes. P(y) is a supremum over one axis less, and `P(y) <= t cos(m h)` is proved in the same way, with
that bound in place of t. A cell that is not dropped is cut into two. Dropping a point of a grid on all axes at once by
the product of the cosines would be wrong: for cos(x + y), the point nearest to a maximiser has only cos(h + h).

Note 3, rounding. At a point, one Cholesky factorisation decides whether `H = t^2 I - A^H A` is positive definite. If it
runs to its end on H shifted down by `(n + 8) v trace(H)`, v the unit roundoff, H is positive definite (Rump 2006; the
complex inner product costs two more roundings than the real one). The shift covers the error of A^H A too, Note 2 of
`gram`. While the cells are wide float32 is exact enough; it gives way to float64 when its shift is felt.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.gram import GramField, exact_float32
from svdctl.spectral.operator import Convolution
from svdctl.spectral.peak import peak

TOLERANCE = 0.005
_FINEST = 1e-6
_COARSE = 8


@dataclass(frozen=True)
class Bracket:
    """`lower <= true value <= upper`, rounding errors included."""

    lower: float
    upper: float


@torch.no_grad()
def norm_bound(conv: Convolution, *, tolerance: float = TOLERANCE, floor: float | None = None) -> Bracket:
    """Norm of the convolution on l2 of the whole grid: it bounds the layer at every input size and zero padding.

    Args:
        conv: any stride, dilation, groups and number of axes.
        tolerance: wanted `upper / lower - 1`.
        floor: a bound that is sharp enough; when it is above the norm, `upper` may be as large as this.

    Raises:
        ShapeError: the kernel is not finite, or the tolerance is below what float64 can prove.
    """
    field = GramField(conv)
    if field.is_zero:
        return Bracket(0.0, 0.0)
    if tolerance < _FINEST:
        raise ShapeError(f"a tolerance of {tolerance} cannot be proved in float64; ask for {_FINEST} or more")
    lower = peak(field)
    wanted = 0.0 if floor is None else floor / field.scale
    sweep = _Sweep(field, max(lower * (1 + tolerance), wanted) / lower)
    while not sweep.settled(max(lower * (1 + tolerance), wanted)):
        lower = max(lower, sweep.strongest())
    return Bracket(lower * field.scale, max(lower * (1 + tolerance), wanted) * field.scale)


@torch.no_grad()
def is_bounded(conv: Convolution, max: float) -> bool:
    """Whether the norm is proved to be at most `max`; False says that it is not, or by less than 1e-6."""
    field = GramField(conv)
    if field.is_zero:
        return max >= 0
    bound = max / field.scale
    lower = peak(field)
    if lower * (1 + _FINEST) > bound:
        return False
    sweep = _Sweep(field, bound / lower)
    while not sweep.settled(bound):
        if sweep.strongest() > bound or sweep.slack() < _FINEST:
            return False
    return True


@torch.no_grad()
def scale_to_bound(conv: Convolution, max: float, *, tolerance: float = TOLERANCE) -> tuple[Convolution, Bracket]:
    """The seal: the convolution, scaled down if it must be, so that `norm_bound(...).upper <= max` after rounding."""
    bracket = norm_bound(conv, tolerance=tolerance)
    while bracket.upper > max:
        # One step nearly always suffices: the factor anticipates the rounding of the scaled kernel.
        factor = max / bracket.upper * (1 - 8 * torch.finfo(conv.kernel.dtype).eps)
        conv = conv.with_kernel(conv.kernel * factor)
        bracket = norm_bound(conv, tolerance=tolerance)
    return conv, bracket


class _Sweep:
    """The cells of the first axis that can still hold the maximum, and the descent through the other axes."""

    def __init__(self, field: GramField, ratio: float) -> None:
        self.field = field
        self.half_widths = tuple((k - 1) / 2 for k in field.taps)
        # As many points that the cosines take about what the wanted bound leaves above the maximum.
        reach = math.sqrt(2 * math.log(max(ratio, 1.0)) / max(len(field.taps), 1)) if ratio > 1 else 0.0
        self.sizes = tuple(
            math.ceil(min(max(math.pi * m / max(reach, 1e-3), 2 * m + 2), _COARSE * (m + 0.5)))
            for m in self.half_widths
        )
        self.depth = 0
        self.cells = self._cells(0)[: self.sizes[0] // 2 + 1] if self.sizes else torch.zeros(1)
        self.suspects = torch.zeros(0, len(self.sizes), dtype=torch.float64)

    def _cells(self, axis: int) -> Tensor:
        return torch.arange(self.sizes[axis], dtype=torch.float64) * (2 * math.pi / self.sizes[axis])

    def _width(self, axis: int, depth: int) -> float:
        """Half-width of a cell of this depth."""
        return math.pi / (self.sizes[axis] * 2**depth)

    def slack(self) -> float:
        """What the cells of the present depth leave between a bound and what is proved of the points."""
        return 1 - math.prod(math.cos(m * self._width(a, self.depth)) for a, m in enumerate(self.half_widths))

    def settled(self, bound: float) -> bool:
        """Go over the cells that are left; True is the proof that the norm is at most `bound`."""
        if not self.sizes:
            self.depth += 1
            return not bool(self._points_fail(torch.zeros(1, 0, dtype=torch.float64), bound).any())
        level = bound * math.cos(self.half_widths[0] * self._width(0, self.depth))
        failed = self._fail(self.cells[:, None], level, self.depth)
        self.cells = self._halves(self.cells[failed], 0, self.depth)
        self.depth += 1
        return len(self.cells) == 0

    def _halves(self, centres: Tensor, axis: int, depth: int) -> Tensor:
        half = self._width(axis, depth) / 2
        return (centres[:, None] + torch.tensor([-half, half])).flatten()

    def _fail(self, prefix: Tensor, level: float, depth: int) -> Tensor:
        """Which prefixes `(P, a)` of frequencies are not proved to have all values at most `level`."""
        axis = prefix.shape[1]
        if axis == len(self.sizes):
            return self._points_fail(prefix, level)
        cells = self._cells(axis)
        owner = torch.arange(len(prefix)).repeat_interleave(len(cells))
        centres = cells.repeat(len(prefix))
        for at in range(depth + 1):
            below = level * math.cos(self.half_widths[axis] * self._width(axis, at))
            failed = self._fail(torch.cat((prefix[owner], centres[:, None]), 1), below, at)
            owner, centres = owner[failed], centres[failed]
            if at < depth:
                owner, centres = owner.repeat_interleave(2), self._halves(centres, axis, at)
        result = torch.zeros(len(prefix), dtype=torch.bool)
        result[owner] = True
        return result

    def _points_fail(self, points: Tensor, level: float) -> Tensor:
        """Which frequencies `(P, d)` are not proved to have sigma_max < level; see Note 3."""
        dtype = torch.float64
        if exact_float32(self.field.device) and self._shift(torch.float32, level) < 0.2 * self.slack() * level**2:
            dtype = torch.float32
        parts = [self._part_fails(part, level, dtype) for part in points.split(self.field.chunk(dtype))]
        failed = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)
        if bool(failed.any()):
            self.suspects = points[failed]
        return failed

    def _shift(self, dtype: torch.dtype, level: float) -> float:
        unit = torch.finfo(dtype).eps / 2
        trace = self.field.side * level**2
        return 1.1 * (self.field.side + 8) * unit * trace + 2 * unit * level**2 + self.field.error(dtype)

    def _part_fails(self, points: Tensor, level: float, dtype: torch.dtype) -> Tensor:
        top = level**2 - self._shift(dtype, level)
        if top <= 0:
            return torch.ones(len(points), dtype=torch.bool)
        grams = self.field.at(points, dtype)
        if self.field.side == 1:
            return (grams.real >= top).flatten(1).any(-1).cpu()
        shifted = grams.neg_()
        shifted.diagonal(dim1=-2, dim2=-1).add_(top)
        return (torch.linalg.cholesky_ex(shifted).info != 0).any(-1).cpu()

    def strongest(self) -> float:
        """A lower bound from the points that failed last, exact at one of them."""
        points = self.suspects
        found = peak(self.field, points)
        exact = torch.linalg.eigvalsh(self.field.at(points[len(points) // 2 :][:1])).max()
        return max(found, math.sqrt(max(float(exact) - self._shift(torch.float64, found), 0.0)))
