"""Images that were decoded before, in the user's cache folder: checked when they are read, written whole or not at all.

A file belongs to one folder of images and one form of them, and counts as long as no path, size or time of the
folder's files has changed. It holds what can be made again: anything wrong with it is a reason to make it anew.
"""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from svdctl.data.decode_image import DECODER, ImageForm
from svdctl.data.image_files import ImageFiles
from svdctl.errors import FileError, SvdctlError, first_line
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.content_hash import content_digest, json_digest
from svdctl.utils.files import open_regular, parse_json
from svdctl.utils.user_cache import user_cache_folder

FEWEST = 1000
"""Files of a data set that is kept; fewer are decoded in a second."""
_MAGIC = b"svdctl.images 1\n"
_LARGEST_HEAD = 2**20
_BLOCK = 8 * 2**20
"""Bytes hashed at a time."""
_SHARE = 10
"""A file takes at most this part of what is free on the disk."""


@dataclass(frozen=True)
class Decoded:
    """What was read of files.

    Attributes:
        images: `(N, C, H, W)` uint8; with N = 0 only the headers were looked at.
        scaled: how many images are, or will be, scaled.
    """

    images: np.ndarray
    scaled: int


class ImageCache:
    """The file of a folder of images in one form.

    Args:
        root: the folder.
        files: its files.
        form: of the images.
        count: images that are kept: all, or none where they are streamed.
    """

    def __init__(self, root: Path, files: ImageFiles, form: ImageForm, count: int) -> None:
        self._shape = (count, *form.shape)
        # A name of other bytes than UTF-8 is no text that JSON holds.
        place = os.fsencode(root.resolve()).decode(errors="backslashreplace")
        about = [place, form.size, form.resize, form.channels, count > 0]
        folder = user_cache_folder()
        used = folder is not None and len(files) >= FEWEST
        self.path = folder / "images" / f"{json_digest(about)[:32]}.images" if folder is not None and used else None
        self._about = {"files": files.stamp, "about": about, "shape": [*self._shape], "decoder": DECODER}

    def read(self) -> tuple[Decoded | None, str | None]:
        """Return what is kept, if it is of these files as they are; the second is why a file does not count."""
        if self.path is None or not os.path.lexists(self.path):
            return None, None
        try:
            return self._read(self.path), None
        except (SvdctlError, OSError, ValueError) as error:
            reason = error.reason if isinstance(error, FileError) else first_line(error)
            return None, f"{self.path} does not count ({reason}); the images are read from their files again"

    def _read(self, path: Path) -> Decoded | None:
        with open_regular(path) as file:
            _require_own(path.parent)
            state = os.fstat(file.fileno())
            if state.st_uid != _user():
                raise ValueError("it belongs to another user")
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it is no file of decoded images")
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEAD:
                raise ValueError("its head is damaged")
            head: Any = parse_json(file.read(length), str(path))
            if not isinstance(head, dict) or head.pop("sha256", None) != json_digest(head):
                raise ValueError("its head is damaged")
            if {name: head.get(name) for name in self._about} != self._about:
                return None  # files have changed since
            scaled = head.get("scaled")
            if type(scaled) is not int or scaled < 0:
                raise ValueError("its head is damaged")
            images = np.empty(self._shape, np.uint8)
            if state.st_size - file.tell() != images.nbytes:
                raise ValueError("it is cut short, or too long")
            _fill(file, images)
        if _digests(images) != head.get("digests"):
            raise ValueError("its contents are damaged")
        return Decoded(images, scaled)

    def write(self, decoded: Decoded) -> str | None:
        """Keep images; return why they are not kept, where they should be."""
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(self.path.parent)
            remove_unfinished(self.path.parent)
            _require_room(self.path.parent, decoded.images.nbytes)
            head = {**self._about, "scaled": decoded.scaled, "digests": _digests(decoded.images)}
            text = json.dumps({**head, "sha256": json_digest(head)}).encode()

            def put(file: IO[bytes]) -> None:
                file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
                for block in _blocks(decoded.images):
                    file.write(block.data)

            write_atomically(self.path, put)
        except (OSError, ValueError) as error:
            why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else first_line(error)
            return f"the decoded images are not kept in {self.path.parent} ({why})"
        return None


def _user() -> int:
    """Return the number of this process's user; 0, as in every state of a file, where the system has none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _require_own(folder: Path) -> None:
    """Refuse a folder that another user could write into: a checksum protects from accidents alone.

    Raises:
        ValueError: it is another user's, or others may write into it.
    """
    state = folder.stat()
    if state.st_uid != _user():
        raise ValueError("its folder belongs to another user")
    if hasattr(os, "geteuid") and state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("other users may write into its folder")


def _require_room(folder: Path, size: int) -> None:
    """Refuse to fill a disk.

    Raises:
        ValueError: so many bytes are too many.
    """
    free = shutil.disk_usage(folder).free
    if _SHARE * size > free:
        raise ValueError(f"{size:,} bytes are more than a tenth of the {free:,} that are free on the disk")


def _fill(file: BufferedReader, images: np.ndarray) -> None:
    for block in _blocks(images):
        done = 0
        while done < len(block):
            count = file.readinto(block[done:].data)
            if not count:
                raise ValueError("it is cut short")
            done += count


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bytes of an array in parts, without copying them."""
    whole = images.reshape(-1)
    return (whole[start : start + _BLOCK] for start in range(0, len(whole), _BLOCK))


def _digests(images: np.ndarray) -> list[str]:
    # hashlib releases the GIL.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda block: content_digest(torch.from_numpy(block)), _blocks(images)))
