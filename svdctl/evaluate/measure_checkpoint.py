"""One checkpoint through all metrics: each measured once, kept, checked against the others, and drawn."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor

from svdctl.config.evaluate_config import EvaluateConfig, Metric
from svdctl.data.fingerprint import fingerprint
from svdctl.errors import CheckpointError, UsageError
from svdctl.evaluate import calibration_metric, certificate_metric, corruption_metric
from svdctl.evaluate.attack import attack_metric, attack_progress
from svdctl.evaluate.calibration import BINS
from svdctl.evaluate.consistency import assert_order
from svdctl.evaluate.evaluated_model import EvaluatedModel
from svdctl.evaluate.evaluation_data import EvaluationData, describe, held_out, leaks
from svdctl.evaluate.evaluation_outcome import Evaluation, Failure, Listener
from svdctl.evaluate.find_checkpoints import FoundCheckpoint
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.measurement_cache import MeasurementCache
from svdctl.evaluate.network_probe import Probe, probe_images
from svdctl.evaluate.output_files import write_outputs
from svdctl.evaluate.results import OTHER_DATA, Record, ResultStore, held
from svdctl.evaluate.summary_text import short

ECE_VERSION = 2
"""Of the calibration error: 15 bins, the last one closed at 1. Before, confidences of exactly 1 had a bin of their own.
"""
_Measured = tuple[dict[str, Any], list[dict[str, Any]] | None]
"""Figures, and rows for each image where there are any."""


def evaluate(
    found: FoundCheckpoint,
    subject: EvaluatedModel,
    material: EvaluationData,
    config: EvaluateConfig,
    listener: Listener,
) -> Evaluation:
    """Measure what is not yet measured; a metric that fails does not stop the others.

    Raises:
        EvaluationError: another process evaluates the same checkpoint.
        OSError: results cannot be written.
    """
    part = "" if config.shard is None else f"shard-{config.shard.index}-of-{config.shard.count}"
    with held(found.results, part):
        return _Session(found, subject, material, config, listener).run()


class _Session:
    def __init__(
        self,
        found: FoundCheckpoint,
        subject: EvaluatedModel,
        material: EvaluationData,
        config: EvaluateConfig,
        listener: Listener,
    ) -> None:
        self.found, self.subject, self.material = found, subject, material
        self.config, self.listener = config, listener
        about = {"path": str(found.path), "name": found.name, "network": subject.network}
        self.classifier = Classifier(subject.model, config, listener.notice)
        self.probe = self._check_outputs()
        self.store = ResultStore(found.results, subject.weights, about, self.probe)
        for notice in self.store.notices:
            listener.notice(notice)
        self.other_data = subject.other_data_until > 0 or leaks(material, subject.trained_on)
        if self.other_data:
            listener.notice(f"{found.name}: {OTHER_DATA}")
        self.evaluation = Evaluation(found, subject, describe(material.data))

    def run(self) -> Evaluation:
        """All metrics in turn."""
        measures: dict[Metric, Callable[[], Record | None]] = {
            "accuracy": self._accuracy,
            "ece": self._ece,
            "cifar-c": self._corrupted,
            "autoattacks": self._attacked,
            "certified": self._certified,
        }
        for metric in self.config.metrics:
            self.listener.metric(metric)
            with self._caught(metric):
                record = measures[metric]()
                if record is not None:
                    self.evaluation.records[metric] = record
        self.store.tidy()
        with self._caught("order"):
            self._assert_order()
        if self.evaluation.records:
            with self._caught("pictures"):
                self.evaluation.files = write_outputs(self.store, self.evaluation.records, self.found.name, self.config)
        return self.evaluation

    def _check_outputs(self) -> Probe:
        """A pass over a few images tells whether network and data belong together, and whether it returns logits."""
        test = self.material.test
        images = probe_images(test.images)
        outputs = self.classifier.answers(images)
        width = outputs.shape[1]
        if width != len(test.classes):
            raise CheckpointError(
                f"{self.found.path} tells {width} classes apart, and {describe(self.material.data)} has "
                f"{len(test.classes)}; give `data.kind` the data that it was trained on"
            )
        if (warning := calibration_metric.warning_of(outputs)) is not None:
            self.listener.notice(f"{self.found.name}: {warning}")
        return Probe.of(images, outputs)

    @contextmanager
    def _caught(self, metric: str) -> Iterator[None]:
        """What goes wrong inside is a failure of this metric alone."""
        try:
            yield
        except Exception as error:
            failure = Failure(self.found.name, metric, error)
            self.evaluation.failures.append(failure)
            self.listener.failed(failure)

    def _protocol(self, **settings: Any) -> dict[str, Any]:
        """Everything that decides a figure: weights, data, and these settings."""
        return {
            "weights": self.subject.weights,
            "data": self.material.identity,
            "precision": self.config.precision,
            **settings,
        }

    def _before(self, protocol: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """The same protocol as results without a checksum state it."""
        return {**protocol, "data": self.material.identity_before, **settings}

    def _find(self, metric: Metric, protocol: dict[str, Any], before: dict[str, Any]) -> Record | None:
        """The record that is kept for this protocol; notices of what is kept and does not count are passed on."""
        if self.config.force:
            return None
        told = len(self.store.notices)
        # What the calibration error is has changed since results carry checksums.
        kept = self.store.find(metric, protocol, None if metric == "ece" else before)
        if kept is not None and metric == "certified":
            fault = certificate_metric.fault_of_proof(self.classifier, self.material, kept.results["lipschitz"])
            if fault is not None:
                self.store.notices.append(f"certified: {fault}: measured again")
                kept = None
        for notice in self.store.notices[told:]:
            self.listener.notice(notice)
        return kept

    def _once(
        self, metric: Metric, protocol: dict[str, Any], before: dict[str, Any], measure: Callable[[], _Measured]
    ) -> Record:
        """The record that is kept for this protocol, or a new one."""
        kept = self._find(metric, protocol, before)
        if kept is None:
            began = time.perf_counter()
            results, rows = measure()
            kept = self.store.put(
                metric,
                protocol,
                results,
                seconds=time.perf_counter() - began,
                device=str(self.classifier.device),
                rows=rows,
                before=before,
            )
        kept = kept.model_copy(update={"other_data": self.other_data})
        self.listener.measured(metric, short(kept), kept=kept.marks)
        return kept

    @cached_property
    def _logits(self) -> Tensor:
        """Of all test images: one pass serves accuracy and calibration."""
        total = len(self.material.test)
        return self.classifier.logits(
            self.material.test.images, lambda done: self.listener.progress(done, total, "test images")
        )

    def _accuracy(self) -> Record:
        labels = self.material.test.labels
        protocol = self._protocol()
        return self._once(
            "accuracy",
            protocol,
            self._before(protocol),
            lambda: (calibration_metric.accuracy(self._logits, labels), None),
        )

    def _ece(self) -> Record:
        kept = held_out(self.material, self.subject.training, self.subject.trained_on, self.config.seed)
        settings = {"bins": BINS, "temperature_fitted_on": kept.text, "seed": self.config.seed}
        protocol = self._protocol(version=ECE_VERSION, held_out=fingerprint(kept.fit), **settings)
        labels = self.material.test.labels
        return self._once(
            "ece",
            protocol,
            self._before(self._protocol(**settings)),
            lambda: (calibration_metric.calibrated(self._logits, labels, kept, self.classifier), None),
        )

    def _corrupted(self) -> Record:
        def tell(text: str, done: int, total: int) -> None:
            self.listener.progress(done, total, text)

        source = corruption_metric.open_source(
            self.config.corruptions, self.material, self.config.seed, self.classifier.device, tell
        )
        protocol = self._protocol(**corruption_metric.protocol(self.config, source.identity))
        before = corruption_metric.protocol(self.config, source.identity_before)
        file = self.store.unfinished_file("cifar-c", protocol, ".json", fresh=self.config.force)

        def measure() -> _Measured:
            unfinished = MeasurementCache(file, corruption_metric.Count, protocol, probe=self.probe)
            progress, notice = self.listener.progress, self.listener.notice
            found = corruption_metric.measure(
                self.classifier, source, self.material, self.config, unfinished, progress, notice
            )
            return found, None

        return self._once("cifar-c", protocol, self._before(self._protocol(**before)), measure)

    def _attacked(self) -> Record | None:
        settings = self.config.attack_settings(self.material.data.kind)
        if settings.protocol == "paper":
            self.listener.notice("protocol paper: normalised images are attacked, and eps is not in pixels")
        work = attack_progress.Assignment.make(settings, self.subject.weights, self.material, self.probe)
        # The attacks run in full precision, whatever `precision` says.
        protocol = {**self._protocol(), "precision": "32", **settings.model_dump(mode="json"), "count": len(work.index)}
        shard = self.config.shard
        if shard is not None:
            self._shard(work)
            return None
        if self.config.merge_shards:
            return self._merged(work, protocol)
        if not self.config.force:
            # A figure that was joined from shards is that of the same attack.
            plain = (protocol, self._before(protocol))
            for record in self.store.records:
                if record.metric == "autoattacks" and _unsharded(record.protocol) in plain:
                    protocol = {**protocol, **_shards(record.protocol)}
        path = work.file(self.store.unfinished, None)
        if self.config.force:
            path.unlink(missing_ok=True)

        def measure() -> _Measured:
            file = attack_progress.ProgressFile(path, work, self.listener.notice)
            progress = attack_metric.run(
                self.classifier, self.material, work, file, self.listener.progress, self.listener.notice
            )
            return self._attack_results(progress, work)

        record = self._once("autoattacks", protocol, self._before(protocol), measure)
        path.unlink(missing_ok=True)
        return record

    def _attack_results(self, progress: attack_progress.AttackProgress, work: attack_progress.Assignment) -> _Measured:
        rows = attack_metric.rows(progress, work, self.material.test.labels)
        return attack_metric.results(progress, work.settings), rows

    def _shard(self, work: attack_progress.Assignment) -> None:
        shard = self.config.shard
        assert shard is not None
        if shard.count > len(work.index):
            raise UsageError(f"`shard = {shard}`: only {len(work.index)} images are attacked; make fewer shards")
        part = work.part(shard)
        path = part.file(self.store.folder / attack_progress.SHARDS, shard)
        if self.config.force:
            path.unlink(missing_ok=True)
        file = attack_progress.ProgressFile(path, part, self.listener.notice)
        progress = attack_metric.run(
            self.classifier, self.material, part, file, self.listener.progress, self.listener.notice
        )
        stand = progress.state.robust_accuracy()
        self.listener.measured("autoattacks", f"shard {shard}: {stand:.2%} of {len(part.index)} stand; {path}", kept="")

    def _merged(self, work: attack_progress.Assignment, protocol: dict[str, Any]) -> Record:
        progress, count = attack_progress.merge(work, self.store.folder / attack_progress.SHARDS)
        protocol = {**protocol, "shards": count}
        return self._once("autoattacks", protocol, self._before(protocol), lambda: self._attack_results(progress, work))

    def _certified(self) -> Record:
        protocol = {**self._protocol(radii=list(self.config.radii)), "precision": "64"}
        return self._once(
            "certified",
            protocol,
            self._before(protocol),
            lambda: certificate_metric.measure(self.classifier, self.material, self.config, self.listener.progress),
        )

    def _assert_order(self) -> None:
        records = self.evaluation.records
        attack, proof = records.get("autoattacks"), records.get("certified")
        if attack is None or proof is None or attack.protocol["protocol"] != "pixels":
            return
        channels, height, width = self.material.test.image_shape
        self.evaluation.order = assert_order(
            self.store.rows(proof),
            self.store.rows(attack),
            norm=attack.protocol["norm"],
            eps=attack.protocol["eps"],
            pixels=channels * height * width,
        )


def _unsharded(protocol: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key != "shards"}


def _shards(protocol: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key == "shards"}
