"""Files for the tests: networks, their state dicts in every form, and pickles that would leave a trace if executed."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TRACE = "svdctl-executed"


class Evil:
    """Touches a file in the current folder when it is unpickled by an ordinary unpickler."""

    def __init__(self, call: Callable[..., Any] = os.system, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments or (f"touch {TRACE}",)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6, 4)
    )


def state_dict() -> dict[str, Tensor]:
    return dict(small_network().state_dict())


def save_legacy(contents: object, path: Path) -> None:
    """As torch < 1.6 wrote files."""
    torch.save(contents, path, _use_new_zipfile_serialization=False)


def rewrite_zip(
    path: Path,
    change: Callable[[dict[str, bytes]], Mapping[str, bytes]],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Write the members of a zip file anew after a change; checksums fit the changed members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, contents in change(members).items():
            archive.writestr(name, contents)


def with_pickle(path: Path, contents: bytes) -> None:
    """A zip file of torch.save with another pickle in it."""
    torch.save({"a": torch.zeros(1)}, path)
    rewrite_zip(path, lambda members: {n: contents if n.endswith("data.pkl") else c for n, c in members.items()})


def legacy_with(path: Path, place: int, contents: bytes) -> None:
    """An old file with another pickle in one of the five places (magic, protocol, system, contents, keys)."""
    buffer = io.BytesIO()
    torch.save([1, "text"], buffer, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(buffer.getvalue())
    parts = []
    for _ in range(5):
        start = stream.tell()
        pickle.load(stream)
        parts.append(buffer.getvalue()[start : stream.tell()])
    parts[place] = contents
    path.write_bytes(b"".join(parts))
