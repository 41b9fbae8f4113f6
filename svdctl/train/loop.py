"""The training loop of both training commands: epochs, evaluations and checkpoints, in this order."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from svdctl.checkpoint.tensors import digest
from svdctl.control.change_counts import Changes
from svdctl.distributed.group import Group
from svdctl.train.logger import RunLog
from svdctl.train.metrics_log import line_digest, make_line
from svdctl.train.trainer import EPOCH, SINCE_RECORD, Trainer
from svdctl.train.validation import Accuracy
from svdctl.utils.progress import Reporter

SYNC_EVERY = 0.5
"""Seconds between two reads of the totals, each of which waits for the device."""
SAVE_EVERY = 600.0
"""Seconds within an epoch after which `last.pt` is written whatever the schedule is."""


@dataclass
class Loop:
    """The steps, evaluations and checkpoints of a training, up to its last step."""

    trainer: Trainer
    reporter: Reporter
    log: RunLog | None
    """None in processes other than the first."""
    save: Callable[[str], None]
    """Seals and writes; gets `last`, `best`, `steps`, `interrupted` or `besides`."""
    stop: threading.Event
    save_soon: threading.Event = field(default_factory=threading.Event)
    """Set when `last.pt` should be written whatever the schedule is; cleared when it is."""
    to_finish: str = "the step is finished and"
    """What is still done after a request to stop: the beginning of a sentence that ends with `saved in`."""
    _clock: float = 0.0
    _written: float = 0.0
    """When `last.pt` was written last, or the training began."""

    def run(self) -> bool:
        """Train to the end; return whether it was reached, False when the run was stopped and saved."""
        trainer = self.trainer
        self.reporter.begin("training")
        trainer.model.train()
        self._clock = self._written = time.perf_counter()
        if not trainer.counters.epoch_finished and trainer.at_epoch_end:
            self._finish_epoch()  # it was saved after its last step, and not gone on with
        while trainer.counters.step < trainer.total_steps:
            if not self._train_epoch():
                return False
            self.to_finish = f"epoch {trainer.epoch + 1} is evaluated, another step made and"
            if trainer.counters.step >= trainer.total_steps:
                self.to_finish = "the last epoch is evaluated and"
            self._finish_epoch()
            self.to_finish = type(self).to_finish
        return True

    def _train_epoch(self) -> bool:
        """Make the steps that the epoch lacks; return False when the run was stopped and saved among them."""
        trainer, config = self.trainer, self.trainer.config
        epoch, start = divmod(trainer.counters.step, trainer.batches.steps_per_epoch)
        began = self._clock = time.perf_counter()
        first_step = trainer.counters.step
        syncs = _SyncSchedule(trainer.group, first_step)
        for batch in trainer.batches.epoch(epoch, start):
            trainer.train_step(batch)
            step = trainer.counters.step
            last = step >= trainer.total_steps
            synced = syncs.is_due(step) or step % config.log.every_steps == 0 or last
            if synced:
                metrics = trainer.read(trainer.totals[SINCE_RECORD], epoch)
                rate = (step - first_step) / max(time.perf_counter() - began, 1e-9)
                metrics["images_per_second"] = rate * config.batch_size
                metrics["seconds_left"] = (trainer.total_steps - step) / rate
                self.reporter.advance(step, trainer.total_steps, metrics)
                if step % config.log.every_steps == 0:
                    self._record("step", {k: metrics[k] for k in ("epoch", "loss", "orthogonal_loss", "acc", "lr")})
                    trainer.totals[SINCE_RECORD].zero_()
                    trainer.check_frames()
            overdue = time.perf_counter() - self._written > SAVE_EVERY or self.save_soon.is_set()
            stops, overdue = syncs.agreed(step, synced, self.stop.is_set(), overdue)
            if last:
                break
            due = config.checkpoint.every_steps is not None and step % config.checkpoint.every_steps == 0
            if trainer.controller.is_proof_due(step) and not (due or (trainer.at_epoch_end and any(self._ends(epoch)))):
                self._prove(epoch)
            if due or stops or (overdue and not trainer.at_epoch_end):
                trainer.read(trainer.totals[EPOCH], epoch)  # nothing that is not finite is saved
                self._note_time()
                # A stop at a step that is saved anyway must leave what an undisturbed run leaves.
                self._save("steps" if due else "interrupted" if stops else "besides")
            if stops:
                return False
        return True

    def _ends(self, epoch: int) -> tuple[bool, bool]:
        """Return whether the network is evaluated, and sealed to be saved, after the last step of an epoch."""
        config, last = self.trainer.config, self.trainer.counters.step >= self.trainer.total_steps
        return (
            last or (epoch + 1) % config.evaluation.every_epochs == 0,
            last or (epoch + 1) % config.checkpoint.every_epochs == 0,
        )

    def _prove(self, epoch: int) -> None:
        """Prove all layers to be within their maxima, and log a line with the bounds, and the maxima where these move.

        The bound of a layer that was proved to be at most its maximum, and no more, is that maximum.
        """
        trainer = self.trainer
        trainer.read(trainer.totals[EPOCH], epoch)  # nothing that is not finite is proved; the device has caught up
        proved = trainer.prove()
        # Of the largest bound over its maximum, as it was found: what is above 1 was scaled.
        found = 1 / trainer.controller.smallest_factor
        bounds = {f"bound/{name}": bracket.upper for name, bracket in proved.items()}
        if trainer.max_scale is not None:
            maxima = {name: trainer.controller.maximum(name) for name in proved}
            bounds |= {f"max/{name}": most for name, most in maxima.items() if most is not None}
        self._record("proof", {"epoch": epoch + 1, "found": found, **bounds})

    def _note_time(self) -> None:
        """Add the time since the last call to that of the epoch."""
        now = time.perf_counter()
        self.trainer.train_time += now - self._clock
        self._clock = now

    def _finish_epoch(self) -> None:
        """Evaluate, record and save what is due after an epoch's last step.

        What is saved before the end of this says that the epoch is not finished; resuming does all of it again, to the
        same bits.
        """
        trainer, config, epoch = self.trainer, self.trainer.config, self.trainer.epoch
        metrics = trainer.read(trainer.totals[EPOCH], epoch)
        trainer.check_frames()
        self._note_time()
        metrics.update(train_time=trainer.train_time, clipping_time=trainer.control_time)
        if trainer.proof_time:
            metrics["proof_time"] = trainer.proof_time
        evaluated, saved = self._ends(epoch)
        if trainer.max_scale is not None:
            metrics["max_sigma"] = config.control.max_sigma * trainer.max_scale
        if evaluated:
            trainer.seal()
            began = time.perf_counter()
            held_out = trainer.evaluate(trainer.evaluation_data)
            metrics.update(val_acc=held_out.accuracy, val_loss=held_out.loss)
            metrics.update(_certified(trainer, held_out), val_time=time.perf_counter() - began)
            for row in trainer.report():
                metrics |= {f"sigma/{row.name}": row.largest, f"bound/{row.name}": row.bound}
                metrics |= {} if row.maximum is None else {f"max/{row.name}": row.maximum}
            metrics |= _changed(trainer.controller.changes())
            self.reporter.finish(metrics)
        # Before the maximum is the one that was asked for, none is picked.
        is_final = trainer.max_scale in (None, 1.0)
        best = evaluated and is_final and config.evaluation.select != "last" and self._is_best(metrics)
        self._record("epoch", metrics)
        trainer.counters.epoch_finished = True
        trainer.start_epoch()
        if best:
            self.save("best")
        self._save("last" if saved else "besides")

    def _save(self, kind: str) -> None:
        """Write `last.pt`, and count the time to the next such write from now."""
        self.save(kind)
        self._written = time.perf_counter()
        self.save_soon.clear()

    def _record(self, kind: str, metrics: Mapping[str, float]) -> None:
        """Log a line about a `step`, `proof` or `epoch`; checkpoints hold those about epochs, digests of the others."""
        trainer = self.trainer
        line = make_line(kind, trainer.counters.step, metrics)
        if kind == "epoch":
            trainer.epochs.append(line)
        else:
            trainer.step_digests.append(line_digest(line))
        if self.log is not None:
            self.log.write(line)
        trainer.counters.step_lines += kind != "epoch"

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Return whether this network beats all before it, and count it if so; certified accuracy goes before plain."""
        counters = self.trainer.counters
        plain = metrics["val_acc"]
        accuracy = metrics.get("val_certified_acc", plain)
        known = (counters.best_accuracy, counters.best_plain_accuracy)
        # A best.pt that was written after the checkpoint which was resumed comes once more, with its step.
        if (accuracy, plain) < known or ((accuracy, plain) == known and counters.step != counters.best_step):
            return False
        counters.best_accuracy, counters.best_plain_accuracy = accuracy, plain
        counters.best_step, counters.best_weights = counters.step, digest(self.trainer.judged.state_dict())
        return True


