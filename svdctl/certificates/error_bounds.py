"""What is known of one value inside a network, for every image x at distance at most D from a fixed centre c.

Notation: v(x) is the value in exact arithmetic and `v^(x)` as it is computed, in any order of summation. All norms are
Euclidean, over all entries of one image's value.

Errors and magnitudes are affine functions of D, and stay so through a network; docs/theory.md, "Rounding of a pass",
has the proofs, and why the bounds, sums and products of float64 numbers that are not negative, are rounded `outward`
once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from svdctl.certificates.intervals import UNBOUNDED, Interval
from svdctl.spectral.rounding import tiny_of

OUTWARD = 1e-10
"""For soundness: what the roundings of 400,000 operations of a bound come to, relatively."""
INWARD = 1e-12
"""For soundness: the same for the few operations of a distance or radius, which is lowered by this share."""


def outward(bound: float) -> float:
    """Return the bound, enlarged by all that its own computation can have rounded away."""
    return bound * (1 + OUTWARD)


@dataclass(frozen=True)
class Arithmetic:
    """The precision in which values are computed."""

    dtype: torch.dtype

    @property
    def unit(self) -> float:
        """Return the unit roundoff, the largest relative error of one operation."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def largest(self) -> float:
        """Return what magnitudes must stay below for nothing to overflow, with room for roundings."""
        return torch.finfo(self.dtype).max / 64

    @property
    def tiny(self) -> float:
        """Return at least the error of a product that underflows."""
        return tiny_of(self.unit)


@dataclass(frozen=True)
class Affine:
    """`constant + slope * D`, both non-negative."""

    constant: float = 0.0
    slope: float = 0.0

    def __call__(self, distance: float) -> float:
        # Not inf * 0: a bound that is lost is lost at every distance.
        return math.inf if math.isinf(self.slope) else self.constant + self.slope * distance

    def __add__(self, other: Self) -> "Affine":
        return Affine(self.constant + other.constant, self.slope + other.slope)

    def __mul__(self, factor: float) -> "Affine":
        def scaled(part: float) -> float:
            return 0.0 if part == 0 or factor == 0 else part * factor

        return Affine(scaled(self.constant), scaled(self.slope))

    def maximum(self, other: Self) -> "Affine":
        """Return at least both."""
        pairs = ((self.constant, other.constant), (self.slope, other.slope))
        # Python's `max` passes over what is not a number.
        return Affine(*(math.inf if math.isnan(mine + others) else max(mine, others) for mine, others in pairs))

    def distance_below(self, limit: float) -> float:
        """Return the distance up to which this is at most `limit`; below 0 if it is larger everywhere."""
        room = limit - self.constant
        if not room >= 0:
            return -1.0
        return math.inf if self.slope == 0 else room / self.slope * (1 - INWARD)

    @classmethod
    def root_sum_square(cls, parts: list["Affine"]) -> "Affine":
        """Return at least the norm of the parts, by the triangle inequality for the vectors of coefficients."""
        return cls(math.hypot(*(part.constant for part in parts)), math.hypot(*(part.slope for part in parts)))


@dataclass(frozen=True)
class AffineReadout:
    """That a value is affine in an earlier one: `value = rows @ earlier + constant`."""

    lipschitz: float
    """Constant of the earlier value with respect to the image."""
    rows: Callable[[], tuple[Tensor, float] | None]
    """Gives the matrix `(numel of the value, numel of the earlier one)`, float64, and a bound on its error's norm.

    None when the map is no longer what it was: its weights or settings were changed after they were used.
    """

    @classmethod
    def of(
        cls,
        lipschitz: float,
        run: Callable[[Tensor], Tensor],
        like: Tensor,
        rows: Callable[[], tuple[Tensor, float] | None],
    ) -> Self:
        """Return a readout whose `rows` are used only while `run` gives of random numbers what it gives now."""
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        seen = run(probe.clone()).clone()
        return cls(lipschitz, lambda: rows() if torch.equal(run(probe.clone()), seen) else None)


@dataclass(frozen=True)
class ValueBounds:
    """What is proved of a value."""

    lipschitz: float
    """Constant of v with respect to the image."""
    centre: float
    """At least `|v^(c)|`."""
    error: Affine
    """At least `|v^(x) - v(x)|`."""
    readout: AffineReadout | None = None
    interval: Interval = UNBOUNDED
    """Holds every entry of v(x) and of `v^(x)`, whatever image x is."""

    @property
    def magnitude(self) -> Affine:
        """Return at least `|v^(x)|`, as a function of the distance."""
        return Affine(self.centre + self.error.constant, self.lipschitz) + self.error
