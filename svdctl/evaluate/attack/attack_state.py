"""How far an attack has come: enough to go on after a kill with the same final figures, and nothing more."""

import math
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Self

import pyautoattack
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from svdctl.errors import EvaluationError
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.figures import wilson_interval
from svdctl.utils.content_hash import json_digest

VERSION = 1
STANDS = -1
MISCLASSIFIED = -2
SQUARE_SHARE = 0.002
"""Share of images above which Square, after attacks that see gradients, is a sign that these mislead."""
Sentences = Annotated[tuple[str, ...], Field(strict=False)]


def fingerprint(weights_digest: str, data_digest: str, settings: AttackSettings) -> str:
    """Return what a state is bound to: weights, images with their labels, every setting, and the attacks' code."""
    bound = {
        "format": VERSION,
        "pyautoattack": pyautoattack.__version__,
        "weights": weights_digest,
        "data": data_digest,
        "settings": settings.model_dump(mode="json"),
    }
    return json_digest(bound, compact=False)


_TENSORS = {
    "clean_predictions": torch.int64,
    "predictions": torch.int64,
    "broken_by": torch.int8,
    "distances": torch.float64,
}


class AttackState(BaseModel):
    """Outcome for N images so far; all tensors `(N,)` on the CPU. Types, ranges and what follows are checked.

    The order of work is AutoAttack's own: each attack goes over the images that stand, in batches, before the next
    one begins. Which images make a batch follows from `broken_by` alone, and random draws follow from the seed alone.
    """

    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)

    fingerprint: str
    classes: Annotated[int, Field(ge=2)]
    attacks: Sentences
    left_out: Sentences
    """A sentence for each attack that cannot run."""
    warnings: Sentences
    """A sentence for each sign that the network cheats the attacks."""
    clean_predictions: Tensor
    """int64: classes of the unchanged images."""
    predictions: Tensor
    """int64: classes of the adversarial images; where there is none, the clean prediction."""
    broken_by: Tensor
    """int8: number of the attack that succeeded, `STANDS`, or `MISCLASSIFIED` without an attack."""
    distances: Tensor
    """float64: norm of the perturbation found; 0 where misclassified, infinite where the image stands."""
    at_once: PositiveInt
    """Images in one forward pass; below the batch size once memory has run out."""
    attack: NonNegativeInt = 0
    """Number of the attack that is running."""
    batches_done: NonNegativeInt = 0
    """Its batches that are finished."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, dtype in _TENSORS.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.ndim != 1 or tensor.shape != self.broken_by.shape or not len(tensor):
                raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        both = torch.stack((self.clean_predictions, self.predictions))
        stands, far = self.broken_by == STANDS, self.distances
        first, last = int(self.broken_by.min()), int(self.broken_by.max())
        faults = {
            "a prediction is no class": int(both.min()) < 0 or int(both.max()) >= self.classes,
            "broken_by names no attack that has begun": first < MISCLASSIFIED or last > self.attack,
            "there is no such attack": self.attack > len(self.attacks) or last >= len(self.attacks),
            "more batches are done than there are images": self.batches_done > len(self),
            "predictions changed where nothing is broken, or stayed where something is": not torch.equal(
                self.predictions != self.clean_predictions, self.broken_by >= 0
            ),
            "a distance is none, or not that of its outcome": not torch.equal(far == math.inf, stands)
            or bool((~(far >= 0) | ((far != 0) & (self.broken_by == MISCLASSIFIED))).any()),
        }
        if fault := next((text for text, wrong in faults.items() if wrong), None):
            raise ValueError(fault)
        return self

    def __len__(self) -> int:
        return len(self.broken_by)

    @property
    def finished(self) -> bool:
        """Return whether no attack or no standing image is left."""
        return self.attack >= len(self.attacks) or not bool((self.broken_by == STANDS).any())

    def robust_accuracy(self, radius: float = math.inf) -> float:
        """Return the share of images with no adversarial image found within `radius`; by default within eps."""
        return float((self.distances > min(radius, sys.float_info.max)).double().mean())


def summary(state: AttackState, settings: AttackSettings) -> dict[str, Any]:
    """Return the figures of a state, finished or not: shares of all images, misclassified ones included."""
    count = len(state)
    standing = int((state.broken_by == STANDS).sum())
    clean = int((state.broken_by != MISCLASSIFIED).sum())
    broken = {attack: int((state.broken_by == number).sum()) for number, attack in enumerate(state.attacks)}
    left = (clean - so_far for so_far in accumulate(broken.values()))
    warnings = list(state.warnings)
    share = broken.get("square", 0) / count if len(broken) > 1 else 0.0
    if share > SQUARE_SHARE:
        warnings.append(
            f"Square, which sees no gradient, broke {share:.1%} of the images after the attacks that do had failed: "
            "gradients mislead, and the robust accuracy may be too high"
        )
    if settings.protocol == "paper":
        warnings.append(
            "protocol paper: normalised images were attacked as if they were pixels, so eps is not in pixels and "
            "bounds nothing; for comparison with the paper's code only"
        )
    return {
        **settings.model_dump(include={"protocol", "norm", "eps", "seed", "batch_size"}),
        "pyautoattack": pyautoattack.__version__,
        "count": count,
        "clean_accuracy": clean / count,
        "robust_accuracy": standing / count,
        "robust_interval": wilson_interval(standing, count),
        "after_attack": {attack: number / count for attack, number in zip(broken, left, strict=True)},
        "left_out": state.left_out,
        "largest_distance": float(state.distances[state.broken_by >= 0].max()) if clean > standing else 0.0,
        "warnings": warnings,
    }


def join(shards: Sequence[AttackState]) -> AttackState:
    """Return the state of all images from the finished states of their shards, in the shards' order.

    Raises:
        EvaluationError: shards that are unfinished or do not belong together.
    """
    first = shards[0]
    for number, shard in enumerate(shards, 1):
        which = f"shard {number}/{len(shards)}"
        if not shard.finished:
            raise EvaluationError(f"{which} is not finished; run it with `shard = {number}/{len(shards)}`")
        if (shard.fingerprint, shard.attacks, shard.classes) != (first.fingerprint, first.attacks, first.classes):
            raise EvaluationError(f"{which} is of other weights, data or settings than the first; run it again")
    joined: dict[str, Any] = {name: torch.cat([getattr(shard, name) for shard in shards]) for name in _TENSORS}
    return AttackState(
        **first.model_dump(include={"fingerprint", "classes", "attacks", "left_out"}),
        **joined,
        warnings=tuple(dict.fromkeys(warning for shard in shards for warning in shard.warnings)),
        at_once=min(shard.at_once for shard in shards),
        attack=len(first.attacks),
    )
