"""Presets of the paper, at full size: what they build, and, as slow tests, two steps on files in CIFAR's format."""

from pathlib import Path

import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.models.build import build_model
from svdctl.train import start as recipe
from tests.train.cifar_files import write_cifar
from tests.train.test_runs import Recorder

WORDS = {
    "wrn-cifar100-divide": "9,235,764 parameters, 1.83x",
    "lipconv5-sott128": "6,101,038 parameters, 2.90x smaller than SOC's 17,668,042",
    "lipconv5-cifar100-soc": "SOC convolutions",
}


def preset_config(preset: str, **flags: object) -> TrainConfig:
    return resolve({"preset": preset, **flags}, LIPCONV if preset.startswith("lipconv") else TRAIN).config


@pytest.mark.parametrize("preset", WORDS)
def test_a_plan_has_the_papers_network(preset: str) -> None:
    assert WORDS[preset] in recipe.plan(preset_config(preset), "test")[1]


def test_wrn_cifar100_divide_controls_all_layers_and_norms() -> None:
    config = preset_config("wrn-cifar100-divide")
    controller = Controller.from_config(build_model(config, 100), None, config.control, config.batchnorm)
    assert config.batchnorm is not None
    assert len(controller.controlled()) == 13 + 1
    assert len(controller.norms) == 13


@pytest.mark.slow
def test_two_steps_of_wrn_cifar100_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "data", 100, monkeypatch)
    flags = {"preset": "wrn-cifar100-divide", "dataset_root": str(tmp_path / "data"), "max_steps": 2, "batch_size": 8,
             "out_dir": str(tmp_path / "runs")}  # fmt: skip
    recorder = Recorder()
    result = recipe.run(resolve(flags).config, base="test", reporter=recorder)
    assert read_checkpoint(result.folder).training["counters"]["step"] == 2
    controlled = [row for row in result.layers if row.maximum is not None]
    assert len(controlled) == 13 + 1 + 13
    assert all(row.bound <= row.maximum for row in controlled)
    assert WORDS["wrn-cifar100-divide"] in recorder.lines[1]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "classes"), [("lipconv5-sott128", 10), ("lipconv5-cifar100-soc", 100)])
def test_two_steps_of_lipconvnet(preset: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "data", classes, monkeypatch)
    flags = {"preset": preset, "data_dir": str(tmp_path / "data"), "max_steps": 2, "batch_size": 8,
             "out_dir": str(tmp_path / "runs")}  # fmt: skip
    recorder = Recorder()
    result = recipe.run(resolve(flags, LIPCONV).config, base="test", reporter=recorder)
    assert read_checkpoint(result.folder).training["counters"]["step"] == 2
    assert WORDS[preset] in recorder.lines[1]
    (row,) = result.certified
    # Two steps cannot take the penalised frames far; the rest of L is the normalisation.
    assert 1 / 0.2507 <= row.lipschitz < 1.5 / 0.2507
    assert list(row.certified) == [36, 72, 108, 255]
