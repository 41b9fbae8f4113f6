"""Images that are read from files when they are needed, for data sets that memory does not hold."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Stands in the place of a uint8 tensor `(N, 3, H, W)`; indexing it reads the images and gives a tensor.

    Attributes:
        reader: returns the images `(len(rows), 3, H, W)` uint8 of row numbers `(len(rows),)`, in their order.
        rows: the rows that this part has, in its order.
        image_shape: channels, height and width.
        device: where the images go when they are read.
        identity: a text that changes whenever the images do; None: only their pixels tell.
    """

    reader: Callable[[Tensor], Tensor]
    rows: Tensor
    image_shape: tuple[int, int, int]
    device: torch.device
    identity: str | None = None
    dtype = torch.uint8
    ndim = 4

    @property
    def shape(self) -> torch.Size:
        """Return `(N, 3, H, W)`."""
        return torch.Size((len(self.rows), *self.image_shape))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice | int | tuple[slice, ...]) -> Tensor:
        first, *others = index if isinstance(index, tuple) else (index,)
        rows = self.rows[first.cpu() if isinstance(first, Tensor) else first]
        images = to_device(self.reader(rows.reshape(-1)), self.device)
        return (images if rows.ndim else images[0])[(slice(None), *others)]

    def part(self, index: Tensor) -> Self:
        """Return the images of an index, which are not read yet."""
        return replace(self, rows=self.rows[index.cpu()])

    def to(self, device: torch.device) -> Self:
        """Return the same images, which will be on a device when they are read."""
        return replace(self, device=torch.device(device))

    def cpu(self) -> Tensor:
        """Return all images as a tensor on the CPU."""
        return self.reader(self.rows)

    def detach(self) -> Tensor:
        """Return all images as a tensor on the CPU."""
        return self.cpu()

    def numel(self) -> int:
        """Return the number of all pixels in all channels."""
        return self.shape.numel()

    def split(self, size: int) -> tuple[Self, ...]:
        """Return parts of at most `size` images, which are not read yet."""
        return tuple(replace(self, rows=rows) for rows in self.rows.split(size))


def streamed_images(
    reader: Callable[[Tensor], Tensor],
    count: int,
    image_shape: tuple[int, int, int],
    *,
    identity: str | None = None,
) -> Tensor:
    """Return images for `ImageData.images` that are read when they are needed, a batch at a time.

    Args:
        reader: returns the images `(len(rows), 3, H, W)` uint8 of row numbers `(len(rows),)`, in their order, on the
            CPU; it is called from other threads too.
        count: number of images.
        image_shape: channels, height and width.
        identity: a text that changes whenever the images do. The fingerprint of the data is made of it then, of
            numbers of rows and labels; without it all images are read for the fingerprint.
    """
    # What is done with the images of a data set is to index them, and in that this is a tensor.
    return cast(Tensor, StreamedImages(reader, torch.arange(count), image_shape, torch.device("cpu"), identity))


def is_streamed(images: Any) -> bool:
    """Return whether images are read when they are needed."""
    return isinstance(images, StreamedImages)


def identity_of(images: Any) -> tuple[str, Tensor] | None:
    """Return the identity of images that are streamed, and the numbers of their rows; None where there is none."""
    if not isinstance(images, StreamedImages) or images.identity is None:
        return None
    return images.identity, images.rows


def rows_of(images: Any, index: Tensor) -> Tensor:
    """Return the images of an index; those that are streamed are not read yet."""
    found = images.part(index) if isinstance(images, StreamedImages) else images[index]
    return cast(Tensor, found)


def first_channel(images: Any) -> Tensor:
    """Return images `(N, 1, H, W)`; those that are streamed are not read yet."""
    if not isinstance(images, StreamedImages):
        return cast(Tensor, images[:, :1].contiguous())
    read, shape = images.reader, (1, *images.image_shape[1:])
    return cast(Tensor, replace(images, reader=lambda rows: read(rows)[:, :1], image_shape=shape))


def read_ahead(images: Any, indices: Iterable[Tensor | slice]) -> Iterator[Tensor]:
    """Yield the images of each index; of those that are streamed, the next ones are read in a thread meanwhile."""
    if isinstance(images, StreamedImages):
        yield from made_ahead(partial(images.__getitem__, index) for index in indices)
    else:
        yield from (images[index] for index in indices)


def made_ahead(calls: Iterable[Callable[[], Tensor]]) -> Iterator[Tensor]:
    """Yield what each call returns, in their order; while one is in use, the next is made in a thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[Tensor]] = deque()
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        yield from (coming.result() for coming in waiting)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return images, or what belongs to them, on a device; nothing waits for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # from other memory a transfer waits for what the device has still to do
    return values.to(device, non_blocking=True)
