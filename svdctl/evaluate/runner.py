"""Checkpoints in, calibrated, corruption, adversarial and certified figures out; nothing measured twice."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from svdctl.config.data_config import Data
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.data.data_source import DEFAULT_PLACE, describe, load, place_of, same_data
from svdctl.errors import CheckpointError, SvdctlError, UsageError, first_line
from svdctl.evaluate.evaluated_model import open_evaluated_model
from svdctl.evaluate.evaluation_data import EvaluationData, data_of, leaks
from svdctl.evaluate.find_checkpoints import FoundCheckpoint, discover, file_stamp, placed
from svdctl.evaluate.inference import Classifier, choose_device
from svdctl.evaluate.measure_checkpoint import Evaluation, Failure, evaluate
from svdctl.evaluate.report import comparison, report_of
from svdctl.evaluate.report_files import write_report
from svdctl.evaluate.results import Record
from svdctl.registry import METRICS
from svdctl.utils.lock import held
from svdctl.utils.progress import Reporter
from svdctl.utils.signals import answer_to_stop
from svdctl.utils.table import Cell, Table, html


@dataclass(frozen=True)
class EvaluationResult:
    """Everything that a call measured or found measured."""

    evaluations: tuple[Evaluation, ...]
    failures: tuple[Failure, ...]
    report: Path | None
    """`report.md`, unless only a shard was attacked or nothing was measured."""

    def tables(self) -> list[Table]:
        """Return a table for each data set, with a row for each checkpoint; of several the titles name the data."""
        by_data: dict[str, list[Evaluation]] = {}
        for evaluation in self.evaluations:
            if evaluation.records:
                by_data.setdefault(evaluation.data_key, []).append(evaluation)
        if len(by_data) < 2:
            return [comparison([_row(one) for own in by_data.values() for one in own])]
        return [comparison([*map(_row, own)], title=f"On {own[0].data}") for own in by_data.values()]

    def _repr_html_(self) -> str:
        """Return the tables as HTML, which a notebook shows."""
        *before, last = self.tables()
        failures = [f"{failure.where}: {failure.error}" for failure in self.failures]
        return "".join(map(html, [*before, replace(last, failures=failures)]))


def _row(evaluation: Evaluation) -> tuple[Cell, list[Record]]:
    return Cell(evaluation.found.name), list(evaluation.records.values())


def run(config: EvaluateConfig, *, reporter: Reporter) -> EvaluationResult:
    """Evaluate every checkpoint of a configuration; a checkpoint or metric that fails does not stop the others.

    Raises:
        UsageError: there is nothing to evaluate, no such device or metric.
    """
    choose_device(config.accelerator)
    for kind in config.metrics:
        METRICS.get(kind)
    discovery = discover(config)
    failures = [Failure(where, None, error) for where, error in discovery.faults]
    if not discovery.checkpoints:
        raise UsageError([str(failure.error) for failure in failures])
    count = len(discovery.checkpoints)
    # Of a lone checkpoint a failure is the last line anyway.
    failures_reporter = reporter if count != 1 else Reporter()
    for failure in failures:
        failures_reporter.finish(failure)
    reporter.say(f"{count} checkpoint{'s' * (count != 1)}: {', '.join(config.metrics)}")
    with reporter.part("reading what the checkpoints were trained on"):
        checkpoints = _by_data(discovery.checkpoints, config)
    # Only the data set that was read last is kept: they can be large.
    loaded: dict[str, EvaluationData] = {}
    evaluations: list[Evaluation] = []

    def fail(where: str, error: Exception) -> None:
        failures.append(Failure(where, None, error))
        failures_reporter.finish(failures[-1])

    def say_waiting(holder: str) -> None:
        who = f" ({holder})" if holder else ""
        reporter.notice(f"waiting for another evaluation{who} that writes the report in {discovery.report.absolute()}")

    def kept() -> str:
        ready = ", ".join(str(evaluation.found.results) for evaluation in evaluations)
        return f"{len(evaluations)} of {count} evaluated" + (f", with results in {ready}" if ready else "")

    with answer_to_stop(kept):
        for found in checkpoints:
            try:
                evaluations.append(_one(found, config, loaded, reporter))
                failures += evaluations[-1].failures
            except Exception as error:
                # Whatever is wrong with one checkpoint, its file or its network, the others are evaluated.
                fail(found.name, error)
        report = None
        measured = [evaluation for evaluation in evaluations if evaluation.records]
        if measured and config.shard is None:
            try:
                discovery.report.mkdir(parents=True, exist_ok=True)
                # Two processes that evaluate other checkpoints for one report: none loses what the other has measured.
                lock = discovery.report / ".lock-report"
                with reporter.part("writing the report"), held(lock, wait=True, on_wait=say_waiting):
                    report = write_report(report_of(discovery, measured, failures, config))
            except (OSError, SvdctlError) as error:
                fail("report.md", error)
    return EvaluationResult(tuple(evaluations), tuple(failures), report)


def _one(
    found: FoundCheckpoint, config: EvaluateConfig, loaded: dict[str, EvaluationData], reporter: Reporter
) -> Evaluation:
    stamp = file_stamp(found.path)
    with reporter.part(f"opening {found.name}"):
        evaluated = open_evaluated_model(found.path, config)
    found = placed(found, config, evaluated.weights)
    for notice in evaluated.notices:
        reporter.notice(f"{found.name}: {notice}")
    data = data_of(config, evaluated.data)
    if data is None:
        raise UsageError(f"{found.path} does not say which data it belongs to; add `data.kind`")
    if (key := data.model_dump_json()) not in loaded:
        loaded.clear()
        loaded[key] = EvaluationData(data, load(data, download=_may_download(config, data), reporter=reporter))
    dataset = loaded[key]
    if config.data is None and config.dataset_root is not None and leaks(dataset, evaluated.trained_on):
        raise CheckpointError(
            f"the test images under {config.dataset_root} are not those of {found.path}'s training; restore these, or "
            "evaluate it on others by `data.kind`"
        )
    if evaluated.image_shape is None:
        dataset = _fitting(dataset, evaluated.model, config)
    evaluated.check(dataset.test, describe(dataset.data))
    evaluation = evaluate(found, evaluated, dataset, config, reporter)
    evaluation.stamp = stamp
    return evaluation


def _may_download(config: EvaluateConfig, data: Data) -> bool:
    """Return whether the place of the data is one that this call names, or the default one, and no file alone."""
    return config.data is not None or config.dataset_root is not None or place_of(data) == DEFAULT_PLACE


def _fitting(dataset: EvaluationData, model: nn.Module, config: EvaluateConfig) -> EvaluationData:
    """Return the images with as many channels as a network takes, as tried on two of them: three, else one.

    Raises:
        CheckpointError: it takes neither.
    """
    classifier = Classifier(model, config, lambda _: None)

    def refusal(images: Tensor) -> str | None:
        try:
            classifier.outputs(images)
        # What a network raises for images of a wrong shape is up to its author.
        except Exception as error:
            return first_line(error)
        return None

    images = dataset.test.images[:2]
    colour = refusal(images)
    if colour is None:
        return dataset
    grey = refusal(images[:, :1])
    if grey is None:
        return EvaluationData(dataset.data, dataset.parts.grey(describe(dataset.data)))
    raise CheckpointError(
        f"the network takes neither images {dataset.test.image_shape} of {describe(dataset.data)} ({colour}) nor the "
        f"same with one channel ({grey}); evaluate it on data of its own (`data.kind`)"
    )


def _by_data(checkpoints: Sequence[FoundCheckpoint], config: EvaluateConfig) -> list[FoundCheckpoint]:
    """Return the checkpoints, those of one data set one after another, so that each data set is read once.

    Those that cannot be opened come first; their error is shown in their turn.
    """
    kinds: dict[FoundCheckpoint, str] = {}
    for found in checkpoints if config.data is None and len(checkpoints) > 1 else ():
        with suppress(SvdctlError, OSError):
            data = open_evaluated_model(found.path, config).data
            kinds[found] = "" if data is None else same_data(data)
    order = {kind: place for place, kind in enumerate(dict.fromkeys(kinds.values()))}
    return sorted(checkpoints, key=lambda found: order[kinds[found]] if found in kinds else -1)


def show_corruptions(config: EvaluateConfig, path: Path) -> Path:
    """Draw all corruptions at all severities, of the first test images of `data.kind` or of samples; the file.

    Raises:
        UsageError: it cannot be written.
        DataError: the data set cannot be read.
    """
    from svdctl.evaluate.corruptions.corruption_sheet import contact_sheet

    data = data_of(config, None)
    images = None if data is None else EvaluationData(data, load(data)).test.images[:3]
    return contact_sheet(path, images, config.seed)
