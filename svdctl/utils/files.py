"""The one door to files: what is opened is a regular file, what is parsed is bounded, what is made follows no link.

Every failure is an error of the package that is one sentence with the file's name; `reason` is its middle part, for a
caller that has advice of its own.
"""

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from io import BufferedRandom, BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

from svdctl.errors import MalformedFileError, MissingFileError, UnusableFileError, UsageError, first_line

TEXT_LIMIT = 64 * 2**20
"""Bytes of a text or of JSON that are read."""
TOML_LIMIT = 2**20
"""Bytes of TOML; configurations have some thousand."""
DEPTH_LIMIT = 100
"""Levels that JSON and TOML may nest, and parts that a key of TOML may have."""
KEY_LIMIT = 500
"""Signs of a key of JSON and TOML: sentences repeat keys."""
_KINDS = {
    stat.S_IFDIR: "is a folder, and a file belongs here",
    stat.S_IFIFO: "is a FIFO, and only regular files are read and written",
    stat.S_IFSOCK: "is a socket, and only regular files are read and written",
    stat.S_IFCHR: "is a device, and only regular files are read and written",
    stat.S_IFBLK: "is a device, and only regular files are read and written",
}
# Windows lacks all but the last, which no other system has.
_QUIETLY = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_MEND = "mend it, or check which file was meant"
_SURROGATE = re.compile("[\ud800-\udfff]")


