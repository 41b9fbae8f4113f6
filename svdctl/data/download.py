"""An archive from the web: downloaded in pieces that survive a cut, checked, unpacked so that it cannot do harm."""

import hashlib
import http.client
import shutil
import socket
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from svdctl.errors import DataError, first_line
from svdctl.utils.files import create_new, open_regular, open_to_append

CHUNK = 1 << 20
MAX_MEMBERS = 1000

Tell = Callable[[str, int, int], None]
"""(what, bytes done, bytes in all)."""


@dataclass(frozen=True)
class Archive:
    """A published file: where it is, how long, and its MD5 sum as its publisher states it."""

    url: str
    name: str
    md5: str
    size: int


def fetch(archive: Archive, path: Path, *, tell: Tell | None = None, attempts: int = 5, pause: float = 2.0) -> None:
    """Download to `path`; what an earlier call left in `<path>.part` is gone on with. The checksum decides at the end.

    Raises:
        DataError: no connection, a server that gives something else, or a wrong checksum.
        OSError: what is no matter of the connection, as a full disk.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        reason = "the server ended early"
        try:
            _go_on(archive, part, tell)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = _in_words(error)
            if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429):
                break
            if isinstance(getattr(error, "reason", None), socket.gaierror) and not _length(part):
                break  # a machine without a connection has none in ten seconds either
        if _length(part) >= archive.size:
            break
        if attempt + 1 < attempts:
            time.sleep(pause * 2**attempt)
    have = _length(part)
    if have < archive.size:
        kept = f"; {have:,} bytes are kept, and the same command goes on from there" if have else ""
        raise DataError(
            f"{archive.url} could not be downloaded to {path.parent} ({reason}); put {archive.name} there{kept}"
        )
    check(archive, part, tell=tell)
    part.replace(path)


def _in_words(error: Exception) -> str:
    """Return why a download failed, without the words of urllib."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"[:150]
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "no connection: the name of the server is not known here"
    if isinstance(cause, TimeoutError):
        return "no answer within 60 s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()[:150]
    return first_line(cause, 150) if isinstance(cause, Exception) else str(cause)[:150]


def _go_on(archive: Archive, part: Path, tell: Tell | None) -> None:
    have = _length(part)
    if have >= archive.size:
        return
    headers = {"User-Agent": "svdctl", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(archive.url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        # A server that knows no ranges sends the whole from its start, with status 200.
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            part.unlink(missing_ok=True)
        with open_to_append(part) as file:
            done = have if resumed else 0
            while chunk := answer.read(min(CHUNK, archive.size + 1 - done)):
                file.write(chunk)
                done += len(chunk)
                if tell is not None:
                    tell(f"downloading {archive.name}", done, archive.size)
                if done > archive.size:
                    break


def _length(path: Path) -> int:
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else 0


def check(archive: Archive, path: Path, *, tell: Tell | None = None) -> None:
    """Compare length and MD5 sum; a file that fails is removed, unless it is the user's own (not a `.part`).

    Raises:
        DataError: it is not the published file.
    """
    size = path.stat().st_size
    if tell is not None:
        tell(f"checking {archive.name}", 0, archive.size)
    md5 = "not computed"
    if size == archive.size:
        with open_regular(path) as file:
            md5 = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if md5 == archive.md5:
            return
    ours = path.suffix == ".part"
    if ours:
        path.unlink()
    raise DataError(
        f"{path} is not the published {archive.name} ({size:,} bytes, MD5 {md5}; published: "
        f"{archive.size:,} bytes, MD5 {archive.md5}); " + ("run again" if ours else "remove it, then run again")
    )


def unpack(path: Path, folder: Path, *, limit: int) -> None:
    """Unpack a plain tar into the new folder `folder`, all of it or nothing.

    Only directories and regular files below the folder are accepted; owners, modes and times are not taken over.

    Args:
        limit: bytes that the files may have together.

    Raises:
        DataError: damaged, too large, or with a member that leaves the folder, is a link, a device, or twice there.
    """
    folder.mkdir(parents=True)
    try:
        with open_regular(path) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for name, member in _checked(tar, path, limit).items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with source, create_new(target) as file:
                    shutil.copyfileobj(source, file, CHUNK)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, tarfile.TarError | EOFError):
            raise DataError(f"{path} is damaged or no tar archive ({error}); remove it, then run again") from error
        raise


def _checked(tar: tarfile.TarFile, path: Path, limit: int) -> dict[PurePosixPath, tarfile.TarInfo]:
    """Return the regular files of an archive, after every member was found harmless; nothing is written before that."""
    files: dict[PurePosixPath, tarfile.TarInfo] = {}
    total = 0
    for number, member in enumerate(tar):
        name, text = PurePosixPath(member.name), member.name
        total += member.size
        harms = {
            "is a link": member.issym() or member.islnk(),
            "is neither a file nor a folder": member.issparse() or not (member.isreg() or member.isdir()),
            "would leave its folder": name.is_absolute() or ".." in name.parts or not {*"\\\0:"}.isdisjoint(text),
            f"is one of more than {MAX_MEMBERS} members": number >= MAX_MEMBERS,
            "is there twice or has no name": member.isreg() and (name in files or not name.parts),
            f"makes it larger than {limit:,} bytes": total > limit,
        }
        if harm := next((harm for harm, there in harms.items() if there), None):
            raise DataError(f"{path} is not unpacked: its member {text!r:.100} {harm}; get it from its publisher")
        if member.isreg():
            files[name] = member
    if inside := next((name for name in files for above in name.parents if above in files), None):
        raise DataError(f"{path} is not unpacked: {str(inside)!r:.100} lies below a file; get it from its publisher")
    return files
