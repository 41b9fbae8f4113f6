"""Norms of kernels whose symbols are rows or columns: their one singular value is a root of a sum of squares.

Depthwise layers, and layers of one channel on either side, need no matrix. The value is computed on a full grid, axis
by axis, and where it may be largest on finer and finer boxes. docs/theory.md, "Exclusion of cells", has the
proofs. They presume `exact_arithmetic`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.gram import SECOND_ORDER, UNIT64, power_of_two
from svdctl.spectral.symbol import grid_product, tap_positions

# For soundness; docs/theory.md, "Constants".
_OUTWARD = 1e-11  # rounding of the boxes' centres and radius, and of bounds
# What float64 can tell apart.
FINEST = 1e-6
# For speed, but for the widest radius, which has to be below pi / 4.
_WIDEST = 0.75
_NUMBERS_OF_GRID = 1 << 24
_NUMBERS_AT_ONCE = 1 << 21
_FINEST_GRID = 5e-4  # tolerance: for less than this few boxes are left to be cut
_PARTS = 3  # of a box along each axis


class ScalarSymbol:
    """The norms `sigma(w)` of a kernel's symbols, which are vectors, at any frequencies.

    Args:
        kernel: the normal form `(G, O, I, *k)`, O or I one, each k more than one, at least one axis.

    Raises:
        ShapeError: the kernel is not finite.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.taps = tuple(kernel.shape[3:])
        wide = kernel.double().flatten(1, 2)
        largest = float(wide.abs().amax())
        if not math.isfinite(largest):
            raise ShapeError("the kernel holds values that are not finite; its norm has no bound")
        self.scale = power_of_two(largest)
        self._kernel = wide / self.scale
        self.is_zero = largest == 0.0
        self.numbers = self._kernel.shape[0] * self._kernel.shape[1]
        sums = self._kernel.flatten(2).abs().sum(2).square().sum(1).sqrt()
        self.above = float(sums.amax()) * (1 + 1e-10)
        angle = 2 * math.pi * (len(self.taps) + 5) * sum(k - 1 for k in self.taps)
        roundings = 4 * (math.prod(self.taps) + 8) + angle + self._kernel.shape[1] + 8
        self.error = SECOND_ORDER * roundings * UNIT64 * self.above
        """How far a computed value can be from the true one."""

    def on_grid(self, sizes: tuple[int, ...]) -> Tensor:
        """Return the values `(G, *m)` at frequencies `2 pi j / n` of a grid, `0 <= j <= n / 2` on the first axis."""
        counts = (sizes[0] // 2 + 1, *sizes[1:])
        each = self._kernel.shape[1] * math.prod(counts)
        rows = max(1, _NUMBERS_AT_ONCE // (each // counts[0]))
        groups = max(1, _NUMBERS_AT_ONCE // each)
        found = []
        for some in self._kernel.split(groups):
            parts = []
            for first in range(0, counts[0], rows):
                values = some.to(torch.complex128)
                for axis, (k, size) in enumerate(zip(self.taps, sizes, strict=True)):
                    chosen = torch.arange(first, min(first + rows, counts[0])) if axis == 0 else torch.arange(size)
                    # Whole turns are taken off in integers.
                    turns = chosen[:, None] * torch.arange(k) % size
                    angles = turns.double() * (2 * math.pi / size)
                    phases = torch.polar(torch.ones_like(angles), -angles).to(values.device)
                    values = (values.movedim(2 + axis, -1) @ phases.T).movedim(-1, 2 + axis)
                parts.append(torch.view_as_real(values).square().sum((1, -1)).sqrt())
            found.append(torch.cat(parts, 1))
        return torch.cat(found)

    def at(self, groups: Tensor, points: Tensor) -> Tensor:
        """Return the values `(P,)` of groups `(P,)`, ascending, at frequencies `(P, d)`, both on the host."""
        positions = tap_positions(self.taps)
        flat = self._kernel.flatten(2)
        found: list[Tensor] = []
        most = max(1, _NUMBERS_AT_ONCE // (4 * max(len(positions), flat.shape[1])))
        begin = 0
        for group, count in zip(*(row.tolist() for row in groups.unique_consecutive(return_counts=True)), strict=True):
            for some in points[begin : begin + count].split(most):
                turn = some @ positions.T
                phases = torch.cat((torch.cos(turn), torch.sin(turn))).to(flat.device)
                parts = (phases @ flat[group].T).unflatten(0, (2, -1))
                found.append(parts.square().sum((0, 2)).sqrt())
            begin += count
        return torch.cat(found).cpu()


def is_scalar(kernel: Tensor) -> bool:
    """Return whether a normal form `(G, O, I, *k)` is one that `ScalarSymbol` takes."""
    return kernel.ndim > 3 and min(kernel.shape[1:3]) == 1


def prove(symbol: ScalarSymbol, target: Callable[[float], float], tolerance: float) -> tuple[float, bool]:
    """Return a proved lower bound of the largest value, and whether the largest is proved to be at most its target.

    Args:
        symbol: not zero.
        target: what is to be proved, given a lower bound; it does not fall.
        tolerance: up to which the grid is to show the largest value, if that takes not too many points.
    """
    half_widths = [(k - 1) / 2 for k in symbol.taps]
    sizes = _grid_sizes(symbol, half_widths, tolerance)
    values = symbol.on_grid(sizes)
    highest, lowest = values.flatten(1).amax(1).cpu(), values.flatten(1).amin(1).cpu()
    lower = max(float(highest.amax()) - symbol.error, 0.0)
    left = _bounds_by_grid(symbol, highest, lowest, [math.pi * m / n for m, n in zip(half_widths, sizes, strict=True)])
    left = torch.nonzero(left > target(lower)).flatten()
    widths = torch.tensor([math.pi / n for n in sizes], dtype=torch.float64)
    radius = _radius(widths, half_widths)
    if len(left) and lower <= target(lower):
        kept = values[left.to(values.device)] >= _threshold(symbol, target(lower), radius)
        index = torch.nonzero(kept).cpu()
        groups, points = left[index[:, 0]], index[:, 1:].double() * (2 * widths)
    else:
        groups, points = left, widths.new_zeros(len(left), len(widths))
    while len(groups):
        if lower * (1 + FINEST) > target(lower) or 1 - math.cos(radius) < FINEST / 64:
            return lower, False
        widths, radius = widths / _PARTS, radius / _PARTS
        steps = grid_product([torch.arange(1 - _PARTS, _PARTS, 2, dtype=torch.float64)] * len(widths)) * widths
        groups = groups.repeat_interleave(len(steps))
        points = (points[:, None, :] + steps).flatten(0, 1)
        found = symbol.at(groups, points)
        lower = max(lower, float(found.amax()) - symbol.error)
        kept = found >= _threshold(symbol, target(lower), radius)
        groups, points = groups[kept], points[kept]
    return lower, True


def _threshold(symbol: ScalarSymbol, bound: float, radius: float) -> float:
    """Return the value below which a box's centre shows that the box has no maximiser of a norm above the bound."""
    return bound * math.cos(radius) * (1 - _OUTWARD) - symbol.error


def _bounds_by_grid(symbol: ScalarSymbol, highest: Tensor, lowest: Tensor, angles: list[float]) -> Tensor:
    """Return proved upper bounds of the groups' norms `(G,)` from the largest and smallest values on a grid.

    Args:
        symbol: of the kernel.
        highest, lowest: `(G,)`.
        angles: `pi m / n` for each axis, m half of its taps less one, n the points of the grid.
    """
    by_values = (highest + symbol.error) / math.prod(math.cos(angle) for angle in angles)
    error = (2 * symbol.above + symbol.error) * symbol.error
    middle, spread = (highest**2 + lowest**2) / 2, (highest**2 - lowest**2) / 2 + error
    by_squares = (middle + spread / math.prod(math.cos(2 * angle) for angle in angles)).sqrt()
    return torch.minimum(by_values, by_squares) * (1 + _OUTWARD)


def _grid_sizes(symbol: ScalarSymbol, half_widths: list[float], tolerance: float) -> tuple[int, ...]:
    """Return how many points the grid has along each axis."""
    axes = len(half_widths)
    # The grid alone is to prove the tolerance, but for rounding.
    step = math.acos((1 + 0.99 * max(tolerance, _FINEST_GRID)) ** (-1 / axes))
    fewest = symbol.numbers * math.prod(math.pi * m / step for m in half_widths) / 2
    step *= max(1.0, fewest / _NUMBERS_OF_GRID) ** (1 / axes)
    step = min(step, _WIDEST / axes)
    return tuple(math.ceil(math.pi * m / step) for m in half_widths)


def _radius(widths: Tensor, half_widths: list[float]) -> float:
    """Return the distance of a box's corner from its centre, in the distance of docs/theory.md."""
    return float(widths @ torch.tensor(half_widths, dtype=torch.float64))
