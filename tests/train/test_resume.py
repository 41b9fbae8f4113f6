"""A training that stops anywhere and is resumed leaves what an undisturbed one leaves, to the bit.

Compared are the weights, the state of training, the counters, `best.pt`, every kept `epoch-N.pt`, all lines of the log
but their times, and the figures at the end.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError
from svdctl.train import start as recipe
from svdctl.train.loggers.jsonl_logger import _JsonlWriter as JsonlWriter
from svdctl.train.metrics_log import read_log
from tests.train.test_runs import Recorder

TIMES = ("train_time", "clipping_time", "proof_time", "val_time", "seconds")
STEPS = 3
"""Steps of an epoch."""


class Moments:
    """Copies a run's folder at each moment at which its files change: what a kill at that moment would leave.

    A rename has two moments, before and after it; a line of the log has three, before it, within it and after it.
    """

    def __init__(self, copies: Path, wanted: Callable[[str], bool]) -> None:
        self._copies, self._wanted = copies, wanted
        self.folders: dict[str, Path] = {}

    def pass_by(self, folder: Path, name: str) -> None:
        name = f"{len(self.folders)} {name}"
        self.folders[name] = self._copies / name.replace(" ", "-")
        if self._wanted(name):
            shutil.copytree(folder, self.folders[name])

    @contextmanager
    def copied(self) -> Iterator[None]:
        replace, opening = os.replace, JsonlWriter._open

        def watched_replace(source: Any, target: Any) -> None:
            self.pass_by(Path(target).parent, f"before {Path(target).name}")
            replace(source, target)
            self.pass_by(Path(target).parent, f"after {Path(target).name}")

        def watched_open(writer: JsonlWriter) -> Any:
            return WatchedLog(opening(writer), writer._path.parent, self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", watched_replace)
            patch.setattr(JsonlWriter, "_open", watched_open)
            yield


class WatchedLog:
    """The log's file, each of whose lines is three moments."""

    def __init__(self, file: Any, folder: Path, moments: Moments) -> None:
        self._file, self._folder, self._moments = file, folder, moments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        record = json.loads(text)
        name = f"line of {record['kind']} {record['step']}"
        self._moments.pass_by(self._folder, f"before {name}")
        for part, when in ((text[: len(text) // 2], "within"), (text[len(text) // 2 :], "after")):
            self._file.write(part)
            self._file.flush()
            self._moments.pass_by(self._folder, f"{when} {name}")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn in other tests, and take longer than these runs."""
    import svdctl.train.plots

    for name in ("plot_curves", "plot_spectra", "plot_certified"):
        monkeypatch.setattr(svdctl.train.plots, name, lambda *given, **named: None)


def write_data(path: Path, side: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    parts: dict[str, Any] = {}
    for part, count in (("train", 24), ("test", 9)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 60, (count, side, side, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[side // 3 * label : side // 3 * (label + 1)] += 120
        parts[f"x_{part}"], parts[f"y_{part}"] = images, labels
    np.savez(path, **parts)
    return path


def make(folder: Path, command: str, *sets: str) -> TrainConfig:
    """Three epochs of three steps (21 images in batches of 8), evaluated on a validation part of 3 images."""
    lipconv = command == "train-lipconv"
    data = folder / f"{command}.npz"
    if not data.exists():
        write_data(data, 32 if lipconv else 12)
    if lipconv:
        flags = {"preset": "lipconv-quickstart", "set": ["model.in_channels=2", "layer.rank=2"]}
    else:
        flags = {"preset": "quickstart", "set": ["model.width=1", "model.depth=10", "layer.rank=4"]}
    flags["set"] += ["log.every_steps=1", "checkpoint.keep=true", "evaluation.validation_share=0.13", *sets]  # type: ignore[operator]
    both = {"dataset": f"npz:{data}", "epochs": 3, "batch_size": 8, "select": "validation", "seed": 1}
    return resolve({**both, **flags, "out_dir": str(folder / "runs")}, LIPCONV if lipconv else TRAIN).config


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in a nest of dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: found for k, part in parts for key, found in tensors(part, f"{name}.{k}").items()}


def without_times(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMES}


def assert_same(result: recipe.TrainResult, whole: recipe.TrainResult, case: str) -> None:
    """Check that two finished runs have left the same."""
    names = sorted(path.name for path in whole.folder.glob("*.pt"))
    assert sorted(path.name for path in result.folder.glob("*.pt")) == names, case
    for name in names:
        mine, wanted = read_checkpoint(result.folder / name), read_checkpoint(whole.folder / name)
        assert mine.metrics == wanted.metrics, (case, name)
        assert mine.data == wanted.data is not None, (case, name)
        assert mine.training.get("counters") == wanted.training.get("counters"), (case, name)
        changes = [one.training.get("controller", {}).get("changes") for one in (mine, wanted)]
        assert changes[0] == changes[1], (case, name)
        lines = [[without_times(line) for line in one.training.get("epochs", [])] for one in (mine, wanted)]
        assert lines[0] == lines[1], (case, name)
        first, second = (tensors({"model": one.model, "training": one.training}) for one in (mine, wanted))
        assert first.keys() == second.keys(), (case, name)
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], (case, name)
    logs = [[without_times(line) for line in read_log(run.folder / "metrics.jsonl")] for run in (result, whole)]
    assert logs[0] == logs[1], case
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) == len(logs[1]), case
    assert without_times(result.metrics) == without_times(whole.metrics), case
    assert result.layers == whole.layers, case
    assert result.certified == whole.certified, case


SETS: dict[str, Sequence[str]] = {
    "steps-that-divide": ("checkpoint.every_steps=3",),
    "steps-that-do-not": ("checkpoint.every_steps=2",),
    "seldom": (
        "checkpoint.every_epochs=3",
        "evaluation.every_epochs=2",
        "checkpoint.every_steps=3",
        "evaluation.select=test",
    ),
    "cut-short": ("max_steps=8", "checkpoint.every_steps=2", "log.every_steps=2"),
}
EVERYTHING = [
    pytest.param(command, sets, id=f"{command}-{name}", marks=pytest.mark.slow)
    for command in ("train", "train-lipconv")
    for name, sets in SETS.items()
]


def crash(command: str, sets: Sequence[str], tmp_path: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Resume from what a kill leaves at each moment that is wanted, and compare; all moments."""
    moments = Moments(tmp_path / "moments", wanted)
    with moments.copied():
        whole = recipe.run(make(tmp_path, command, *sets), base="test", reporter=Recorder())
    for name, folder in moments.folders.items():
        if (folder / "last.pt").exists():
            assert_same(recipe.resume(folder, reporter=Recorder()), whole, name)
        elif folder.exists():
            with pytest.raises(CheckpointError, match="there is no checkpoint"):
                recipe.resume(folder, reporter=Recorder())
    return list(moments.folders)


@pytest.mark.parametrize(("command", "sets"), EVERYTHING)
def test_a_kill_at_every_change_of_a_file(command: str, sets: Sequence[str], tmp_path: Path) -> None:
    assert len(crash(command, sets, tmp_path, lambda name: True)) > 40


@pytest.mark.parametrize("command", ["train", pytest.param("train-lipconv", marks=pytest.mark.slow)])
def test_a_kill_at_the_end_of_an_epoch(command: str, tmp_path: Path) -> None:
    """After each change of a file that the first epoch's end makes; it is the best one."""
    passed: list[str] = []

    def is_wanted(name: str) -> bool:
        if not name.endswith("line of step 3") and not passed:
            return False
        passed.append(name.split(" ", 1)[1])
        return "after" in name and passed.count("after last.pt") < 3 and "line of step" not in name

    crash(command, (*SETS["steps-that-divide"], "epochs=2"), tmp_path, is_wanted)
    after = [name.removeprefix("after ") for name in passed if "after" in name]
    assert after[:6] == ["line of step 3", "last.pt", "line of epoch 3", "best.pt", "epoch-1.pt", "last.pt"]
    assert after[6:].count("best.pt") == 0


def stop_in_every_step(command: str, sets: Sequence[str], tmp_path: Path) -> None:
    """Stop by SIGINT in the first step, resume, stop in the second, and so on."""
    config = make(tmp_path, command, *sets)
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=1))
    step = 1
    while not part.completed:
        assert read_checkpoint(part.folder).metrics["step"] == step
        step += 1
        part = recipe.resume(part.folder, reporter=Recorder(interrupt_after=step))
    assert step == read_checkpoint(part.folder).metrics["step"] > STEPS
    assert_same(part, whole, "stopped in every step")


@pytest.mark.parametrize(("command", "sets"), EVERYTHING)
def test_stopped_in_every_step_of_all_kinds(command: str, sets: Sequence[str], tmp_path: Path) -> None:
    stop_in_every_step(command, (*sets, "log.every_steps=1"), tmp_path)


@pytest.mark.parametrize("command", ["train", "train-lipconv"])
def test_stopped_in_every_step(command: str, tmp_path: Path) -> None:
    stop_in_every_step(command, (*SETS["steps-that-do-not"], "epochs=2"), tmp_path)
