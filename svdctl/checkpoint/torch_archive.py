"""Files of torch.save, old and new, read as torch reads them and without torch's reader: nothing in them is executed.

New files are zip archives with a checksum for each member, which torch writes and does not read. Files of torch < 1.6
are pickles followed by bare numbers: a cut is noticed, a changed number is not.
"""

import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from svdctl.checkpoint.file_format import Container, container_of
from svdctl.checkpoint.pickled_calls import Storage, called, storage_type
from svdctl.checkpoint.pickles import ObjectRecord, Unpickler, check_nesting
from svdctl.checkpoint.work_limit import WorkLimit
from svdctl.checkpoint.zip_archive import Member, check_checksums, check_members, directory
from svdctl.errors import CheckpointError, UnusableFileError, first_line, is_out_of_memory
from svdctl.utils.files import open_regular
from svdctl.utils.memory_copy import in_memory

FORMAT, VERSION = "svdctl.checkpoint", 3
"""Format and version in svdctl's own checkpoints; the name never changes."""

VIEW_FROM = 64 * 2**20
"""Tensors of files from this size on are views of the file's copy in memory; those of smaller ones do not hold it."""
_LEGACY_PICKLES = 5


def read_torch(path: Path, container: Container | None = None, limit: WorkLimit | None = None) -> object:
    """Return what torch.save was given, tensors on the CPU, views of a copy of a large file in memory.

    Objects of classes other than Python's own and torch's tensors are records of what the file says of them.

    Args:
        path: the file.
        container: how it is packed, where that is known.
        limit: of all files that are read together; None: of this one.

    Raises:
        CheckpointError: foreign, damaged, changed while it is read, or only readable by executing what it says.
    """
    container = container or container_of(path)
    if container not in ("zip", "legacy"):
        kinds = {"safetensors": "a safetensors file", "index": "an index of shards"}
        kind = kinds.get(container, "the .metadata of a distributed checkpoint")
        raise CheckpointError(f"{path} is {kind}, not a file that torch.save wrote; give the other one")
    try:
        with in_memory(path) as place:
            data = _mapped(place, path)
            limit = limit or WorkLimit(len(data), str(path))
            contents = _read_zip(data, limit) if container == "zip" else _read_legacy(data, limit)
    except CheckpointError:
        raise
    except UnusableFileError as error:
        raise CheckpointError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise _no_memory(path) from error
        raise
    check_nesting(contents, limit)
    return contents


def unpacked(data: bytearray, limit: WorkLimit) -> object:
    """Return what torch.save was given, as `read_torch`, from the bytes of an archive that is a part of a file."""
    try:
        contents = _read_zip(data, limit)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise _no_memory(Path(limit.where)) from error
        raise
    check_nesting(contents, limit)
    return contents


def is_checkpoint(contents: Mapping[Any, object], path: Path) -> bool:
    """Return whether the contents of a file are those of a checkpoint of svdctl.

    Raises:
        CheckpointError: they are of a newer format.
    """
    version = contents.get("version")
    kind = contents.get("format")
    if not isinstance(kind, str) or kind != FORMAT:
        return False
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{path} has format {min(version, 10**9)}, newer than this svdctl knows ({VERSION}); upgrade svdctl"
        )
    return True


def _no_memory(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} claims more memory than this machine has free; use a larger one, or another copy if the file is small"
    )


def _mapped(place: str, path: Path) -> mmap.mmap:
    """Return the bytes of a file, mapped so that what is changed in them stays in memory; `path`: its name."""
    try:
        with open_regular(place) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (MemoryError, OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise _no_memory(path) from error
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); check its permissions and disk") from error


def _numbers(data: bytearray | mmap.mmap, at: int, size: int) -> torch.Tensor:
    """Return `uint8 (size,)`, a view of the bytes."""
    return (
        torch.frombuffer(data, dtype=torch.uint8, offset=at, count=size) if size else torch.empty(0, dtype=torch.uint8)
    )


