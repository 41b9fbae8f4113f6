"""The norm of a convolution over every input size, as a proof: floating point included.

Let S be the supremum of sigma_max over all frequencies and m = (k - 1) / 2 the half-width of the kernel along an axis.

Note 1, one axis. For unit u, v the function `Re u^H A(w) v` is, up to a phase, a trigonometric polynomial of degree m
along the axis, and one that is at most S is at least `S cos(m x)` at distance x from a point where it is S (M. Riesz;
Ehlich and Zeller 1964; half-integer m by the substitution w = 2v). Let P(y) be the supremum of sigma_max over all
frequencies whose coordinate on this axis is y. A grid of N points has one within pi / N of any place, so that
`S cos(pi m / N) <= max P` over it; axis after axis, `S <= max over the grid * prod 1 / cos(pi m / N)`.

Note 2, cells. Where that grid would be too fine: if S > t, the cell (centre y, half-width h) around a maximiser of P
has `P(y) > t cos(m h)`. So a cell with `P(y) <= t cos(m h)` holds no maximiser, and when no cell is left, S <= t; P(y)
is a supremum over one axis less, and its bound is proved in the same way. A cell that is not dropped is cut into two.
Dropping single points of a grid on all axes at once by the product of the cosines would be wrong: for cos(x + y), the
point nearest to a maximiser has only cos(h + h).

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
from svdctl.spectral.batched import eigenvalues_of, is_positive_definite
from svdctl.spectral.gram import GramField, exact_float32
from svdctl.spectral.operator import Convolution
from svdctl.spectral.peak import peak, quick_lower_bound
from svdctl.spectral.symbol import angles, half_grid

TOLERANCE = 0.005
_FINEST = 1e-6
_COARSE = 8
_MOST_POINTS = 6000


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
    target = max(lower * (1 + tolerance), wanted)
    grid = Grid.for_ratio(field, target / lower)
    if grid is not None:
        lower, upper = grid.maximum(lower, target)
        if upper <= max(lower * (1 + tolerance), wanted):
            return Bracket(lower * field.scale, upper * field.scale)
    sweep = _Sweep(field, target / lower)
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
    lower = quick_lower_bound(field)
    while lower <= bound:
        # Little is known of the maximum yet, so a grid that fails gives way to one that fits what it found.
        grid = Grid.for_ratio(field, bound / lower)
        if grid is None:
            break
        found, upper = grid.maximum(lower, bound, stop_above=bound)
        if upper <= bound:
            return True
        if found < lower * (1 + _FINEST):
            break
        lower = found
    if lower > bound:
        return False
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
    """The seal: the convolution, scaled down if it must be, so that its norm is proved to be at most `max`."""
    bracket = norm_bound(conv, tolerance=tolerance)
    if bracket.upper <= max:
        return conv, bracket
    # A little more than needed, so that a later bracket, which may differ in its last figures, ends below `max` too.
    # Rounding moves each entry of the scaled kernel by at most half a unit, and its norm by that share of the taps'.
    unit = torch.finfo(conv.kernel.dtype).eps
    factor = max / (bracket.upper * (1 + tolerance / 50) + unit * taps_norm(conv.kernel)) * (1 - 4 * unit)
    scaled = conv.with_kernel(conv.kernel * factor)
    return scaled, Bracket(min(bracket.lower * factor * (1 - 4 * unit), max), max)


def taps_norm(kernel: Tensor) -> float:
    """`sum_p ||K_p||_F` of a kernel `(G, O, I, *k)`: above the norm, far from it, but nearly free and continuous."""
    per_tap = kernel.double().flatten(3).square().sum((1, 2)).sqrt().sum(-1)
    return float(per_tap.max()) * (1 + 1e-12) if per_tap.numel() else 0.0


def provably_below(field: GramField, points: Tensor, level: float, dtype: torch.dtype) -> Tensor:
    """Which frequencies `(P, d)` are proved to have sigma_max < level, `(P,)` on the host; see Note 3."""
    top = level**2 - rounding_shift(field, level, dtype)
    if top <= 0:
        return torch.zeros(len(points), dtype=torch.bool)
    parts = []
    for part in points.split(field.chunk(dtype)):
        grams = field.at(part, dtype)
        if field.side == 1:
            parts.append((grams.real < top).flatten(1).all(-1).cpu())
            continue
        shifted = grams.neg_().flatten(0, 1)
        shifted.diagonal(dim1=-2, dim2=-1).add_(top)
        parts.append(is_positive_definite(shifted).unflatten(0, (len(part), field.groups)).all(-1).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)


def rounding_shift(field: GramField, level: float, dtype: torch.dtype) -> float:
    """Rump's constant for matrices of diagonal `level**2`, and the error of the Gram matrices."""
    unit = torch.finfo(dtype).eps / 2
    trace = field.side * level**2
    return 1.1 * (field.side + 8) * unit * trace + 2 * unit * level**2 + field.error(dtype)


