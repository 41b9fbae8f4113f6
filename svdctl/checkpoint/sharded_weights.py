"""Weights that an index file of Hugging Face's libraries spreads over several files of one folder, the shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdctl.checkpoint.file_format import container_of
from svdctl.checkpoint.safetensors_file import read_safetensors
from svdctl.checkpoint.torch_archive import read_torch
from svdctl.checkpoint.work_limit import WorkLimit
from svdctl.errors import CheckpointError
from svdctl.utils.files import read_json


def read_index(path: Path) -> tuple[dict[str, object], dict[str, Any], int]:
    """Return all that the shards of an index hold by name, their metadata, and their bytes.

    Raises:
        CheckpointError: a shard is missing, outside of the folder or foreign; a tensor is missing or in two shards.
    """
    index = read_json(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{path} is no index of weights: it has no `weight_map` from names to files")
    contents: dict[str, object] = {}
    extra: dict[str, Any] = {}
    shards = [inside(path.parent, name, f"{path} lists") for name in dict.fromkeys(placed.values())]
    states = [shard.stat() for shard in shards]
    size = sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values())
    limit = WorkLimit(size, str(path))  # of all shards together
    for number, shard in enumerate(shards):
        container = container_of(shard)
        if container not in ("safetensors", "zip", "legacy"):
            raise CheckpointError(f"{path} lists {shard.name!r}, which is no file of weights; use another copy")
        limit.where = str(shard)
        is_safetensors = container == "safetensors"
        held, about = read_safetensors(shard, limit) if is_safetensors else (read_torch(shard, container, limit), {})
        if not isinstance(held, Mapping):
            raise CheckpointError(f"{shard} holds no dict of weights, as a shard does; use another copy")
        twice = next((part for part in held if part in contents), None)
        if twice is not None:
            raise CheckpointError(f"{path}: {str(twice)[:100]!r} is in two of its shards; use another copy")
        if number and about.get("format") != extra.get("format"):
            raise CheckpointError(f"{path}: its shards are of different formats; use another copy")
        contents |= held
        extra |= about
    missing = [part for part in placed if part not in contents]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path} lists {missing[0][:100]!r}{more}, which no shard holds; use another copy")
    return contents, extra, size


def inside(folder: Path, name: str, told: str) -> Path:
    """Return the file of this name in a folder, no link out of it but into the cache of huggingface_hub.

    There a snapshot's files are links to `blobs` beside `snapshots`.

    Args:
        folder: where it should be.
        name: as a file says.
        told: which file says so, for messages.

    Raises:
        CheckpointError: it is not there, or no name of a file in the folder.
    """
    path = folder / name[:255]
    if name != Path(name).name or "\0" in name or "\\" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{told} {name[:100]!r}, which is no name of a file in its folder; it is not read")
    if not path.exists():
        raise CheckpointError(f"{told} {name[:100]!r}, which is not in {folder}; download or copy it there")
    found, home = path.resolve(), folder.resolve()
    is_cached = home.parent.name == "snapshots" and found.parent == home.parent.parent / "blobs"
    if found.parent != home and not is_cached:
        raise CheckpointError(f"{told} {name[:100]!r}, which is a link out of {folder}; copy the file there")
    return path
