"""Batches of resident data: the same order and the same draws for any number of processes.

Every process draws the randomness of the whole global batch from `(seed, epoch)` and `(seed, step)` and keeps its own
slice. A run therefore sees the same images on one device and on eight, and a resumed run continues in mid-epoch with
nothing to restore but the step's number.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from svdctl.config.data_config import Augment
from svdctl.data.augment import augment, resized_crop
from svdctl.data.images import ImageData
from svdctl.data.streamed_images import is_streamed, read_ahead, to_device

DRAWN_AHEAD = 2**13
"""Images whose random numbers are drawn, and sent to the device together, at most; those of a step at least. They take
28 bytes each or less."""


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
    """`(B, 3)` float32, uniform in [0, 1); `(B, 7)` where crops are resized."""
    labels: Tensor
    """`(B,)` int64."""
    mix: Tensor | None = None
    """Share of each image in its mixture with the next one (0-d float32); then each part has one image more, the
    partner of its last one. None: images are not mixed."""
    sizes: tuple[int, ...] = ()
    """Images to train on in each part, whose gradients are computed one after another; none: all are one part."""

    def __len__(self) -> int:
        """Return the number of images to train on."""
        return sum(self.sizes) if self.sizes else len(self.labels)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, by the field's name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def parts(self) -> "list[Batch]":
        """Return the parts; they share the batch's memory."""
        if len(self.sizes) < 2:
            return [self]
        lengths = [size + (self.mix is not None) for size in self.sizes]
        split = [rows.split(lengths) for rows in (self.images, self.draws, self.labels)]
        return [
            Batch(images, draws, labels, self.mix, (size,))
            for images, draws, labels, size in zip(*split, self.sizes, strict=True)
        ]

    @property
    def own_labels(self) -> Tensor:
        """Return the labels of the images to train on."""
        return self.labels if self.mix is None else self.labels[:-1]

    @property
    def partner_labels(self) -> Tensor:
        """Return the labels of what they are mixed with."""
        return self.labels[1:]


@dataclass(frozen=True)
class Batches:
    """Training batches of one process out of `world`, each in parts (`accumulate`)."""

    data: ImageData
    batch_size: int
    seed: int
    augmentation: Augment
    rank: int = 0
    world: int = 1
    accumulate: int = 1

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

    def _own(self, step: int) -> list[range]:
        """Return the places in a step's batch that are this process's, for each part.

        Parts are of the whole batch, so that layers that look at all images of a pass see the same ones whatever the
        number of processes. A small last batch has fewer parts, and none of one image unless all are.
        """
        count = self.count(step)
        least = 2 if self.batch_size >= 2 * self.accumulate else 1
        parts = max(1, min(math.ceil(count * self.accumulate / self.batch_size), count // least))
        found = []
        for part in range(parts):
            first, size = part * count // parts, (part + 1) * count // parts - part * count // parts
            found.append(range(first + self.rank * size // self.world, first + (self.rank + 1) * size // self.world))
        return found

    def _rows(self, values: Tensor, step: int) -> Tensor:
        """Return the rows of this process out of those of a step's batch, with partners where images are mixed."""
        taken = []
        for places in self._own(step):
            taken.append(values[places.start : places.stop])
            if self.augmentation.mixup is not None:
                # The order of an epoch is random, so that the next image is a random partner.
                partner = places.stop % len(values)
                taken.append(values[partner : partner + 1])
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    def _rows_of(self, order: Tensor, steps: range) -> list[Tensor]:
        """Return the images of this process in each of the steps, out of the order of an epoch."""
        return [self._rows(order[step * self.batch_size :][: self.count(step)], step) for step in steps]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the steps `start, ...` of an epoch counted from 0; nothing waits for the device.

        Shares differ by an image where the batch does not divide, and may be empty in a small last batch.
        """
        device = self.data.images.device
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", number))
        order = torch.randperm(len(self.data), generator=shuffle)
        steps = range(start, self.steps_per_epoch)
        rows = self._rows_of(to_device(order, device), steps)
        # Files are found by numbers on the host, and reading those of the device would wait for it.
        numbers = self._rows_of(order, steps) if is_streamed(self.data.images) else rows
        images = read_ahead(self.data.images, numbers)
        for step, part, read, (draws, mix) in zip(steps, rows, images, self._sent(number, steps), strict=True):
            batch = Batch(read, draws, self.data.labels[part])
            sizes = tuple(map(len, self._own(step)))
            if mix is not None or len(sizes) > 1:
                batch = replace(batch, mix=mix, sizes=sizes)
            yield batch

    def _sent(self, epoch: int, steps: range) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield this process's random numbers of each step, on the device: of its images, and of their mixture.

        Those of many steps are sent together, so that between most steps nothing goes to the device.
        """
        device, ahead = self.data.images.device, max(1, DRAWN_AHEAD // self.batch_size)
        while steps:
            chunk, steps = steps[:ahead], steps[ahead:]
            drawn = [self._rows(self._draws(epoch, step), step) for step in chunk]
            draws = to_device(torch.cat(drawn), device).split([*map(len, drawn)])
            mixes = [mix for step in chunk if (mix := self._mix(epoch, step)) is not None]
            yield from zip(draws, to_device(torch.stack(mixes), device) if mixes else [None] * len(chunk), strict=True)

    def _mix(self, epoch: int, step: int) -> Tensor | None:
        """Return the share of each image in its mixture (0-d), drawn from Beta(a, a); None: images are not mixed."""
        strength = self.augmentation.mixup
        if strength is None:
            return None
        generator = np.random.Generator(np.random.PCG64(derived_seed(self.seed, "mixup", epoch, step)))
        return torch.tensor(generator.beta(strength, strength), dtype=torch.float32)

    def _draws(self, epoch: int, step: int) -> Tensor:
        """Return the random numbers by which the images of a step's batch are changed, those of a resized crop last."""
        columns = {"augment": 3} if self.augmentation.resized_crop is None else {"augment": 3, "resized-crop": 4}
        found = []
        for purpose, count in columns.items():
            generator = torch.Generator().manual_seed(derived_seed(self.seed, purpose, epoch, step))
            found.append(torch.rand(self.count(step), count, generator=generator))
        return torch.cat(found, dim=1)

    def pixels(self, batch: Batch) -> Tensor:
        """Return the augmented, and mixed, images of a batch or of a part, in [0, 1], `(B, C, H, W)`."""
        flip, crop, pad = self.augmentation.flip, self.augmentation.crop, self.augmentation.pad
        images = batch.images
        if (area := self.augmentation.resized_crop) is not None:
            images = resized_crop(images.float(), batch.draws[:, 3:], area)
        found = to_pixels(augment(images, batch.draws, flip=flip, crop=crop, pad_mode=pad))
        return found if batch.mix is None else torch.lerp(found[1:], found[:-1], batch.mix)


def to_pixels(images: Tensor) -> Tensor:
    """Return bytes as float32 pixels in [0, 1]."""
    return images.float().div_(255)


def evaluation_batches(data: ImageData, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all examples in order, as pixels in [0, 1] and labels."""
    parts = [slice(start, start + batch_size) for start in range(0, len(data), batch_size)]
    for part, images in zip(parts, read_ahead(data.images, parts), strict=True):
        yield to_pixels(images), data.labels[part]
