"""A part of a data set: uint8 images and their labels."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from svdctl.data.image_files import FileRows
from svdctl.data.streamed_images import first_channel, is_streamed, rows_of
from svdctl.errors import DataError

BLOCK = 1000
"""Images that are read at a time where all are looked at."""


@dataclass(frozen=True)
class ImageData:
    """Images `(N, C, H, W)` uint8 with C = 3 or 1, labels `(N,)` int64, and the names of the classes.

    Images are a tensor in memory, or `svdctl.data.streamed_images.streamed_images`, which reads them when needed.

    Grey images have three equal channels, unless the data set is configured to have one; `grey` gives them one, for
    networks that take no other.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    files: FileRows | None = None
    """Where the images come from; None: from no files, one each."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Self:
        """Return the same data on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def select(self, index: Tensor) -> Self:
        """Return the examples at `index`, in its order."""
        files = None if self.files is None else self.files.part(index)
        return replace(self, images=rows_of(self.images, index), labels=self.labels[index], files=files)

    def span(self, start: int, stop: int) -> Self:
        """Return the examples from `start` up to `stop`; those in memory are not copied."""
        part = slice(start, stop)
        index = torch.arange(start, stop)
        images = rows_of(self.images, index) if is_streamed(self.images) else self.images[part]
        files = None if self.files is None else self.files.part(index)
        return replace(self, images=images, labels=self.labels[part], files=files)

    def grey(self, where: str) -> Self:
        """Return the same data with images `(N, 1, H, W)`; `where` names it in the error.

        Raises:
            DataError: an image in colour.
        """
        blocks = (block[:] for block in self.images.split(BLOCK))
        if coloured := sum(int((block != block[:, :1]).flatten(1).any(1).sum()) for block in blocks):
            raise DataError(
                f"{where}: the network takes images of one channel, and {coloured:,} of {len(self):,} "
                "are in colour; convert them to grey, or use a network of three channels"
            )
        return replace(self, images=first_channel(self.images))

    def checked(self, where: str) -> Self:
        """Return itself, after checking that it can be trained on; `where` names it in the error."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise DataError(
                f"{where}: images must be uint8 of shape (N, 3, H, W) or (N, 1, H, W), not {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if len(self.images) != len(self.labels):
            raise DataError(
                f"{where}: {len(self.images)} images but {len(self.labels)} labels; give one label an image"
            )
        if len(self) == 0:
            raise DataError(f"{where}: there are no images in it")
        if min(self.image_shape) < 1:
            _, height, width = self.image_shape
            raise DataError(f"{where}: its images are {height} x {width} pixels; write them with at least one pixel")
        if len(self.classes) < 2:
            raise DataError(f"{where}: only one class ({self.classes[0]}); a classifier needs at least two")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            raise DataError(
                f"{where}: labels run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {len(self.classes)} classes; number them from 0"
            )
        return self
