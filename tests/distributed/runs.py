"""The trainings that several processes must do as one does, in float64.

    python runs.py train DATA OUT DEVICES STEPS KIND ... # leaves the weights of every process
    python runs.py lose DATA OUT DEVICES KIND          # process 1 kills itself after step 9
    python runs.py stop DATA OUT DEVICES KIND          # stopped by SIGTERM in step 8; `whole`: not stopped
    python runs.py resume FOLDER DEVICES

In float64 the order of sums makes differences near 1e-16, which twenty steps do not raise above 1e-9. In float32 some
of these trainings end as far apart as with another layout of memory in one process: some percent.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.distributed.failure_detector import end_together
from svdctl.models.build import build_model
from svdctl.train import run as module
from svdctl.train import start as recipe
from svdctl.train import starting_network
from svdctl.train.setup import launch, load_parts
from svdctl.train.trainer import Trainer
from svdctl.utils.progress import Reporter
from tests import dots

TT = {"kind": "tt", "rank": 4}
KINDS: dict[str, dict[str, Any]] = {
    "none-dense": {"layer": {"kind": "standard"}, "control": {"kind": "none"}},
    "clip-retract": {
        "layer": {**TT, "frames": {"kind": "retract"}},
        "control": {"kind": "clip", "max_sigma": 1, "every_steps": 4},
    },
    "clip-parametrize": {
        "layer": {**TT, "frames": {"kind": "parametrize"}},
        "control": {"kind": "clip", "max_sigma": 1, "every_steps": 4},
    },
    "divide-penalty": {
        "layer": {**TT, "frames": {"kind": "penalty", "weight": 10}}, "control": {"kind": "divide", "max_sigma": 1},
    },
    "divide-retract": {"layer": {**TT, "frames": {"kind": "retract"}}, "control": {"kind": "divide", "max_sigma": 1}},
    "each-free-adam": {
        "layer": {**TT, "frames": {"kind": "free"}}, "control": {"kind": "divide-each", "max_sigma": 1},
        "optimizer": {"kind": "adam", "lr": 0.003},
    },
    "assign-dense": {"layer": {"kind": "standard"}, "control": {"kind": "assign", "max_sigma": 1, "every_steps": 5}},
    "recipe": {
        "layer": {**TT, "frames": {"kind": "retract"}}, "ema": {"decay": 0.8},
        "control": {"kind": "divide", "max_sigma": 1, "max_sigma_start": 4, "max_sigma_epochs": 4},
        "optimizer": {"kind": "adamw", "lr": 0.003, "clip_norm": 1},
        "loss": {"kind": "cross-entropy", "label_smoothing": 0.1},
        "augment": {"flip": True, "crop": 2, "mixup": 0.4}, "accumulate": 2,
    },
    "lipconv-sott": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "retract"}}},
    "lipconv-soc": {"layer": {"kind": "soc"}},
}  # fmt: skip


def write(path: Path, count: int, side: int = 32) -> Path:
    """Three classes: the brightest third of the image tells."""
    generator = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, images_of_it in (("train", count), ("test", 15)):
        labels = np.arange(images_of_it) % 3
        images = generator.integers(0, 60, (images_of_it, side, side, 3), dtype=np.uint8)
        third = side // 3
        for image, label in zip(images, labels, strict=True):
            image[third * label : third * label + third] += 150
        parts[f"x_{part}"], parts[f"y_{part}"] = images, labels
    np.savez(path, **parts)
    return path


def make(data: Path, out: Path, kind: str, *, steps: int = 20, **hardware: Any) -> TrainConfig:
    """Of 38 images three are for validation, so that the last batch of an epoch, its third step, has three."""
    lipconv = kind.startswith("lipconv")
    base = ["model.in_channels=2"] if lipconv else ["model.width=1"]
    flags: dict[str, Any] = {
        "preset": "lipconv-quickstart" if lipconv else "quickstart", "dataset": f"npz:{data}", "batch_size": 16,
        "epochs": 7, "max_steps": steps, "out_dir": str(out), "name": kind,
        "set": [*base, "log.every_steps=1", "augment.flip=true", "evaluation.every_epochs=7"],
    }  # fmt: skip
    table = resolve(flags, LIPCONV if lipconv else TRAIN).config.model_dump()
    return TrainConfig.model_validate({**table, **KINDS[kind], "hardware": {"accelerator": "cpu", **hardware}})


def train(data: Path, out: Path, devices: int, steps: int, kinds: Sequence[str]) -> None:
    """Train each kind; every process leaves its own weights as `KIND-DEVICES.RANK.pt`."""
    fabric = launch(make(data, out, kinds[0], devices=devices))
    with end_together(fabric, lambda: ""):
        for kind in kinds:
            config = make(data, out, kind, steps=steps, devices=devices)
            folder = out / f"{kind}-{devices}"
            if fabric.is_global_zero:
                folder.mkdir(parents=True)
            run = module.TrainingRun(config, load_parts(config), fabric, folder, Reporter())
            assert run.execute(None).completed
            torch.save(run.model.state_dict(), out / f"{kind}-{devices}.{fabric.global_rank}.pt")


def double_network(*given: Any) -> nn.Module:
    """What a run trains in place of its network: the same in float64, whose sums hardly depend on their order."""
    return build_model(*given).double()


def lose(data: Path, out: Path, devices: int, kind: str) -> None:
    """Train with a checkpoint every four steps, until process 1 is gone."""
    step = Trainer.train_step

    def fatal(trainer: Trainer, *given: Any) -> None:
        step(trainer, *given)
        if trainer.counters.step == 9 and trainer.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.train_step = fatal
    config = make(data, out, kind, devices=devices)
    checkpoint = config.checkpoint.model_copy(update={"every_steps": 4})
    recipe.run(config.model_copy(update={"checkpoint": checkpoint}), base="test", reporter=Reporter())


def stop(data: Path, out: Path, devices: int, kind: str, at: int | None) -> None:
    """Train with evaluations, each epoch of three steps; the first process asks for a stop in a step."""

    class Stopping(Reporter):
        def advance(self, done: int, total: int, now: str | Mapping[str, float]) -> None:
            if done == at:
                os.kill(os.getpid(), signal.SIGTERM)

    config = make(data, out, kind, devices=devices)
    evaluation = config.evaluation.model_copy(update={"every": 1})
    recipe.run(config.model_copy(update={"evaluation": evaluation}), base="test", reporter=Stopping())


if __name__ == "__main__":
    dots.put()
    mode, *rest = sys.argv[1:]
    module.build_model = starting_network.build_model = double_network
    if mode == "resume":
        recipe.resume(Path(rest[0]), changes={"hardware": {"devices": int(rest[1])}}, reporter=Reporter())
    elif mode in ("stop", "whole"):
        stop(Path(rest[0]), Path(rest[1]), int(rest[2]), rest[3], 8 if mode == "stop" else None)
    elif mode == "lose":
        lose(Path(rest[0]), Path(rest[1]), int(rest[2]), rest[3])
    else:
        train(Path(rest[0]), Path(rest[1]), int(rest[2]), int(rest[3]), rest[4:])
