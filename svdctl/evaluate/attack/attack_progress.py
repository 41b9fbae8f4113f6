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
from svdctl.config.evaluate_config import Shard
from svdctl.errors import EvaluationError
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, AttackState, fingerprint, join
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.evaluation_data import EvaluationData
from svdctl.evaluate.inference import subset
from svdctl.utils.content_hash import json_digest
from svdctl.utils.measurement_cache import Measurement, MeasurementCache
from svdctl.utils.network_probe import Probe

KEY = "attack"
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
        return KEY

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
        examples = settings.examples if isinstance(settings.examples, int) else None
        index = subset(len(dataset.test), examples, settings.seed)
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


def kept_progress(file: Path, work: Assignment, say: Callable[[str], None]) -> MeasurementCache[AttackProgress]:
    """Return what a file holds of an attack: one record under `KEY`, none when there is nothing sound.

    Args:
        file: it may be absent.
        work: what is attacked.
        say: takes the reasons why a state counts for nothing.
    """
    old = partial(_old_contents, work=work)
    cache = MeasurementCache(file, AttackProgress, work.about, old=old, probe=work.probe, read_tensors=read_torch)
    for notice in cache.notices:
        say(notice)
    kept = cache.kept.get(KEY)
    if kept is None:
        return cache
    if fault := _fault(kept.record, work):
        say(f"{file}: the state of an attack cannot be right ({fault}); attacked anew")
        cache.kept.clear()
    elif not kept.has_checksum:
        state = kept.record.state
        state.warnings = tuple(dict.fromkeys((*state.warnings, UNSEALED)))
    return cache


UNSEALED = (
    "a part of this attack was kept by a version of svdctl that wrote no checksums; changes to it would go unseen"
)


def _fault(progress: AttackProgress, work: Assignment) -> str | None:
    """Return what is wrong with a state of these images."""
    state = progress.state
    if state.fingerprint != work.bound_to or len(state) != len(work.index):
        return "it is that of other images"
    if not torch.equal(state.clean_predictions != work.labels, state.broken_by == MISCLASSIFIED):
        return "its clean predictions are not those of these labels"
    far = state.distances[state.distances < math.inf]
    # Beyond what rounding can do; under `paper` eps is no bound.
    if work.settings.protocol == "pixels" and bool((far > 1.01 * work.settings.eps + 0.01).any()):
        return "its perturbations are larger than eps"
    return None


def shard_files(work: Assignment, results: Path) -> list[Path]:
    """Return the files of all shards of an attack, in order.

    Raises:
        EvaluationError: shards are missing, or of different splits.
    """
    folder = results / SHARDS
    pattern = re.compile(rf"{work.bound_to[:12]}-(\d+)-of-(\d+)\.pt")
    files = sorted(folder.glob("*.pt"))
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
    wanted = [(index, counts[0]) for index in range(1, counts[0] + 1)]
    if missing := ", ".join(f"{index}/{count}" for index, count in wanted if (index, count) not in found):
        raise EvaluationError(f"{folder} lacks the shards {missing}{aside}; run them, or copy their files here")
    return [found[shard] for shard in wanted]


def merge(work: Assignment, results: Path) -> AttackProgress:
    """Return the finished shards of an attack joined.

    Raises:
        EvaluationError: shards are missing, unfinished, or of different splits.
    """
    shards = []
    files = shard_files(work, results)
    for index, path in enumerate(files, 1):
        reasons: list[str] = []
        shard = Shard(index=index, count=len(files))
        cache = kept_progress(path, work.part(shard), reasons.append)
        if KEY not in cache.kept:
            named = f"{path} belongs to other weights, data, settings or images than its name says"
            why = named if cache.belongs_elsewhere or not reasons else reasons[0].removesuffix(": measured again")
            raise EvaluationError(f"{why}; run it again with `shard = {shard}`")
        shards.append(cache.kept[KEY].record)
    joined = join([progress.state for progress in shards])
    return AttackProgress(state=joined, nearest=torch.cat([progress.nearest for progress in shards]))
