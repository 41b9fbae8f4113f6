"""Execute a job in this process: train what is missing of a run, and measure it."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from svdctl.config.train_config import TrainConfig
from svdctl.data.data_source import source_of
from svdctl.errors import CheckpointError, Interrupted, SvdctlError, TrainingError
from svdctl.evaluate.evaluation_outcome import Failure
from svdctl.reproduce import run_figures
from svdctl.reproduce.job import Job, Outcome
from svdctl.train import start as recipe
from svdctl.train.result import TrainResult
from svdctl.train.setup import load_parts
from svdctl.utils.run_dir import locked

SHOWN = ("epoch", "epochs", "loss", "acc", "val_acc", "seconds_left")
"""Figures of a training that its status holds."""


class StatusWriter:
    """Reporter of trainings and evaluations that writes the status of a run, once a second at most.

    Args:
        job: whose status it is.
        on_notice: called at once with the reason why a run folder is not used; other processes read it in the status.
    """

    def __init__(self, job: Job, on_notice: Callable[[str], None]) -> None:
        self._job, self._on_notice = job, on_notice
        self._written = 0.0
        self._metric = ""
        self.known: dict[str, Any] = {"state": "starting", "passed_over": []}
        self.update()

    def update(self, **changes: Any) -> None:
        """Write the status with these changes, now."""
        self.known.update(changes)
        self._written = time.monotonic()
        self._job.store.write_status(self._job.key, **self.known)

    def _update_soon(self, **changes: Any) -> None:
        self.known.update(changes)
        if time.monotonic() - self._written >= 1:
            self.update()

    def pass_over(self, why: str) -> None:
        """Report why a folder of the run is not used."""
        self.update(passed_over=[*self.known["passed_over"], why])
        self._on_notice(why)

    def plan(self, lines: Sequence[str]) -> None:
        self.update()

    def notice(self, text: str) -> None:
        self.update(notice=text)

    def start(self, total_steps: int, done: int) -> None:
        self.update(state="training", step=done, steps=total_steps)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        self._update_soon(step=done, **{name: metrics[name] for name in SHOWN if name in metrics})

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self.update(**{name: metrics[name] for name in SHOWN if name in metrics})

    def finished(self, result: TrainResult) -> None:
        self.update(folder=str(result.folder))

    def checkpoints(self, names: Sequence[str], metrics: Sequence[str]) -> None: ...

    def checkpoint(self, name: str, results: Path) -> None: ...

    def metric(self, metric: str) -> None:
        self._metric = metric
        self._update_soon(detail=metric)

    def progress(self, done: int, total: int, text: str) -> None:
        self._update_soon(detail=f"{self._metric} {done}/{total} {text}")

    def measured(self, metric: str, text: str, *, kept: str) -> None: ...

    def failed(self, failure: Failure) -> None: ...


def execute(job: Job, on_notice: Callable[[str], None] = lambda text: None) -> Outcome:
    """Train and measure what is missing of a run; a failure becomes an outcome with its reason.

    Args:
        job: the run and what is measured of it.
        on_notice: called before a run is trained anew, with the reason why what was there of it is not used.

    Raises:
        KeyboardInterrupt: stopped while it measures.
    """
    with job.store.lock(job.key) as held:
        if not held:
            return Outcome(job.id, "busy")
        status = StatusWriter(job, on_notice)
        try:
            folder = train_run(job, status)
            if not isinstance(folder, Path):
                status.update(state=folder)
                return Outcome(job.id, folder)
            kept = status.known["state"] != "training"
            status.update(state="evaluating", folder=str(folder))
            outcome = run_figures.evaluate_run(job, folder, status, kept=kept)
        except (KeyboardInterrupt, Interrupted):
            status.update(state="interrupted")
            raise
        except Exception as error:  # whatever is wrong with one row, the others are done
            text = " ".join(str(error).split())[:300]
            name = "" if isinstance(error, SvdctlError) else type(error).__name__
            outcome = Outcome(job.id, "failed", reason=": ".join(filter(None, [name, text])))
        status.update(state=outcome.state, reason=outcome.reason)
        return outcome


def train_run(job: Job, status: StatusWriter) -> Path | Literal["busy", "interrupted"]:
    """Return the finished run folder: found, continued or new."""
    states = job.store.states(job.key)
    for state in states:
        if state.key not in (None, job.key):
            status.pass_over(
                f"{state.folder / 'last.pt'} is of another configuration than config.toml beside it: the folder does "
                "not count"
            )
    usable = job.store.usable(job.key, states)
    if usable and usable[0].data is not None:
        data = load_parts(job.config).fingerprint
        if usable[0].data != data:
            status.pass_over(f"{usable[0].folder} was trained on other data and does not count")
            usable = [state for state in usable if state.data in (None, data)]
    if usable:
        folder = usable[0].folder
        if usable[0].finished:
            return folder
        if _is_held(folder):
            return "busy"
        if (folder / "last.pt").is_file():
            status.update(folder=str(folder))
            try:
                changes = _of_this_call(job.config)
                result = recipe.resume(folder, changes=changes, reporter=status, needs_best=True)
            except CheckpointError as error:
                status.pass_over(f"{folder} cannot be continued, the run starts anew ({error})")
            else:
                return result.folder if result.completed else "interrupted"
    result = recipe.run(job.config, base=f"preset {job.preset}", reporter=status)
    return result.folder if result.completed else "interrupted"


def _of_this_call(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return what a continued run takes from this call: nothing of it has an effect on the results."""
    changes = {
        "hardware": config.hardware.model_dump(include={"accelerator", "compile"}),
        "log": config.log.model_dump(include={"wandb", "wandb_project", "wandb_group"}),
    }
    place = source_of(config.data).place
    return changes | ({} if place is None else {"data": {place: getattr(config.data, place)}})


def _is_held(folder: Path) -> bool:
    """Return whether another command trains in a run folder."""
    try:
        with locked(folder):
            return False
    except TrainingError:
        return True
