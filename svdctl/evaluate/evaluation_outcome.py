"""What came of one checkpoint: its figures, and what could not be measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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


class EvaluationReporter(Protocol):
    """Shows how an evaluation goes."""

    def checkpoints(self, names: Sequence[str], metrics: Sequence[str]) -> None:
        """Show what will be measured."""

    def checkpoint(self, name: str, results: Path) -> None:
        """Show that the next checkpoint begins; its results go to this folder."""

    def metric(self, metric: str) -> None:
        """Show that the next metric of it begins."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Show how far the metric is that began last, or what comes before the first; called often."""

    def measured(self, metric: str, text: str, *, kept: str) -> None:
        """Show a metric that is finished; `kept`: empty, or how it is known from before."""

    def notice(self, text: str) -> None:
        """Show a sentence."""

    def failed(self, failure: Failure) -> None:
        """Show what could not be measured; the rest goes on."""


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
