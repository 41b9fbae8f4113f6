"""What is on the disk: which run folders belong to a run, whether they are finished, who works on them, how far.

All that commands know of each other is here: a lock and a status for each run, below `.reproduce/` of the folder of
runs. The lock goes with the process that holds it, however that ends.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdctl.errors import CheckpointError, UsageError
from svdctl.train.run_hash import config_in, run_hash
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.lock import held


@dataclass(frozen=True)
class RunState:
    """A run folder that belongs to a run."""

    folder: Path
    step: int
    """Of its checkpoint."""
    finished: bool
    data: Mapping[str, str] | None = None
    """Fingerprints of the data that it was trained on; None: not known."""
    key: str | None = None
    """`run_hash` of the configuration in its checkpoint; None: there is no checkpoint that can be read."""


@dataclass(frozen=True)
class RunStore:
    """The run folders below some places; only the first place is written to."""

    out_dir: Path
    reuse: tuple[Path, ...] = ()

    @property
    def _private(self) -> Path:
        return self.out_dir.expanduser() / ".reproduce"

    def index(self) -> dict[str, list[Path]]:
        """Run folders by `run_hash` of their configuration; those of `out_dir` first."""
        found: dict[str, list[Path]] = {}
        for parent in (self.out_dir, *self.reuse):
            for key, folder in _folders(parent.expanduser()):
                found.setdefault(key, []).append(folder)
        return found

    def best(
        self, key: str, index: Mapping[str, list[Path]] | None = None, *, data: Mapping[str, str] | None = None
    ) -> RunState | None:
        """The finished folder of a run, or the one that got furthest; of `reuse` finished ones alone.

        A folder whose checkpoint has another configuration than its `config.toml` is passed over: see `misplaced`.

        Args:
            key: `run_hash` of the run's configuration.
            index: what `index` returned, if it was called.
            data: fingerprints of the data; those that were trained on others are passed over.
        """
        folders = (self.index() if index is None else index).get(key, [])
        found = [run for run in map(inspect_run, folders) if run.key in (None, key)]
        runs = sorted(found, key=lambda run: (run.finished, run.step), reverse=True)
        if data is not None:
            runs = [run for run in runs if run.data in (None, data)]
        usable = [run for run in runs if run.finished or run.folder.parent == self.out_dir.expanduser()]
        return usable[0] if usable else None

    def misplaced(self, key: str) -> list[str]:
        """A sentence for each folder of a run whose checkpoint is of another run."""
        return [
            f"{folder / 'last.pt'} is of another configuration than config.toml beside it: the folder does not count"
            for folder in self.index().get(key, [])
            if inspect_run(folder).key not in (None, key)
        ]

    def prepare(self) -> None:
        """Make the folder of runs.

        Raises:
            UsageError: when it cannot be made or written.
        """
        try:
            self._private.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.out_dir} cannot be made or written ({(error.strerror or str(error)).lower()}); "
                "give another --out-dir"
            ) from error

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Hold a run, or see (False) that another process holds it."""
        with held(self._private / f"{name}.lock") as mine:
            yield mine

    def is_free(self, name: str) -> bool:
        """Whether nobody holds a run at this moment."""
        with self.lock(name) as held:
            return held

    def read_status(self, key: str) -> dict[str, Any]:
        """How far a run is; empty when nothing is known."""
        try:
            found = json.loads((self._private / f"{key}.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_status(self, key: str, **status: Any) -> None:
        """Tell every command how far a run is."""
        who = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(self._private / f"{key}.json", json.dumps({**status, **who}))


def _folders(parent: Path) -> Iterator[tuple[str, Path]]:
    """Run folders directly below a place, with the hash of their configuration; what is no run is passed over.

    Where `config.toml` cannot be read, the configuration is that of the checkpoint.
    """
    try:
        children = sorted(parent.iterdir())
    except OSError:
        return
    for folder in children:
        config = config_in(folder)
        if config is None and (folder / "last.pt").is_file():
            from svdctl.checkpoint.checkpoint_file import read_checkpoint  # torch: only where it is needed

            try:
                config = read_checkpoint(folder / "last.pt").config
            except (CheckpointError, OSError):
                continue
        if config is not None:
            yield run_hash(config), folder


def inspect_run(folder: Path) -> RunState:
    """How far the run of a folder is, by its `last.pt`; step 0 when it cannot be gone on with or reported."""
    from svdctl.checkpoint.checkpoint_file import fitting, read_checkpoint  # torch: only where there is a run
    from svdctl.train.run_history import has_ended, read_best, read_history
    from svdctl.train.trainer import Counters

    if not (folder / "last.pt").is_file():
        return RunState(folder, 0, finished=False)
    key = None
    try:
        checkpoint = read_checkpoint(folder / "last.pt")
        key = run_hash(checkpoint.config)
        with fitting(folder):
            history = read_history(checkpoint, folder)
            counters = Counters(**history.training["counters"])
        if checkpoint.config.evaluation.select != "last" and counters.best_step:
            read_best(folder, checkpoint.config, counters, checkpoint.model, [checkpoint.data])
    except CheckpointError:
        return RunState(folder, 0, finished=False, key=key)
    finished = counters.epoch_finished and has_ended(history.epochs, checkpoint.config)
    return RunState(folder, counters.step, finished, checkpoint.data, key)
