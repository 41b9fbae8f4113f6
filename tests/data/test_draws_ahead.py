"""Random numbers of many steps are drawn and sent together: the same as one by one, and nothing is sent between."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from svdctl.config.data_config import Augment
from svdctl.data import batches as module
from svdctl.data.batches import Batch, Batches, derived_seed
from svdctl.data.images import ImageData
from svdctl.data.streamed_images import streamed_images
from tests import fake_cuda
from tests.data.test_data import small_data
from tests.fake_cuda import CUDA
from tests.train.test_captured_steps import data_of, different, make, trained

PLAIN, MIXED = Augment(), Augment(flip=True, crop=0, mixup=0.4, resized_crop=(0.3, 1))


def one_by_one(batches: Batches, number: int, start: int = 0) -> Iterator[Batch]:
    """Yield the batches of an epoch, each drawn when it is asked for."""
    shuffle = torch.Generator().manual_seed(derived_seed(batches.seed, "order", number))
    order = torch.randperm(len(batches.data), generator=shuffle)
    for step in range(start, batches.steps_per_epoch):
        rows = batches._rows(order[step * batches.batch_size :][: batches.count(step)], step)
        draws = batches._rows(batches._draws(number, step), step)
        batch, sizes = Batch(batches.data.images[rows], draws, batches.data.labels[rows]), batches._own(step)
        mix = batches._mix(number, step)
        yield batch if mix is None and len(sizes) == 1 else replace(batch, mix=mix, sizes=tuple(map(len, sizes)))


def streamed(data: ImageData) -> ImageData:
    images = data.images
    return replace(data, images=streamed_images(lambda rows: images[rows], len(data), (3, 8, 8)))


@pytest.mark.parametrize("augment", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize(
    ("world", "start", "accumulate", "ahead", "is_streamed"),
    [(1, 0, 1, 8, False), (1, 3, 2, 8, False), (3, 0, 1, 13, False), (3, 1, 1, 1, True), (2, 2, 2, 2**13, True)],
)
def test_batches_are_those_that_are_drawn_one_by_one(
    world: int,
    start: int,
    accumulate: int,
    ahead: int,
    is_streamed: bool,
    augment: Augment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DRAWN_AHEAD", ahead)
    data = streamed(small_data()) if is_streamed else small_data()
    for rank in range(world):
        batches = Batches(data, 4, 7, augment, rank, world, accumulate)
        for found, wanted in zip(batches.epoch(3, start), one_by_one(batches, 3, start), strict=True):
            assert found.sizes == wanted.sizes
            assert found.tensors().keys() == wanted.tensors().keys()
            assert all(torch.equal(value, wanted.tensors()[name]) for name, value in found.tensors().items())


@pytest.mark.parametrize("kind", ["divide-retract", "recipe"])
def test_a_training_ends_with_the_weights_of_draws_one_by_one(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(data_of(tmp_path), kind, accelerator="cpu")
    found, _, _ = trained(config, steps=6)
    monkeypatch.setattr(Batches, "epoch", one_by_one)
    wanted, _, _ = trained(config, steps=6)
    assert different(found, wanted) == []


def test_memory_is_bounded_by_the_images_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = Batches._draws
    monkeypatch.setattr(Batches, "_draws", lambda self, *of: made.append(len(plain(self, *of))) or plain(self, *of))
    data = ImageData(torch.zeros(3 * 2**13, 1, 1, 1, dtype=torch.uint8), torch.zeros(3 * 2**13), ("a", "b"))
    next(Batches(data, 128, 7, PLAIN).epoch(0))
    assert sum(made) == module.DRAWN_AHEAD == 64 * 128
    made.clear()
    next(Batches(data, 2**14, 7, PLAIN).epoch(0))
    assert made == [2**14]


class Sent(TorchDispatchMode):
    """Counts copies to the device, and those from memory that is not pinned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.copies, self.unpinned = 0, 0
        pinned = self.pinned = list[Tensor]()
        monkeypatch.setattr(Tensor, "pin_memory", lambda values: pinned.append(values) or values)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_cuda and args and isinstance(args[0], Tensor) and args[0].is_cpu:
            self.copies += 1
            self.unpinned += not any(args[0] is value for value in self.pinned)
            assert kwargs["non_blocking"]
        return found


@pytest.mark.skipif(not fake_cuda.is_possible(), reason="this torch asks the driver for fake tensors")
@pytest.mark.parametrize(("augment", "at_once"), [(PLAIN, 1), (MIXED, 2)], ids=["plain", "mixed"])
def test_nothing_is_sent_to_the_device_within_a_chunk(
    augment: Augment, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAWN_AHEAD", 8)
    sent, copies = Sent(monkeypatch), list[int]()
    with FakeTensorMode(), sent:
        images = torch.zeros(22, 3, 8, 8, dtype=torch.uint8, device=CUDA)
        batches = Batches(ImageData(images, torch.zeros(22, device=CUDA), ("a", "b")), 4, 7, augment)
        for batch in batches.epoch(0):
            assert {value.device for value in batch.tensors().values()} == {CUDA}
            copies.append(sent.copies)
            sent.copies = 0
    # With the first ones the order of the epoch.
    assert copies == [1 + at_once, 0, at_once, 0, at_once, 0]
    assert sent.unpinned == 0