def file_path(given: object) -> Path:
    """Return the path of a file that a user gave.

    Raises:
        UsageError: it is no path.
    """
    if not isinstance(given, str | os.PathLike):
        raise UsageError(f"path is the name of a file, as text or pathlib.Path, not a {type(given).__name__}")
    return Path(given)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Return a regular file, or the one that a link leads to, open for reading bytes; nothing else is even opened.

    Raises:
        MissingFileError: there is none.
        UnusableFileError: a folder, FIFO, socket or device, or one that may not be read.
    """
    path = os.fspath(path)
    try:
        # Opening a device can change it; a FIFO that replaces the file meanwhile does not block.
        require_regular(os.stat(path), path)
        handle = os.open(path, os.O_RDONLY | _QUIETLY)
    except (OSError, ValueError) as error:
        raise _unusable(error, path) from error
    return open(_regular(handle, path), "rb")


def create_new(path: str | os.PathLike[str]) -> BufferedWriter:
    """Return a new file, open for writing bytes; what is there already, a link included, is left and refused.

    Raises:
        UnusableFileError: something has its name.
        OSError: it cannot be made, as on a full disk; it names the file.
    """
    path = os.fspath(path)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _QUIETLY, 0o666)
    except FileExistsError as error:
        raise UnusableFileError(path, "is there already", "remove it, or give another name", error.errno) from error
    return open(handle, "wb")


def open_to_append(path: str | os.PathLike[str]) -> BufferedWriter:
    """Return a regular file, made when absent, open for writing bytes at its end; a link is refused.

    Raises:
        UnusableFileError: a link, or no regular file.
        OSError: it cannot be made or written, as on a full disk; it names the file.
    """
    return open(_own(path, os.O_WRONLY | os.O_APPEND), "ab")


def open_to_lock(path: str | os.PathLike[str]) -> BufferedRandom:
    """Return a regular file, made when absent, to hold a lock on; its contents are left, and a link is refused.

    Raises:
        UnusableFileError, OSError: as `open_to_append`.
    """
    return open(_own(path, os.O_RDWR), "r+b")


def _own(path: str | os.PathLike[str], flags: int) -> int:
    """Return the handle of a regular file, made when absent, that no link leads to."""
    path = os.fspath(path)
    if os.path.islink(path):
        raise UnusableFileError(path, f"is a link to {os.readlink(path)}, and is not written through", "remove it")
    if os.path.exists(path):
        require_regular(os.stat(path), path)
    # The flags hold where a link or a FIFO takes the place meanwhile.
    own = flags | os.O_CREAT | _NO_LINK | _QUIETLY
    return _regular(os.open(path, own, 0o666), path)


def _regular(handle: int, path: str) -> int:
    """Return a handle that turns out to be one of a regular file; another one is closed."""
    try:
        require_regular(os.fstat(handle), path)
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def require_regular(state: os.stat_result, path: str) -> None:
    """Raise an UnusableFileError where this is the state of anything but a regular file."""
    if not stat.S_ISREG(state.st_mode):
        reason = _KINDS.get(stat.S_IFMT(state.st_mode), "is no regular file")
        raise UnusableFileError(path, reason, "check which file was meant")


def _unusable(error: OSError | ValueError, path: str) -> UnusableFileError:
    """Return an error of the system, or of a path with a zero byte, as one of the package."""
    if isinstance(error, UnusableFileError):
        return error
    number = getattr(error, "errno", None)
    reason = f"cannot be read ({(getattr(error, 'strerror', None) or first_line(error)).lower()})"
    if isinstance(error, FileNotFoundError):
        return MissingFileError(path, reason, "check its path", number)
    return UnusableFileError(path, reason, "check its path and its rights", number)


def read_bytes(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> bytes:
    """Return the contents of a regular file.

    Raises:
        UnusableFileError: it cannot be opened or read.
        MalformedFileError: it has more than `limit` bytes.
    """
    with open_regular(path) as file:
        try:
            contents = file.read(limit + 1)
        except OSError as error:
            reason = (error.strerror or first_line(error)).lower()
            advice = "restore it from a copy"
            raise UnusableFileError(os.fspath(path), f"cannot be read ({reason})", advice, error.errno) from error
    if len(contents) > limit:
        raise MalformedFileError(os.fspath(path), f"has more than {limit:,} bytes, which svdctl does not read", _MEND)
    return contents


def read_text(
    path: str | os.PathLike[str], limit: int = TEXT_LIMIT, *, errors: str = "strict", form: str = "text"
) -> str:
    """Return the text of a UTF-8 file, line ends as line feeds.

    Args:
        path: the file.
        limit: bytes that are read at most.
        errors: as `bytes.decode` takes it.
        form: what the file should be, in messages.

    Raises:
        UnusableFileError, MalformedFileError: as `read_bytes`; it is not UTF-8.
    """
    contents = read_bytes(path, limit)
    try:
        text = contents.decode("utf-8", errors=errors)
    except UnicodeDecodeError as error:
        reason = f"is no {form}: it is not UTF-8 (its byte {error.start:,} is 0x{contents[error.start]:02x})"
        raise MalformedFileError(os.fspath(path), reason, _MEND) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], *, errors: str = "strict") -> Any:
    """Return the value in a JSON file.

    Raises:
        UnusableFileError, MalformedFileError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, errors=errors, form="JSON"), os.fspath(path))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        UnusableFileError, MalformedFileError: as `read_text` and `parse_toml`.
    """
    return parse_toml(read_text(path, TOML_LIMIT, form="TOML"), os.fspath(path))


def parse_json(text: str | bytes, name: str) -> Any:
    """Return the value of a text in JSON: nested at most 100 levels, numbers finite or of 64 bits, texts in Unicode.

    Args:
        text: whatever its source.
        name: of the source, in messages.

    Raises:
        MalformedFileError: it is not.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise MalformedFileError(name, f"nests deeper than {DEPTH_LIMIT} levels", _MEND) from error
    except ValueError as error:
        raise MalformedFileError(name, f"is no JSON that svdctl reads ({_of_parser(error)})", _MEND) from error
    _require_plain(value, name, finite=True)
    return value


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Return the table of a text in TOML: nested at most 100 levels, keys of at most 100 parts, numbers of 64 bits.

    Raises:
        MalformedFileError: it is not.
    """
    # The time of tomllib grows with the square of a key's parts.
    if any(
        any(part.count(".") > DEPTH_LIMIT for part in re.split(r"[=,#\[\]{}]", line))
        for line in text.split("\n")
        if line.count(".") > DEPTH_LIMIT and not line.lstrip().startswith("#")
    ):
        raise MalformedFileError(name, f"has a key of more than {DEPTH_LIMIT} parts", _MEND)
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise MalformedFileError(name, f"nests deeper than {DEPTH_LIMIT} levels", _MEND) from error
    except ValueError as error:
        text = re.sub(r"\(at (line \d+), (column \d+)\)$", r"(\1, \2)", _of_parser(error))
        raise MalformedFileError(name, f"is no TOML: {text[:1].lower()}{text[1:]}", _MEND) from error
    _require_plain(table, name, finite=False)
    return table


def _of_parser(error: ValueError) -> str:
    if "integer string conversion" in str(error):
        return "a number has thousands of digits"
    return first_line(error)


def _require_plain(value: Any, name: str, *, finite: bool) -> None:
    """Refuse values that would fail later, where nobody knows the file any more.

    Raises:
        MalformedFileError: nested too deep, a number beyond all floats or 64 bits, half of a surrogate pair in a text.
    """
    level, depth = [value], 0
    while level:
        if depth >= DEPTH_LIMIT and any(isinstance(one, Mapping | list) for one in level):
            raise MalformedFileError(name, f"nests deeper than {DEPTH_LIMIT} levels", _MEND)
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                if max(map(len, one), default=0) > KEY_LIMIT:
                    raise MalformedFileError(name, f"has a key of more than {KEY_LIMIT} signs", _MEND)
                inner += [*one, *one.values()]
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and _SURROGATE.search(one):
                raise MalformedFileError(name, f"has a text that is no Unicode ({one[:40]!a})", _MEND)
            elif isinstance(one, float) and finite and not math.isfinite(one):
                raise MalformedFileError(name, "has a number beyond all floats", _MEND)
            elif isinstance(one, int) and not -(2**63) <= one < 2**64:
                # Python writes no decimal number of thousands of digits, which hexadecimal ones can have.
                raise MalformedFileError(name, "has a whole number of more than 64 bits", _MEND)
        level, depth = inner, depth + 1
