"""How many images go through a network at once: by their size, and fewer when memory runs out."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from svdctl.data.streamed_images import StreamedImages, read_ahead
from svdctl.errors import EvaluationError, is_out_of_memory

MOST = 250
"""Images of one pass where nothing else is asked for."""
_PIXELS = 2**20
"""Pixels of one pass, for what a network makes of an image grows with them: 250 images of 64 x 64, 20 of 224 x 224."""
_BLOCK = 2**25
"""Bytes of images that are read, or corrupted, at a time."""
LARGEST = 4096
"""Images of one pass beyond which a GPU gains nothing."""
_SHARE = 0.5
"""Of the free memory, for one pass: what else is made of its images, and other programs, need some."""

Result = TypeVar("Result")


def batch_size_for(image_shape: Sequence[int], most: int = MOST) -> int:
    """Return how many images `(C, H, W)` go through a network at once, at most `most`: fewer of large images."""
    height, width = image_shape[-2:]
    return max(1, min(most, _PIXELS // max(height * width, 1)))


def block_size_for(image_shape: Sequence[int], most: int = LARGEST) -> int:
    """Return how many uint8 images `(C, H, W)` are held in memory at a time, at most `most`."""
    return max(1, min(most, _BLOCK // max(math.prod(image_shape), 1)))


def blocks_in_memory(images: Any) -> Iterator[tuple[int, Tensor]]:
    """Yield tensors of consecutive images `(N, C, H, W)`, and how many came before.

    All at once where they are in memory; of those that are streamed, the next block is read in a thread meanwhile.
    """
    if isinstance(images, StreamedImages):
        size = block_size_for(images.shape[1:])
        starts = range(0, len(images), size)
        index = torch.arange(len(images)).split(size)
        yield from zip(starts, read_ahead(images, index), strict=True)
    else:
        yield 0, images


@dataclass
class AutoBatchSize:
    """How many images go through a network at once; halved for good whenever memory runs out.

    `size` only ever bounds the parts in which work is done. Whatever decides a figure (the order of the images, the
    batches of an attack and their random draws) must not depend on it.
    """

    size: int
    log: Callable[[str], None] | None = None
    judged: bool = False
    """Whether `size` was chosen by the memory that a part has needed."""

    def run(self, work: Callable[[int], Result]) -> Result:
        """Return `work(size)`, begun anew with half the size whenever memory runs out.

        Raises:
            EvaluationError: memory is too small for a single image.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise EvaluationError(
                        "memory does not hold even one image at a time; free the device, or use `accelerator = cpu`"
                    ) from error
            # Outside of the handler: there, the traceback still holds the tensors that are to be freed.
            self.size = (self.size + 1) // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.log is not None:
                self.log(f"out of memory: going on with {self.size} images at a time")

    def parts(
        self, count: int, work: Callable[[slice], Result], device: torch.device
    ) -> Iterator[tuple[slice, Result]]:
        """Yield consecutive parts of `count` images, and what `work` returns for each.

        On a CUDA device the memory that the first whole part needs says how large the others are, and those of later
        calls: never smaller than `size` was, and as large as half of the free memory holds.

        Raises:
            EvaluationError: memory is too small for a single image.
        """
        done = 0
        while done < count:

            def attempt(size: int, start: int = done) -> tuple[slice, Result]:
                part = slice(start, min(start + size, count))
                return part, work(part)

            judged = not self.judged and device.type == "cuda" and done + self.size < count
            before = self._memory_in_use(device) if judged else 0
            part, found = self.run(attempt)
            if judged:
                self._enlarge(torch.cuda.max_memory_allocated(device) - before, part.stop - part.start, device)
            yield part, found
            done = part.stop

    def _memory_in_use(self, device: torch.device) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)

    def _enlarge(self, needed: int, images: int, device: torch.device) -> None:
        """Let `size` be what a CUDA device has memory for, where a pass over some images needed so many bytes."""
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        fitting = int(_SHARE * (torch.cuda.mem_get_info(device)[0] + unused) / max(needed / images, 1.0))
        self.size = max(self.size, min(LARGEST, fitting))
        self.judged = True
