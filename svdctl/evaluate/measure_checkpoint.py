"""One checkpoint through all metrics: each measured once, kept, checked against the others, and drawn."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.data.data_source import describe
from svdctl.errors import CheckpointError
from svdctl.evaluate.auto_batch_size import batch_size_for
from svdctl.evaluate.calibration import warning_of
from svdctl.evaluate.evaluated_model import EvaluatedModel
from svdctl.evaluate.evaluation_data import EvaluationData, leaks
from svdctl.evaluate.find_checkpoints import FileStamp, FoundCheckpoint, unique_name
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import MeasurementContext, Metric, Order, OutputContext, Unfinished
from svdctl.evaluate.results import OTHER_DATA, Record, ResultStore, fingerprint, held
from svdctl.registry import METRICS
from svdctl.utils.escapes import one_line
from svdctl.utils.network_probe import Probe, probe_images
from svdctl.utils.progress import Reporter
from svdctl.utils.signals import answer_to_stop


@dataclass(frozen=True)
class Failure:
    """What could not be measured."""

    where: str
    """Checkpoint or path."""
    metric: str | None
    """None: none of it."""
    error: Exception

    @property
    def place(self) -> str:
        """Return where, and which metric."""
        return f"{self.where}, {self.metric}" if self.metric else self.where


@dataclass(frozen=True)
class FinishedMetric:
    """A metric that is finished."""

    metric: str
    text: str
    kept: str
    """Empty, or how it is known from before."""


@dataclass
class Evaluation:
    """The figures of one checkpoint."""

    found: FoundCheckpoint
    model: EvaluatedModel
    data: str
    """As a user names it."""
    data_key: str = ""
    """Fingerprint of its test part, where something was measured on it."""
    stamp: FileStamp | None = None
    """Of the file when it was read."""
    records: dict[str, Record] = field(default_factory=dict)
    """What was asked for, by metric."""
    order: Order | None = None
    """Figures of several metrics on the same images, where they can be compared."""
    left_out: dict[str, str] = field(default_factory=dict)
    """By metric, a sentence for each that gives no figures."""
    failures: list[Failure] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def evaluate(
    found: FoundCheckpoint,
    evaluated: EvaluatedModel,
    dataset: EvaluationData,
    config: EvaluateConfig,
    reporter: Reporter,
) -> Evaluation:
    """Measure what is not yet measured, compare it, and write what is made of it; a metric that fails stops no other.

    Raises:
        CheckpointError: network and data do not belong together.
        UnusableFolderError: another process evaluates the same checkpoint, or its results cannot be written.
        OSError: results cannot be written.
    """
    evaluation = Evaluation(found, evaluated, describe(dataset.data))
    records = evaluation.records

    @contextmanager
    def caught(metric: str) -> Iterator[None]:
        """Record what goes wrong inside as a failure of this metric alone."""
        try:
            yield
        except Exception as error:
            failure = Failure(found.name, metric, error)
            evaluation.failures.append(failure)
            reporter.finish(failure)

    # Random draws of attacks depend on it, so it follows from the images, and from no device.
    config = config.model_copy(update={"batch_size": config.batch_size or batch_size_for(dataset.test.image_shape)})
    part = "" if config.shard is None else f"shard-{config.shard.index}-of-{config.shard.count}"
    with held(found.results, part):
        classifier = Classifier(evaluated.model, config, reporter.notice)
        with reporter.part("trying the network on a few images"):
            probe = _check_outputs(found, classifier, dataset, reporter)
        path = one_line(found.path.absolute())
        about = {"path": path, "name": one_line(found.name), "network": evaluated.network}
        store = ResultStore(found.results, evaluated.weights, about, probe)
        # Only now: until here the checkpoint can be refused.
        reporter.say(f"{found.name}  ->  {found.results}")
        for notice in store.notices:
            reporter.notice(notice)
        other_data = evaluated.other_data_until > 0 or leaks(dataset, evaluated.trained_on)
        if other_data:
            reporter.notice(f"{found.name}: {OTHER_DATA}")
        context = MeasurementContext(
            classifier,
            evaluated,
            dataset,
            config,
            probe,
            found.results,
            reporter.advance,
            reporter.notice,
            store.sound if not config.force else lambda metric: (),
        )
        with reporter.part("computing the fingerprint of the data"):
            evaluation.data_key = dataset.identity["fingerprint"]
        done: set[str] = set()

        def kept() -> str:
            """Return what a request to stop leaves: figures that are finished, and the work that goes on."""
            finished = f"{', '.join(records)} finished, in {store.path}" if records else "no metric is finished"
            # A metric has its record a moment before it is done.
            left = (kind for kind in config.metrics if kind not in done and kind not in records)
            at_work, path = next(left, ""), context.unfinished
            if path is not None and path.is_file():
                return f"{found.name}: {finished}; of {at_work} what is done is kept in {path}"
            return f"{found.name}: {finished}" + f"; {at_work} begins anew" * bool(at_work)

        with answer_to_stop(kept):
            for kind in config.metrics:
                reporter.begin(kind)
                with caught(kind):
                    record = _record(METRICS.get(kind), context, store)
                    if isinstance(record, str):
                        evaluation.left_out[kind] = text = record
                    else:
                        records[kind] = record.model_copy(update={"other_data": other_data})
                        text = METRICS.get(kind).summary(record)
                    reporter.finish(FinishedMetric(kind, text, records[kind].marks if kind in records else ""))
                context.unfinished = None
                done.add(kind)
            with suppress(OSError):  # it is not there, or holds unfinished work
                store.unfinished.rmdir()
            # A picture that shows figures of two metrics does not lose those that are not asked for now.
            others = {}
            if records:
                unasked = (kind for kind in METRICS.kinds() if kind not in config.metrics)
                found_before = ((kind, store.find_other(kind, dataset.identity)) for kind in unasked)
                others = {kind: record for kind, record in found_before if record is not None}
            output = OutputContext(
                records={**others, **records},
                rows=store.rows,
                name=found.name,
                folder=store.folder,
                export=unique_name(found.name, store.weights),
                config=config,
                known=store.sound,
            )
            with caught("order"):
                orders = [METRICS.get(kind).compare(context, output) for kind in output.records]
                evaluation.order = next((order for order in orders if order is not None), None)
            if records:
                with caught("pictures"), reporter.part("drawing pictures"):
                    files = [METRICS.get(kind).outputs(record, output) for kind, record in records.items()]
                    evaluation.files = [store.path, *(file for some in files for file in some)]
    return evaluation


def _check_outputs(
    found: FoundCheckpoint, classifier: Classifier, dataset: EvaluationData, reporter: Reporter
) -> Probe:
    """Return the answers to a few images, if network and data belong together and it returns logits."""
    images = probe_images(dataset.test.images)
    outputs = classifier.answers(images)
    width, classes = outputs.shape[1], len(dataset.test.classes)
    if width != classes:
        raise CheckpointError(
            f"{found.path} tells {width} classes apart, and {describe(dataset.data)} has {classes}; give `data.kind` "
            "the data that it was trained on"
        )
    if (warning := warning_of(outputs)) is not None:
        reporter.notice(f"{found.name}: {warning}")
    return Probe.of(images, outputs)


def _record(metric: Metric, context: MeasurementContext, store: ResultStore) -> Record | str:
    """Return the record that is kept for this call's protocol, or a new one; of a part of one, a sentence."""
    config = metric.settings_for(context)
    shared = {"weights": context.model.weights, "precision": metric.precision or context.config.precision}
    protocol = {**shared, "data": context.data.identity, **metric.protocol(context, config)}
    if metric.version != 1:
        protocol["version"] = metric.version
    former = {**shared, "data": context.data.identity_before, **metric.former_protocol(context, config)}
    path = context.unfinished = metric.unfinished_file(context, config, fingerprint(protocol))
    if context.config.force:
        path.unlink(missing_ok=True)
        kept = None
    else:
        before = len(store.notices)
        kept = store.find(metric.kind, protocol, former if metric.version == 1 else None)
        if kept is not None and (fault := metric.recheck(context, kept.results)) is not None:
            store.notices.append(f"{metric.kind}: {fault}: measured again")
            kept = None
        for notice in store.notices[before:]:
            context.notice(notice)
    if kept is None:
        began = time.perf_counter()
        found = metric.measure(context, config, Unfinished(path, protocol))
        if isinstance(found, str):
            return found
        took, device = time.perf_counter() - began, str(context.classifier.device)
        kept = store.put(
            metric.kind, protocol, found.results, seconds=took, device=device, rows=found.rows, before=former
        )
    path.unlink(missing_ok=True)
    context.unfinished = None
    return kept
