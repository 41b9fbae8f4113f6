"""Intervals that hold every entry of a value inside a network, for every image, exact or as computed.

Intervals of results are those of exact arithmetic on all that the operands may be, made wider by what the network's
precision and float64 can round; docs/theory.md, "Ranges of values", has the proofs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


def _product(first: float, second: float) -> float:
    # Entries are finite: 0 times any of them is 0.
    return 0.0 if first == 0 or second == 0 else first * second


@dataclass(frozen=True)
class Interval:
    """All numbers from `lo` to `hi`; an end that is infinite is not known."""

    lo: float = -math.inf
    hi: float = math.inf

    @classmethod
    def of(cls, *numbers: float) -> "Interval":
        """Return the interval from the smallest to the largest of these; of one that is no number, all numbers."""
        if any(math.isnan(number) for number in numbers):
            return cls()
        lo, hi = min(numbers), max(numbers)
        # Finite numbers that overflowed say nothing of the other side.
        return cls() if lo == math.inf or hi == -math.inf else cls(lo, hi)

    @property
    def largest(self) -> float:
        """Return the largest absolute value."""
        return max(abs(self.lo), abs(self.hi))

    @property
    def smallest(self) -> float:
        """Return the smallest absolute value."""
        return max(self.lo, -self.hi, 0.0)

    @property
    def description(self) -> str:
        """Return which bounds are known, for messages."""
        if self.is_bounded:
            return f"the bounds {self.lo:g} and {self.hi:g}"
        if self.lo == -math.inf and self.hi == math.inf:
            return "no proved bound, upper or lower"
        return (
            f"no proved upper bound (the lower one is {self.lo:g})"
            if self.hi == math.inf
            else (f"no proved lower bound (the upper one is {self.hi:g})")
        )

    @property
    def is_bounded(self) -> bool:
        """Return whether both ends are known."""
        return math.isfinite(self.largest)

    def hull(self, other: "Interval") -> "Interval":
        """Return the smallest interval that holds both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def maximum(self, other: "Interval") -> "Interval":
        """Return where the larger one of two numbers lies."""
        return Interval(max(self.lo, other.lo), max(self.hi, other.hi))

    def minimum(self, other: "Interval") -> "Interval":
        """Return where the smaller one of two numbers lies."""
        return Interval(min(self.lo, other.lo), min(self.hi, other.hi))

    def __neg__(self) -> "Interval":
        return Interval(-self.hi, -self.lo)

    def __add__(self, other: "Interval") -> "Interval":
        return Interval.of(self.lo + other.lo, self.hi + other.hi)

    def __mul__(self, other: "Interval") -> "Interval":
        return Interval.of(*(_product(mine, others) for mine in (self.lo, self.hi) for others in (other.lo, other.hi)))

    def image(self, function: Callable[[float], float], *turns: float) -> "Interval":
        """Return where the values of a function lie that is monotone between these turns."""
        places = (self.lo, self.hi, *(turn for turn in turns if self.lo < turn < self.hi))
        return Interval.of(*(at_or(function, place, math.nan) for place in places))

    def widened(self, relative: float, lost: float = 0.0) -> "Interval":
        """Return where numbers lie that err by a share of themselves and `lost`, and do not change their sign."""
        more, less = 1 + relative, max(1 - relative, 0.0)
        lo = _product(self.lo, less if self.lo > 0 else more) - lost
        hi = _product(self.hi, less if self.hi < 0 else more) + lost
        if relative or lost:
            lo, hi = math.nextafter(lo, -math.inf), math.nextafter(hi, math.inf)
        return Interval(max(lo, 0.0) if self.lo >= 0 else lo, min(hi, 0.0) if self.hi <= 0 else hi)


UNBOUNDED = Interval()


def at_or(function: Callable[[float], float], place: float, otherwise: float) -> float:
    """Return a function's value, or another number where it overflows or has a pole."""
    try:
        return function(place)
    except (OverflowError, ZeroDivisionError, ValueError):
        return otherwise
