"""Images of files, read by their numbers when they are needed, in threads."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from svdctl.data.decode_image import ImageForm, read_image
from svdctl.data.image_files import ImageFiles

_BLOCK = 4
"""Images that a thread takes at a time."""


class ImageReader:
    """The reader of `svdctl.data.streamed_images.streamed_images` for files.

    Decoders and resizing release the interpreter's lock, so that threads are as fast as processes would be, which
    cannot be forked beside a GPU's.

    Args:
        files: of the data set.
        form: that they are brought to.
        threads: that decode at a time.
    """

    def __init__(self, files: ImageFiles, form: ImageForm, threads: int) -> None:
        # A program may go into another folder between two readings.
        files.folders[:] = map(os.path.abspath, files.folders)
        self._files, self._form = files, form
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="images")

    def __call__(self, rows: Tensor) -> Tensor:
        """Return images `(len(rows), C, H, W)` uint8.

        Raises:
            DataError: a file cannot be read any more.
        """
        numbers = rows.tolist()
        images = np.empty((len(numbers), *self._form.shape), np.uint8)

        def some(start: int) -> None:
            for place in range(start, min(start + _BLOCK, len(numbers))):
                images[place], _ = read_image(self._files.path(numbers[place]), self._form)

        list(self._pool.map(some, range(0, len(numbers), _BLOCK)))
        return torch.from_numpy(images)
