"""Small trainings by the real command line, each in a process of its own that can be killed, starved and watched."""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.config.presets import to_toml
from svdctl.config.train_config import TrainConfig

SERVER = multiprocessing.get_context("forkserver")
"""Forks processes that have torch imported already: seconds less for each."""
SERVER.set_forkserver_preload(
    ["svdctl.cli.app", "svdctl.train.start", "svdctl.analysis.inspect_files", "tests.faults.preloaded"]
)

Prepare = Callable[..., Callable[[], object] | None]


def write_data(path: Path) -> Path:
    """Three classes of 12 x 12 pixels, 60 to train on and 30 to test on: the brightest third tells."""
    generator = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 30)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 60, (count, 12, 12, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * label : 4 * label + 4] += 150
        parts[f"x_{part}"], parts[f"y_{part}"] = images, labels
    np.savez(path, **parts)
    return path


def make(folder: Path, *sets: str, **flags: Any) -> TrainConfig:
    """A narrow network on `write_data`'s images, 4 steps an epoch, runs below `folder`."""
    data = folder / "data.npz"
    if not data.exists():
        write_data(data)
    base = ["model.width=1", "layer.rank=6", "log.every_steps=1", "evaluation.select=last"]
    return resolve(
        {"dataset": f"npz:{data}", "preset": "quickstart", "epochs": 4, "batch_size": 16,
         "out_dir": str(folder / "runs"), "set": [*base, *sets], **flags}
    ).config  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr, after checking that it is one and no traceback."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("svdctl: "), self.err
        assert "did not expect" not in lines[0], self.err
        return lines[0]


class Command:
    """`svdctl ARGUMENTS` in a process of its own.

    Args:
        arguments: after the program's name.
        log: folder for what it says.
        prepare: called in the process first, with `given`; what it returns, if anything, is called at the end.
    """

    def __init__(self, arguments: Sequence[object], log: Path, prepare: Prepare | None = None, *given: object) -> None:
        log.mkdir(exist_ok=True, parents=True)
        name = f"{time.monotonic_ns()}"
        self.out, self.err = log / f"{name}.out", log / f"{name}.err"
        texts = [str(argument) for argument in arguments]
        self.process = SERVER.Process(target=_main, args=(texts, self.out, self.err, prepare, given))
        self.process.start()

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, happens: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until something is so, while the process runs."""
        deadline = time.monotonic() + timeout
        while not happens():
            assert self.running, self.err.read_text() if self.err.exists() else "it ended at once"
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.002)

    def end(self, timeout: float = 120) -> Ended:
        """Wait for its end."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"no end after {timeout} s: {self.err.read_text()}")
        assert self.process.exitcode is not None
        text = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        return Ended(self.process.exitcode, *text)


def _main(arguments: list[str], out: Path, err: Path, prepare: Prepare | None, given: tuple[object, ...]) -> None:
    os.setpgid(0, 0)
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    torch.set_num_threads(1)
    # readline, which pytest imports, puts the size of its terminal there; a file has none.
    os.environ.pop("COLUMNS", None)
    after = None if prepare is None else prepare(*given)
    from svdctl.cli.app import main

    sys.argv = ["svdctl", *arguments]
    try:
        main()
    finally:
        if after is not None:
            after()


def limit(what: int, size: int) -> None:
    """For `Command`: a limit of the system on this process."""
    resource.setrlimit(what, (size, size))


def limit_more_memory(size: int) -> None:
    """For `Command`: an address space of this many bytes more than the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + size)


def write_preset(folder: Path, config: TrainConfig) -> Path:
    """The configuration as a file for `--preset`."""
    path = folder / "preset.toml"
    path.write_text(to_toml(config))
    return path


def train(folder: Path, config: TrainConfig, *more: Any) -> Command:
    """`svdctl train` of a configuration."""
    return Command(["train", "--preset", write_preset(folder, config)], folder / "log", *more)


def resume(folder: Path, run: Path, *more: Any) -> Command:
    """`svdctl train --resume`."""
    return Command(["train", "--resume", run], folder / "log", *more)


def only_run(folder: Path) -> Path:
    """The run folder below `folder/runs`."""
    (run,) = (folder / "runs").iterdir()
    return run


def run_folder(folder: Path) -> Callable[[], bool]:
    """Whether a checkpoint of the only run is there."""

    def is_there() -> bool:
        return any(folder.glob("runs/*/last.pt"))

    return is_there


def state(run: Path) -> dict[str, torch.Tensor]:
    """All numbers in a run's `last.pt`: weights, optimiser, vectors of the control."""
    checkpoint = read_checkpoint(run / "last.pt")
    return dict(_tensors("", {"model": checkpoint.model, "training": checkpoint.training}))


def _tensors(name: str, value: Any) -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _tensors(f"{name}.{place}", part)


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@contextmanager
def unchanged(*files: Path) -> Any:
    """Files that must have the same bytes afterwards."""
    before = {file: file.read_bytes() for file in files}
    yield
    assert {file: file.read_bytes() for file in files} == before


def halves(run: Path) -> list[Path]:
    """Files that were begun and not finished."""
    return list(run.rglob(".*.part"))
