"""A learnable data set, networks trained on it in a second, and a reporter that remembers."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.checkpoint.checkpoint_file import Checkpoint, write_checkpoint
from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.evaluate.measure_checkpoint import Failure, FinishedMetric
from svdctl.models.build import build_model
from svdctl.utils.progress import Reporter

CLASSES = 4
SIDE = 12


def write_data(path: Path, *, classes: int = CLASSES, test: int = 40) -> Path:
    """Images whose brightest band tells the class, as `.npz`; most test images are far from the next class."""
    generator = np.random.default_rng(classes)
    parts: dict[str, Any] = {}
    for part, count in (("train", 20 * classes), ("test", test)):
        labels = np.arange(count) % classes
        images = generator.integers(40, 120, (count, SIDE, SIDE, 3), dtype=np.uint8)
        band = SIDE // classes
        for image, label in zip(images, labels, strict=True):
            image[band * label : band * (label + 1)] += generator.integers(10, 80, dtype=np.uint8)
        parts[f"x_{part}"], parts[f"y_{part}"] = images, labels
    np.savez(path, **parts)
    return path


def held_part(path: Path) -> tuple[Tensor, Tensor]:
    """Test images `(N, 3, H, W)` uint8 and labels."""
    arrays = np.load(path)
    return torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(arrays["y_test"])


def write_run(folder: Path, data: Path, *, steps: int = 30, seed: int = 0, name: str = "last.pt") -> Path:
    """A run folder with a trained checkpoint; its path."""
    config = TrainConfig.model_validate(
        {
            "seed": seed,
            "data": {"kind": "npz", "path": str(data)},
            "model": {"kind": "wrn", "depth": 10, "width": 1},
            "evaluation": {"select": "validation", "validation_share": 0.2},
        }
    )
    arrays = np.load(data)
    classes = int(arrays["y_train"].max()) + 1
    model = build_model(config, classes)
    images = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(arrays["y_train"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text("")
    path = folder / name
    shape = (3, SIDE, SIDE)
    names = tuple(str(label) for label in range(classes))
    write_checkpoint(path, Checkpoint(config, names, shape, dict(model.eval().state_dict()), {}, {"step": steps}))
    return path


class Linear(nn.Module):
    """Logits that are linear in the pixels: its Lipschitz constant and its robust radii are known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(pixels.flatten(1))


def build() -> nn.Module:
    """For `--model tests.evaluate.small:build`."""
    return Linear()


def write_linear(path: Path, data: Path) -> Path:
    """A linear classifier fitted to the data, as a bare state dict."""
    arrays = np.load(data)
    images = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(arrays["y_train"])
    torch.manual_seed(0)
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    torch.save(model.state_dict(), path)
    return path


class Recorder(Reporter):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notices: list[str] = []
        self.failures: list[Failure] = []
        self.kept: dict[str, str] = {}
        self.steps: list[tuple[int, int, str]] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, work: object) -> None:
        self.lines.append(str(work))

    def advance(self, done: int, total: int, now: Any) -> None:
        self.steps.append((done, total, now))

    def finish(self, result: object) -> None:
        if isinstance(result, Failure):
            self.failures.append(result)
        elif isinstance(result, FinishedMetric):
            self.kept[result.metric] = result.kept
            self.lines.append(result.text)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def make(*checkpoints: Path, **flags: Any) -> EvaluateConfig:
    """A configuration with short lists of corruptions and attacks."""
    short: dict[str, Any] = {
        "corruptions": ["natural", "contrast", "gaussian_noise", "gaussian_blur"],
        "attacks": ["apgd-ce"],
        "examples": "6",
    }
    return resolve_evaluation({**short, "checkpoints": checkpoints, **flags}).config


class Slow(Linear):
    """The same, taking its time, so that a signal comes in the middle of an attack."""

    def forward(self, pixels: Tensor) -> Tensor:
        time.sleep(0.001)
        return super().forward(pixels)


def build_slow() -> nn.Module:
    """For `--model tests.evaluate.small:build_slow`."""
    return Slow()


class Followed(Linear):
    """The same with a function behind it; its weights have the same names."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels: Tensor) -> Tensor:
        return self.function(super().forward(pixels))


build_logits = build
build_softmax = partial(Followed, partial(torch.softmax, dim=1))
build_log_softmax = partial(Followed, partial(torch.log_softmax, dim=1))
build_sigmoid = partial(Followed, torch.sigmoid)
build_unproved = partial(Followed, torch.special.bessel_j0)
