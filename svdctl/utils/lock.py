"""Files and folders held by one process at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from svdctl.errors import BusyFolderError, UnusableFileError, UnusableFolderError, UsageError
from svdctl.utils.files import open_to_lock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def require_locks() -> None:
    """Raise a UsageError where the system has no locks of files that go with their process, as on Windows."""
    if fcntl is None:
        raise UsageError(
            "folders of runs and results are held by locks that Windows does not have; run this in WSL (Windows "
            "Subsystem for Linux), or use the library, `import svdctl`, which works without"
        )


@contextmanager
def held(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, made when absent; False when another process holds it, which `wait` waits for.

    The lock goes with the process that holds it, however that ends; the file stays.

    Raises:
        OSError: it cannot be opened, is a link or no regular file, or the file system knows no locks.
        UsageError: the system knows none.
    """
    require_locks()
    with open_to_lock(file) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


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
