"""The fingerprint of a data set: it changes with the contents and with nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from svdctl.data.data_source import load
from svdctl.data.fingerprint import fingerprint
from svdctl.data.images import ImageData
from svdctl.data.npz import Npz


def small(count: int = 12) -> ImageData:
    images = (torch.arange(count * 3 * 8 * 8) * 7 % 251).to(torch.uint8).reshape(count, 3, 8, 8)
    return ImageData(images, torch.arange(count) % 3, ("a", "b", "c"))


def one_pixel(data: ImageData) -> ImageData:
    images = data.images.clone()
    images[-1, -1, -1, -1] ^= 1
    return replace(data, images=images)


CHANGES: dict[str, Callable[[ImageData], ImageData]] = {
    "one bit of one pixel": one_pixel,
    "labels shuffled": lambda data: replace(data, labels=data.labels.roll(1)),
    "half the images": lambda data: data.select(torch.arange(len(data) // 2)),
    "twice the images": lambda data: data.select(torch.arange(2 * len(data)) % len(data)),
    "another order": lambda data: data.select(torch.arange(len(data)).flip(0)),
    "a class renamed": lambda data: replace(data, classes=("a", "b", "d")),
    "a class split in two names": lambda data: replace(data, classes=("a", "b", "c", "")),
    "another image shape": lambda data: replace(data, images=data.images.reshape(-1, 3, 4, 16)),
    "another type": lambda data: replace(data, images=data.images.view(torch.int8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_changes_with_the_contents(change: str) -> None:
    data, changed = small(), CHANGES[change](small())
    assert fingerprint(changed) != fingerprint(data)
    assert fingerprint(data, changed) != fingerprint(data, data)
    assert fingerprint(changed, data) != fingerprint(data, changed)


def test_where_train_ends_and_test_begins_counts() -> None:
    data = small()
    halves = [data.select(torch.arange(0, 6)), data.select(torch.arange(6, 12))]
    thirds = [data.select(torch.arange(0, 4)), data.select(torch.arange(4, 12))]
    assert len({fingerprint(*halves), fingerprint(*thirds), fingerprint(data)}) == 3


def test_it_does_not_change_with_layout_threads_or_process() -> None:
    # Twelve MB, so that it is hashed in several blocks.
    data = small(70_000)
    value = fingerprint(data)
    assert len(value) == 64
    transposed = data.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not transposed.is_contiguous()
    assert fingerprint(replace(data, images=transposed)) == value
    assert fingerprint(data.to(torch.device("cpu")).select(torch.arange(70_000))) == value
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert fingerprint(data) == value
    finally:
        torch.set_num_threads(threads)


def test_it_is_the_same_in_every_version() -> None:
    # Stored in checkpoints and results: a change here makes every stored one differ.
    assert fingerprint(small()) == "489295147015f1bff2eeab67f0521a0a935ec523df52217b017ecd3a6135f3c7"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_does_not_change_with_the_device() -> None:
    assert fingerprint(small().to(torch.device("cuda"))) == fingerprint(small())


def test_it_does_not_change_with_the_place_of_the_files(tmp_path: Path) -> None:
    data = small()
    arrays = {"x_train": data.images.numpy(), "y_train": data.labels.numpy()}
    values = set()
    for name, dtype in (("one", np.int64), ("other", np.uint8)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / f"{name}.npz"
        np.savez(file, **arrays, x_test=data.images[:3].numpy(), y_test=data.labels[:3].numpy().astype(dtype))
        loaded = load(Npz(path=file))
        values.add(fingerprint(loaded.train, loaded.test))
    assert len(values) == 1
