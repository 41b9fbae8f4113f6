"""A copy of a file in memory, to be mapped: a mapped file that somebody shortens ends the process (SIGBUS)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from svdctl.errors import FileError, UnusableFileError
from svdctl.utils.files import open_regular, read_text

_AT_ONCE = 2**30
"""Bytes copied by one call; the system copies fewer than 2^31."""

_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of control groups, second and first version, that have the limit of memory and what is taken."""


@contextmanager
def in_memory(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the path of a copy of a regular file that lies in memory, for as long as it is open or mapped.

    Where no copy can be made it is the path of the file itself: on systems other than Linux, where it would take more
    than half of the free memory, and within a limit on the size of files.

    Raises:
        UnusableFileError: it cannot be read, or it changed while it was.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        copy = _copy(file.fileno(), before.st_size)
        try:
            _require_same(before, file.fileno(), path)
            yield os.fspath(path) if copy is None else _name(copy)
            if copy is None:
                _require_same(before, file.fileno(), path)
        finally:
            if copy is not None:
                os.close(copy)


def _copy(file: int, size: int) -> int | None:
    """Return the handle of a copy in memory, None where none can be made; a file that became shorter gives less."""
    if not hasattr(os, "memfd_create") or 2 * size > _free_memory():
        return None
    copy = os.memfd_create("svdctl")
    try:
        done = 0
        while done < size and (count := os.sendfile(copy, file, done, min(_AT_ONCE, size - done))):
            done += count
        if os.path.exists(_name(copy)):
            return copy
    except OSError:
        pass
    os.close(copy)
    return None


def _name(handle: int) -> str:
    return f"/proc/self/fd/{handle}"


def _require_same(before: os.stat_result, file: int, path: str | os.PathLike[str]) -> None:
    now = os.fstat(file)
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        advice = "wait until it is written, then try again"
        raise UnusableFileError(os.fspath(path), "was changed while it was read", advice)


def _free_memory() -> int:
    """Return the bytes that this machine and the process's container have left; 0 where neither is known."""
    lines = _lines("/proc/meminfo")
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for limit, used in _CONTAINER:
        most, taken = _lines(limit), _lines(used)
        if most and taken and most[0].isdigit() and taken[0].isdigit():
            found.append(int(most[0]) - int(taken[0]))
    return min(found, default=0)


def _lines(path: str) -> list[str]:
    try:
        return read_text(path).split("\n")
    except FileError:
        return []
