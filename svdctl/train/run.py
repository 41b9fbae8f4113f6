"""One process's part in a training, from the model to the pictures."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from svdctl.checkpoint.checkpoint_file import Checkpoint, checkpoint_error_on_mismatch, load_network_, write_checkpoint
from svdctl.checkpoint.tensors import digest
from svdctl.config.presets import to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.batches import derived_seed
from svdctl.distributed.failure_detector import FailureDetector
from svdctl.distributed.group import Group
from svdctl.errors import CheckpointError, DivergenceError, TrainingError, UnusableFolderError
from svdctl.layers.batchnorm import share_statistics_
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model
from svdctl.train.logger import RunEnd, RunInfo, RunLog
from svdctl.train.loop import Loop
from svdctl.train.plots import spectra
from svdctl.train.result import TrainResult, finished, interrupted
from svdctl.train.run_hash import starting_hash
from svdctl.train.run_history import History, picked_by, read_best
from svdctl.train.setup import Parts, chosen_kernels
from svdctl.train.starting_spectrum import read_starting_spectrum, write_starting_spectrum
from svdctl.train.trainer import Trainer
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import locked
from svdctl.utils.signals import answer_to_stop, stop_on_signal, terminated_as_interrupt


class TrainingRun:
    """A training in its folder.

    Args:
        config: the whole configuration.
        parts: the data.
        fabric: the processes, launched.
        folder: the run folder, which exists.
        reporter: shows the run.
        detector: learns of requests to stop.
        model: the network of a new run, on the CPU; None: made of the configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        fabric: Fabric,
        folder: Path,
        reporter: Reporter,
        detector: FailureDetector | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.config, self.parts, self.fabric = config, parts, fabric
        self.folder = folder
        self._stopping = () if detector is None else (detector.require_answers, detector.end_at_once)
        self.reporter = reporter if fabric.is_global_zero else Reporter()
        self.model = build_model(config, len(parts.train.classes)) if model is None else model
        if fabric.world_size > 1:
            share_statistics_(self.model)
        self.sizes = input_sizes(self.model, parts.train.image_shape)
        self._saved_step: int | None = None
        """Step of `last.pt`; None: there is none."""

    def execute(
        self,
        history: History | None,
        *,
        is_current: Callable[[], bool] = lambda: True,
        needs_best: bool = False,
        settled: TrainConfig | None = None,
    ) -> TrainResult:
        """Train from the start, or from a checkpoint.

        Args:
            history: what was read of checkpoint and log, before the folder was held.
            is_current: whether that is still what the folder holds.
            needs_best: fail, and do not go on, when the network that was picked is lost.
            settled: what `config.toml` becomes, where files of the folder say other epochs or another place of data.

        Raises:
            UnusableFolderError: another process trains in the folder, or did since the checkpoint was read.
            CheckpointError: the checkpoint's state does not fit; `best.pt` is lost, where it is needed.
        """
        first = self.fabric.is_global_zero
        with locked(self.folder) if first else nullcontext():
            if first and not is_current():
                raise UnusableFolderError(f"another process went on in {self.folder} meanwhile; run the command again")
            return self._train(history, needs_best, settled)

    def _train(self, history: History | None, needs_best: bool, settled: TrainConfig | None) -> TrainResult:
        config = self.config
        # Until the steps begin, reading a weight is none of them: torch's spectral norm makes one in training.
        self.model.eval()
        before = self._starting_spectra(is_resumed=history is not None) if self.fabric.is_global_zero else {}
        if history is not None:
            with checkpoint_error_on_mismatch(self.folder):
                state = {**history.checkpoint.model, **history.training["unsealed"]}
            load_network_(self.model, state, self.folder)
        self.model.to(self.fabric.device)
        controller = Controller.from_config(
            self.model,
            None,  # the trainer's, once it is made
            config.control,
            config.batchnorm,
            sizes=self.sizes,
            seed=derived_seed(config.seed, "control"),
            group=Group.of(self.fabric),
        )
        for notice in controller.notices():
            self.reporter.notice(notice)
        self.trainer = Trainer(
            config,
            self.model,
            self.fabric,
            self.parts.train,
            self.parts.held_out,
            controller,
            notice=self.reporter.notice,
            part=self.reporter.part,
        )
        every = 1 if config.control.kind == "none" else config.control.every_steps
        if every > (steps := self.trainer.total_steps):
            self.reporter.notice(
                f"control is due every {every:,} steps, and the run makes {steps:,}: only proofs at evaluations and "
                "checkpoints keep layers within their maximum; lower `control.every_steps` to control in between"
            )
        if history is not None:
            with checkpoint_error_on_mismatch(self.folder):
                self.trainer.load_state_dict(history.training)
            self._check_best(history.checkpoint, needs_best)
            self._report_lost_lines(history)
        if settled is not None:
            # The checkpoint first: it knows the epochs of before, which config.toml may still say after a kill.
            with chosen_kernels(config.hardware, self.fabric.device):
                self._save("besides")
            if self.fabric.is_global_zero:
                write_atomically(self.folder / "config.toml", to_toml(settled))
        last = self.folder / "last.pt"
        self._saved_step = None if history is None else self.trainer.counters.step

        def stopping() -> str:
            saved = "nothing saved" if self._saved_step is None else f"step {self._saved_step} saved there"
            return f"{loop.to_finish} saved in {last}; a second request ends the run at once, with {saved}"

        with ExitStack() as opened:
            log, save_soon = None, threading.Event()
            if self.fabric.is_global_zero:
                lines = None if history is None else history.lines
                settings = config.model_dump(mode="json")
                step, tell = self.trainer.counters.step, self.reporter.notice
                with self.reporter.part("opening the log"):
                    log = RunLog(RunInfo(self.folder, settings, lines, tell, save_soon.set, step), config.log)
                opened.callback(log.close)
            with (
                chosen_kernels(config.hardware, self.fabric.device),
                stop_on_signal(*self._stopping) as stop,
            ):
                loop = Loop(self.trainer, self.reporter, log, self._save, stop, save_soon)
                with answer_to_stop(stopping):
                    try:
                        completed = loop.run()
                    except DivergenceError as error:
                        saved = f"{last} holds step {self._saved_step}, the last good state"
                        kept = "nothing was saved" if self._saved_step is None else saved
                        raise TrainingError(f"{error}; {kept}") from error
            if completed:
                said = f"all steps are saved in {last}; what is made of them now is not"
                with terminated_as_interrupt(), answer_to_stop(lambda: said):
                    result = finished(self.trainer, self.parts, self.folder, before, self.sizes, self.reporter)
                if log is not None:
                    pictures = {file.stem: file for file in result.files if file.suffix == ".png"}
                    step = self.trainer.counters.step
                    log.finish(RunEnd(step, result.metrics, result.summary, result.layers, pictures))
            else:
                result = interrupted(self.trainer, self.folder)
        self.reporter.finish(result)
        return result

    def _starting_spectra(self, *, is_resumed: bool) -> dict[str, Tensor]:
        """Return the singular values of the network before any training, which the run folder keeps.

        Of a resumed run that began with trained weights, in a folder that lacks them, there are none.
        """
        train = self.parts.train
        network = starting_hash(self.config, len(train.classes), train.image_shape)
        kept = read_starting_spectrum(self.folder, network) if is_resumed else None
        if kept is not None:
            return kept
        if is_resumed and self.config.initial is not None:
            return {}  # the file of those weights is not read again
        # The network was made anew from the seed, also where the run is resumed.
        with self.reporter.part("singular values at the start") as advance:
            found = spectra(self.model, self.sizes, advance)
        write_starting_spectrum(self.folder, network, found)
        return found

    def _report_lost_lines(self, history: History) -> None:
        log, lines = self.folder / "metrics.jsonl", self.trainer.counters.step_lines
        if history.left_out:
            self.reporter.notice(f"{history.left_out} lines of {log} are damaged or foreign; left out")
        if (lost := lines - len(history.steps)) > 0:
            self.reporter.notice(
                f"{log} lacks {lost} of {lines} lines about steps, which are lost; those about epochs are in the "
                "checkpoint"
            )

    def _check_best(self, checkpoint: Checkpoint, needed: bool) -> None:
        """Check `best.pt` before training; one that was written after the checkpoint is the picked one."""
        counters, fault = self.trainer.counters, None
        picked: dict[str, Any] = {}
        if self.config.evaluation.select != "last" and self.fabric.is_global_zero:
            # Files are the first process's affair: others may not see them.
            try:
                data = [self.parts.fingerprint, *[None] * (checkpoint.data is None)]
                best = read_best(self.folder, self.config, counters, checkpoint.model, data)
                picked = {"best_weights": digest(best.model)}
                if (step := int(best.metrics["step"])) != counters.best_step:
                    accuracy, plain = picked_by(best.metrics)
                    picked |= {"best_step": step, "best_accuracy": accuracy, "best_plain_accuracy": plain}
            except CheckpointError as error:
                if counters.best_step == counters.step and digest(checkpoint.model) == counters.best_weights:
                    write_checkpoint(self.folder / "best.pt", replace(checkpoint, training={}))
                elif counters.best_step:
                    fault = str(error)
        fault, picked = self.fabric.broadcast((fault, picked))
        self.trainer.counters = replace(counters, **picked)
        if fault is None:
            return
        if needed:
            raise CheckpointError(fault)
        self.reporter.notice(
            f"the network that was picked is lost: {fault}; unless a later epoch is better than step "
            f"{counters.best_step} was ({counters.best_accuracy:.2%}), the last one is reported instead"
        )

    def _save(self, kind: str) -> None:
        """Write a checkpoint of the sealed network: `best` to `best.pt`, all other kinds to `last.pt`.

        Nothing is written that was not proved here, or since the last step, in an evaluation. After `besides` the run
        goes on with the weights as they were before.
        """
        raw: dict[str, Tensor] = {}
        scheduled = kind not in ("interrupted", "besides")
        if not scheduled and self.trainer.judged is self.model:
            # This seal is not on the run's schedule: what it changes is kept aside, so that resuming is exact.
            raw = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.trainer.seal(scheduled=scheduled)
        sealed = dict(self.trainer.judged.state_dict())
        unsealed = {name: value for name, value in raw.items() if not torch.equal(value, sealed[name])}
        training = {} if kind == "best" else {**self.trainer.state_dict(), "unsealed": unsealed}
        if self.fabric.is_global_zero:
            counters, scale = self.trainer.counters, self.trainer.max_scale
            checkpoint = Checkpoint(
                self.config,
                self.parts.train.classes,
                self.parts.train.image_shape,
                sealed,
                training,
                {
                    "step": counters.step,
                    "best_val_acc": counters.best_accuracy,
                    "best_val_plain_acc": counters.best_plain_accuracy,
                    "departures": counters.departures,
                    **({} if scale is None else {"max_sigma": self.config.control.max_sigma * scale}),
                    **({"other_data_until": counters.other_data_until} if counters.other_data_until else {}),
                },
                self.parts.fingerprint,
            )
            if kind == "last" and self.config.checkpoint.keep:
                # First: once last.pt is there, this epoch is not gone through again.
                write_checkpoint(self.folder / f"epoch-{self.trainer.epoch + 1}.pt", checkpoint)
            write_checkpoint(self.folder / ("best.pt" if kind == "best" else "last.pt"), checkpoint)
        if kind != "best":
            self._saved_step = self.trainer.counters.step
        if kind == "besides":
            with torch.no_grad():
                for name, value in unsealed.items():
                    sealed[name].copy_(value)
        self.fabric.barrier()