class Grid:
    """Equispaced frequencies, half of them by conjugate symmetry, and the share of the supremum that they see."""

    def __init__(self, field: GramField, sizes: tuple[int, ...]) -> None:
        self.field = field
        self.points = angles(half_grid(sizes)[0], sizes)
        self.share = math.prod(math.cos(math.pi * (k - 1) / 2 / n) for k, n in zip(field.taps, sizes, strict=True))

    @classmethod
    def for_ratio(cls, field: GramField, ratio: float) -> "Grid | None":
        """The coarsest grid that can prove a bound `ratio` times as large as the maximum; None if that is too fine."""
        if ratio <= 1 + _FINEST:
            return None
        # Half of the logarithm's room for the cosines would be safe; most of it is theirs, the rest is rounding's.
        reach = math.acos(min(1.0, ratio**-0.92) ** (1 / max(1, len(field.taps))))
        sizes = tuple(max(k, math.ceil(math.pi * (k - 1) / 2 / reach)) for k in field.taps)
        return cls(field, sizes) if math.prod(sizes) <= _MOST_POINTS else None

    def maximum(self, lower: float, target: float, stop_above: float = math.inf) -> tuple[float, float]:
        """(lower, upper) of the norm. Points above what `target` asks for get exact values, the strongest few first.

        Args:
            lower: a proved lower bound.
            target: what the upper bound should not exceed, if it can.
            stop_above: a lower bound above this ends the search; `upper` is then infinite.
        """
        level = target * self.share * (1 - 1e-12)
        field = self.field
        single = exact_float32(field.device)
        single = single and rounding_shift(field, level, torch.float32) < 0.25 * (1 - self.share**2) * level**2
        dtype = torch.float32 if single else torch.float64
        above = self.points[~provably_below(field, self.points, level, dtype)]
        largest = level
        # The first few tell whether to go on: where many points fail, the target is far too low.
        for part in above.split(max(4, min(32, field.chunk(torch.float64)))) if len(above) else ():
            squares = eigenvalues_of(field.at(part).flatten(0, 1))[:, -1].double().max()
            error = field.error(torch.float64) + 8 * (field.side + 8) * 2.0**-53 * field.frobenius
            found = math.sqrt(max(float(squares) - error, 0.0))
            largest = max(largest, math.sqrt(float(squares) + error))
            lower = max(lower, found)
            if lower > stop_above or largest / self.share > 1.02 * target:
                return lower, math.inf
        return lower, largest / self.share * (1 + 1e-12)


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
        """Which frequencies `(P, d)` are not proved to have sigma_max < level."""
        dtype = torch.float64
        single = exact_float32(self.field.device)
        if single and rounding_shift(self.field, level, torch.float32) < 0.2 * self.slack() * level**2:
            dtype = torch.float32
        failed = ~provably_below(self.field, points, level, dtype)
        if bool(failed.any()):
            self.suspects = points[failed]
        return failed

    def strongest(self) -> float:
        """A lower bound from the points that failed last, exact at one of them."""
        points = self.suspects
        found = peak(self.field, points)
        exact = eigenvalues_of(self.field.at(points[len(points) // 2 :][:1]).flatten(0, 1)).max()
        return max(found, math.sqrt(max(float(exact) - rounding_shift(self.field, found, torch.float64), 0.0)))
