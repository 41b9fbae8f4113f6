"""What came of one checkpoint: its figures, and what could not be measured."""

from dataclasses import dataclass, field
from pathlib import Path

from svdctl.evaluate.evaluated_model import EvaluatedModel
from svdctl.evaluate.find_checkpoints import FoundCheckpoint
from svdctl.evaluate.metric import Order
from svdctl.evaluate.results import Record


@dataclass(frozen=True)
class Failure:
    """What could not be measured."""

    where: str
    """Checkpoint or path."""
    metric: str | None
    """None: none of it."""
    error: Exception


@dataclass(frozen=True)
class FinishedMetric:
    """A metric that is finished."""

    metric: str
    text: str
    kept: str
    """Empty, or how it is known from before."""


@dataclass
class Evaluation:
    """The figures of one checkpoint."""

    found: FoundCheckpoint
    model: EvaluatedModel
    data: str
    records: dict[str, Record] = field(default_factory=dict)
    order: Order | None = None
    """Figures of several metrics on the same images, where they can be compared."""
    failures: list[Failure] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
