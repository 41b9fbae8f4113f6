"""What came of one checkpoint: its figures, and what could not be measured."""

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


class Listener(Protocol):
    """The part of a reporter that one checkpoint needs."""

    def metric(self, metric: str) -> None: ...

    def progress(self, done: int, total: int, text: str) -> None: ...

    def measured(self, metric: str, text: str, *, kept: str) -> None: ...

    def notice(self, text: str) -> None: ...

    def failed(self, failure: Failure) -> None: ...


@dataclass
class Evaluation:
    """The figures of one checkpoint."""

    found: FoundCheckpoint
    subject: EvaluatedModel
    data: str
    records: dict[str, Record] = field(default_factory=dict)
    order: Order | None = None
    """Figures of several metrics on the same images, where they can be compared."""
    failures: list[Failure] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
