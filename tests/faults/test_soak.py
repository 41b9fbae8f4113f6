"""Small trainings in a loop: memory, open files and threads stay flat.

`SVDCTL_SOAK_SECONDS=3600 pytest -m slow tests/faults/test_soak.py -s` is the hour whose figures `docs/reliability.md`
has; without the variable it takes three minutes.
"""

import gc
import os
import resource
import shutil
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import svdctl
from svdctl.errors import TrainingError
from svdctl.train import start as recipe
from svdctl.utils.progress import Reporter
from tests.faults.small import make

SECONDS = float(os.environ.get("SVDCTL_SOAK_SECONDS", "180"))
PER_HOUR = 60
"""Megabytes that the process may grow in an hour at the pace of the second half."""
NOISE = 12
"""Megabytes by which two equal halves may differ: the allocator keeps what it was given."""


@dataclass(frozen=True)
class Sample:
    """The process after one training."""

    seconds: float
    megabytes: float
    files: int
    threads: int


def sample(began: float) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * resource.getpagesize() / 2**20
    return Sample(time.monotonic() - began, megabytes, len(os.listdir("/proc/self/fd")), threading.active_count())


def one_training(number: int, folder: Path) -> None:
    """One of ten kinds: controls and frames, validation, a resumed run, one that fails, one that is loaded again."""
    kind, frames = [
        ("divide", "retract"), ("clip", "retract"), ("divide-each", "free"), ("assign", "parametrize"),
        ("divide-exact", "penalty"),
    ][number % 5]  # fmt: skip
    sets = [
        f"control.kind={kind}",
        "control.max_sigma=2",
        "control.every_steps=2",
        f"layer.frames.kind={frames}",
        f"seed={number}",
    ]
    sets += ["layer.frames.weight=10"] * (frames == "penalty")
    sets += ["optimizer.lr=1e30", "control.kind=none"] * (number % 10 == 7)
    sets += ["evaluation.select=validation"] * (number % 10 == 2)
    config = make(folder, *sets, "checkpoint.every_steps=3", max_steps=7)
    if number % 10 == 7:
        with pytest.raises(TrainingError):
            recipe.run(config, base="soak", reporter=Reporter())
    else:
        run = recipe.run(config, base="soak", reporter=Reporter()).folder
        if number % 10 == 4:
            recipe.resume(run, reporter=Reporter())
        if number % 10 == 9:
            svdctl.spectrum(svdctl.load(run), (3, 12, 12))
    shutil.rmtree(folder / "runs")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_memory_and_open_files_stay_flat(tmp_path: Path) -> None:
    for number in range(20):
        one_training(number, tmp_path)
    began = time.monotonic()
    samples = [sample(began)]
    while samples[-1].seconds < SECONDS:
        for number in range(10):
            one_training(10 * len(samples) + number, tmp_path)
        samples.append(sample(began))
    early, late = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    growth = median(late) - median(early)
    hours = SECONDS / 2 / 3600
    files, threads = sorted({one.files for one in samples}), sorted({one.threads for one in samples})
    print(
        f"{10 * len(samples) - 10} trainings in {samples[-1].seconds:.0f} s: {samples[0].megabytes:.1f} MB at first, "
        f"{median(early):.1f} in the first half, {median(late):.1f} in the second, {samples[-1].megabytes:.1f} at the "
        f"end; open files {files}, threads {threads}"
    )
    assert growth < NOISE + PER_HOUR * hours
    assert samples[-1].files <= samples[0].files
    assert samples[-1].threads <= samples[0].threads


def median(samples: list[Sample]) -> float:
    return statistics.median(one.megabytes for one in samples)
