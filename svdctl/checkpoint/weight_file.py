"""Read the weights out of any file that a user brings, whatever wrote it, without executing any of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from svdctl.checkpoint import tensors as stored
from svdctl.checkpoint.distributed_checkpoint import read_distributed
from svdctl.checkpoint.extract_state_dict import ANOTHER_SET, LeftOut, holds_numbers, may_hold_weights, unwrap
from svdctl.checkpoint.file_format import container_of, resolve
from svdctl.checkpoint.paper_checkpoints import architecture_of
from svdctl.checkpoint.pickled_calls import NumpyArray, Storage, UnreadTensor
from svdctl.checkpoint.pickles import CONVERT, ObjectRecord
from svdctl.checkpoint.safetensors_file import read_safetensors
from svdctl.checkpoint.sharded_weights import read_index
from svdctl.checkpoint.stored_layer import NOTHING
from svdctl.checkpoint.torch_archive import is_checkpoint, read_torch
from svdctl.errors import CheckpointError

Format = Literal["svdctl", "paper", "state dict", "safetensors"]
_OTHER_ORDERS = ("mlx", "flax", "jax", "keras", "tensorflow", "tf")
"""Formats in the metadata of safetensors whose kernels are not stored `(O, I, *k)`."""
_SCALARS = str | int | float | bool | None


@dataclass(frozen=True, eq=False)
class WeightFile:
    """Weights of one network, flat, with their names in the module tree. Tensors of a large file are views of it."""

    path: Path
    format: Format
    tensors: dict[str, Tensor]
    """Name to tensor, on the CPU, in the order of the file."""
    others: dict[str, str]
    """Entries of the state dict that are no ordinary tensors, and what they are instead."""
    unread: frozenset[str]
    """Those of `others` that may hold weights all the same: sparse and quantised tensors, arrays, numbers, bytes."""
    left_out: tuple[LeftOut, ...]
    """Parts of the file that are not among the weights, optimisers' states and other sets of weights alike."""
    wrapping: str
    """What was unwrapped on the way, in words; empty for a plain state dict."""
    alternatives: tuple[str, ...]
    """Values of `key` under which the file has further sets of weights."""
    extra: dict[str, Any]
    """What stands beside the weights and is a number, text or short list; of an svdctl checkpoint its configuration."""

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of names, types, shapes and bytes of the tensors; reads them all."""
        return stored.digest(self.tensors)


def read_tensors(path: str | os.PathLike[str], *, key: str | None = None) -> WeightFile:
    """Return the weights in a file, run folder (its `last.pt`), or folder of Hugging Face's or `torch.distributed`'s.

    Read are svdctl's checkpoints, state dicts and whole training checkpoints of torch.save of any age, safetensors,
    shards of either by their index, and the checkpoints of the paper's public code. Of several sets of weights the
    trained one goes before its moving average and the last before the best; `alternatives` lists the rest.

    Args:
        path: file or folder.
        key: dotted path of the wanted set, as `"ema"` or `"state_dict.encoder"`.

    Raises:
        CheckpointError: missing, foreign, damaged, without weights, or only readable by executing what it says.
    """
    path = resolve(Path(path))
    contents, extra, size, is_safetensors = _read(path)
    if isinstance(contents, Tensor):
        raise CheckpointError(f"{path} holds one tensor and no names; save model.state_dict() instead")
    if not isinstance(contents, Mapping):
        raise CheckpointError(
            f"{path} holds {_kind_of(contents)}, not a dict of weights; save model.state_dict() instead"
        )
    if isinstance(contents, ObjectRecord) and not contents:
        raise CheckpointError(f"{path} holds {_kind_of(contents)}, not a dict of weights; {CONVERT}")
    extra = extra or _scalars(contents)
    ours = is_checkpoint(contents, path)
    unwrapped = unwrap(contents, str(path), "model" if ours and key is None else key)
    # Before any of them is copied.
    stored.check_sizes({n: t for n, t in unwrapped.entries.items() if isinstance(t, Tensor)}, size, str(path))
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    unread: set[str] = set()
    for name, value in unwrapped.entries.items():
        found = stored.plain(value) if isinstance(value, Tensor) else _kind_of(value)
        if isinstance(found, Tensor):
            tensors[name] = found
        else:
            others[name] = found
            if isinstance(value, Tensor) or holds_numbers(value):
                unread.add(name)
    foreign = [
        name for name, value in unwrapped.entries.items() if isinstance(value, UnreadTensor) and value.is_foreign
    ]
    if foreign and not tensors:
        raise CheckpointError(
            f"{path} holds no numbers that svdctl reads: {foreign[0]!r} is {others[foreign[0]]}; "
            "save the tensors as plain ones"
        )
    steps = [*unwrapped.steps]
    if is_safetensors and (order := str(extra.get("format")).lower()) in _OTHER_ORDERS:
        steps += _reorder(tensors, others, unread, order)
    kind: Format = "paper" if architecture_of(tensors) is not None else "state dict"
    return WeightFile(
        path=path,
        format="svdctl" if ours else "safetensors" if is_safetensors else kind,
        tensors=tensors,
        others=others,
        unread=frozenset(unread),
        left_out=_foreign(contents) if ours and key is None else unwrapped.left_out,
        wrapping="; ".join(() if ours and key is None else steps),
        alternatives=() if ours else unwrapped.others,
        extra=extra,
    )


def _reorder(tensors: dict[str, Tensor], others: dict[str, str], unread: set[str], order: str) -> list[str]:
    """Bring kernels that MLX stored as `(O, *k, I)` into torch's order `(O, I, *k)`, in place; in words, what was done.

    Kernels of other libraries, whose order is not known here, are put among `others`.
    """
    kernels = [name for name, tensor in tensors.items() if name.split(".")[-1] == "weight" and 3 <= tensor.ndim <= 5]
    if order == "mlx":
        tensors |= {name: tensors[name].movedim(-1, 1) for name in kernels}
        return ["kernels of MLX, stored O, k, I, in the order O, I, k"] if kernels else []
    for name in kernels:
        del tensors[name]
        others[name] = f"a kernel in the order of {order!r}, which the file names as its format"
        unread.add(name)
    return []


def _foreign(contents: Mapping[object, object]) -> tuple[LeftOut, ...]:
    """Return parts with weights that svdctl does not write into its checkpoints."""
    parts = ((str(name), part) for name, part in contents.items() if name not in ("model", "training"))
    return tuple(LeftOut(name, ANOTHER_SET, True) for name, part in parts if may_hold_weights(part, name))


def _kind_of(value: object) -> str:
    if isinstance(value, NumpyArray):
        return "a numpy array"
    if isinstance(value, ObjectRecord):
        return f"an object of the class {value.name[:80]}"
    if isinstance(value, Storage):
        return "a storage"
    if value is None or (isinstance(value, Mapping | list | tuple | str | bytes) and not value):
        return NOTHING
    return f"a {type(value).__name__}"


def _read(path: Path) -> tuple[object, dict[str, Any], int, bool]:
    """Return what a file or all files of a folder hold, metadata, bytes, and whether it is safetensors."""
    container = container_of(path)
    if container == "index":
        contents, extra, size = read_index(path)
        return contents, extra, size, bool(extra) or ".safetensors" in path.name
    if container == "distributed":
        saved, size = read_distributed(path)
        return saved, {}, size, False
    size = path.stat().st_size
    if container == "safetensors":
        return *read_safetensors(path), size, True
    return read_torch(path, container), {}, size, False


def _scalars(contents: Mapping[object, object]) -> dict[str, Any]:
    """Return the numbers, texts and lists of texts or numbers beside the weights."""
    return {
        str(name): value
        for name, value in contents.items()
        if isinstance(value, _SCALARS)
        or (
            isinstance(value, list | tuple) and len(value) <= 1000 and all(isinstance(part, _SCALARS) for part in value)
        )
    }
