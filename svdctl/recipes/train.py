"""One controlled training from a configuration to a run folder."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from svdctl.build import build_model, count_parameters
from svdctl.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from svdctl.config.control import NoControl
from svdctl.config.data import Folder, Npz
from svdctl.config.model import TT, Standard, Wrn
from svdctl.config.train import TrainConfig
from svdctl.control import Controller, LayerReport
from svdctl.data.batches import derived_seed
from svdctl.data.images import ImageData
from svdctl.data.sources import load as load_data
from svdctl.data.split import stratified_split
from svdctl.errors import CheckpointError, UsageError
from svdctl.layers.operator import operator_of
from svdctl.layers.shapes import input_sizes
from svdctl.presets import to_toml
from svdctl.runfolder import create_run_folder, locked, write_environment, write_text
from svdctl.runlog import RunLog, read_log
from svdctl.spectral.values import singular_values
from svdctl.training import Progress, Trainer, stop_on_signal

SELECTION = {
    "last": "the last epoch counts",
    "validation": "a part of the training set picks the best epoch",
    "test": "the test set picks the best epoch, as in the paper's code",
}
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}


class Reporter(Progress, Protocol):
    """Who is told what a run is about to do, does and did."""

    def plan(self, lines: Sequence[str]) -> None:
        """Before anything is made."""

    def notice(self, text: str) -> None:
        """Something worth a line."""

    def finished(self, result: "TrainResult") -> None:
        """At the end, or when interrupted."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves."""

    folder: Path
    metrics: dict[str, float]
    summary: list[str]
    layers: list[LayerReport]
    files: list[Path]
    next_commands: list[str]
    completed: bool


def plan(config: TrainConfig, base: str) -> list[str]:
    """What a run would do, in five lines or a few more; needs no data."""
    classes = CLASSES.get(config.data.kind, 10)
    model = build_model(config, classes)
    parameters = count_parameters(model)
    dense = count_parameters(build_model(config.model_copy(update={"layer": Standard()}), classes))
    name = f"WRN-{config.model.depth}-{config.model.width}" if isinstance(config.model, Wrn) else "VGG-19"
    layer = "ordinary convolutions"
    if isinstance(config.layer, TT):
        rank = f"rank {config.layer.rank}" if config.layer.rank else f"ranks {config.layer.rank_scale} of the widths"
        layer = f"TT convolutions, {rank}, frames: {config.layer.frames.kind}"
    compression = f", {dense / parameters:.2f}x smaller than {dense:,}" if parameters != dense else ""
    heads = "" if config.data.kind in CLASSES else " (counted with 10 classes)"
    return [
        f"base     {base}",
        f"model    {name}, {layer}; {parameters:,} parameters{compression}{heads}",
        f"data     {_data_line(config)}",
        f"control  {_control_line(config)}",
        f"training {config.epochs} epochs, batch {config.batch_size}, {config.optimizer.kind} "
        f"lr {config.optimizer.lr:g}, schedule {config.schedule.kind}, seed {config.seed}",
        f"run      {config.out_dir}/{config.name}-<time>, select: {config.evaluation.select}"
        + (
            " (the test set picks the best epoch, as in the paper's code)" if config.evaluation.select == "test" else ""
        ),
    ]


def _data_line(config: TrainConfig) -> str:
    where = f" {config.data.path}" if isinstance(config.data, Folder | Npz) else ""
    augment = config.augment
    changes = ["flip"] * augment.flip + [f"{augment.pad}-padded crop {augment.crop}"] * (augment.crop > 0)
    return f"{config.data.kind}{where}, augmentation: {', '.join(changes) or 'none'}"


def _control_line(config: TrainConfig) -> str:
    control = config.control
    parts = ["none"]
    if not isinstance(control, NoControl):
        parts = [f"{control.kind} convolutions to {control.max:g} every {control.every} steps"]
        if control.linear_max is not None:
            parts.append(f"linear layers to {control.linear_max:g}")
        parts.append("sealed by proof" if control.procedure == "certified" else "paper's procedure, no seal")
    if config.batchnorm is not None:
        parts.append(f"BatchNorm to {config.batchnorm.max:g}")
    return ", ".join(parts)


def run(config: TrainConfig, *, base: str, reporter: Reporter) -> TrainResult:
    """Train from the start in a new run folder.

    Raises:
        UsageError, DataError: before anything is written.
        TrainingError: for a loss that is not finite; what was saved stays.
    """
    fabric = _fabric(config)
    parts = _load_parts(config)
    lines = plan(config, base)
    made = create_run_folder(config.out_dir, config.name) if fabric.is_global_zero else None
    folder = fabric.broadcast(made)
    assert folder is not None
    lines[-1] = f"run      {folder}, {SELECTION[config.evaluation.select]}"
    if fabric.is_global_zero:
        reporter.plan(lines)
        write_text(folder / "config.toml", to_toml(config))
        write_environment(folder, str(fabric.device), config.seed)
    return _Run(config, parts, fabric, folder, reporter).execute(None)


