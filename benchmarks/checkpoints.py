"""What the safety of checkpoints costs: ratios within one run.

    python benchmarks/checkpoints.py [--repeats 7] [--depth 28] [--width 10]

A WRN-28-10 with momentum, 290 MB. `save`: torch.save alone, and svdctl's way (checksums, flushed to the disk, renamed).
`load`: torch.load alone, and svdctl's way (structure and checksums of the file compared, names in it looked at).
Every round times all variants once, in turn.
"""

import argparse
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from svdctl.checkpoint.checkpoint_file import Checkpoint, read_checkpoint, write_checkpoint
from svdctl.config.train_config import TrainConfig
from svdctl.layers.ops.standard_ops import Standard
from svdctl.models.build import build_model
from svdctl.models.wrn_architecture import Wrn
from svdctl.utils.machine import machine


def checkpoint_of(depth: int, width: int) -> Checkpoint:
    """A network and as many numbers of momentum."""
    config = TrainConfig(model=Wrn(depth=depth, width=width), layer=Standard())
    model = dict(build_model(config, 10).state_dict())
    momentum = {name: torch.randn_like(value.float()) for name, value in model.items()}
    return Checkpoint(config, tuple("0123456789"), (3, 32, 32), model, {"momentum": momentum}, {"step": 1.0})


def check_sums(path: Path) -> None:
    """The part of reading that compares checksums."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=10)
    given = parser.parse_args()
    checkpoint = checkpoint_of(given.depth, given.width)
    with tempfile.TemporaryDirectory() as folder:
        plain, own = Path(folder) / "plain.pt", Path(folder) / "own.pt"
        variants: dict[str, Callable[[], object]] = {
            "save, torch.save alone": lambda: torch.save(vars(checkpoint) | {"config": ""}, plain),
            "save, svdctl": lambda: write_checkpoint(own, checkpoint),
            "load, torch.load alone": lambda: torch.load(plain, weights_only=True),
            "load, svdctl": lambda: read_checkpoint(own),
            "of it the checksums": lambda: check_sums(own),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(given.repeats):
            for name, work in variants.items():
                times[name].append(seconds(work))
        print(f"{own.stat().st_size / 1e6:.0f} MB, {machine()}, n = {given.repeats}")
        whole = statistics.median(times["save, svdctl"])
        for name, found in times.items():
            median = statistics.median(found)
            print(f"{name:<24} {median:7.3f} s ({min(found):.3f} to {max(found):.3f}), {median / whole:.2f} of a save")


if __name__ == "__main__":
    main()
