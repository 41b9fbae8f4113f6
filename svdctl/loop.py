"""The training loop of both training commands: epochs, evaluations and checkpoints, in this order."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from svdctl.accuracy import Accuracy, summed
from svdctl.training import Trainer

LOOK_EVERY = 0.5
"""Seconds between two looks at the totals, each of which waits for the device."""


class Progress(Protocol):
    """Who is told how a training goes."""

    def start(self, total_steps: int, done: int) -> None:
        """Training begins, `done` steps of it made before."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """A few times a second."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """After each evaluation."""


@dataclass
class Loop:
    """A trainer taken to its last step."""

    trainer: Trainer
    progress: Progress
    record: Callable[[str, Mapping[str, float]], None]
    """Gets `step` or `epoch`, and metrics."""
    save: Callable[[str], None]
    """Gets `last`, `best`, `steps` or `interrupted`."""
    stop: threading.Event

    def run(self) -> bool:
        """Train to the end; whether it was reached."""
        trainer = self.trainer
        self.progress.start(trainer.total_steps, trainer.counters.step)
        trainer.model.train()
        while trainer.counters.step < trainer.total_steps:
            epoch, start = divmod(trainer.counters.step, trainer.batches.steps_per_epoch)
            if not self._epoch(epoch, start):
                self.save("interrupted")
                return False
        return True

    def _epoch(self, epoch: int, start: int) -> bool:
        trainer, config = self.trainer, self.trainer.config
        epoch_totals = torch.zeros(5, dtype=torch.float64, device=trainer.fabric.device)
        totals = torch.zeros_like(epoch_totals)
        began = time.perf_counter()
        first_step = trainer.counters.step
        pace = _Pace(trainer.fabric, first_step)
        trainer.control_time = 0.0
        for images, labels in trainer.batches.epoch(epoch, start):
            trainer.train_step(images, labels, totals)
            step = trainer.counters.step
            looked = pace.is_due(step) or step % config.log.every == 0 or step == trainer.total_steps
            if looked:
                epoch_totals += totals
                metrics = trainer.read(totals, epoch)
                rate = (step - first_step) / max(time.perf_counter() - began, 1e-9)
                metrics["images_per_second"] = rate * config.batch_size
                metrics["seconds_left"] = (trainer.total_steps - step) / rate
                self.progress.step(step, metrics)
                if step % config.log.every == 0:
                    self.record("step", {k: metrics[k] for k in ("epoch", "loss", "orthogonal_loss", "acc", "lr")})
                totals.zero_()
            if pace.stops(step, looked, self.stop.is_set()) and step < trainer.total_steps:
                trainer.read(totals, epoch)  # nothing that is not finite is saved
                return False
            if step >= trainer.total_steps:
                break
            if config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0:
                trainer.read(totals, epoch)
                self.save("steps")
        epoch_totals += totals
        self._finish_epoch(epoch, epoch_totals, time.perf_counter() - began)
        return True

    def _finish_epoch(self, epoch: int, totals: Tensor, seconds: float) -> None:
        trainer, config = self.trainer, self.trainer.config
        metrics = trainer.read(totals, epoch)
        metrics.update(train_time=seconds, clipping_time=trainer.control_time)
        last = trainer.counters.step >= trainer.total_steps
        due = last or (epoch + 1) % config.evaluation.every == 0
        if due:
            trainer.controller.seal()
            began = time.perf_counter()
            held_out = trainer.evaluate(trainer.evaluation_data)
            metrics.update(val_acc=held_out.accuracy, val_loss=held_out.loss)
            metrics.update(_certified(trainer, held_out), val_time=time.perf_counter() - began)
            if config.log.singular_values:
                for row in trainer.controller.report():
                    metrics[f"sigma/{row.name}"] = row.largest
                    metrics[f"bound/{row.name}"] = row.bound
            self.progress.evaluated(metrics)
        self.record("epoch", metrics)
        if due and config.evaluation.select != "last" and self._is_best(metrics):
            self.save("best")
        if last or (epoch + 1) % config.checkpoint.every == 0:
            trainer.controller.seal()
            self.save("last")

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether this network beats all before it, noted if so; of networks with certificates the safest wins."""
        counters = self.trainer.counters
        plain = metrics["val_acc"]
        accuracy = metrics.get("val_certified_acc", plain)
        if (accuracy, plain) <= (counters.best_accuracy, counters.best_plain_accuracy):
            return False
        counters.best_accuracy, counters.best_plain_accuracy = accuracy, plain
        counters.best_step = counters.step
        return True


class _Pace:
    """Which steps are looked at, some two a second: the same in all processes, by the clock of the first one."""

    def __init__(self, fabric: Fabric, step: int) -> None:
        self._fabric = fabric
        self._last, self._next = step, step + 1
        self._when = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether the totals should be read now."""
        if self._fabric.world_size == 1:
            return time.perf_counter() - self._when > LOOK_EVERY
        return step >= self._next

    def stops(self, step: int, looked: bool, told: bool) -> bool:
        """Whether any process was told to stop, at steps that are looked at; a process alone knows it at once."""
        if looked:
            now = time.perf_counter()
            rate = (step - self._last) / max(now - self._when, 1e-9)
            self._last, self._when = step, now
        if self._fabric.world_size == 1:
            return told
        if not looked:
            return False
        ahead = max(1, int(rate * LOOK_EVERY)) if self._fabric.is_global_zero else 0
        say = torch.tensor([told, ahead], dtype=torch.float64, device=self._fabric.device)
        stop, ahead = map(int, summed(self._fabric, say).tolist())
        self._next = step + ahead
        return stop > 0


def _certified(trainer: Trainer, held_out: Accuracy) -> dict[str, float]:
    """What a run with certificates is followed by."""
    certificate = trainer.config.certificate
    if certificate is None or held_out.certificates is None or held_out.bound is None:
        return {}
    found = {
        "val_certified_acc": held_out.certificates.certified_accuracy(certificate.epsilon / 255),
        "val_mean_radius": held_out.certificates.mean_radius,
        "epsilon": certificate.epsilon,
        "lipschitz": held_out.bound.value,
    }
    deviation = trainer.frame_deviation()
    return found if deviation is None else {**found, "frame_deviation": deviation}