def resume(path: Path, *, hardware: Mapping[str, Any], wandb: str | None = None, reporter: Reporter) -> TrainResult:
    """Go on where a run folder's `last.pt` stands; `hardware` overrides fields of that section, `wandb` that of log."""
    folder = path if path.is_dir() else path.parent
    checkpoint = read_checkpoint(path)
    if not checkpoint.training:
        raise CheckpointError(f"{path} holds no state of training; resume from {folder / 'last.pt'}")
    config = checkpoint.config
    if hardware or wandb:
        table = config.model_dump()
        table["hardware"].update(hardware)
        table["log"]["wandb"] = wandb or config.log.wandb
        config = TrainConfig.model_validate(table)
    fabric = _fabric(config)
    parts = _load_parts(config)
    if parts.train.classes != checkpoint.classes or parts.train.image_shape != checkpoint.image_shape:
        raise CheckpointError(
            f"the data are not those of {path}: {len(parts.train.classes)} classes of {parts.train.image_shape}, "
            f"there {len(checkpoint.classes)} of {checkpoint.image_shape}; restore the data of the run"
        )
    if fabric.is_global_zero:
        step = checkpoint.training["counters"]["step"]
        reporter.plan([f"resume   {folder} after step {step}", *plan(config, str(folder / "config.toml"))[1:-1]])
    return _Run(config, parts, fabric, folder, reporter).execute(checkpoint)


def _fabric(config: TrainConfig) -> Fabric:
    hardware = config.hardware
    devices = hardware.devices
    try:
        fabric = Fabric(
            accelerator=hardware.accelerator,
            devices=devices,
            num_nodes=hardware.num_nodes,
            precision=None if hardware.precision == "32" else hardware.precision,
            strategy="auto" if devices == 1 and hardware.num_nodes == 1 else "ddp",
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        if "accelerator" in str(error).lower() or "device" in str(error).lower() or "cuda" in str(error).lower():
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"--accelerator {hardware.accelerator} is not to be had here ({first[:150]})") from error
        raise
    if config.batch_size % fabric.world_size:
        raise UsageError(
            f"a batch of {config.batch_size} does not divide over {fabric.world_size} processes; change --batch-size"
        )
    return fabric


@dataclass(frozen=True)
class _Parts:
    train: ImageData
    held_out: ImageData
    test: ImageData


def _load_parts(config: TrainConfig) -> _Parts:
    data = load_data(config.data)
    if config.evaluation.select == "validation":
        seed = derived_seed(config.seed, "validation")
        train, held_out = stratified_split(data.train, config.evaluation.validation_share, seed)
        return _Parts(train, held_out, data.test)
    return _Parts(data.train, data.test, data.test)


