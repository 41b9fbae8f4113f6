"""Execute a job in this process: train what is missing of a run, and measure it by `eval-robust`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from svdctl.checkpoint.checkpoint_file import checkpoint_error_on_mismatch, read_checkpoint
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import validated
from svdctl.control.change_counts import Changes
from svdctl.data.data_source import source_of
from svdctl.errors import BusyFolderError, CheckpointError, Interrupted, SvdctlError, UsageError
from svdctl.evaluate import runner
from svdctl.evaluate.find_checkpoints import RESULTS
from svdctl.evaluate.measure_checkpoint import Failure
from svdctl.evaluate.results import fingerprint
from svdctl.registry import METRICS
from svdctl.reproduce.run_store import Job, Outcome
from svdctl.train import start as recipe
from svdctl.train.effect_of_control import note_without_effect
from svdctl.train.run_history import read_history, what_lacks
from svdctl.train.setup import load_parts
from svdctl.utils.progress import Advance, Pace, Reporter
from svdctl.utils.run_dir import locked


class StatusWriter(Reporter):
    """Writes the status of a run, once a second at most while it advances.

    Args:
        job: whose status it is.
        reporter: gets at once the reason why a run folder is not used; other processes read it in the status.
    """

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self._job, self._reporter = job, reporter
        self._work: object = ""
        self._pace = Pace()
        self.known: dict[str, Any] = {"passed_over": []}
        self.update(state="starting")

    def update(self, **changes: Any) -> None:
        """Write the status with these changes, now."""
        self.known.update(changes)
        self._written = time.monotonic()
        self._job.store.write_status(self._job.key, **self.known)

    def pass_over(self, why: str) -> None:
        """Report why a folder of the run is not used."""
        self.update(passed_over=[*self.known["passed_over"], why])
        self._reporter.notice(f"{self._job.config.name}: {why}")

    def notice(self, text: str) -> None:
        self.update(notice=text)

    def begin(self, work: object) -> None:
        self._work, self._pace = work, Pace()
        self.known.pop("seconds_left", None)
        self.update(**({"state": "training"} if work == "training" else {"detail": work}))

    def advance(self, done: int, total: int, now: str | Mapping[str, float]) -> None:
        if isinstance(now, str):
            self._note(detail=f"{self._work} {done}/{total} {now}", seconds_left=self._pace.left(done, total))
        else:
            self._note(**now, step=done, steps=total)

    @contextmanager
    def part(self, work: str) -> Iterator[Advance]:
        outer = self.known.get("part")
        self._note(part=work)
        try:
            yield lambda done, total, now: self._note(part=f"{work} {done}/{total} {now}")
        finally:
            self._note(part=outer)

    def _note(self, **changes: Any) -> None:
        """Write these changes too, unless the last ones are of this second; None takes one away."""
        self.known.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del self.known[name]
        if time.monotonic() - self._written >= 1:
            self.update()

    def finish(self, result: object) -> None:
        if isinstance(result, Mapping):
            self.update(**result)


def execute(job: Job, reporter: Reporter | None = None) -> Outcome:
    """Train and measure what is missing of a run; a failure becomes an outcome with its reason.

    Args:
        job: the run and what is measured of it.
        reporter: gets, before a run is trained anew, the reason why what was there of it is not used.

    Raises:
        KeyboardInterrupt: stopped while it measures.
    """
    with job.store.lock(job.key) as held:
        if not held:
            return Outcome(job.id, "busy")
        status = StatusWriter(job, reporter or Reporter())
        try:
            folder = train_run(job, status)
            if not isinstance(folder, Path):
                status.update(state=folder)
                return Outcome(job.id, folder)
            kept = status.known["state"] != "training"
            status.update(state="evaluating", folder=str(folder))
            outcome = evaluate_run(job, folder, status, kept=kept)
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
    usable = job.store.usable(job.key, on_notice=status.pass_over)
    if usable and usable[0].data is not None:
        data = load_parts(job.config, like=usable[0].data).fingerprint
        if usable[0].data != data:
            status.pass_over(f"{usable[0].folder} was trained on other data and does not count")
            usable = [state for state in usable if state.data in (None, data)]
    if usable:
        folder = usable[0].folder
        if usable[0].finished:
            return folder
        try:
            with locked(folder):
                pass
        except BusyFolderError:
            return "busy"  # another command trains in it
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


def evaluation_config(job: Job, checkpoint: Path) -> EvaluateConfig:
    """Return what `eval-robust` measures of a run."""
    evaluate, source = job.evaluate, source_of(job.config.data)
    settings = {
        **evaluate.settings,
        "cifar-c": {
            "names": evaluate.corruption_names,
            "severities": evaluate.severities,
            "examples": evaluate.corruption_examples,
            "root": job.cifar_c_root if source.published_corruptions else None,
        },
        "autoattacks": {
            "norm": evaluate.norm,
            "eps": evaluate.eps,
            "attacks": tuple(dict.fromkeys(evaluate.attacks)) or "standard",
            "examples": evaluate.examples or "all",
        },
    }
    table = {
        "checkpoints": (checkpoint.parent,),  # the report belongs into the run folder
        "which": checkpoint.stem,
        "metrics": tuple(kind for kind in METRICS.kinds() if kind in job.metrics),
        "dataset_root": getattr(job.config.data, source.place) if source.place else None,
        "settings": settings,
        "batch_size": evaluate.batch_size,
        "accelerator": job.config.hardware.accelerator,
    }
    config, faults = validated(EvaluateConfig, table)
    if config is None:
        raise UsageError(faults)
    return config


def measured_checkpoint(job: Job, folder: Path) -> Path:
    """Return the checkpoint of a run folder that is measured: of the last epoch, or of the one that was picked."""
    return folder / ("last.pt" if job.config.evaluation.select == "last" else "best.pt")


def results_folder(job: Job, folder: Path) -> Path:
    """Return where the results of its measured checkpoint lie."""
    return folder / f"{RESULTS}{measured_checkpoint(job, folder).stem}"


def evaluate_run(job: Job, folder: Path, reporter: Reporter, *, kept: bool) -> Outcome:
    """Measure what is not yet measured of a finished run; what could not be measured is the reason in the outcome.

    Args:
        job: what is measured.
        folder: the run folder.
        reporter: of the evaluation.
        kept: whether an earlier call trained it, so that its times are marked as kept.
    """
    checkpoint = measured_checkpoint(job, folder)
    values, unknown = training_figures(folder)
    marks: dict[str, str] = dict.fromkeys(values, "kept") if kept else {}
    deviations = [*training_deviations(job.config), *unknown]
    failures: Sequence[Failure] = ()
    hashes: dict[str, str] = {}
    if job.metrics:
        result = runner.run(evaluation_config(job, checkpoint), reporter=reporter)
        for evaluation in result.evaluations:
            counts = [evaluation.records[m].results["count"] for m in ("accuracy", "ece") if m in evaluation.records]
            whole = counts[0] if counts else None
            hashes["weights"] = evaluation.model.weights
            for kind, record in evaluation.records.items():
                metric, results = METRICS.get(kind), record.results
                data = record.protocol["data"]
                # Records without a checksum know their data by another hash.
                hashes |= {"data": data.get("fingerprint") or data["sha256"], kind: fingerprint(record.protocol)}
                found = metric.values(results)
                values |= found
                marks |= dict.fromkeys(found, record.marks) if record.marks else {}
                deviations += metric.deviations(results, job.evaluate, whole)
        failures = result.failures
    reason = "; ".join(f"{failure.metric or 'evaluation'}: {failure.error}" for failure in failures) or None
    return Outcome(
        job.id, "failed" if failures else "done", values, tuple(deviations), str(folder), reason, marks, hashes
    )


def training_figures(folder: Path) -> tuple[dict[str, float], list[str]]:
    """Return the hours of training and the share of control in it, and footnotes on them, on control and on the data.

    Raises:
        CheckpointError: `last.pt` cannot be read.
    """
    checkpoint = read_checkpoint(folder / "last.pt")
    with checkpoint_error_on_mismatch(folder):
        history = read_history(checkpoint, folder)
    counters = history.training["counters"]
    notes = []
    if checkpoint.data is None:
        notes.append("Trained by an older version: not known whether on the same data.")
    if step := counters.get("unknown_data_until"):
        notes.append(f"Trained by an older version up to step {step:,}: not known whether on the same data.")
    if step := counters.get("other_data_until"):
        what = f" ({counters['other_data']})" if counters.get("other_data") else ""
        notes.append(f"Trained on other data{what} up to step {step:,}.")
    if (state := history.training["controller"].get("changes")) is not None:
        with checkpoint_error_on_mismatch(folder):
            note = note_without_effect(Changes.of_state(state), checkpoint.config)
        notes += [] if note is None else [note]
    if lacks := what_lacks(history.epochs, checkpoint.config, history.left_out):
        return {}, [*notes, f"Times of training are not known: {lacks}."]
    whole, control = (sum(line[name] for line in history.epochs) for name in ("train_time", "clipping_time"))
    return {"train-hours": whole / 3600, "control-time": control / max(whole - control, 1e-9)}, notes


SELECTED = {
    "last": "The last epoch is reported; the paper's code reports the best one by the test set.",
    "test": "The best epoch was chosen on the test set, as in the paper's code.",
    "validation": "The best epoch was chosen on a validation part of the training set.",
}


def training_deviations(config: TrainConfig) -> Iterator[str]:
    """Yield how a training differs from the paper's protocol, a sentence each."""
    yield SELECTED[config.evaluation.select]
    if config.max_steps is not None:
        yield f"Training stopped after {config.max_steps:,} steps."
    if config.hardware.precision != "32":
        yield f"Trained in {config.hardware.precision}."
    if config.control.kind != "none" and config.control.procedure == "certified":
        yield "The bound is sealed by proof at every evaluation; the paper's procedure leaves values above it."
