"""What the figures of each metric must look like: types, ranges, and figures that follow from one another."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from svdctl.evaluate.calibration import BINS, wilson_interval

Share = Annotated[float, Field(ge=0, le=1)]
_CLOSE = 1e-6


class _Figures(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def faults(self) -> Mapping[str, bool]:
        """What is wrong with figures that are each within their range."""
        return {}


class AccuracyFigures(_Figures):
    """Top-1 accuracy."""

    accuracy: Share
    interval: tuple[Share, Share]
    correct: NonNegativeInt
    count: PositiveInt

    def faults(self) -> Mapping[str, bool]:
        return {
            "more correct answers than images": self.correct > self.count,
            "accuracy is not correct / count": not _near(self.accuracy, self.correct / self.count),
            "interval is not Wilson's": not _is_wilson(self.interval, self.correct, self.count),
        }


class BinFigures(_Figures):
    """Bars of the reliability diagram."""

    edges: tuple[Share, ...]
    counts: tuple[NonNegativeInt, ...]
    confidence: tuple[Share, ...]
    accuracy: tuple[Share, ...]


class TemperatureFigures(_Figures):
    """Figures after temperature scaling."""

    value: PositiveFloat
    determined: bool
    fitted_on: str
    fitted_count: PositiveInt
    count: PositiveInt
    ece_before: Share
    ece: Share
    nll: NonNegativeFloat
    brier: Annotated[float, Field(ge=0, le=2)]


class CalibrationFigures(_Figures):
    """Calibration error and proper scores."""

    ece: Share
    nll: NonNegativeFloat
    brier: Annotated[float, Field(ge=0, le=2)]
    accuracy: Share
    count: PositiveInt
    bins: BinFigures
    temperature: TemperatureFigures | None
    warnings: tuple[str, ...] = ()

    def faults(self) -> Mapping[str, bool]:
        bars = self.bins
        lengths = {len(bars.edges) - 1, len(bars.counts), len(bars.confidence), len(bars.accuracy)}
        gaps = zip(bars.counts, bars.confidence, bars.accuracy, strict=False)
        error = sum(count * abs(sure - right) for count, sure, right in gaps) / self.count
        return {
            f"there are not {BINS} bins": lengths != {BINS},
            "bins do not hold all images": sum(bars.counts) != self.count,
            "ece is not that of the bins": not _near(self.ece, error),
        }


class CorruptionFigures(_Figures):
    """Accuracy by corruption and severity."""

    count: PositiveInt
    clean: Share
    accuracy: dict[str, dict[str, Share]]
    mean_by_corruption: dict[str, Share]
    mean_by_severity: dict[str, Share]
    figures: dict[str, Share]
    mean: Share | None
    source: str
    notes: tuple[str, ...]

    def faults(self) -> Mapping[str, bool]:
        from svdctl.evaluate.corruption_metric import means_of

        rows = {frozenset(row) for row in self.accuracy.values()}
        shares = [self.clean, *(share for row in self.accuracy.values() for share in row.values())]
        if len(rows) > 1 or frozenset() in rows:
            return {"corruptions have different severities": True}
        right = means_of(self.accuracy)
        return {
            "a share is no number of images": any(not _near(s * self.count, round(s * self.count)) for s in shares),
            "means are not those of the table": not all(_same(getattr(self, name), right[name]) for name in right),
        }


class AttackFigures(_Figures):
    """Accuracy under attack."""

    protocol: str
    norm: str
    eps: PositiveFloat
    seed: NonNegativeInt
    batch_size: PositiveInt
    pyautoattack: str
    count: PositiveInt
    clean_accuracy: Share
    robust_accuracy: Share
    robust_interval: tuple[Share, Share]
    after_attack: dict[str, Share]
    left_out: tuple[str, ...]
    largest_distance: NonNegativeFloat
    warnings: tuple[str, ...]
    nearest: tuple[NonNegativeFloat, ...]

    def faults(self) -> Mapping[str, bool]:
        standing = round(self.robust_accuracy * self.count)
        falling = [self.clean_accuracy, *self.after_attack.values(), self.robust_accuracy]
        return {
            "a share is no number of images": any(not _near(s * self.count, round(s * self.count)) for s in falling),
            "interval is not Wilson's": not _is_wilson(self.robust_interval, standing, self.count),
            "accuracy grows under attack": any(after > before for before, after in pairwise(falling)),
            "an attack broke images after the last": not _near(falling[-2], falling[-1]),
            "distances are not those of the broken images": len(self.nearest) != self.count - standing,
            "a distance is larger than eps": self.protocol == "pixels"
            and self.largest_distance > 1.01 * self.eps + 0.01,
        }


class FactorFigures(_Figures):
    """What one layer adds to the Lipschitz constant."""

    layer: str
    kind: str
    factors: dict[str, NonNegativeFloat]


class CertificateFigures(_Figures):
    """Certified accuracy."""

    lipschitz: NonNegativeFloat
    accuracy: dict[str, Share]
    count: PositiveInt
    clean: Share
    mean_radius: NonNegativeFloat
    largest_radius: NonNegativeFloat
    vacuous: bool
    largest_factors: tuple[FactorFigures, ...]

    def faults(self) -> Mapping[str, bool]:
        by_radius = sorted((float(radius), share) for radius, share in self.accuracy.items())
        shares = [self.clean, *(share for _, share in by_radius)]
        beyond = any(share > 0 and radius / 255 > self.largest_radius for radius, share in by_radius)
        return {
            "accuracy grows with the radius": any(after > before for before, after in pairwise(shares)),
            "more is certified than the largest radius": beyond,
            "vacuous is not what the smallest radius says": self.vacuous != (not by_radius or by_radius[0][1] == 0),
        }


FIGURES: Mapping[str, type[_Figures]] = {
    "accuracy": AccuracyFigures,
    "ece": CalibrationFigures,
    "cifar-c": CorruptionFigures,
    "autoattacks": AttackFigures,
    "certified": CertificateFigures,
}


def check_figures(metric: str, results: Mapping[str, Any]) -> None:
    """Check the figures of a metric.

    Raises:
        ValueError: naming what cannot be right.
    """
    # In JSON's strict mode arrays are tuples, and nothing else is converted.
    found = FIGURES[metric].model_validate_json(json.dumps(dict(results), allow_nan=False))
    for text, wrong in found.faults().items():
        if wrong:
            raise ValueError(text)


def _near(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_near(value[name], other[name]) for name in value)
    return value is other if value is None or other is None else _near(value, other)


def _is_wilson(interval: tuple[float, float], correct: int, count: int) -> bool:
    if not 0 <= correct <= count:
        return False
    return all(_near(a, b) for a, b in zip(interval, wilson_interval(correct, count), strict=True))
