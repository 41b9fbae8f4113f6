"""One file to one image of 8 bits: what of Pillow is used, and which pictures are refused."""

import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from PIL import Image, __version__

from svdctl.errors import DataError, FileError, first_line
from svdctl.utils.files import open_regular

_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_LONGEST = 64
"""How many times as long as the other a side may be; scaled to the wanted size, the picture is as many squares."""
_LARGE = 2**24
"""Pixels that any picture may have; one of more has at least a byte for every ten."""
_MOST = 2**26
"""Pixels of a picture, and of one that is scaled, for which a small file and a small size alone may ask."""
_OF_WANTED = 4
"""For images beyond that, the pixels are at most so many times those of the wanted image."""
_PIXELS_A_BYTE = 10
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
"""Numbers of TIFF's entries."""
_TYPES = frozenset(range(1, 14)) | {16}
"""Of TIFF's entries, those that Pillow reads."""
_MOST_ENTRIES = 1000
"""Of a TIFF picture; there are some hundred kinds."""
DECODER = f"1, Pillow {__version__}"
"""What decides the pixels of a file besides the settings."""


class UnusableImageError(DataError):
    """A file that is no image of the wanted form: `<file> <reason>; <advice>`."""

    def __init__(self, file: str | Path, reason: str, advice: str) -> None:
        super().__init__(f"{file} {reason}; {advice}")
        self.file, self.reason, self.advice = str(file), reason, advice


