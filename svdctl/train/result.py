"""What a training reports while it runs, and what it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from svdctl.control.controller import LayerReport


class TrainingReporter(Protocol):
    """Shows a training; called in the first process only."""

    def plan(self, lines: Sequence[str]) -> None:
        """Show what the run will do; called before anything is written."""

    def notice(self, text: str) -> None:
        """Show a sentence."""

    def start(self, total_steps: int, done: int) -> None:
        """Show that training begins, `done` steps of it made before."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show the figures since the last record; called a few times a second."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Show the figures of an epoch with an evaluation."""

    def finished(self, result: "TrainResult") -> None:
        """Show the result; called at the end, or when interrupted."""


@dataclass(frozen=True)
class CertifiedEpoch:
    """What is proved of one epoch's network on the test set."""

    name: str
    """`last` or `best`."""
    epoch: int
    accuracy: float
    certified: dict[float, float]
    """Share of images that are right and certified, by radius in 255ths."""
    mean_radius: float
    """Wrong answers counted as 0, in pixels of [0, 1]."""
    lipschitz: float
    """The network's proved constant L."""
    slack: dict[str, float]
    """The factors of L by kind: norms of operators, frames, truncated series, normalisation, ..."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves."""

    folder: Path
    metrics: dict[str, float]
    summary: list[str]
    layers: list[LayerReport]
    files: list[Path]
    next_commands: list[str]
    completed: bool
    certified: tuple[CertifiedEpoch, ...] = ()
    """The last epoch and, where one was picked, the best; for runs with certificates."""
