"""CIFAR in the format of its Python version, torchvision's checksums set to these files'."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest


def write_cifar(root: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images under `root`: 16 to train on, 8 to test on, of CIFAR-10 or CIFAR-100."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, labels_key, names_key = {
        10: (CIFAR10, "labels", "label_names"),
        100: (CIFAR100, "fine_labels", "fine_label_names"),
    }[classes]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    meta = kind.meta["filename"]
    generator = np.random.default_rng(0)
    for name, count in (("train", 16), ("test", 8)):
        labels = [int(label) for label in generator.integers(0, classes, count)]
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, labels_key: labels}))
    (folder / meta).write_bytes(pickle.dumps({names_key: [f"class {label}" for label in range(classes)]}))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", meta)}
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[meta]})
