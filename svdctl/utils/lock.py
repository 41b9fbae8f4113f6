"""Files and folders held by one process at a time."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedRandom
from pathlib import Path

from svdctl.errors import BusyFolderError, UnusableFileError, UnusableFolderError, UsageError
from svdctl.utils.files import open_to_lock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


WAIT_SECONDS = 2.0
"""Seconds of waiting for a lock, after which it is said that it is waited for."""


def require_locks() -> None:
    """Raise a UsageError where the system has no locks of files that go with their process, as on Windows."""
    if fcntl is None:
        raise UsageError(
            "folders of runs and results are held by locks that Windows does not have; run this in WSL (Windows "
            "Subsystem for Linux), or use the library, `import svdctl`, which works without"
        )


@contextmanager
def held(file: Path, *, wait: bool = False, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[bool]:
    """Hold a lock file, made when absent; False when another process holds it, which `wait` waits for.

    The lock goes with the process that holds it, however that ends; the file stays.

    Args:
        file: the lock file.
        wait: whether to wait for it, however long that takes; Ctrl-C ends the wait.
        on_wait: called once, after `WAIT_SECONDS` of waiting, with `process 123`, or what is empty where the system
            does not tell who holds it, as on storage that several machines share.

    Raises:
        OSError: it cannot be opened, is a link or no regular file, or the file system knows no locks.
        UsageError: the system knows none.
    """
    require_locks()
    with open_to_lock(file) as handle:
        until = time.monotonic() + (WAIT_SECONDS if wait else 0)
        while not (mine := _taken(handle)) and time.monotonic() < until:
            time.sleep(0.05)
        if wait and not mine:
            on_wait(_holder(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
            mine = True
        yield mine


def _taken(handle: BufferedRandom) -> bool:
    """Take the lock of an open file, unless another process holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: BufferedRandom) -> str:
    """Return `process 123`, which holds the lock of an open file; empty where the system does not tell."""
    state = os.fstat(handle.fileno())
    place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    # 1: FLOCK ADVISORY WRITE 3039 fe:00:2195663 0 EOF; behind `->` who waits; 0 or -1: a process of another container
    numbers = (line.split()[4] for line in lines if f" {place} " in line and "FLOCK" in line and "->" not in line)
    return next((f"process {number}" for number in numbers if number.isdigit() and number != "0"), "")


@contextmanager
def held_folder(folder: Path, *, work: str, instead: str, part: str = "") -> Iterator[None]:
    """Hold a folder, or one part of it; a process that cannot is refused with a sentence.

    Args:
        folder: it exists.
        work: what a process does that holds it, as `trains`.
        instead: what to do where another process holds it.
        part: processes that hold different parts do not meet.

    Raises:
        BusyFolderError: another process holds it.
        UnusableFolderError: it cannot be written, or it is or holds a symbolic link.
    """
    # Files that are written in place, as a log is, would change whatever a link points at.
    links = (path for path in (folder, *sorted(folder.iterdir())) if path.is_symlink())
    if link := next(links, None):
        raise UnusableFolderError(
            f"{link} is a link to {link.readlink()}; give the folder itself, with plain files in it"
        )
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(held(folder / f".lock{part and '-'}{part}"))
        except UnusableFileError as fault:
            raise UnusableFolderError(str(fault)) from fault
        except OSError as fault:
            raise UnusableFolderError(
                f"nothing can be written in {folder} ({(fault.strerror or str(fault)).lower()}); make it writable, or "
                "go on in a copy of it"
            ) from fault
        if not mine:
            raise BusyFolderError(f"another process {work} in {folder}; wait for it, or {instead}")
        yield
