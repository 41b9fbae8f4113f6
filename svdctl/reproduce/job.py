"""A job (one training and what is measured of it) and its outcome, as they travel to workers and back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from svdctl.config.train_config import TrainConfig
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.reproduce.run_store import RunStore


@dataclass(frozen=True)
class Job:
    """One training and what is measured of it."""

    key: str
    """`run_hash` of the configuration."""
    config: TrainConfig
    preset: str
    assignments: tuple[str, ...]
    """`key.path=value`; with the preset they give `config`, its name and places aside."""
    evaluate: Evaluate
    metrics: tuple[str, ...]
    """Metrics of `eval-robust`."""
    store: RunStore
    """Where its run folder is."""
    cifar_c_root: Path | None = None

    @property
    def id(self) -> str:
        """Return what is equal for one training that is evaluated in one way."""
        return f"{self.key}-{hashlib.sha256(self.evaluate.model_dump_json().encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its figures by column, how they deviate from the table's protocol, or why there are none.

    `busy`: another process holds the run; `interrupted`: stopped by a signal, with its state saved.
    """

    id: str = ""
    """Of the job."""
    state: Literal["done", "failed", "busy", "interrupted"] = "done"
    values: Mapping[str, float] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    folder: str | None = None
    reason: str | None = None
    """Of a failure."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """How figures of an earlier call are known, by column: `kept`, or `kept, no checksum`."""


JOB: TypeAdapter[Job] = TypeAdapter(Job)
OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