def _read_zip(data: bytearray | mmap.mmap, limit: WorkLimit) -> object:
    where = limit.where
    listed, start = directory(data, where)
    root = listed[0].name.partition("/")[0] if listed else ""
    _check_kind(where, root, {member.name for member in listed})
    members = check_members(data, listed, start, where)
    if any(not name.startswith(f"{root}/") for name in members):
        raise CheckpointError(f"{where} is damaged: its archive holds more than one folder; use another copy")
    check_checksums(data, members, where)
    order = members.get(f"{root}/byteorder")
    other_order = b"big" if sys.byteorder == "little" else b"little"
    is_swapped = order is not None and data[order.start : order.start + order.size] == other_order
    storages: dict[str, Storage] = {}

    def storage(described: tuple[Any, ...]) -> Storage:
        kind, reference, key, _, count = described
        if kind != "storage" or not isinstance(key, str):
            raise ValueError("no storage")
        if key not in storages:
            storages[key] = _stored(data, members[f"{root}/data/{key}"], storage_type(reference), count, is_swapped)
        return Storage(storages[key].numbers, storage_type(reference))

    contents = members[f"{root}/data.pkl"]
    pickle = bytes(data[contents.start : contents.start + contents.size])
    return Unpickler(pickle, limit, called, storage).load()


def _stored(data: bytearray | mmap.mmap, member: Member, dtype: torch.dtype, count: int, is_swapped: bool) -> Storage:
    """Return the numbers of one member, of a large file as a view."""
    if count * dtype.itemsize != member.size:
        raise ValueError("a storage of another size")
    numbers = _numbers(data, member.start, member.size)
    if len(data) < VIEW_FROM:
        numbers = numbers.clone()
    found = numbers.untyped_storage()
    if is_swapped:
        found.byteswap(dtype)
    return Storage(found, dtype)


def _check_kind(where: str, root: str, names: set[str]) -> None:
    if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
        raise CheckpointError(
            f"{where} is a TorchScript program, which svdctl does not run; where it came from, "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt') writes its weights"
        )
    if _EXPORTED & {name.removeprefix(f"{root}/") for name in names}:
        raise CheckpointError(
            f"{where} is a program of torch.export, which svdctl does not run; where it came from, "
            "torch.save(torch.export.load(path).state_dict, 'weights.pt') writes its weights"
        )
    if f"{root}/data.pkl" not in names:
        kind = "an archive of numpy arrays" if any(name.endswith(".npy") for name in names) else "another zip archive"
        raise CheckpointError(f"{where} is {kind}, not a file that torch.save wrote; check which file was meant")


_EXPORTED = {"archive_format", "models/model.json", "serialized_exported_program.json"}
"""Members of `.pt2` files, at their top or in a folder, by their age."""


def _read_legacy(data: bytearray | mmap.mmap, limit: WorkLimit) -> object:
    """Return the contents of a file of torch < 1.6: five pickles, the fifth a list of storages, then their numbers."""
    storages: dict[str, Storage] = {}
    claimed = 0

    def storage(described: tuple[Any, ...]) -> object:
        nonlocal claimed
        kind, reference, *rest = described
        if kind == "module":
            return ObjectRecord("torch.nn.Module source")
        key, _, count, *view = rest
        dtype = storage_type(reference)
        if kind != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("no storage")
        if key not in storages:
            claimed += count * dtype.itemsize
            if claimed > len(data):
                raise ValueError("storages larger than the file")
            storages[key] = Storage(torch.UntypedStorage(count * dtype.itemsize), dtype)
        numbers = storages[key].numbers
        if view and view[0] is not None:
            _, first, length = view[0]
            numbers = _part(numbers, first * dtype.itemsize, length * dtype.itemsize)
        return Storage(numbers, dtype)

    reader = Unpickler(data, limit, called, storage)
    contents, keys = [reader.load() for _ in range(_LEGACY_PICKLES)][-2:]
    at = reader.at
    damaged = CheckpointError(f"{limit.where} is damaged: its parts do not add up to its size; use another copy")
    if not isinstance(keys, list) or len(keys) != len(storages) or set(map(_text, keys)) != storages.keys():
        raise damaged
    for key in keys:
        stored = storages[_text(key)]
        size = stored.numbers.nbytes()
        if int.from_bytes(data[at : at + 8], "little") * stored.dtype.itemsize != size or at + 8 + size > len(data):
            raise damaged
        torch.empty(0, dtype=torch.uint8).set_(stored.numbers).copy_(_numbers(data, at + 8, size))
        at += 8 + size
    # Bytes left over mean that a tensor got none.
    if at != len(data):
        raise damaged
    return contents


def _text(key: object) -> str:
    return key if isinstance(key, str) else ""


def _part(numbers: torch.UntypedStorage, start: int, size: int) -> torch.UntypedStorage:
    if start < 0 or size < 0 or start + size > numbers.nbytes():
        raise ValueError("outside of its storage")
    part: torch.UntypedStorage = numbers[start : start + size]
    return part
