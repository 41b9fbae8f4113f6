"""The folder of one run: made so that no two runs share it, held by a lock while a process trains in it."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from svdctl.errors import CheckpointError, UsageError
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.lock import held_folder
from svdctl.utils.machine import processor

PACKAGES = ("svdctl", "torch", "torchvision", "lightning-fabric", "numpy", "pydantic")


def named_path(path: Path) -> Path:
    """Return the path of a run or of a checkpoint in it, `.` and the like resolved, so that messages name the run."""
    folder = path.parent if path.suffix == ".pt" else path
    return path.resolve() if folder.name in ("", "..") else path


def checkpoint_at(path: Path) -> Path:
    """Return the file of a checkpoint, which is `last.pt` of a run folder.

    Raises:
        CheckpointError: there is no such file.
    """
    file = path / "last.pt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"there is no checkpoint {file}; give a run folder or one of its .pt files")
    return file


def require_folder(parent: Path) -> None:
    """Check that a folder is there or can be made, as far as its name tells.

    Raises:
        UsageError: a file, or a link to nothing, is in its place or above it.
    """
    parent = parent.expanduser()
    for place in (parent, *parent.parents):
        if place.is_dir():
            return
        if place.exists():
            raise UsageError(f"{place} is a file; give `out_dir` a folder")
        if place.is_symlink():
            raise UsageError(f"{place} is a link to nothing; give `out_dir` a folder")


def create_run_folder(parent: Path, name: str) -> Path:
    """Return a new folder `<name>-<time>` below `parent`; a number is added while the name is taken.

    Raises:
        UsageError: it cannot be made.
    """
    require_folder(parent)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 10_000):
        folder = parent.expanduser() / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"no run folder can be made under {parent} ({error.strerror}); give another `out_dir`"
            ) from error
        return folder
    raise UsageError(f"{parent} holds ten thousand runs of this second; give another `out_dir` or `name`")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, and clear away what a killed process left half written in it.

    Raises:
        BusyFolderError: another process holds it.
        UnusableFolderError: it cannot be written, or a link in it leads elsewhere.
    """
    with held_folder(folder, work="trains", instead="stop it first"):
        remove_unfinished(folder)
        yield


def environment(device: str, seed: int) -> dict[str, Any]:
    """Return versions, machine, device, seed, commit, command and time of a run."""
    return {
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "device": device,
        "seed": seed,
        "commit": _commit(),
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_environment(folder: Path, device: str, seed: int, base: str) -> None:
    """Write `environment.json`; `base` is what the run's configuration was made from."""
    found = {**environment(device, seed), "base": base}
    write_atomically(folder / "environment.json", json.dumps(found, indent=2) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the source tree that is running, when it is a checkout."""
    source = Path(__file__).parent.parent
    if not (source / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
