"""Zip archives that have exactly one reading: bare members side by side, a directory that agrees with them, an end.

A zip file says the same in up to four places, and readers differ in which they believe. Here all have to agree, and
every byte before the end belongs to one member or to the directory. Source: PKWARE's APPNOTE, sections 4.3 and 4.5.
"""

import mmap
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from svdctl.errors import CheckpointError

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_END_SIZE, _END64_SIZE, _LOCATOR_SIZE, _ENTRY_SIZE, _LOCAL_SIZE = 22, 56, 20, 46, 30
_DESCRIBED_LATER, _UTF8 = 0x8, 0x800
_FOLDER = 0x10
_FULL_16, _FULL_32 = 2**16 - 1, 2**32 - 1
_ZIP64 = 1
_AT_ONCE = 2**24
"""Bytes whose checksum is computed at once."""


@dataclass(frozen=True)
class Member:
    """One member, as the directory describes it."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    at: int
    """Where its own header begins."""
    attributes: int
    start: int = 0
    """Where its contents begin; 0 before its header was read."""


def directory(data: bytearray | mmap.mmap, where: str) -> tuple[list[Member], int]:
    """Return the members in the order of the directory, and where the directory begins.

    Raises:
        CheckpointError: the end of the file, the records before it and the directory do not agree.
    """
    try:
        count, size, start = _end(data)
        return _entries(data, count, start, start + size), start
    except (struct.error, ValueError) as error:
        raise _damaged(where, str(error)) from error


def check_members(data: bytearray | mmap.mmap, members: list[Member], start: int, where: str) -> dict[str, Member]:
    """Return the members by name, where their own headers agree with the directory and they fill the file up to it.

    Args:
        data: the file.
        members: of its directory.
        start: where the directory begins.
        where: the file, for messages.

    Raises:
        CheckpointError: compressed, or there is more than one reading of the archive.
    """
    if any(member.method for member in members):
        raise CheckpointError(f"{where} is a compressed archive, which torch.save never writes; unpack it first")
    if len({member.name.casefold() for member in members}) != len(members):
        raise _damaged(where, "two members of its archive have one name")
    if any(member.attributes & _FOLDER or member.name.endswith("/") for member in members):
        raise _damaged(where, "a member of its archive is marked as a folder")
    if any(member.packed != member.size for member in members) or sum(member.size for member in members) > len(data):
        raise _damaged(where, "its members claim more bytes than it has")
    ordered = sorted(members, key=lambda member: member.at)
    if ordered and ordered[0].at:
        raise _damaged(where, "bytes stand before or after its archive")
    ends = [*(after.at for after in ordered[1:]), start]
    try:
        found = [_with_start(data, member, end) for member, end in zip(ordered, ends, strict=True)]
    except (struct.error, ValueError) as error:
        raise _damaged(where, str(error)) from error
    assert all(one.start + one.size <= other.at for one, other in pairwise(found))
    return {member.name: member for member in found}


def check_checksums(data: bytearray | mmap.mmap, members: dict[str, Member], where: str) -> None:
    """Compare the CRC32 of each member with its contents.

    torch can leave the checksums out (`set_crc32_options`): then all are zero, and none is compared.

    Raises:
        CheckpointError: naming the first member that differs.
    """
    if not any(member.crc for member in members.values()):
        return
    with memoryview(data) as view:
        for member in members.values():
            crc = 0
            for at in range(member.start, member.start + member.size, _AT_ONCE):
                crc = zlib.crc32(view[at : min(at + _AT_ONCE, member.start + member.size)], crc)
            if crc != member.crc:
                raise _damaged(where, f"{member.name!r} fails its checksum")


def _damaged(where: str, why: str) -> CheckpointError:
    return CheckpointError(f"{where} is damaged: {why}; use another copy")


def _end(data: bytearray | mmap.mmap) -> tuple[int, int, int]:
    """Return the number of members, and size and place of the directory."""
    at = len(data) - _END_SIZE
    if at < 0 or data[at : at + 4] != _END:
        raise ValueError("its archive breaks off, or bytes stand before or after its archive")
    disk, first_disk, here, count, size, start, comment = struct.unpack("<4H2LH", data[at + 4 : at + _END_SIZE])
    if disk or first_disk or here != count or comment:
        raise ValueError("the end of its archive makes no sense")
    end = at
    locator = at - _LOCATOR_SIZE
    if locator >= 0 and data[locator : locator + 4] == _LOCATOR:
        end = locator - _END64_SIZE
        _, place, disks = struct.unpack("<LQL", data[locator + 4 : locator + _LOCATOR_SIZE])
        if end < 0 or place != end or disks != 1 or data[end : end + 4] != _END64:
            raise ValueError("its archive has two ends")
        length, _, _, disk, first_disk, here, *wide = struct.unpack("<Q2H2L4Q", data[end + 4 : end + _END64_SIZE])
        narrow = ((count, _FULL_16), (size, _FULL_32), (start, _FULL_32))
        if length != _END64_SIZE - 12 or disk or first_disk or here != wide[0]:
            raise ValueError("the end of its archive makes no sense")
        if any(short not in (long, full) for (short, full), long in zip(narrow, wide, strict=True)):
            raise ValueError("its archive has two ends")
        count, size, start = wide
    elif count == _FULL_16 or _FULL_32 in (size, start):
        raise ValueError("the end of its archive makes no sense")
    if start + size != end:
        raise ValueError("bytes stand before or after its archive")
    return count, size, start


def _entries(data: bytearray | mmap.mmap, count: int, at: int, end: int) -> list[Member]:
    if count * _ENTRY_SIZE > end - at:
        raise ValueError("its directory is shorter than it says")
    found = []
    for _ in range(count):
        if data[at : at + 4] != _ENTRY:
            raise ValueError("its directory makes no sense")
        _, _, flags, method, _, _, crc, packed, size, name, extra, comment, disk, _, attributes, header = struct.unpack(
            "<6H3L5H2L", data[at + 4 : at + _ENTRY_SIZE]
        )
        at += _ENTRY_SIZE
        if comment or at + name + extra > end:
            raise ValueError("its directory makes no sense")
        text = _name(data[at : at + name], flags)
        size, packed, header, disk = _wide(
            data[at + name : at + name + extra],
            (size, _FULL_32, "Q"), (packed, _FULL_32, "Q"), (header, _FULL_32, "Q"), (disk, _FULL_16, "L"),
        )  # fmt: skip
        if disk:
            raise ValueError("its directory makes no sense")
        at += name + extra
        found.append(Member(text, flags, method, crc, packed, size, header, attributes))
    if at != end:
        raise ValueError("its directory is longer than it says")
    return found


def _name(text: bytes | bytearray, flags: int) -> str:
    try:
        name = text.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise ValueError("a member of its archive has a name that is no text") from error
    parts = name.removesuffix("/").split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError("a member of its archive has a name that is no path below it")
    return name


def _wide(extra: bytes | bytearray, *fields: tuple[int, int, str]) -> list[int]:
    """Return numbers of a header, those that are full from the ZIP64 field, which has these and no others.

    Args:
        extra: the header's extra fields.
        fields: number, what it is when it is full, and the form of its place in the ZIP64 field.
    """
    held = _zip64(extra)
    full = [form for number, limit, form in fields if number == limit]
    if held is None:
        if full:
            raise ValueError("a member of its archive has no size")
        return [number for number, _, _ in fields]
    wide = iter(struct.unpack(f"<{''.join(full)}", held))
    return [next(wide) if number == limit else number for number, limit, _ in fields]


def _zip64(extra: bytes | bytearray) -> bytes | bytearray | None:
    """Return the contents of the ZIP64 field; None: there is none."""
    held: bytes | bytearray | None = None
    at = 0
    while at < len(extra):
        kind, size = struct.unpack("<2H", extra[at : at + 4])
        if at + 4 + size > len(extra):
            raise ValueError("the header of a member breaks off")
        if kind == _ZIP64:
            if held is not None:
                raise ValueError("a member of its archive has two sizes")
            held = extra[at + 4 : at + 4 + size]
        at += 4 + size
    return held


def _with_start(data: bytearray | mmap.mmap, member: Member, end: int) -> Member:
    """Return the member with its place, after its own header and whatever stands behind it are compared.

    Args:
        data: the file.
        member: of the directory.
        end: where the next member or the directory begins.
    """
    at = member.at
    if data[at : at + 4] != _LOCAL:
        raise ValueError(f"{member.name!r} does not stand where its directory says")
    _, flags, method, _, _, crc, packed, size, name, extra = struct.unpack("<5H3L2H", data[at + 4 : at + _LOCAL_SIZE])
    at += _LOCAL_SIZE
    if _name(data[at : at + name], flags) != member.name or (flags, method) != (member.flags, member.method):
        raise ValueError(f"{member.name!r} has another header than its directory says")
    fields = data[at + name : at + name + extra]
    start = at + name + extra
    behind = end - start - member.size
    is_later = bool(flags & _DESCRIBED_LATER)
    if is_later and not packed and not size:
        told = (crc, *_sizes_beside(fields, member))
    else:
        size, packed = _wide(fields, (size, _FULL_32, "Q"), (packed, _FULL_32, "Q"))
        told = (crc, packed, size)
    wanted = (member.crc, member.packed, member.size)
    if told != wanted and not (is_later and all(one in (0, other) for one, other in zip(told, wanted, strict=True))):
        raise ValueError(f"{member.name!r} has another header than its directory says")
    if behind and not (is_later and data[end - behind : end] in _descriptors(wanted)):
        raise ValueError(f"{member.name!r} is not as long as its directory says")
    return Member(**{**vars(member), "start": start})


def _sizes_beside(extra: bytes | bytearray, member: Member) -> tuple[int, int]:
    """Return packed and full size of a header whose contents are described behind them: 0, or those of a large member.

    torch's writer leaves the header's own fields at 0 and writes a ZIP64 field all the same: the size of a large member
    and 0, and the place of one that stands behind 4 GiB.
    """
    held = _zip64(extra)
    numbers = [] if held is None else list(struct.unpack(f"<{len(held) // 8}Q", held))
    is_large = max(member.size, member.packed) >= _FULL_32
    if member.at >= _FULL_32 and numbers and numbers.pop() != member.at:
        raise ValueError(f"{member.name!r} does not stand where its directory says")
    if len(numbers) not in (0, 2 * is_large):
        raise ValueError(f"{member.name!r} has another header than its directory says")
    size, packed = numbers or (0, 0)
    return packed, size


def _descriptors(wanted: tuple[int, int, int]) -> list[bytes]:
    """Return what may stand behind a member: checksum and sizes, in 32 or 64 bits, with or without a signature."""
    forms = ["<LQQ"] if max(wanted[1:]) >= _FULL_32 else ["<LLL", "<LQQ"]
    bare = [struct.pack(form, *wanted) for form in forms]
    return [*bare, *(_DESCRIPTOR + numbers for numbers in bare)]