@dataclass(frozen=True)
class ImageForm:
    """The form that files are brought to.

    Attributes:
        size: side in pixels.
        resize: scale and centre-crop images of another size; otherwise they are refused.
        channels: 3, or 1, for which images in colour are refused.
    """

    size: int
    resize: bool = False
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width."""
        return self.channels, self.size, self.size


def read_image(file: str | Path, form: ImageForm) -> tuple[np.ndarray, bool]:
    """Return an image `(C, H, W)` uint8, and whether it was scaled.

    Raises:
        UnusableImageError: it cannot be read, or is not of this form.
    """
    size = form.size
    with _opened(file, form) as opened:
        image = _rgb(opened)
    if scaled := image.size != (size, size):
        scale = size / min(image.size)
        wanted = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(wanted, Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image).transpose(2, 0, 1)
    if form.channels == 3:
        return pixels, scaled
    if (pixels != pixels[:1]).any():
        raise UnusableImageError(file, "is in colour", "convert it to grey, or leave `data.channels = 1` out")
    return pixels[:1], scaled


def check_image(file: str | Path, form: ImageForm) -> bool:
    """Return whether an image will be scaled, as far as its header tells; nothing is decoded.

    Raises:
        UnusableImageError: it is no image, or not of this form.
    """
    with _opened(file, form) as image:
        return image.size != (form.size, form.size)


@contextmanager
def _opened(file: str | Path, form: ImageForm) -> Iterator[Image.Image]:
    """Open a picture whose header is as it should be.

    Raises:
        UnusableImageError: it is not, or the body fails.
    """
    try:
        # Some of Pillow's other formats start programs.
        with _WITHOUT_WARNINGS, open_regular(file) as source:
            image = Image.open(source, formats=_FORMATS)
            if image.format == "TIFF":
                _check_directory(source, file)
            _check_size(image, file, form.size, form.resize, os.fstat(source.fileno()).st_size)
            _check_numbers(image, file)
            yield image
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders report damage, and pictures of absurd size, by half a dozen types.
        reason = error.reason if isinstance(error, FileError) else first_line(error)
        raise UnusableImageError(file, f"cannot be read as an image ({reason})", "repair or remove it") from error


def _check_size(image: Image.Image, file: str | Path, size: int, resize: bool, length: int) -> None:
    """Judge a picture by its header, before memory is taken for it.

    Raises:
        UnusableImageError: another size than is wanted, or far more pixels than that and the file account for.
    """
    width, height = image.size
    if (width, height) != (size, size) and not resize:
        raise UnusableImageError(
            file,
            f"is {width} x {height}, not {size} x {size}",
            "set the size with `data.size = N`, or let svdctl scale and crop with `data.resize = true`",
        )
    longest = max(_OF_WANTED, min(_LONGEST, _MOST // size**2))
    if max(width, height) > longest * min(width, height):
        reason = f"is {width} x {height}, one side more than {longest} times the other"
        raise UnusableImageError(file, reason, "crop or remove it")
    largest = max(_LARGE, min((_LONGEST * size) ** 2, _MOST), _OF_WANTED * size**2, _PIXELS_A_BYTE * length)
    # libtiff takes memory for a whole tile, which may be larger than the picture.
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    if max(width * height, tile[0] * tile[1]) > largest:
        tiles = f" in tiles of {tile[0]} x {tile[1]}" if any(tile) else ""
        reason = f"is {width} x {height}{tiles}, far more than a photograph of {length:,} bytes has"
        raise UnusableImageError(file, reason, "scale it down or remove it")


def _check_directory(source: BufferedReader, file: str | Path) -> None:
    """Refuse a TIFF picture with entries that Pillow passes over and libtiff reads, as of the size of tiles.

    Raises:
        UnusableImageError: an entry of a type that Pillow does not know.
    """
    place = source.tell()
    source.seek(0)
    head = source.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = 43 in head[2:4]
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)
    source.seek(start)
    width, entry = (8, 20) if is_big else (2, 12)
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), source.read(width))
    entries = source.read(entry * min(count, _MOST_ENTRIES))
    source.seek(place)
    types = {struct.unpack_from(order + "H", entries, at + 2)[0] for at in range(0, len(entries), entry)}
    if count > _MOST_ENTRIES or not types <= _TYPES:
        reason = f"has {count:,} entries in its directory, or some of types that Pillow does not know"
        raise UnusableImageError(file, reason, "write it anew or remove it")


def _is_16_bit(image: Image.Image) -> bool:
    """Return whether numbers are grey of 16 bits, from 0 for black to 65535 for white."""
    wide, tags = image.mode.startswith("I;16"), getattr(image, "tag_v2", {})
    unsigned = image.format in ("PNG", "PPM") and (wide or image.mode == "I")
    # TIFF has 12 bits too, which Pillow does not scale, and white as 0.
    return unsigned or (wide and tuple(tags.get(258, ())) == (16,) and tags.get(262) == 1)


def _check_numbers(image: Image.Image, file: str | Path) -> None:
    wide = image.mode.startswith("I;16")
    if (wide or image.mode in ("I", "F")) and not _is_16_bit(image):
        bits = "9 to 16 bits of which 65535 is not white, or 0 not black" if wide else "32 bits of unknown range"
        raise UnusableImageError(file, f"holds numbers of {bits}", "convert it to 8 bits, or to all of 16")


def _rgb(image: Image.Image) -> Image.Image:
    """Return three channels of 8 bits; of 16 bits all are scaled, where Pillow would cut grey ones off at 255."""
    if not _is_16_bit(image):
        return image.convert("RGB")
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


class _WithoutWarnings:
    """Switches Pillow's warnings off, which name no file, while a thread is inside.

    Those about sizes are for what `_check_size` judges, those about damaged tags for what the picture does without.
    `warnings.catch_warnings` is of no use in threads: one would restore what another has changed.
    """

    _OF_PILLOW = re.compile(r"PIL\.")

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            # Whoever restored the filters meanwhile has taken this one away.
            if not self._inside or not self._mine():
                warnings.filterwarnings("ignore", module=self._OF_PILLOW.pattern)
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            for mine in self._mine() if not self._inside else ():
                cast(list[object], warnings.filters).remove(mine)

    def _mine(self) -> list[object]:
        return [each for each in warnings.filters if each[3] == self._OF_PILLOW]


_WITHOUT_WARNINGS = _WithoutWarnings()
