"""What the figures of a metric must look like: types, ranges, and figures that follow from one another."""

import json
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
CLOSE = 1e-6
"""Relative and absolute difference of figures that count as equal."""


class Figures(BaseModel):
    """Results of one measurement; types are not converted, and a field that is not known is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def faults(self) -> Mapping[str, bool]:
        """Return what would be wrong with figures that are each within their range, and whether it is."""
        return {}

    @classmethod
    def check(cls, results: Mapping[str, Any]) -> Self:
        """Return the figures of JSON values.

        Raises:
            ValueError: naming what cannot be right.
        """
        # In JSON's strict mode arrays are tuples, and nothing else is converted.
        found = cls.model_validate_json(json.dumps(dict(results), allow_nan=False))
        for text, wrong in found.faults().items():
            if wrong:
                raise ValueError(text)
        return found


def near(value: float, other: float) -> bool:
    """Return whether two figures are equal up to rounding."""
    return math.isclose(value, other, rel_tol=CLOSE, abs_tol=CLOSE)


def is_share_of(count: int, *shares: float) -> bool:
    """Return whether each share is one of a whole number of `count` images."""
    return all(near(share * count, round(share * count)) for share in shares)


def is_wilson(interval: tuple[float, float], correct: int, count: int) -> bool:
    """Return whether an interval is Wilson's at 95 % for `correct` of `count` images."""
    if not 0 <= correct <= count:
        return False
    return all(near(a, b) for a, b in zip(interval, wilson_interval(correct, count), strict=True))


def wilson_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion: it stays in [0, 1] and does not shrink to a point at 0 or 1."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} successes of {count}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / count
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At 0 and 1 the formula is exact, and rounding may not be.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == count else centre + half)
