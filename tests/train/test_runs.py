"""Whole small runs: resumed, interrupted, broken."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svdctl
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.cli.training_progress import result_lines
from svdctl.config.train_config import TrainConfig
from svdctl.control.actions import is_layer_bounded
from svdctl.errors import BusyFolderError, CheckpointError, DataError, TrainingError, UsageError
from svdctl.layers.layer_operator import batchnorm_gain
from svdctl.models.build import build_model
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import create_run_folder, locked


class Recorder(Reporter):
    """A reporter that remembers, and may stop the run at a step as Ctrl-C would."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.result: object = None
        self.interrupt_after = interrupt_after

    def say(self, text: str) -> None:
        self.lines.append(text)

    notice = say

    def advance(self, done: int, total: int, now: str | Mapping[str, float]) -> None:
        if done == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)

    def finish(self, result: object) -> None:
        if isinstance(result, Mapping):
            self.lines.append(str(result["val_acc"]))
        else:
            self.result = result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A learnable data set of three classes: the brightest third of the image tells."""
    generator = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    parts = {}
    for part, count in (("train", 60), ("test", 30)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 60, (count, 12, 12, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * label : 4 * label + 4] += 150
        parts[f"x_{part}"], parts[f"y_{part}"] = images, labels
    np.savez(path, **parts)
    return path


def make(data: Path, *sets: str, **flags: Any) -> TrainConfig:
    base = ["model.width=1", "layer.rank=6", "log.every_steps=1", "augment.flip=true"]
    return resolve(
        {"dataset": f"npz:{data}", "preset": "quickstart", "epochs": 4, "batch_size": 16,
         "out_dir": str(data.parent / "runs"), "set": [*base, *sets], **flags}
    ).config  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "last.pt").model


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


KINDS = [
    (),
    ("control.kind=clip", "control.max_sigma=1.5", "control.every_steps=3"),
    pytest.param(
        ("control.kind=divide", "control.max_sigma=1.5", "layer.frames.kind=penalty", "layer.frames.weight=10"),
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ("control.kind=divide-each", "control.max_sigma=1.5", "layer.frames.kind=free"), marks=pytest.mark.slow
    ),
    ("control.kind=assign", "control.max_sigma=1.5", "control.every_steps=5", "layer.frames.kind=parametrize"),
    ("control.kind=divide-exact", "control.max_sigma=1.5", "layer.kind=standard", "optimizer.kind=adam"),
]


@pytest.mark.parametrize("sets", KINDS, ids=lambda sets: "-".join(s.split("=")[1] for s in sets[::2]) or "quick")
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(data: Path, sets: tuple[str, ...]) -> None:
    if "layer.kind=standard" in sets:
        config = make(data, epochs=2)
        config = TrainConfig.model_validate(
            {**config.model_dump(), "layer": {"kind": "standard"}, "optimizer": {"kind": "adam", "lr": 0.01},
             "control": {"kind": "divide-exact", "max_sigma": 1.5}}
        )  # fmt: skip
    else:
        config = make(data, *sets, epochs=2)
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=6))
    assert not part.completed
    assert f"svdctl train --resume {part.folder}" in "\n".join(result_lines(part))
    # The interrupted checkpoint is sealed too.
    assert_bounded(part.folder, config)
    resumed = recipe.resume(part.folder, reporter=Recorder())
    assert resumed.completed
    assert resumed.folder == part.folder
    assert_equal(weights(whole.folder), weights(part.folder))
    for log in (read_log(run.folder / "metrics.jsonl") for run in (whole, part)):
        steps = [record["step"] for record in log if record["kind"] == "step"]
        assert steps == list(range(1, len(steps) + 1))


def assert_bounded(folder: Path, config: TrainConfig) -> None:
    model = svdctl.load(folder)
    layers = 0
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, torch.nn.Conv2d | svdctl.TTConv2d):
            layers += 1
            assert is_layer_bounded(layer, config.control.max_sigma), name
        elif kind == "BatchNorm2d" and config.batchnorm is not None:
            assert batchnorm_gain(layer) <= config.batchnorm.max_gain
    assert layers == 7


@pytest.mark.drawn
def test_a_run_leaves_what_it_promises(data: Path) -> None:
    config = make(data, "evaluation.select=validation", "control.prove_every_steps=0", epochs=12)
    recorder = Recorder()
    result = recipe.run(config, base="test", reporter=recorder)
    assert recorder.result is result
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "config.toml", "metrics.jsonl", "last.pt", "best.pt", "curves.png", "spectrum.png", "environment.json",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".part")]
    assert all(path.exists() for path in result.files)
    assert resolve({"preset": str(result.folder / "config.toml")}).config == config
    epochs = [record for record in read_log(result.folder / "metrics.jsonl") if record["kind"] == "epoch"]
    assert len(epochs) == 12
    wanted = {"loss", "orthogonal_loss", "acc", "val_acc", "val_loss", "lr", "train_time", "clipping_time", "val_time"}
    assert wanted <= set(epochs[0])
    assert json.loads((result.folder / "environment.json").read_text())["seed"] == 3407
    assert result.metrics["test_acc"] > 0.9
    assert_bounded(result.folder, config)
    for row in result.layers:
        assert row.maximum is None or row.bound <= row.maximum
    model = svdctl.load(result.folder)
    images = torch.from_numpy(np.load(data)["x_test"]).permute(0, 3, 1, 2).float() / 255
    accuracy = (model(images).argmax(1).numpy() == np.load(data)["y_test"]).mean()
    assert accuracy == pytest.approx(result.metrics["test_acc"])


def test_the_same_run_twice_is_bitwise_equal(data: Path) -> None:
    first, second = (recipe.run(make(data, epochs=2), base="test", reporter=Recorder()) for _ in range(2))
    assert first.folder != second.folder
    assert_equal(weights(first.folder), weights(second.folder))


def test_building_leaves_the_global_random_stream(data: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_model(make(data), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(data: Path) -> None:
    config = make(data, "optimizer.lr=1e30", "control.kind=none", "schedule.kind=constant", batch_size=30)
    config = config.model_copy(update={"batchnorm": None})
    with pytest.raises(TrainingError, match=r"step \d+; lower the learning rate"):
        recipe.run(config, base="test", reporter=Recorder())


def test_a_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recipe.run(make(data), base="test", reporter=Recorder()).folder
    before = (folder / "last.pt").read_bytes()
    real = torch.save

    def full(contents: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoint = read_checkpoint(folder)
    from svdctl.checkpoint.checkpoint_file import write_checkpoint

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(folder / "last.pt", checkpoint)
    assert (folder / "last.pt").read_bytes() == before
    assert not list(folder.glob(".*.part"))
    monkeypatch.setattr(torch, "save", real)


def test_damaged_and_foreign_checkpoints_are_refused_in_a_sentence(data: Path) -> None:
    folder = recipe.run(make(data, epochs=1), base="test", reporter=Recorder()).folder
    path = folder / "last.pt"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    good = read_checkpoint(path).model
    for cut in generator.integers(0, len(whole), 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"last\.pt"):
            read_checkpoint(path)
    for place in generator.integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            assert_equal(read_checkpoint(path).model, good)
        except CheckpointError as error:
            assert "last.pt" in str(error)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of svdctl"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(folder / "none.pt")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def test_a_pickle_that_wants_to_run_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "svdctl.checkpoint", "model": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        svdctl.load(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_other_data_under_the_same_path_are_refused_on_resume(data: Path) -> None:
    part = recipe.run(make(data), base="test", reporter=Recorder(interrupt_after=5))
    arrays = dict(np.load(data))
    arrays["x_train"], arrays["x_test"] = arrays["x_train"][:, :8], arrays["x_test"][:, :8]
    np.savez(data, **arrays)
    with pytest.raises(CheckpointError, match="the data are not those"):
        recipe.resume(part.folder, reporter=Recorder())


def test_best_pt_cannot_be_resumed(data: Path) -> None:
    folder = recipe.run(make(data, epochs=1), base="test", reporter=Recorder()).folder
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        recipe.resume(folder / "best.pt", reporter=Recorder())


def test_missing_data_and_bad_folders_leave_no_run_behind(data: Path, tmp_path: Path) -> None:
    config = make(data)
    missing = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "none.npz"})})
    with pytest.raises(DataError):
        recipe.run(missing, base="test", reporter=Recorder())
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="`out_dir`"):
        recipe.run(config.model_copy(update={"out_dir": data}), base="test", reporter=Recorder())


def test_run_folders_never_meet_and_are_locked(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(create_run_folder(tmp_path, "x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8
    with locked(made[0]), pytest.raises(BusyFolderError, match="another process"), locked(made[0]):
        raise AssertionError("the lock was given twice")


def test_wandb_offline_is_real(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = recipe.run(make(data, "log.wandb=offline", epochs=1), base="test", reporter=Recorder()).folder
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains_and_stays_bounded(data: Path, precision: str) -> None:
    config = make(data, epochs=2, precision=precision)
    assert_bounded(recipe.run(config, base="test", reporter=Recorder()).folder, config)


def test_ctrl_c_on_the_command_line(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    from svdctl.config.presets import to_toml

    config.write_text(to_toml(make(data, epochs=5000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "svdctl", "train", "--preset", str(config)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        assert time.monotonic() < deadline
        if line.startswith("epoch   2"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "svdctl train --resume" in output
    assert "\x1b" not in output
    folder = next((tmp_path / "runs").iterdir())
    assert read_checkpoint(folder).training["counters"]["step"] >= 4
    assert tomllib.loads((folder / "config.toml").read_text())["epochs"] == 5000
