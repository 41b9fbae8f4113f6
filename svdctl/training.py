"""The training loop: one step, one epoch, one evaluation; the same on a CPU, one GPU or many."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from svdctl.build import build_optimizer, lr_factor, penalty_of
from svdctl.config.train import TrainConfig
from svdctl.control import Controller
from svdctl.data.batches import Batches, evaluation_batches
from svdctl.data.images import ImageData
from svdctl.errors import TrainingError
from svdctl.layers.tt import TTConv2d, orthonormality_penalty


class Progress(Protocol):
    """Who is told how a training goes."""

    def start(self, total_steps: int, done: int) -> None:
        """Training begins, `done` steps of it made before."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """A few times a second."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """After each evaluation."""


@dataclass
class Counters:
    """Where a training stands."""

    step: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0


@dataclass
class Trainer:
    """A model in training: everything that a checkpoint has to hold, and the steps that change it."""

    config: TrainConfig
    model: nn.Module
    fabric: Fabric
    train_data: ImageData
    evaluation_data: ImageData
    controller: Controller
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        device = self.fabric.device
        self.train_data = self.train_data.to(device)
        self.evaluation_data = self.evaluation_data.to(device)
        self.batches = Batches(
            self.train_data,
            self.config.batch_size,
            self.config.seed,
            self.config.augment,
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        channels_last = self.config.hardware.channels_last
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(device).to(memory_format=self._layout)
        # The raw optimiser is kept: frames carry its momentum along, and checkpoints hold its state.
        self.optimizer = build_optimizer(self.config.optimizer, self.model)
        steps = self.config.epochs * self.batches.steps_per_epoch
        self.total_steps = min(steps, self.config.max_steps or steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(self.config.schedule, step, steps)
        )
        runnable: Any = torch.compile(self.model) if self.config.hardware.compile else self.model
        self.runnable, self.stepper = self.fabric.setup(runnable, self.optimizer)
        self.tt_layers = [module for module in self.model.modules() if isinstance(module, TTConv2d)]
        frames = getattr(self.config.layer, "frames", None)
        self._retraction = frames.method if frames is not None and frames.kind == "retract" else None
        self._penalty = penalty_of(self.config)
        self.control_time = 0.0

    def train_step(self, images: Tensor, labels: Tensor, totals: Tensor) -> None:
        """One step; adds (loss, penalty, correct, images, steps that were not finite) to `totals`. No host sync."""
        logits = self.runnable(images.contiguous(memory_format=self._layout))
        loss = F.cross_entropy(logits, labels)
        penalty = None
        if self._penalty is not None:
            penalty = orthonormality_penalty(self.tt_layers, self._penalty.weight, self._penalty.count)
        total = loss if penalty is None else loss + penalty
        self.fabric.backward(total)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.schedule.step()
        self.counters.step += 1
        if self._retraction is not None:
            for layer in self.tt_layers:
                layer.retract_(self._retraction, self.optimizer)
        began = time.perf_counter()
        self.controller.after_step(self.counters.step, self.optimizer)
        self.control_time += time.perf_counter() - began
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            zero = torch.zeros_like(loss)
            totals += torch.stack(
                [
                    loss.detach().double() * len(labels),
                    (zero if penalty is None else penalty.detach()).double() * len(labels),
                    correct.double(),
                    (zero + len(labels)).double(),
                    (~torch.isfinite(total.detach())).double(),
                ]
            )

    def evaluate(self, data: ImageData) -> dict[str, float]:
        """Loss and accuracy in evaluation mode, each process taking its share."""
        self.model.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        mine = ImageData(data.images[rank::world], data.labels[rank::world], data.classes)
        size = max(1, self.config.batch_size // world) * 2
        with torch.no_grad(), self.fabric.autocast():
            for images, labels in evaluation_batches(mine, size):
                logits = self.model(images.contiguous(memory_format=self._layout)).float()
                loss = F.cross_entropy(logits, labels, reduction="sum")
                correct = (logits.argmax(1) == labels).sum()
                totals += torch.stack([loss.double(), correct.double(), torch.full_like(loss, len(labels)).double()])
        self.model.train()
        loss_sum, correct_sum, count = self._summed(totals).tolist()
        return {"loss": loss_sum / count, "acc": correct_sum / count}

    def _summed(self, totals: Tensor) -> Tensor:
        summed = self.fabric.all_reduce(totals, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def fit(
        self,
        progress: Progress,
        record: Callable[[str, Mapping[str, float]], None],
        save: Callable[[str], None],
        stop: threading.Event,
    ) -> bool:
        """Train to the end; whether it was reached. `save` gets `last`, `best`, `steps` or `interrupted`."""
        per_epoch = self.batches.steps_per_epoch
        progress.start(self.total_steps, self.counters.step)
        self.model.train()
        while self.counters.step < self.total_steps:
            epoch, start = divmod(self.counters.step, per_epoch)
            if not self._epoch(epoch, start, progress, record, save, stop):
                save("interrupted")
                return False
        return True

    def _epoch(
        self,
        epoch: int,
        start: int,
        progress: Progress,
        record: Callable[[str, Mapping[str, float]], None],
        save: Callable[[str], None],
        stop: threading.Event,
    ) -> bool:
        config = self.config
        device = self.fabric.device
        epoch_totals = torch.zeros(5, dtype=torch.float64, device=device)
        totals = torch.zeros_like(epoch_totals)
        began = shown = time.perf_counter()
        first_step = self.counters.step
        self.control_time = 0.0
        for images, labels in self.batches.epoch(epoch, start):
            self.train_step(images, labels, totals)
            step = self.counters.step
            now = time.perf_counter()
            if now - shown > 0.5 or step % config.log.every == 0 or step == self.total_steps:
                epoch_totals += totals
                metrics = self._read(totals, epoch)
                rate = (step - first_step) / max(now - began, 1e-9)
                metrics["images_per_second"] = rate * config.batch_size
                metrics["seconds_left"] = (self.total_steps - step) / rate
                progress.step(step, metrics)
                if step % config.log.every == 0:
                    record("step", {k: metrics[k] for k in ("epoch", "loss", "orthogonal_loss", "acc", "lr")})
                totals.zero_()
                shown = now
            if stop.is_set() and step < self.total_steps:
                return False
            if step >= self.total_steps:
                break
            if config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0:
                self._read(totals, epoch)
                save("steps")
        epoch_totals += totals
        self._finish_epoch(epoch, epoch_totals, time.perf_counter() - began, progress, record, save)
        return True

    def _finish_epoch(
        self,
        epoch: int,
        totals: Tensor,
        seconds: float,
        progress: Progress,
        record: Callable[[str, Mapping[str, float]], None],
        save: Callable[[str], None],
    ) -> None:
        config = self.config
        metrics = self._read(totals, epoch)
        metrics.update(train_time=seconds, clipping_time=self.control_time)
        last = self.counters.step >= self.total_steps
        due = last or (epoch + 1) % config.evaluation.every == 0
        if due:
            self.controller.seal()
            began = time.perf_counter()
            held_out = self.evaluate(self.evaluation_data)
            metrics.update(val_acc=held_out["acc"], val_loss=held_out["loss"], val_time=time.perf_counter() - began)
            if config.log.singular_values:
                for row in self.controller.report():
                    metrics[f"sigma/{row.name}"] = row.largest
                    metrics[f"bound/{row.name}"] = row.bound
            progress.evaluated(metrics)
        record("epoch", metrics)
        if due and config.evaluation.select != "last" and metrics["val_acc"] > self.counters.best_accuracy:
            self.counters.best_accuracy = metrics["val_acc"]
            self.counters.best_step = self.counters.step
            save("best")
        if last or (epoch + 1) % config.checkpoint.every == 0:
            self.controller.seal()
            save("last")

    def _read(self, totals: Tensor, epoch: int) -> dict[str, float]:
        """Means of `totals` over its images; stops the run when a loss was not finite."""
        loss, penalty, correct, count, broken = self._summed(totals.clone()).tolist()
        if broken:
            raise TrainingError(
                f"the loss was not finite in or just before step {self.counters.step}; lower the learning rate "
                "(--init-lr) or the penalty (--orthogonal-k), or control the singular values (--clipping); "
                "last.pt is the last good state, if one was written"
            )
        count = max(count, 1.0)
        return {
            "epoch": epoch + 1,
            "epochs": self.config.epochs,
            "loss": loss / count,
            "orthogonal_loss": penalty / count,
            "acc": correct / count,
            "lr": float(self.schedule.get_last_lr()[0]),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights that a resumed training needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "controller": self.controller.state_dict(),
            "counters": dict(vars(self.counters)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.controller.load_state_dict(state["controller"])
        self.counters = Counters(**state["counters"])


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one ends the process at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
