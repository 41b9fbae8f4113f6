"""One run from nothing, or from wherever it stands, to its results; whatever process does it, on whatever machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from svdctl.config.data_config import Cifar10, Cifar100
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, Interrupted, SvdctlError, TrainingError
from svdctl.reproduce import run_figures
from svdctl.reproduce.plan import PlannedRun
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.table_results import RunFigures
from svdctl.train import start as recipe
from svdctl.train.setup import load_parts
from svdctl.utils.run_dir import locked

State = Literal["done", "failed", "busy", "interrupted"]


@dataclass(frozen=True)
class Job:
    """What a worker is given."""

    run: PlannedRun
    store: RunStore
    cifar_c_root: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    id: str
    """Of the run."""
    state: State
    figures: RunFigures = field(default_factory=RunFigures)


JOB: TypeAdapter[Job] = TypeAdapter(Job)


class StatusReporter:
    """A reporter of the training recipe that writes the status of a run, once a second at most.

    Args:
        store: where the status is.
        key: of the run.
        tell: who is told at once why what was there is not used; others read it in the status.
    """

    def __init__(self, store: RunStore, key: str, tell: Callable[[str], None] = lambda text: None) -> None:
        self._store, self._key, self._tell = store, key, tell
        self._written = 0.0
        self.known: dict[str, Any] = {"state": "starting", "passed_over": []}
        self.update()

    def update(self, **changes: Any) -> None:
        """Tell of something new, at once."""
        self.known.update(changes)
        self._written = time.monotonic()
        self._store.write_status(self._key, **self.known)

    def plan(self, lines: Sequence[str]) -> None:
        self.update()

    def notice(self, text: str) -> None:
        self.update(notice=text)

    def pass_over(self, why: str) -> None:
        """Tell why a folder of the run is not used."""
        self.update(passed_over=[*self.known["passed_over"], why])
        self._tell(why)

    def start(self, total_steps: int, done: int) -> None:
        self.update(state="training", step=done, steps=total_steps)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        self.known.update(step=done, **_interesting(metrics))
        if time.monotonic() - self._written >= 1:
            self.update()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self.update(**_interesting(metrics))

    def finished(self, result: recipe.TrainResult) -> None:
        self.update(folder=str(result.folder))

    def detail(self, text: str) -> None:
        """What is being measured."""
        self.known["detail"] = text
        if time.monotonic() - self._written >= 1:
            self.update()


def _interesting(metrics: Mapping[str, float]) -> dict[str, float]:
    names = ("epoch", "epochs", "loss", "acc", "val_acc", "seconds_left")
    return {name: metrics[name] for name in names if name in metrics}


def execute(job: Job, tell: Callable[[str], None] = lambda text: None) -> Outcome:
    """Train and measure what is missing of a run; a failure becomes an outcome with its reason.

    Args:
        job: the run and where it is kept.
        tell: who is told, before it is trained anew, why what was there of the run is not used.

    Raises:
        KeyboardInterrupt: when it is stopped while it measures.
    """
    run, store = job.run, job.store
    with store.lock(run.key) as held:
        if not held:
            return Outcome(run.id, "busy")
        reporter = StatusReporter(store, run.key, tell)
        try:
            folder = train_run(run, store, reporter)
            if folder is None:
                reporter.update(state="interrupted")
                return Outcome(run.id, "interrupted")
            trained_now = reporter.known["state"] == "training"
            reporter.update(state="evaluating", folder=str(folder))
            figures = run_figures.evaluate_run(run, folder, job.cifar_c_root, reporter.detail)
            if not trained_now:
                figures = run_figures.with_kept_times(figures)
        except _Busy:
            return Outcome(run.id, "busy")
        except (KeyboardInterrupt, Interrupted):
            reporter.update(state="interrupted")
            raise
        except Exception as error:
            # Whatever is wrong with one row, the others are done.
            reason = _reason(error)
            reporter.update(state="failed", reason=reason)
            return Outcome(run.id, "failed", RunFigures(reason=reason))
        state: State = "done" if figures.reason is None else "failed"
        reporter.update(state=state, reason=figures.reason)
        return Outcome(run.id, state, figures)


class _Busy(SvdctlError):  # noqa: N818 - it is no error
    """Another command trains in the run's folder."""


def train_run(run: PlannedRun, store: RunStore, reporter: StatusReporter) -> Path | None:
    """The finished run folder: found, continued or new; None when the training was stopped."""
    for sentence in store.misplaced(run.key):
        reporter.pass_over(sentence)
    found = store.best(run.key)
    if found is not None and found.data is not None:
        data = load_parts(run.config).fingerprint
        if found.data != data:
            reporter.pass_over(f"{found.folder} was trained on other data and does not count")
            found = store.best(run.key, data=data)
    if found is not None and found.finished:
        return found.folder
    if found is not None and (found.folder / "last.pt").is_file():
        _refuse_busy(found.folder)
        reporter.update(folder=str(found.folder))
        try:
            changes = _of_this_call(run.config)
            result = recipe.resume(found.folder, changes=changes, reporter=reporter, needs_best=True)
        except CheckpointError as error:
            reporter.pass_over(f"{found.folder} cannot be continued, the run starts anew ({error})")
        else:
            return result.folder if result.completed else None
    elif found is not None:
        # No checkpoint yet: nothing to go on from, unless somebody trains there at this moment.
        _refuse_busy(found.folder)
    result = recipe.run(run.config, base=f"preset {run.preset}", reporter=reporter)
    return result.folder if result.completed else None


def _of_this_call(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """What a run that goes on takes from this call: nothing of it has an effect on the results."""
    changes = {
        "hardware": config.hardware.model_dump(include={"accelerator", "compile"}),
        "log": config.log.model_dump(include={"wandb", "wandb_project", "wandb_group"}),
    }
    return changes | ({"data": {"root": config.data.root}} if isinstance(config.data, Cifar10 | Cifar100) else {})


def _refuse_busy(folder: Path) -> None:
    try:
        with locked(folder):
            pass
    except TrainingError as error:
        raise _Busy(str(error)) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, SvdctlError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
