"""Batches of resident data: the same order and the same draws for any number of processes.

Every process draws the randomness of the whole global batch from `(seed, epoch)` and `(seed, step)` and keeps its own
slice. A run therefore sees the same images on one device and on eight, and a resumed run continues in mid-epoch with
nothing to restore but the step's number.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.config.data_config import Augment
from svdctl.data.augment import augment
from svdctl.data.images import ImageData
from svdctl.data.streamed_images import read_ahead


def derived_seed(seed: int, *what: int | str) -> int:
    """Return a 63-bit seed for one purpose, from the run's seed: a hash, so that neighbouring numbers are unrelated."""
    digest = hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the steps of one epoch; the last batch may be smaller, and is dropped if it is one image."""
    full, rest = divmod(images, batch_size)
    return max(full + (rest > 1), 1)


@dataclass(frozen=True)
class Batch:
    """Images of a step as they are stored, and what they are augmented by; all on the run's device."""

    images: Tensor
    """`(B, C, H, W)` uint8."""
    draws: Tensor
    """`(B, 3)` float32, uniform in [0, 1)."""
    labels: Tensor
    """`(B,)` int64."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batches:
    """Training batches of one process out of `world`."""

    data: ImageData
    batch_size: int
    seed: int
    augmentation: Augment
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < self.world:
            raise ValueError(f"a global batch of {self.batch_size} does not reach {self.world} processes")

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of one epoch."""
        return steps_per_epoch(len(self.data), self.batch_size)

    def count(self, step: int) -> int:
        """Return the number of images of all processes in this step of an epoch."""
        return min(self.batch_size, len(self.data) - step * self.batch_size)

    def _own(self, step: int) -> slice:
        """Return the part of a step's images that is this process's."""
        count = self.count(step)
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the steps `start, ...` of an epoch counted from 0; nothing waits for the device.

        Shares differ by an image where the batch does not divide, and may be empty in a small last batch.
        """
        device = self.data.images.device
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", number))
        order = torch.randperm(len(self.data), generator=shuffle).to(device)
        steps = range(start, self.steps_per_epoch)
        parts = [order[step * self.batch_size :][: self.count(step)][self._own(step)] for step in steps]
        for step, part, read in zip(steps, parts, read_ahead(self.data.images, parts), strict=True):
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "augment", number, step))
            draws = torch.rand(self.count(step), 3, generator=generator)[self._own(step)]
            yield Batch(read, draws.to(device, non_blocking=True), self.data.labels[part])

    def pixels(self, batch: Batch) -> Tensor:
        """Return the augmented images of a batch, in [0, 1], `(B, C, H, W)`."""
        flip, crop, pad = self.augmentation.flip, self.augmentation.crop, self.augmentation.pad
        return to_pixels(augment(batch.images, batch.draws, flip=flip, crop=crop, pad_mode=pad))


def to_pixels(images: Tensor) -> Tensor:
    """Return bytes as float32 pixels in [0, 1]."""
    return images.float().div_(255)


def evaluation_batches(data: ImageData, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all examples in order, as pixels in [0, 1] and labels."""
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        yield to_pixels(data.images[part]), data.labels[part]
