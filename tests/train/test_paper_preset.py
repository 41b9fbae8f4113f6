"""Presets of the paper, at full size, for two steps on files in CIFAR's format written here."""

from pathlib import Path

import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.train import start as recipe
from tests.train.cifar_files import write_cifar
from tests.train.test_runs import Recorder


def test_two_steps_of_wrn_cifar100_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "data", 100, monkeypatch)
    flags = {"preset": "wrn-cifar100-divide", "dataset_root": str(tmp_path / "data"), "max_steps": 2, "batch_size": 8,
             "out_dir": str(tmp_path / "runs")}  # fmt: skip
    recorder = Recorder()
    result = recipe.run(resolve(flags).config, base="test", reporter=recorder)
    assert read_checkpoint(result.folder).training["counters"]["step"] == 2
    controlled = [row for row in result.layers if row.allowed is not None]
    assert len(controlled) == 13 + 1 + 13
    assert all(row.bound <= row.allowed for row in controlled)
    assert "9,235,764 parameters, 1.83x" in recorder.lines[1]


@pytest.mark.parametrize(
    ("preset", "classes", "words"),
    [
        ("lipconv5-sott128", 10, "6,101,038 parameters, 2.90x smaller than SOC's 17,668,042"),
        ("lipconv5-cifar100-soc", 100, "SOC convolutions"),
    ],
)
def test_two_steps_of_lipconvnet(
    preset: str, classes: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "data", classes, monkeypatch)
    flags = {"preset": preset, "data_dir": str(tmp_path / "data"), "max_steps": 2, "batch_size": 8,
             "out_dir": str(tmp_path / "runs")}  # fmt: skip
    recorder = Recorder()
    result = recipe.run(resolve(flags, LIPCONV).config, base="test", reporter=recorder)
    assert read_checkpoint(result.folder).training["counters"]["step"] == 2
    assert words in recorder.lines[1]
    (row,) = result.certified
    # Two steps cannot take the penalised frames far; the rest of L is the normalisation.
    assert 1 / 0.2507 <= row.lipschitz < 1.5 / 0.2507
    assert list(row.certified) == [36, 72, 108, 255]
