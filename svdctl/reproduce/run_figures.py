"""The figures of one finished run folder, measured by `eval-robust` and by nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svdctl.checkpoint.checkpoint_file import fitting, read_checkpoint
from svdctl.config.attack_settings import VERSIONS, AttackSettings
from svdctl.config.control_config import NoControl
from svdctl.config.corruption_names import CORRUPTIONS
from svdctl.config.evaluate_config import METRICS, CorruptionSettings, EvaluateConfig
from svdctl.config.table_config import Column
from svdctl.config.train_config import TrainConfig
from svdctl.data.data_source import source_of
from svdctl.evaluate import runner
from svdctl.evaluate.evaluation_outcome import Failure
from svdctl.reproduce.job import Job, Outcome
from svdctl.train.run_history import read_history, what_lacks

Records = Mapping[str, Mapping[str, Any]]
"""Figures by metric, as in the file of results."""


def evaluation_config(job: Job, checkpoint: Path) -> EvaluateConfig:
    """Return what `eval-robust` measures of a run."""
    evaluate, data = job.evaluate, job.config.data
    source = source_of(data)
    attacks = evaluate.attacks or ("standard",)
    return EvaluateConfig(
        checkpoints=(checkpoint,),
        metrics=tuple(metric for metric in METRICS if metric in job.metrics),
        corruptions=CorruptionSettings(
            names=evaluate.corruption_names,
            severities=evaluate.severities,
            examples=evaluate.corruption_examples,
            root=job.cifar_c_root if source.published_corruptions else None,
        ),
        attack=AttackSettings.model_validate(
            {
                "norm": evaluate.norm,
                "eps": evaluate.eps,
                "attacks": attacks[0] if attacks[0] in VERSIONS else tuple(dict.fromkeys(attacks)),
            }
        ),
        examples=evaluate.examples or "all",
        dataset_root=getattr(data, source.place) if source.place else None,
        batch_size=evaluate.batch_size,
        accelerator=job.config.hardware.accelerator,
    )


def chosen_checkpoint(folder: Path, config: TrainConfig) -> Path:
    """The checkpoint that a run's figures are about: the best one when something picked it, else the last."""
    return folder / ("last.pt" if config.evaluation.select == "last" else "best.pt")


def evaluate_run(job: Job, folder: Path, reporter: runner.EvaluationReporter, *, kept: bool) -> Outcome:
    """Measure what is not yet measured of a finished run; what could not be measured is the reason in the outcome.

    Args:
        job: what is measured.
        folder: the run folder.
        reporter: of the evaluation.
        kept: whether an earlier call trained it, so that its times are marked as kept.
    """
    checkpoint = chosen_checkpoint(folder, job.config)
    values, unknown = training_figures(folder)
    marks: dict[Column, str] = dict.fromkeys(values, "kept") if kept else {}
    deviations = [*training_deviations(job.config), *unknown]
    failures: Sequence[Failure] = ()
    if job.metrics:
        result = runner.run(evaluation_config(job, checkpoint), reporter=reporter)
        for evaluation in result.evaluations:
            records = {str(metric): record.results for metric, record in evaluation.records.items()}
            values |= dict(evaluated_figures(records))
            for metric, record in evaluation.records.items():
                if record.marks:
                    marks |= {column: record.marks for column, _ in evaluated_figures({metric: record.results})}
            deviations += evaluation_deviations(job, records)
        failures = result.failures
    reason = "; ".join(f"{failure.metric or 'evaluation'}: {failure.error}" for failure in failures) or None
    return Outcome(job.id, "failed" if failures else "done", values, tuple(deviations), str(folder), reason, marks)


