"""Folders of `torch.distributed.checkpoint`: `.metadata`, a pickle that says what lies where, and files of archives.

Nothing in them is executed: `.metadata` is read by the interpreter of `pickles.py`, in which each of torch's classes is
a record, and every part of a `.distcp` file, one tensor or object, is an archive as torch.save writes it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdctl.checkpoint.pickled_calls import called
from svdctl.checkpoint.pickles import ObjectRecord, Unpickler
from svdctl.checkpoint.sharded_weights import inside
from svdctl.checkpoint.tensors import check_sizes
from svdctl.checkpoint.torch_archive import unpacked
from svdctl.checkpoint.work_limit import WorkLimit
from svdctl.errors import CheckpointError
from svdctl.utils.files import open_regular, read_bytes

_MAX_PATH = 32
"""Parts of the path of a tensor or object in the nested dict that was saved."""
_TENSOR = "TensorStorageMetadata"


def read_distributed(path: Path) -> tuple[dict[str, object], int]:
    """Return the nested dict that was saved, its tensors whole, and the bytes of the folder's files.

    Args:
        path: `.metadata`.

    Raises:
        CheckpointError: damaged, a file is missing or outside of the folder, parts that do not add up to their tensor.
    """
    try:
        return _read(path)
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        # Records without the attributes that torch gives them.
        raise CheckpointError(
            f"{path} is damaged, or of a torch that svdctl does not know; where you trust it, python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path.parent} out.pt converts the folder"
        ) from error


def _read(path: Path) -> tuple[dict[str, object], int]:
    pickle = read_bytes(path)
    whole = Unpickler(pickle, WorkLimit(len(pickle), str(path)), called, _no_storage).load()
    about = _state(whole)
    places = [(_state(index), _state(place)) for index, place in about["storage_data"].items()]
    names = dict.fromkeys(place["relative_path"] for _, place in places)
    files = {name: inside(path.parent, name, f"{path} lists") for name in names}
    size = len(pickle) + sum(file.stat().st_size for file in files.values())
    if sum(max(place["length"], 0) for _, place in places) > size:
        raise CheckpointError(f"{path} lists more bytes than the folder has; use another copy")
    limit = WorkLimit(size, str(path))  # of all parts together
    held: dict[str, list[tuple[tuple[int, ...], object]]] = {}
    for index, place in places:
        offset = tuple(index.get("offset") or ())
        held.setdefault(index["fqn"], []).append((offset, _part(files[place["relative_path"]], place, limit)))
    parts = {f"{name} {at}": part for name, found in held.items() for at, part in found}
    # Before any of them are joined.
    check_sizes({name: part for name, part in parts.items() if isinstance(part, Tensor)}, size, str(path))
    contents: dict[str, object] = {}
    for name, described in about["state_dict_metadata"].items():
        is_tensor = described.name.rpartition(".")[2] == _TENSOR
        value = _joined(name, held[name], _state(described)["size"], path) if is_tensor else held[name][0][1]
        _place(contents, (about.get("planner_data") or {}).get(name, (name,)), value)
    return {name: _with_lists(part) for name, part in contents.items()}, size


def _no_storage(described: tuple[Any, ...]) -> object:
    raise ValueError("no tensors are in it")


def _state(record: Any) -> dict[str, Any]:
    """Return the attributes of a record, as the file gives them."""
    found: dict[str, Any] = next(part for part in record.parts if isinstance(part, dict))
    return found


def _part(file: Path, place: Mapping[str, Any], limit: WorkLimit) -> object:
    """Return the tensor or object in one part of a file."""
    start, length = place["offset"], place["length"]
    if (
        place.get("transform_descriptors")
        or type(start) is not int
        or type(length) is not int
        or min(start, length) < 0
    ):
        raise ValueError("compressed, or no place")
    with open_regular(file) as stream:
        stream.seek(start)
        data = bytearray(stream.read(length))
    if len(data) != length:
        raise CheckpointError(f"{file} is cut off; use another copy")
    return unpacked(data, limit)


def _joined(name: str, parts: list[tuple[tuple[int, ...], object]], size: Any, path: Path) -> Tensor:
    """Return a tensor of its parts, each at its offset, which cover it once."""
    shape = tuple(size)
    tensors = [(offset, part) for offset, part in parts if isinstance(part, Tensor)]
    is_read = len(tensors) == 1 or not any(part.is_meta for _, part in tensors)
    wrong = CheckpointError(
        f"{path}: the parts of {name[:100]!r} do not add up to a tensor of {shape}; use another copy"
    )
    if not is_read or len(tensors) != len(parts) or sum(part.numel() for _, part in tensors) != math.prod(shape):
        raise wrong
    if len(tensors) == 1:
        if tuple(tensors[0][1].shape) != shape:
            raise wrong
        return tensors[0][1]
    whole = torch.zeros(shape, dtype=tensors[0][1].dtype)
    covered = torch.zeros(shape, dtype=torch.bool)
    for offset, part in tensors:
        ends = [start + length for start, length in zip(offset, part.shape, strict=True)]
        if len(ends) != len(shape) or any(end > most for end, most in zip(ends, shape, strict=True)) or min(offset) < 0:
            raise wrong
        where = tuple(slice(start, end) for start, end in zip(offset, ends, strict=True))
        if part.dtype != whole.dtype or bool(covered[where].any()):
            raise wrong
        covered[where] = True
        whole[where] = part
    return whole


def _place(contents: dict[Any, object], path: Any, value: object) -> None:
    """Set a value at its path in the nested dict."""
    if not isinstance(path, tuple) or not 0 < len(path) <= _MAX_PATH:
        raise ValueError("no path")
    at = contents
    for step in path[:-1]:
        inner = at.setdefault(step, {})
        if not isinstance(inner, dict) or isinstance(inner, ObjectRecord):
            raise TypeError("a path through a value")
        at = inner
    if path[-1] in at:
        raise ValueError("two values of one path")
    at[path[-1]] = value


def _with_lists(part: object) -> object:
    """Return a nested dict with lists in place of dicts whose keys are 0, 1, 2, ..."""
    if type(part) is not dict:
        return part
    inner = {name: _with_lists(value) for name, value in part.items()}
    is_list = bool(inner) and all(type(name) is int for name in inner) and sorted(inner) == list(range(len(inner)))
    return [inner[place] for place in range(len(inner))] if is_list else inner
