"""What is kept of an attack: its state after every batch, and the shards that several machines attack."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor

from svdctl.checkpoint.torch_archive import read_torch
from svdctl.config.attack_settings import AttackSettings
from svdctl.config.evaluate_config import Shard
from svdctl.errors import EvaluationError
from svdctl.evaluate.attack import AttackState, choose_examples, fingerprint, join
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED
from svdctl.evaluate.evaluation_data import EvaluationData
from svdctl.utils.content_hash import json_digest
from svdctl.utils.measurement_cache import Measurement, MeasurementCache
from svdctl.utils.network_probe import Probe

SHARDS = "shards"
"""Folder of their states, below that of the results."""


class AttackProgress(Measurement):
    """An attack on some test images: the one record of its file."""

    state: AttackState
    nearest: Tensor
    """float64 `(N,)`: the smallest perturbation on the way from each image to its adversarial one that still changes
    the prediction; infinite where none was found, 0 where the clean image is misclassified."""

    @property
    def key(self) -> str:
        return "attack"

    @model_validator(mode="after")
    def _on_the_way(self) -> Self:
        near, far = self.nearest, self.state.distances
        if near.dtype != torch.float64 or near.shape != far.shape or not bool(((near >= 0) & (near <= far)).all()):
            raise ValueError("the nearest perturbations are not on the way")
        return self


@dataclass(frozen=True)
class Assignment:
    """What is attacked: settings, test images, and what binds the state to them."""

    settings: AttackSettings
    index: Tensor
    """Numbers `(N,)` of the test images."""
    labels: Tensor
    """`(N,)`: theirs."""
    bound_to: str
    """Hash of weights, data and settings, the same for all shards."""
    probe: Probe | None = None
    """What the network answers."""
    whole: bool = True
    """Whether these are all images of the attack."""

    @classmethod
    def make(cls, settings: AttackSettings, weights: str, dataset: EvaluationData, probe: Probe) -> "Assignment":
        """Return the whole attack."""
        index = choose_examples(len(dataset.test), settings)
        bound_to = fingerprint(weights, dataset.sha256, settings)
        return cls(settings, index, dataset.test.labels[index], bound_to, probe)

    @property
    def about(self) -> dict[str, Any]:
        """Return what a state is bound to: which images they are, too."""
        images = json_digest(self.index.tolist(), compact=False)
        return {"attack": self.bound_to, "images": images}

    def part(self, shard: Shard) -> "Assignment":
        """Return the images of one shard, which stand together."""
        index, labels = (both.tensor_split(shard.count)[shard.index - 1] for both in (self.index, self.labels))
        return replace(self, index=index, labels=labels, whole=False)

    def file(self, folder: Path, shard: Shard | None) -> Path:
        """Return where its state is kept in a folder of results."""
        if shard is None:
            return folder / "unfinished" / f"attack-{self.bound_to[:12]}.pt"
        return folder / SHARDS / f"{self.bound_to[:12]}-{shard.index}-of-{shard.count}.pt"


def _old_contents(contents: dict[str, Any], work: Assignment) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a state that was kept before there were checksums; it is of `work` where its fingerprint is."""
    if contents["fingerprint"] is None:
        raise ValueError("it says of no weights and images that it is theirs")
    if not work.whole:
        raise ValueError("it does not say which shard it is")
    state = {name: value for name, value in contents.items() if name != "nearest"}
    return {**work.about, "attack": contents["fingerprint"]}, [{"state": state, "nearest": contents["nearest"]}]


class ProgressFile:
    """The file of an attack's state; `progress` is what it held of this attack, None when that is nothing sound.

    Args:
        file: it may be absent.
        work: what is attacked.
        say: takes the reasons why a state counts for nothing.
    """

    def __init__(self, file: Path, work: Assignment, say: Callable[[str], None]) -> None:
        self.path = file
        old = partial(_old_contents, work=work)
        self._cache = MeasurementCache(
            file, AttackProgress, work.about, old=old, probe=work.probe, read_tensors=read_torch
        )
        self.belongs_elsewhere = self._cache.belongs_elsewhere
        self.progress: AttackProgress | None = None
        for notice in self._cache.notices:
            say(notice)
        kept = self._cache.kept.get("attack")
        if kept is None:
            return
        wrong = [text for text, is_wrong in _faults(kept.record, work).items() if is_wrong]
        for text in wrong:
            say(f"{file}: the state of an attack cannot be right ({text}); attacked anew")
        if not wrong:
            self.progress = kept.record
            if not kept.has_checksum:
                state = self.progress.state
                state.warnings = tuple(dict.fromkeys((*state.warnings, UNSEALED)))

    def write(self, progress: AttackProgress) -> None:
        """Write whole or not at all, with a checksum over all of it."""
        self._cache.put(progress)


UNSEALED = (
    "a part of this attack was kept by a version of svdctl that wrote no checksums; changes to it would go unseen"
)


def _faults(progress: AttackProgress, work: Assignment) -> dict[str, bool]:
    """Return what would be wrong with a state of these images, and whether it is."""
    state = progress.state
    if state.fingerprint != work.bound_to or len(state) != len(work.index):
        return {"it is that of other images": True}
    # Beyond what rounding can do; under `paper` eps is no bound.
    limit = 1.01 * work.settings.eps + 0.01 if work.settings.protocol == "pixels" else math.inf
    far = state.distances
    return {
        "its clean predictions are not those of these labels": not torch.equal(
            state.clean_predictions != work.labels, state.broken_by == MISCLASSIFIED
        ),
        "its perturbations are larger than eps": bool((far[far < math.inf] > limit).any()),
    }


def shard_files(work: Assignment, results: Path) -> list[Path]:
    """Return the files of all shards of an attack, in order.

    Raises:
        EvaluationError: shards are missing, or of different splits.
    """
    folder = results / SHARDS
    pattern = re.compile(rf"{work.bound_to[:12]}-(\d+)-of-(\d+)\.pt")
    files = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    found = {(int(match[1]), int(match[2])): path for path in files if (match := pattern.fullmatch(path.name))}
    foreign = len(files) - len(found)
    aside = f" ({foreign} there belong to other weights, data or settings)" if foreign else ""
    if not found:
        raise EvaluationError(
            f"{folder} holds no shard of this attack{aside}; run it with `shard = 1/n` and so on, or copy the "
            "files here"
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
    return [found[index, count] for index in range(1, count + 1)]


def merge(work: Assignment, results: Path) -> AttackProgress:
    """Return the finished shards of an attack joined.

    Raises:
        EvaluationError: shards are missing, unfinished, or of different splits.
    """
    shards = []
    files = shard_files(work, results)
    count = len(files)
    for index, path in enumerate(files, 1):
        part = work.part(Shard(index=index, count=count))
        reasons: list[str] = []
        file = ProgressFile(path, part, reasons.append)
        progress = file.progress
        if progress is None:
            named = f"{file.path} belongs to other weights, data, settings or images than its name says"
            why = named if file.belongs_elsewhere or not reasons else reasons[0].removesuffix(": measured again")
            raise EvaluationError(f"{why}; run it again with `shard = {index}/{count}`")
        if not progress.state.finished:
            raise EvaluationError(f"shard {index}/{count} is not finished; run it with `shard = {index}/{count}`")
        shards.append(progress)
    # A shard with no image of its own has nothing to add.
    joined = join([progress.state for progress in shards])
    return AttackProgress(state=joined, nearest=torch.cat([progress.nearest for progress in shards]))