class _SyncSchedule:
    """Steps at which totals are read, some two a second: the same in all processes, by the clock of the first one."""

    def __init__(self, group: Group, step: int) -> None:
        self._group = group
        self._last, self._next = step, step + 1
        self._when = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Return whether the totals should be read now."""
        if self._group.alone:
            return time.perf_counter() - self._when > SYNC_EVERY
        return step >= self._next

    def agreed(self, step: int, synced: bool, stop: bool, save: bool) -> tuple[bool, bool]:
        """Return whether a stop was requested of any process, and whether the first one wants to save.

        Several processes find out at the next read alone.
        """
        if synced:
            now = time.perf_counter()
            rate = (step - self._last) / max(now - self._when, 1e-9)
            self._last, self._when = step, now
        if self._group.alone:
            return stop, save
        if not synced:
            return False, False
        first = self._group.rank == 0
        ahead = max(1, int(rate * SYNC_EVERY)) if first else 0
        told = torch.tensor([stop, save and first, ahead], dtype=torch.float64, device=self._group.device)
        stops, saves, ahead = map(int, self._group.summed_(told).tolist())
        self._next = step + ahead
        return stops > 0, saves > 0


def _changed(changes: Changes) -> dict[str, float]:
    """Return how often control and the limit on BatchNorm were applied, and changed each layer."""
    found: dict[str, float] = {}
    for key, one in (("control_calls", changes.control), ("batchnorm_calls", changes.batchnorm)):
        if one.changed:
            found |= {key: one.applied, **{f"changed/{name}": count for name, count in one.changed.items()}}
    return found


def _certified(trainer: Trainer, held_out: Accuracy) -> dict[str, float]:
    """Return the further figures of an epoch of a run with certificates."""
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
