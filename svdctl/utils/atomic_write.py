"""Files written whole or not at all."""

import errno
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from svdctl.errors import MissingFileError, UnusableFileError, UsageError
from svdctl.utils.files import create_new, open_regular, require_regular

if TYPE_CHECKING:
    from svdctl.utils.matplotlib_defaults import Figure


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PART = re.compile(r"\..*\.\d+\.part", re.DOTALL)
"""Names of what is being written."""


def write_atomically(path: Path, contents: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write beside `path`, flush to the disk, then rename: a reader sees the old file or the new one.

    A link in its place is replaced and never followed.

    Args:
        path: the file; its folder exists.
        contents: text, written as UTF-8 with what has no such bytes escaped; bytes; or a function that writes into an
            open file, as `torch.save` does.

    Raises:
        MissingFileError: its folder is not there.
        UnusableFileError: a device has its name: who may rename a file over `/dev/null` must not do it.
        OSError: it cannot be written, as on a full disk; it names the file, and one that was there stays as it is.
    """
    if not path.parent.is_dir():
        reason = f"cannot be written: {path.parent} is no folder"
        raise MissingFileError(str(path), reason, "make the folder first, or give another path", errno.ENOENT)
    with suppress(FileNotFoundError):
        state = path.lstat()
        if stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode):
            require_regular(state, str(path))
    if isinstance(contents, str):
        contents = contents.encode("utf-8", errors="backslashreplace")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # What is there is of a killed process of this number, or planted.
        beside.unlink(missing_ok=True)
        with error_names(path):
            with create_new(beside) as file:
                # Held until it has its name or the process ends: `remove_unfinished` leaves it alone.
                if fcntl is not None:
                    with suppress(OSError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if isinstance(contents, bytes):
                    file.write(contents)
                else:
                    contents(file)
                file.flush()
                os.fsync(file.fileno())
                beside.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        if error.filename != str(beside) or isinstance(error, UnusableFileError):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # by the name that was asked for
    finally:
        with suppress(OSError):  # the error of the writing is the one to tell
            beside.unlink(missing_ok=True)


def require_place(path: Path, name: str, *inputs: Path) -> None:
    """Check that a file can be written where a user wants it, before the work that it is the result of.

    Args:
        path: the file.
        name: of the key or argument, in messages.
        inputs: what the work reads.

    Raises:
        UsageError: its folder is not there or cannot be written; it is one of the inputs; or something else than a
            file has its name. A link is refused too: `/dev/stdout` is one, which nobody wants to be replaced.
    """
    given = f"`{name} = {path}`"
    if not os.path.isdir(path.parent):  # unlike `Path.is_dir` it takes names that are too long
        raise UsageError(f"{given}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{given}: nothing can be written in {path.parent}; give a file in another folder")
    try:
        if path.is_symlink():
            raise UsageError(f"{given}: this is a link to {path.readlink()}; remove it, or give the name of a file")
        require_regular(path.stat(), str(path))
    except FileNotFoundError:
        return
    except UnusableFileError as error:
        raise UsageError(f"{given}: it {error.reason}; give the name of a file") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{given}: it cannot be written ({reason}); give another name") from error
    if any(os.path.exists(one) and one.samefile(path) for one in inputs):
        raise UsageError(f"{given}: this is a file that is read, and would be lost; give another name")


def write_picture(figure: "Figure", path: Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        OSError: it cannot be written; it names `path`.
    """
    from svdctl.utils.matplotlib_defaults import with_defaults  # a second to import

    with with_defaults(), warnings.catch_warnings():
        # A sign that matplotlib's fonts lack is drawn as a box.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; what another process is writing there stays."""
    for left in folder.glob(".*.part") if fcntl is not None else ():
        if _PART.fullmatch(left.name) is None or left.is_symlink() or not left.is_file():
            continue
        # It may have got its name meanwhile, or the file system may know no locks.
        with suppress(OSError), open_regular(left) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextmanager
def error_names(path: Path) -> Iterator[None]:
    """Add the file's name to errors of the system: it names a file that cannot be opened, not one on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
