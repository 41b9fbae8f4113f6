"""Folders held by one process at a time, and refused where a link in them would lead the writing elsewhere."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Hold a lock file, made when absent; False when another process holds it.

    The lock goes with the process that holds it, however that ends; the file stays.

    Raises:
        OSError: it cannot be opened or is a link, or the file system knows no locks.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def link_in(folder: Path) -> Path | None:
    """The folder itself or the first entry directly in it that is a symbolic link.

    Files that are written in place, as a log is, would change whatever a link points at.
    """
    if folder.is_symlink():
        return folder
    return next((path for path in sorted(folder.iterdir()) if path.is_symlink()), None)
