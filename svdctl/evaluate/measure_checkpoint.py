"""One checkpoint through all metrics: each measured once, kept, checked against the others, and drawn."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.data.data_source import describe
from svdctl.errors import CheckpointError
from svdctl.evaluate.calibration import warning_of
from svdctl.evaluate.evaluated_model import EvaluatedModel
from svdctl.evaluate.evaluation_data import EvaluationData, leaks
from svdctl.evaluate.evaluation_outcome import Evaluation, Failure, FinishedMetric
from svdctl.evaluate.find_checkpoints import FoundCheckpoint, unique_name
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import MeasurementContext, Metric, OutputContext, Partial, Unfinished
from svdctl.evaluate.results import OTHER_DATA, Record, ResultStore, fingerprint, held
from svdctl.registry import METRICS
from svdctl.utils.network_probe import Probe, probe_images
from svdctl.utils.progress import Reporter


def evaluate(
    found: FoundCheckpoint,
    evaluated: EvaluatedModel,
    dataset: EvaluationData,
    config: EvaluateConfig,
    reporter: Reporter,
) -> Evaluation:
    """Measure what is not yet measured; a metric that fails does not stop the others.

    Raises:
        EvaluationError: another process evaluates the same checkpoint.
        OSError: results cannot be written.
    """
    part = "" if config.shard is None else f"shard-{config.shard.index}-of-{config.shard.count}"
    with held(found.results, part):
        return _Session(found, evaluated, dataset, config, reporter).run()


class _Session:
    def __init__(
        self,
        found: FoundCheckpoint,
        evaluated: EvaluatedModel,
        dataset: EvaluationData,
        config: EvaluateConfig,
        reporter: Reporter,
    ) -> None:
        self.found, self.evaluated, self.dataset = found, evaluated, dataset
        self.config, self.reporter = config, reporter
        about = {"path": str(found.path), "name": found.name, "network": evaluated.network}
        self.classifier = Classifier(evaluated.model, config, reporter.notice)
        probe = self._check_outputs()
        self.store = ResultStore(found.results, evaluated.weights, about, probe)
        for notice in self.store.notices:
            reporter.notice(notice)
        self.other_data = evaluated.other_data_until > 0 or leaks(dataset, evaluated.trained_on)
        if self.other_data:
            reporter.notice(f"{found.name}: {OTHER_DATA}")
        self.evaluation = Evaluation(found, evaluated, describe(dataset.data))
        self.context = MeasurementContext(
            self.classifier, evaluated, dataset, config, probe, found.results, reporter.advance, reporter.notice
        )

    def run(self) -> Evaluation:
        """Measure all metrics in turn, compare them, and write what is made of them."""
        records = self.evaluation.records
        for kind in self.config.metrics:
            self.reporter.begin(kind)
            with self._caught(kind):
                record = self._record(METRICS.get(kind))
                if record is not None:
                    records[kind] = record
        with suppress(OSError):  # it is not there, or holds unfinished work
            self.store.unfinished.rmdir()
        export = unique_name(self.found.name, self.store.weights)
        output = OutputContext(self.store.folder, records, self.store.rows, self.found.name, export, self.config)
        with self._caught("order"):
            orders = [METRICS.get(kind).compare(self.context, output) for kind in records]
            self.evaluation.order = next((order for order in orders if order is not None), None)
        if records:
            with self._caught("pictures"):
                files = [METRICS.get(kind).outputs(record, output) for kind, record in records.items()]
                self.evaluation.files = [self.store.path, *(file for some in files for file in some)]
        return self.evaluation

    def _check_outputs(self) -> Probe:
        """Return the answers to a few images, if network and data belong together and it returns logits."""
        test = self.dataset.test
        images = probe_images(test.images)
        outputs = self.classifier.answers(images)
        width = outputs.shape[1]
        if width != len(test.classes):
            raise CheckpointError(
                f"{self.found.path} tells {width} classes apart, and {describe(self.dataset.data)} has "
                f"{len(test.classes)}; give `data.kind` the data that it was trained on"
            )
        if (warning := warning_of(outputs)) is not None:
            self.reporter.notice(f"{self.found.name}: {warning}")
        return Probe.of(images, outputs)

    @contextmanager
    def _caught(self, metric: str) -> Iterator[None]:
        """Record what goes wrong inside as a failure of this metric alone."""
        try:
            yield
        except Exception as error:
            failure = Failure(self.found.name, metric, error)
            self.evaluation.failures.append(failure)
            self.reporter.finish(failure)

    def _protocol(self, metric: Metric, data: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Return everything that decides a figure: weights, data, and these settings."""
        precision = metric.precision or self.config.precision
        return {"weights": self.evaluated.weights, "data": data, "precision": precision, **settings}

    def _record(self, metric: Metric) -> Record | None:
        """Return the record that is kept for this call's protocol, or a new one; None for a part of one."""
        config = metric.settings(self.config, self.dataset.data)
        protocol = self._protocol(metric, self.dataset.identity, metric.protocol(self.context, config))
        if metric.version != 1:
            protocol["version"] = metric.version
        former_settings = metric.former_protocol(self.context, config)
        former = self._protocol(metric, self.dataset.identity_before, former_settings)
        path = metric.unfinished_file(self.context, config, fingerprint(protocol))
        if self.config.force:
            path.unlink(missing_ok=True)
        kept = self._find(metric, protocol, former)
        if kept is None:
            began = time.perf_counter()
            found = metric.measure(self.context, config, Unfinished(path, protocol, self.context.probe))
            if isinstance(found, Partial):
                self.reporter.finish(FinishedMetric(metric.kind, found.text, ""))
                return None
            kept = self.store.put(
                metric.kind,
                protocol,
                found.results,
                seconds=time.perf_counter() - began,
                device=str(self.classifier.device),
                rows=found.rows,
                before=former,
            )
        path.unlink(missing_ok=True)
        kept = kept.model_copy(update={"other_data": self.other_data})
        self.reporter.finish(FinishedMetric(metric.kind, metric.summary(kept), kept.marks))
        return kept

    def _find(self, metric: Metric, protocol: dict[str, Any], former: dict[str, Any]) -> Record | None:
        """Return the record that is kept for this protocol; pass on notices of what is kept and does not count."""
        if self.config.force:
            return None
        before = len(self.store.notices)
        kept = self.store.find(metric.kind, protocol, former if metric.former_counts else None)
        if kept is not None and (fault := metric.recheck(self.context, kept.results)) is not None:
            self.store.notices.append(f"{metric.kind}: {fault}: measured again")
            kept = None
        for notice in self.store.notices[before:]:
            self.reporter.notice(notice)
        return kept