class _Run:
    """One process's part in a run, from the model to the pictures."""

    def __init__(self, config: TrainConfig, parts: _Parts, fabric: Fabric, folder: Path, reporter: Reporter) -> None:
        self.config, self.parts, self.fabric = config, parts, fabric
        self.folder, self.reporter = folder, reporter
        self.model = build_model(config, len(parts.train.classes))
        self.sizes = input_sizes(self.model, parts.train.image_shape)

    def execute(self, checkpoint: Checkpoint | None) -> TrainResult:
        if not self.fabric.is_global_zero:
            return self._train(checkpoint)
        with locked(self.folder):
            return self._train(checkpoint)

    def _train(self, checkpoint: Checkpoint | None) -> TrainResult:
        config = self.config
        # Made anew from the seed even when resuming: the picture shows the weights before any training.
        before = _spectra(self.model, self.sizes)
        if checkpoint is not None:
            self.model.load_state_dict({**checkpoint.model, **checkpoint.training["unsealed"]})
        self.model.to(self.fabric.device)
        controller = Controller(
            self.model, config.control, config.batchnorm, sizes=self.sizes, seed=derived_seed(config.seed, "control")
        )
        self.trainer = Trainer(config, self.model, self.fabric, self.parts.train, self.parts.held_out, controller)
        if checkpoint is not None:
            self.trainer.load_state_dict(checkpoint.training)
        log = None
        if self.fabric.is_global_zero:
            flat = config.model_dump(mode="json")
            log = RunLog(self.folder, config.log, flat, step=self.trainer.counters.step)
        began = time.perf_counter()
        try:
            with stop_on_signal() as stop:
                completed = self.trainer.fit(self._progress(), self._record(log), self._save, stop)
        finally:
            if log is not None:
                log.close()
        return self._finish(before, completed, time.perf_counter() - began)

    def _progress(self) -> Progress:
        return self.reporter if self.fabric.is_global_zero else _Silent()

    def _record(self, log: RunLog | None) -> Any:
        def record(kind: str, metrics: Mapping[str, float]) -> None:
            if log is not None:
                log.write(kind, self.trainer.counters.step, metrics)

        return record

    def _save(self, kind: str) -> None:
        """Write a checkpoint: `last`, `steps`, `interrupted` to `last.pt`, `best` to `best.pt`."""
        unsealed: dict[str, Tensor] = {}
        if kind == "interrupted":
            # This seal is not on the run's schedule: what it changes is kept aside, so that resuming is exact.
            raw = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.trainer.controller.seal()
            sealed = self.model.state_dict()
            unsealed = {name: value for name, value in raw.items() if not torch.equal(value, sealed[name])}
        else:
            self.trainer.controller.seal()
        if self.fabric.is_global_zero:
            training = {} if kind == "best" else {**self.trainer.state_dict(), "unsealed": unsealed}
            checkpoint = Checkpoint(
                self.config,
                self.parts.train.classes,
                self.parts.train.image_shape,
                dict(self.model.state_dict()),
                training,
                {"step": self.trainer.counters.step, "best_val_acc": self.trainer.counters.best_accuracy},
            )
            write_checkpoint(self.folder / ("best.pt" if kind == "best" else "last.pt"), checkpoint)
            epoch = self.trainer.counters.step // self.trainer.batches.steps_per_epoch
            if kind == "last" and self.config.checkpoint.keep:
                write_checkpoint(self.folder / f"epoch-{epoch}.pt", checkpoint)
        self.fabric.barrier()

    def _finish(self, before: dict[str, Tensor], completed: bool, seconds: float) -> TrainResult:
        folder = self.folder
        resume_command = f"svdctl train --resume {folder}"
        if not completed:
            counters = self.trainer.counters
            result = TrainResult(
                folder,
                {},
                [f"interrupted after step {counters.step}; the state is saved"],
                [],
                [folder / "last.pt"],
                [resume_command],
                completed=False,
            )
            if self.fabric.is_global_zero:
                self.reporter.finished(result)
            return result
        test = self.trainer.evaluate(self.parts.test.to(self.fabric.device))
        metrics = {"test_acc": test["acc"], "test_loss": test["loss"], "seconds": seconds}
        summary = [f"test accuracy {test['acc']:.2%} after the last epoch ({len(self.parts.test):,} images)"]
        select = self.config.evaluation.select
        layers = self.trainer.controller.report() if self.fabric.is_global_zero else []
        if select != "last":
            best = read_checkpoint(folder / "best.pt")
            self.model.load_state_dict(best.model)
            chosen = self.trainer.evaluate(self.parts.test.to(self.fabric.device))
            metrics["best_test_acc"] = chosen["acc"]
            where = "validation part" if select == "validation" else "test set itself (as the paper's code did)"
            summary.append(
                f"test accuracy {chosen['acc']:.2%} of best.pt (step {best.metrics['step']}), chosen on the {where}"
            )
            last = read_checkpoint(folder / "last.pt")
            self.model.load_state_dict(last.model)
        files = [folder / name for name in ("config.toml", "environment.json", "metrics.jsonl", "last.pt")]
        files += [folder / "best.pt"] * (select != "last")
        if self.fabric.is_global_zero:
            files += self._pictures(before)
        commands = [f"svdctl train --preset {folder / 'config.toml'} --seed {self.config.seed + 1}"]
        result = TrainResult(folder, metrics, summary, layers, files, commands, completed=True)
        if self.fabric.is_global_zero:
            self.reporter.finished(result)
        return result

    def _pictures(self, before: dict[str, Tensor]) -> list[Path]:
        from svdctl.plots import plot_curves, plot_spectra  # matplotlib takes a second to import

        curves, spectrum = self.folder / "curves.png", self.folder / "spectrum.png"
        held_out = "validation part" if self.config.evaluation.select == "validation" else "test set"
        plot_curves(read_log(self.folder / "metrics.jsonl"), curves, held_out=held_out)
        controller = self.trainer.controller
        allowed = {name: controller.allowed(name) for name in controller.layers}
        plot_spectra(before, _spectra(self.model, self.sizes), allowed, spectrum)
        return [curves, spectrum]


class _Silent:
    """Progress of the processes that do not speak."""

    def start(self, total_steps: int, done: int) -> None: ...

    def step(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def evaluated(self, metrics: Mapping[str, float]) -> None: ...


def _spectra(model: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Singular values of each layer for the picture: exact, on inputs of at most 8 output points an axis."""
    spectra = {}
    for name, size in sizes.items():
        conv = operator_of(model.get_submodule(name))
        small = tuple(
            max(1, min(8, length // stride)) * stride for length, stride in zip(size, conv.stride, strict=True)
        )
        values = singular_values(conv, small, accuracy="fast")
        # A picture has some hundred pixels across: no more points than that.
        index = torch.linspace(0, len(values) - 1, min(len(values), 400)).round().long()
        spectra[name] = values[index.to(values.device)].cpu()
    return spectra
