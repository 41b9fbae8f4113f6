"""Jobs and outcomes, the run folders of their runs, and what commands know of each other: locks and status files.

Locks and status files lie below `.reproduce/` of the folder of runs. A lock goes with the process that holds it,
however that ends.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, FileError, UsageError
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.train.run_hash import config_in, run_hash
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.files import read_json
from svdctl.utils.lock import held


@dataclass(frozen=True)
class RunState:
    """How far the run of a folder is."""

    folder: Path
    step: int
    """Of its checkpoint; 0 when the run cannot be continued or reported."""
    finished: bool
    data: Mapping[str, str] | None = None
    """Fingerprints of the data that it was trained on; None: not known."""
    key: str | None = None
    """`run_hash` of the configuration in its checkpoint; None: there is no checkpoint that can be read."""
    extended: bool = False
    """Whether it had another number of epochs, and the schedule of it, for a part of its steps."""


@dataclass(frozen=True)
class RunStore:
    """The run folders below some places; only the first place is written to."""

    out_dir: Path
    reuse: tuple[Path, ...] = ()

    @property
    def _private(self) -> Path:
        return self.out_dir.expanduser() / ".reproduce"

    def index(self) -> dict[str, list[Path]]:
        """Return run folders by `run_hash` of their configuration, those of `out_dir` first."""
        found: dict[str, list[Path]] = {}
        for place in (self.out_dir, *self.reuse):
            for folder in sorted(place.expanduser().glob("*")):
                config = _config_of(folder)
                if config is not None:
                    found.setdefault(run_hash(config, recorded=True), []).append(folder)
        return found

    def usable(
        self,
        key: str,
        index: Mapping[str, list[Path]] | None = None,
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> list[RunState]:
        """Return the folders of a run that can be reported or continued, finished ones first, then by steps.

        Of other places than `out_dir` finished runs alone; none whose checkpoint is of another run.

        Args:
            key: of the run.
            index: what `index()` returned.
            on_notice: called with the reason why a folder does not count.
        """
        found = []
        for state in map(inspect_run, (self.index() if index is None else index).get(key, [])):
            if state.key not in (None, key):
                on_notice(
                    f"{state.folder / 'last.pt'} is of another configuration than config.toml beside it: the folder "
                    "does not count"
                )
            elif state.extended:
                on_notice(f"{state.folder} was extended on its way, and had another schedule before: it does not count")
            elif state.finished or state.folder.parent == self.out_dir.expanduser():
                found.append(state)
        return sorted(found, key=lambda state: (state.finished, state.step), reverse=True)

    def best(self, key: str, index: Mapping[str, list[Path]] | None = None) -> RunState | None:
        """Return the finished folder of a run, or the one that got furthest."""
        return next(iter(self.usable(key, index)), None)

    def states(self, jobs: Iterable["Job"]) -> dict[str, RunState | None]:
        """Return how far the runs of jobs are, by `key`; None where there is nothing of one."""
        index = self.index()
        return {key: self.best(key, index) for key in dict.fromkeys(job.key for job in jobs)}

    def prepare(self) -> None:
        """Make the folder of runs, and that of tables in it.

        Raises:
            UsageError: it cannot be made or written.
        """
        try:
            for folder in (self._private, self.out_dir.expanduser() / "tables"):
                folder.mkdir(parents=True, exist_ok=True)
                remove_unfinished(folder)
        except OSError as error:
            raise UsageError(
                f"{self.out_dir} cannot be made or written ({(error.strerror or str(error)).lower()}); "
                "give another `out_dir`"
            ) from error

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Hold a run; yields False when another process holds it."""
        with held(self._private / f"{name}.lock") as mine:
            yield mine

    def is_free(self, name: str) -> bool:
        """Return whether no process holds a run at this moment."""
        with self.lock(name) as held:
            return held

    def read_status(self, key: str) -> dict[str, Any]:
        """Return how far a run is, what no command writes left out; empty without a state and a time."""
        try:
            found = read_json(self._private / f"{key}.json")
        except FileError:
            return {}
        if not isinstance(found, dict):
            return {}
        status = {name: value for name, value in found.items() if _is_status(name, value)}
        return status if {"state", "time"} <= status.keys() else {}

    def write_status(self, key: str, **status: Any) -> None:
        """Write how far a run is, for every command to read."""
        who = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(self._private / f"{key}.json", json.dumps({**status, **who}))


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
    hashes: Mapping[str, str] = field(default_factory=dict)
    """What was measured: `weights`, `data`, and the protocol of each metric by its name."""

    @property
    def is_reused(self) -> bool:
        """Return whether an earlier call had trained and measured all of it."""
        return self.state == "done" and all(self.kept.get(column) for column in self.values)


JOB: TypeAdapter[Job] = TypeAdapter(Job)
OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


def _is_status(name: str, value: object) -> bool:
    """Return whether an entry of a status file is of the kind that commands write."""
    match name:
        case "state" | "detail" | "part" | "notice" | "reason" | "host":
            return isinstance(value, str)
        case "passed_over":
            return isinstance(value, list) and all(isinstance(reason, str) for reason in value)
    # Numbers that are shown, or compared with the clock: no nan, nothing that is too large to print.
    return isinstance(value, int | float) and abs(value) <= 1e12


def _config_of(folder: Path) -> TrainConfig | None:
    """Return the configuration of a run folder: where `config.toml` cannot be read, that of the checkpoint."""
    config = config_in(folder)
    if config is None and (folder / "last.pt").is_file():
        from svdctl.checkpoint.checkpoint_file import read_checkpoint  # torch: only where it is needed

        with suppress(CheckpointError, OSError):
            return read_checkpoint(folder / "last.pt").config
    return config


def inspect_run(folder: Path) -> RunState:
    """Return how far the run of a folder is, by its `last.pt`."""
    from svdctl.checkpoint.checkpoint_file import (  # torch: only where there is a run
        checkpoint_error_on_mismatch,
        read_checkpoint,
    )
    from svdctl.train.run_history import has_ended, read_best, read_history
    from svdctl.train.trainer import Counters

    if not (folder / "last.pt").is_file():
        return RunState(folder, 0, finished=False)
    key = None
    try:
        checkpoint = read_checkpoint(folder / "last.pt")
        key = run_hash(checkpoint.config, recorded=True)
        with checkpoint_error_on_mismatch(folder):
            history = read_history(checkpoint, folder)
            counters = Counters(**history.training["counters"])
        if checkpoint.config.evaluation.select != "last" and counters.best_step:
            read_best(folder, checkpoint.config, counters, checkpoint.model, [checkpoint.data])
    except CheckpointError:
        return RunState(folder, 0, finished=False, key=key)
    finished = counters.epoch_finished and has_ended(history.epochs, checkpoint.config)
    return RunState(folder, counters.step, finished, checkpoint.data, key, bool(history.extensions))
