"""Cells of frequencies that cover all of them, and what the value at a cell's centre implies for the whole cell.

Near a maximiser w* of sigma_max, S its value there, `sigma_max(w) >= S cos(r)`, r the distance `sum_a m_a |w_a - w*_a|`
with `m = (k - 1) / 2`. So a cell of centre w and radius rho holds no maximiser of a norm above t if
`sigma_max(w) < t cos(rho)`. In one dimension the cells are intervals, in two squares that stand on a corner; of more
axes the first ones are put on a grid, which sees a known share of S. docs/theory.md, "Exclusion of cells", has the
proofs.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from svdctl.spectral.symbol import angles, grid_product, unique_up_to_sign

# For soundness below pi / 2; docs/theory.md, "Constants". Wider cells save little.
_WIDEST = 0.75
# For soundness: cells tile one axis or two.
CELL_AXES = 2
# For speed: points of grids that are kept.
_MOST_KEPT = 1 << 14


@dataclass(frozen=True)
class FrequencyCells:
    """Cells that are left; all of them together hold a maximiser of any norm above what was proved of the others.

    Attributes:
        centres: frequencies `(P, d)`, one of each pair w, -w.
        radius: of every cell, in the distance above.
        lead: share of the supremum that the grid of the leading axes sees.
    """

    centres: Tensor
    radius: float
    lead: float
    half_widths: tuple[float, ...]

    @property
    def share(self) -> float:
        """Return the least share of the supremum that a centre sees if its cell holds a maximiser."""
        return self.lead * math.cos(self.radius)

    def keep(self, chosen: Tensor) -> "FrequencyCells":
        """Return the chosen cells, a mask `(P,)`."""
        return FrequencyCells(self.centres[chosen], self.radius, self.lead, self.half_widths)

    def halved(self) -> "FrequencyCells":
        """Return the same cells, each cut into cells of half the radius."""
        half = self.radius / 2
        inner = self.half_widths[-CELL_AXES:]
        steps = torch.zeros(2 * len(inner), self.centres.shape[1], dtype=torch.float64)
        for axis, width in enumerate(inner):
            steps[2 * axis : 2 * axis + 2, axis - len(inner)] = torch.tensor([-half, half], dtype=torch.float64) / width
        centres = (self.centres[:, None, :] + steps).flatten(0, 1)
        return FrequencyCells(centres, half, self.lead, self.half_widths)


def cover(taps: tuple[int, ...], radius: float, lead: float = 1.0) -> FrequencyCells:
    """Return cells that cover all frequencies.

    Args:
        taps: of the kernel, each axis more than one.
        radius: of the cells, at most; it is never taken wider than where few cells are saved.
        lead: share of the supremum that the grid of the leading axes, if there are any, must see.
    """
    half_widths = tuple((k - 1) / 2 for k in taps)
    leading, inner = half_widths[:-CELL_AXES], half_widths[-CELL_AXES:]
    if not inner:
        return FrequencyCells(torch.zeros(1, 0, dtype=torch.float64), 0.0, 1.0, half_widths)
    step = math.acos(lead ** (1 / len(leading))) if leading else 0.0
    outer_sizes = tuple(math.ceil(math.pi * m / step) for m in leading)
    seen = math.prod(math.cos(math.pi * m / n) for m, n in zip(leading, outer_sizes, strict=True))
    radius = min(radius, _WIDEST)
    counts = tuple(math.ceil(math.pi * m / radius) for m in inner)
    widths = [math.pi * m / n for m, n in zip(inner, counts, strict=True)]
    # In units of half a step: squares on a corner have their centres where the sum of both is even.
    sizes = (*outer_sizes, *(n if len(inner) == 1 else 2 * n for n in counts))
    centres = _kept_centres if math.prod(sizes) <= _MOST_KEPT else _centres
    return FrequencyCells(centres(sizes, len(inner)), sum(widths) / len(widths), seen, half_widths)


def _centres(sizes: tuple[int, ...], inner: int) -> Tensor:
    """Return the points `(P, d)` of a grid, one of each pair w, -w; on two inner axes those of even sums alone."""
    index = grid_product([torch.arange(n) for n in sizes]).long()
    if inner == CELL_AXES:
        index = index[index[:, -CELL_AXES:].sum(1) % 2 == 0]
    return angles(unique_up_to_sign(index, sizes)[0], sizes)


_kept_centres = lru_cache(maxsize=64)(_centres)
