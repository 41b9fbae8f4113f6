"""The figures of one finished run folder, measured by `eval-robust` and by nothing else."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from svdctl.checkpoint.checkpoint_file import fitting, read_checkpoint
from svdctl.config.attack_settings import VERSIONS, AttackSettings
from svdctl.config.control_config import NoControl
from svdctl.config.evaluate_config import CorruptionSettings, EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.data.data_source import source_of
from svdctl.evaluate import runner
from svdctl.evaluate.evaluation_outcome import Failure
from svdctl.evaluate.metric import METRICS
from svdctl.reproduce.job import Job, Outcome
from svdctl.train.run_history import read_history, what_lacks


def evaluation_config(job: Job, checkpoint: Path) -> EvaluateConfig:
    """Return what `eval-robust` measures of a run."""
    evaluate, data = job.evaluate, job.config.data
    source = source_of(data)
    attacks = evaluate.attacks or ("standard",)
    return EvaluateConfig(
        checkpoints=(checkpoint,),
        metrics=tuple(kind for kind in METRICS.kinds() if kind in job.metrics),
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
        settings=evaluate.settings,
        batch_size=evaluate.batch_size,
        accelerator=job.config.hardware.accelerator,
    )


def chosen_checkpoint(folder: Path, config: TrainConfig) -> Path:
    """Return the checkpoint that a run's figures are about: the best one when something picked it, else the last."""
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
    marks: dict[str, str] = dict.fromkeys(values, "kept") if kept else {}
    deviations = [*training_deviations(job.config), *unknown]
    failures: Sequence[Failure] = ()
    if job.metrics:
        result = runner.run(evaluation_config(job, checkpoint), reporter=reporter)
        for evaluation in result.evaluations:
            counts = [evaluation.records[m].results["count"] for m in ("accuracy", "ece") if m in evaluation.records]
            whole = counts[0] if counts else None
            for kind, record in evaluation.records.items():
                metric, results = METRICS.get(kind), record.results
                found = metric.values(results)
                values |= found
                marks |= dict.fromkeys(found, record.marks) if record.marks else {}
                deviations += metric.deviations(results, job.evaluate, whole)
        failures = result.failures
    reason = "; ".join(f"{failure.metric or 'evaluation'}: {failure.error}" for failure in failures) or None
    return Outcome(job.id, "failed" if failures else "done", values, tuple(deviations), str(folder), reason, marks)


def training_figures(folder: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the hours of training and the share of control in it, and footnotes on them and on the data.

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


def training_deviations(config: TrainConfig) -> Iterator[str]:
    """Yield how a training differs from the paper's protocol, a sentence each."""
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
