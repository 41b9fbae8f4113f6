"""What the speed figure is made of: full against TT at places of its axes."""

import statistics
from dataclasses import dataclass
from typing import Literal

AxisName = Literal["width", "rank", "input", "network"]
Work = Literal["all values", "control pass", "training step"]


@dataclass(frozen=True)
class Point:
    """Full against TT at one place of an axis."""

    axis: AxisName
    x: int
    """Width, rank, or side of the input; of the network the rank."""
    channels: int | None
    rank: int
    size: int
    work: Work
    full: tuple[float, ...]
    """Seconds of each round."""
    tt: tuple[float, ...]
    modelled: float | None
    """How many times cheaper TT is by the model of the cost; None for the training step, which it is not about."""
    kept: str = ""
    """`kept` where an earlier call that was cut off had measured it."""

    @property
    def measured(self) -> float:
        """How many times faster TT is: the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.full, self.tt, strict=True))


@dataclass(frozen=True)
class SpeedResults:
    """All points, and what they were measured on."""

    title: str
    smoke: bool
    points: tuple[Point, ...]
    machine: str
