"""What is kept of an attack: its state after every batch, and the shards that several machines attack."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from svdctl.config.attack import AttackSettings
from svdctl.config.evaluate import Shard
from svdctl.errors import CheckpointError, EvaluationError
from svdctl.recipes.evaluation.material import Material
from svdctl.robustness.attack import AttackState, choose_examples, fingerprint, join

SHARDS = "shards"
"""Folder of their states, below that of the results."""


@dataclass
class Progress:
    """An attack on some test images, as it is kept on the disk."""

    state: AttackState
    nearest: Tensor
    """float64 `(N,)`: the smallest perturbation on the way from each image to its adversarial one that still changes
    the prediction; infinite where none was found, 0 where the clean image is misclassified."""


@dataclass(frozen=True)
class Assignment:
    """What is attacked: settings, test images, and what binds the state to them."""

    settings: AttackSettings
    index: Tensor
    """Numbers `(N,)` of the test images."""
    bound_to: str

    @classmethod
    def make(cls, settings: AttackSettings, weights: str, material: Material) -> "Assignment":
        """The whole attack."""
        index = choose_examples(len(material.test), settings)
        return cls(settings, index, fingerprint(weights, material.identity["sha256"], settings))

    def part(self, shard: Shard) -> "Assignment":
        """The images of one shard, which stand together."""
        return Assignment(self.settings, self.index.tensor_split(shard.count)[shard.index - 1], self.bound_to)

    def file(self, folder: Path, shard: Shard | None) -> Path:
        """Where its state is kept."""
        if shard is None:
            return folder / f"attack-{self.bound_to[:12]}.pt"
        return folder / f"{self.bound_to[:12]}-{shard.index}-of-{shard.count}.pt"


def write_progress(file: Path, progress: Progress) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as handle:
            torch.save({**progress.state.to_dict(), "nearest": progress.nearest}, handle)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def read_progress(file: Path, work: Assignment) -> Progress | None:
    """What is kept, None when there is nothing or it is bound to something else."""
    if not file.exists():
        return None
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
        state = AttackState.from_dict(contents, work.bound_to)
        nearest = contents["nearest"]
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file} is no state of an attack ({first[:100]}); remove it to attack anew") from error
    if state is None or len(state) != len(work.index) or len(nearest) != len(state):
        return None
    return Progress(state, nearest)


def merge(work: Assignment, folder: Path) -> tuple[Progress, int]:
    """The finished shards of an attack joined, and how many there are.

    Raises:
        EvaluationError: shards are missing, unfinished, or of different splits.
    """
    pattern = re.compile(rf"{work.bound_to[:12]}-(\d+)-of-(\d+)\.pt")
    files = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    found = {(int(match[1]), int(match[2])): path for path in files if (match := pattern.fullmatch(path.name))}
    foreign = len(files) - len(found)
    aside = f" ({foreign} there belong to other weights, data or settings)" if foreign else ""
    if not found:
        raise EvaluationError(
            f"{folder} holds no shard of this attack{aside}; run it with --shard 1/n and so on, or copy the files here"
        )
    counts = sorted({count for _, count in found})
    if len(counts) > 1:
        raise EvaluationError(
            f"{folder} holds shards of different splits (of {', '.join(map(str, counts))}); remove those that are "
            "not wanted"
        )
    count = counts[0]
    missing = [f"{index}/{count}" for index in range(1, count + 1) if (index, count) not in found]
    if missing:
        raise EvaluationError(
            f"{folder} lacks the shards {', '.join(missing)}{aside}; run them, or copy their files here"
        )
    shards = []
    for index in range(1, count + 1):
        part = work.part(Shard(index=index, count=count))
        progress = read_progress(found[index, count], part)
        if progress is None:
            raise EvaluationError(
                f"{found[index, count]} belongs to other weights, data or settings than its name says; run it again"
            )
        if not progress.state.finished:
            raise EvaluationError(f"shard {index}/{count} is not finished; run it with --shard {index}/{count}")
        shards.append(progress)
    # A shard with no image of its own has nothing to add.
    joined = join([progress.state for progress in shards])
    return Progress(joined, torch.cat([progress.nearest for progress in shards])), count