def training_figures(folder: Path) -> tuple[dict[Column, float], tuple[str, ...]]:
    """Hours of training and the share of control in it, or why there are none; and what is to be said of the data.

    Raises:
        CheckpointError: `last.pt` cannot be read.
    """
    checkpoint = read_checkpoint(folder / "last.pt")
    with fitting(folder):
        history = read_history(checkpoint, folder)
    notes = []
    if checkpoint.data is None:
        notes.append("Trained by an older version: not known whether on the same data.")
    counters = history.training["counters"]
    if counters.get("unknown_data_until"):
        notes.append(
            f"Trained by an older version up to step {counters['unknown_data_until']:,}: not known whether on the same "
            "data."
        )
    if counters.get("other_data_until"):
        what = f" ({counters['other_data']})" if counters.get("other_data") else ""
        notes.append(f"Trained on other data{what} up to step {counters['other_data_until']:,}.")
    lacks = what_lacks(history.epochs, checkpoint.config, history.left_out)
    if lacks is not None:
        return {}, (*notes, f"Times of training are not known: {lacks}.")
    whole = sum(line["train_time"] for line in history.epochs)
    control = sum(line["clipping_time"] for line in history.epochs)
    return {"train-hours": whole / 3600, "control-time": control / max(whole - control, 1e-9)}, tuple(notes)


def evaluated_figures(records: Records) -> Iterator[tuple[Column, float]]:
    """Columns from the records of `eval-robust`."""
    if "accuracy" in records:
        yield "accuracy", records["accuracy"]["accuracy"]
    if "ece" in records:
        yield "ece", records["ece"]["ece"]
    if "cifar-c" in records and records["cifar-c"]["mean"] is not None:
        yield "cifar-c", records["cifar-c"]["mean"]
    if "autoattacks" in records:
        yield "autoattack", records["autoattacks"]["robust_accuracy"]
    if "certified" in records:
        accuracy = records["certified"]["accuracy"]
        columns: tuple[Column, ...] = ("certified-36", "certified-72", "certified-108", "certified-255")
        for column in columns:
            yield column, accuracy[column.removeprefix("certified-")]


def training_deviations(config: TrainConfig) -> Iterator[str]:
    """How a training differs from the paper's protocol, a sentence each."""
    if config.evaluation.select == "last":
        yield "The last epoch is reported; the paper's code reports the best one by the test set."
    if config.evaluation.select == "test":
        yield "The best epoch was chosen on the test set, as in the paper's code."
    if config.evaluation.select == "validation":
        yield "The best epoch was chosen on a validation part of the training set."
    if config.max_steps is not None:
        yield f"Training stopped after {config.max_steps:,} steps."
    if config.hardware.precision != "32":
        yield f"Trained in {config.hardware.precision}."
    if not isinstance(config.control, NoControl) and config.control.procedure == "certified":
        yield "The bound is sealed by proof at every evaluation; the paper's procedure leaves values above it."


def evaluation_deviations(job: Job, records: Records) -> Iterator[str]:
    """How an evaluation differs from the paper's protocol, a sentence each."""
    whole = records.get("accuracy", records.get("ece", {})).get("count")
    corrupted = records.get("cifar-c")
    if corrupted is not None:
        if corrupted["source"] == "drawn":
            yield "Corruptions are svdctl's own, drawn with CIFAR-C's constants from the test images of the data."
        names = sorted(corrupted["mean_by_corruption"])
        parts = []
        if names != sorted(CORRUPTIONS):
            parts.append(f"{len(names)} of the 19 corruptions")
        if len(job.evaluate.severities) < 5:
            parts.append(f"severity {', '.join(map(str, job.evaluate.severities))} of 5")
        if whole is None or corrupted["count"] != whole:
            parts.append(f"{corrupted['count']:,}{f' of {whole:,}' if whole else ''} test images")
        if parts:
            yield f"Accuracy on corruptions: mean over {'; '.join(parts)}."
    attacked = records.get("autoattacks")
    if attacked is not None:
        if whole is None or attacked["count"] != whole:
            yield f"Attacked: {attacked['count']:,}{f' of {whole:,}' if whole else ''} test images."
        if job.evaluate.attacks:
            yield f"Attacks: {', '.join(job.evaluate.attacks)} in place of AutoAttack's standard list."
        if (job.evaluate.norm, job.evaluate.eps) != ("L2", 0.5):
            yield f"Attack: {job.evaluate.norm} within {job.evaluate.eps:g} in place of L2 within 0.5."
        if attacked["left_out"]:
            yield f"Left out of AutoAttack for want of classes: {', '.join(attacked['left_out'])}."
