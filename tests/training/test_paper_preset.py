"""A preset of the paper, at full size, for two steps on CIFAR-100 files written here."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from svdctl.checkpoint import read_checkpoint
from svdctl.config.flags import resolve
from svdctl.recipes import train as recipe
from tests.training.test_runs import Recorder


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-100 in the format of its Python version, with torchvision's checksums set to these files'."""
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 16), ("test", 8)):
        labels = [int(label) for label in generator.integers(0, 100, count)]
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {label}" for label in range(100)]}))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})


def test_two_steps_of_wrn_cifar100_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path / "data", monkeypatch)
    flags = {"preset": "wrn-cifar100-divide", "dataset_root": str(tmp_path / "data"), "max_steps": 2, "batch_size": 8,
             "out_dir": str(tmp_path / "runs")}  # fmt: skip
    recorder = Recorder()
    result = recipe.run(resolve(flags).config, base="test", reporter=recorder)
    assert read_checkpoint(result.folder).training["counters"]["step"] == 2
    controlled = [row for row in result.layers if row.allowed is not None]
    assert len(controlled) == 13 + 1 + 13
    assert all(row.bound <= row.allowed for row in controlled)
    assert "9,235,764 parameters, 1.83x" in recorder.lines[1]
