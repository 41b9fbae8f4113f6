"""Which checkpoints are meant, what they are called, and where the results of each belong."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from svdctl.checkpoint.file_format import DISTRIBUTED, INDEX, weights_of
from svdctl.config.evaluate_config import DEFAULT_CHECKPOINTS, EvaluateConfig
from svdctl.config.presets import run_name
from svdctl.errors import CheckpointError, FileError, SvdctlError, UsageError
from svdctl.utils.files import read_text

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
RESULTS = "eval-"
"""Folders of results begin with this; nothing below them is a checkpoint."""


FileStamp = tuple[int, int]
"""Size of a file in bytes, and when it was changed, in nanoseconds."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint."""

    path: Path
    name: str
    """What tables call it: as much of its path as tells it from the others."""
    results: Path
    """Folder of its results; in a folder for all of them, see `placed`."""


@dataclass(frozen=True)
class Discovery:
    """Everything that the paths given stand for."""

    checkpoints: tuple[FoundCheckpoint, ...]
    faults: tuple[tuple[str, SvdctlError], ...]
    """Paths that stand for nothing, and why."""
    report: Path
    """Folder of the report: `out_dir`, else the one folder given, else the current folder."""
    all_below: bool
    """Whether results that lie in and below that folder belong to the report: the current folder can hold anything."""


def discover(config: EvaluateConfig) -> Discovery:
    """Find the checkpoints of a configuration; of a run folder, those that `which` says."""
    files: dict[Path, None] = {}
    faults: list[tuple[str, SvdctlError]] = []
    for given in config.checkpoints:
        path = given.expanduser()
        before, found, text = len(faults), list[Path](), None
        try:
            found = list(_below(path, config.which, faults)) if path.is_dir() else [path] * path.exists()
            if config.out_dir is None and path.is_symlink() and path.is_dir():
                text = (
                    f"{path} is a link to {path.readlink()}, and results would be written there; give the folder "
                    "itself, or `out_dir`"
                )
                found = []
            elif not path.exists():
                text = _absence(path, config)
            elif not found and len(faults) == before:
                text = f"there is no checkpoint ({', '.join(SUFFIXES)}) in or below {path}; give another folder"
        except OSError as error:
            text = f"{path} cannot be read ({error.strerror}); check its name and its rights"
        if text is not None:
            faults.append((str(given), CheckpointError(text)))
        have = {path.resolve() for path in files}
        files |= dict.fromkeys(path for path in found if path.resolve() not in have)
    stems = Counter(path.parent.resolve() / path.stem for path in files)
    results = {path: path.stem if stems[path.parent.resolve() / path.stem] == 1 else path.name for path in files}
    out = None if config.out_dir is None else config.out_dir.expanduser()
    checkpoints = tuple(
        FoundCheckpoint(path, name, path.parent / (RESULTS + results[path]) if out is None else out / _plain_name(name))
        for path, name in names_of(files).items()
    )
    folders = [path.expanduser() for path in config.checkpoints] if out is None else [out]
    is_one = out is not None or (len(folders) == 1 and os.path.isdir(folders[0]))
    return Discovery(checkpoints, tuple(faults), folders[0] if is_one else Path(), is_one)


def require_any_existing(config: EvaluateConfig) -> None:
    """Raise what `discover` finds of the paths if none of them exists: at once, before torch is imported.

    Raises:
        UsageError: no path exists.
    """
    paths = [given.expanduser() for given in config.checkpoints]
    if all(map(_is_absent, paths)):
        raise UsageError([_absence(path, config) for path in paths])


def _is_absent(path: Path) -> bool:
    """Return whether a path is known not to exist; of one that may not be looked at it is not."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _absence(path: Path, config: EvaluateConfig) -> str:
    """Return what is said of a path that does not exist."""
    if config.checkpoints == DEFAULT_CHECKPOINTS:
        return f"there is no folder {path} here to be read; give checkpoints, run folders or folders above them"
    return f"there is no checkpoint or folder {path}; give files, run folders or folders above them"


def placed(found: FoundCheckpoint, config: EvaluateConfig, weights: str) -> FoundCheckpoint:
    """Return the checkpoint with its folder of results once its weights are known.

    In `out_dir` the hash of the weights is part of the folder's name: names are cut, and other calls may evaluate
    checkpoints of the same name. A folder without it, as versions before made, is gone on with if it is of these
    weights.
    """
    if config.out_dir is None or _holds_results_of(found.results, weights):
        return found
    return replace(found, results=found.results.with_name(unique_name(found.name, weights)))


def unique_name(name: str, weights: str) -> str:
    """Return a file name for what belongs to a checkpoint: its name, cut where long, and the hash of its weights."""
    return f"{_plain_name(name)}-{weights[:12]}"


def file_stamp(path: Path) -> FileStamp | None:
    """Return what tells that a file of weights was changed; None: it is not there, or names other files."""
    if path.name.endswith((INDEX, DISTRIBUTED)):
        return None
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _plain_name(name: str) -> str:
    return run_name(name.replace("/", "-"))


def _holds_results_of(folder: Path, weights: str) -> bool:
    try:
        return weights in read_text(folder / "results.json")
    except FileError:
        return False


def _below(folder: Path, which: str, faults: list[tuple[str, SvdctlError]]) -> Iterator[Path]:
    """Yield checkpoints in and below a folder, in the order of their names; no folder is too deep."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        names = sorted(os.listdir(here))
        if is_run_folder(here):
            yield from _of_run(here, names, which, faults)
            continue
        indexed = weights_of(here)
        if indexed is not None and indexed.name.endswith((INDEX, DISTRIBUTED)):
            yield indexed
        else:
            yield from _files(here, names)
        inner = [here / name for name in names if not name.startswith((".", RESULTS, "wandb"))]
        waiting += [path for path in reversed(inner) if path.is_dir() and not path.is_symlink()]


def _files(folder: Path, names: list[str]) -> list[Path]:
    """Return the files of a folder that are checkpoints by their names."""
    files = [folder / name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    return [path for path in files if path.is_file()]


def _of_run(folder: Path, names: list[str], which: str, faults: list[tuple[str, SvdctlError]]) -> Iterator[Path]:
    """Yield the checkpoints of a run folder that are wanted."""
    files = _files(folder, names)
    for path in files if which == "all" else [folder / f"{which}.pt"]:
        if path.is_file():
            yield path
        else:
            other = ", ".join(file.stem for file in files)
            faults.append((str(path), CheckpointError(f"{folder} has no {path.name}; it has: {other or 'nothing'}")))


def is_run_folder(folder: Path) -> bool:
    """Return whether a training of svdctl wrote this folder."""
    # Unlike `Path.is_file` these take names that are too long, which an index of a report may hold.
    return os.path.isfile(folder / "config.toml") or os.path.isfile(folder / "last.pt")


def names_of(files: Collection[Path]) -> dict[Path, str]:
    """Return run folder and file for a run's checkpoints, the file for others; more of the path where they meet."""
    whole = {path: path.resolve() for path in files}
    stems = Counter(path.with_suffix("") for path in whole.values())
    # Two files may differ in their suffix alone.
    parts = {own: (short if stems[short := path.with_suffix("")] == 1 else path).parts for own, path in whole.items()}
    depth = {path: 2 if is_run_folder(path.parent) else 1 for path in parts}
    while True:
        names = {path: "/".join(parts[path][-depth[path] :]) for path in parts}
        counts = Counter(names.values())
        clashing = [path for path, name in names.items() if counts[name] > 1 and depth[path] < len(parts[path])]
        if not clashing:
            return names
        for path in clashing:
            depth[path] += 1
