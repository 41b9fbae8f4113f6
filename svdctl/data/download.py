"""An archive from the web: downloaded in pieces that survive a cut, checked, unpacked so that it cannot do harm."""

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from svdctl.errors import DataError

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
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    cause: Exception | None = None
    for attempt in range(attempts):
        try:
            _go_on(archive, part, tell)
            cause = None
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(
                error, urllib.error.URLError | http.client.HTTPException | ConnectionError | TimeoutError
            ):
                raise  # a full disk is no matter of the connection
            cause = error
        if _length(part) >= archive.size or _is_final(cause):
            break
        if attempt + 1 < attempts:
            time.sleep(pause * 2**attempt)
    have = _length(part)
    if have < archive.size:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0] if cause else "the server ended early"
        kept = f"; {have:,} bytes are kept, and the same command goes on from there" if have else ""
        raise DataError(
            f"{archive.url} could not be downloaded to {path.parent} ({reason[:150]}); put {archive.name} there{kept}"
        )
    check(archive, part, tell=tell)
    part.replace(path)


def _is_final(cause: Exception | None) -> bool:
    """Return whether trying again is of no use."""
    return isinstance(cause, urllib.error.HTTPError) and 400 <= cause.code < 500 and cause.code not in (408, 429)


def _go_on(archive: Archive, part: Path, tell: Tell | None) -> None:
    have = _length(part)
    if have >= archive.size:
        return
    headers = {"User-Agent": "svdctl", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(archive.url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        # A server that knows no ranges sends the whole from its start, with status 200.
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if resumed else "wb") as file:
            done = have if resumed else 0
            while chunk := answer.read(min(CHUNK, archive.size + 1 - done)):
                file.write(chunk)
                done += len(chunk)
                if tell is not None:
                    tell(f"downloading {archive.name}", done, archive.size)
                if done > archive.size:
                    break


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check(archive: Archive, path: Path, *, tell: Tell | None = None) -> None:
    """Compare length and MD5 sum; a file that fails is removed, unless it is the user's own (not a `.part`).

    Raises:
        DataError: it is not the published file.
    """
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if tell is not None:
                tell(f"checking {archive.name}", done, max(done, archive.size))
    if done == archive.size and digest.hexdigest() == archive.md5:
        return
    ours = path.suffix == ".part"
    if ours:
        path.unlink()
    raise DataError(
        f"{path} is not the published {archive.name} ({done:,} bytes, MD5 {digest.hexdigest()}; published: "
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
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with tarfile.open(path, "r:") as tar:
            members = _checked(tar, path, limit)
            beside.mkdir(parents=True)
            for member in members:
                target = beside / PurePosixPath(member.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                if target.stat().st_size != member.size:
                    raise DataError(f"{path} is cut off within {member.name}; remove it, then run again")
        beside.replace(folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is damaged or no tar archive ({error}); remove it, then run again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _checked(tar: tarfile.TarFile, path: Path, limit: int) -> list[tarfile.TarInfo]:
    """Return the regular files of an archive, after every member was found harmless; nothing is written before that."""
    files: dict[PurePosixPath, tarfile.TarInfo] = {}
    total = 0
    for number, member in enumerate(tar):
        name = PurePosixPath(member.name)
        why = _harm(member, name)
        if why is None and number >= MAX_MEMBERS:
            why = f"is one of more than {MAX_MEMBERS} members"
        if why is None and member.isreg():
            total += member.size
            if name in files or name == PurePosixPath("."):
                why = "is there twice or has no name"
            elif total > limit:
                why = f"makes it larger than {limit:,} bytes"
            files[name] = member
        if why is not None:
            raise DataError(f"{path} is not unpacked: its member {member.name!r:.100} {why}; get it from its publisher")
    if inside := next((name for name in files for above in name.parents if above in files), None):
        raise DataError(f"{path} is not unpacked: {str(inside)!r:.100} lies below a file; get it from its publisher")
    return list(files.values())


def _harm(member: tarfile.TarInfo, name: PurePosixPath) -> str | None:
    if member.issym() or member.islnk():
        return "is a link"
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name or ":" in member.name:
        return "would leave its folder"
    return None
