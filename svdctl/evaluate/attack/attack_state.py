"""How far an attack has come: enough to go on after a kill with the same final figures, and nothing more."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import pyautoattack
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from svdctl.config.attack_settings import AttackSettings
from svdctl.errors import UsageError
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
        types = {
            "clean_predictions": torch.int64,
            "predictions": torch.int64,
            "broken_by": torch.int8,
            "distances": torch.float64,
        }
        for name, dtype in types.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.ndim != 1 or tensor.shape != self.broken_by.shape or not len(tensor):
                raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        broken, stands = self.broken_by >= 0, self.broken_by == STANDS
        changed = self.predictions != self.clean_predictions
        both = torch.stack((self.clean_predictions, self.predictions))
        faults = {
            "a prediction is no class": bool(((both < 0) | (both >= self.classes)).any()),
            "broken_by names no attack that has begun": bool(
                ((self.broken_by < MISCLASSIFIED) | (self.broken_by > self.attack)).any()
            ),
            "there is no such attack": self.attack > len(self.attacks)
            or int(self.broken_by.max()) >= len(self.attacks),
            "more batches are done than there are images": self.batches_done > len(self.broken_by),
            "predictions changed where nothing is broken, or stayed where something is": not torch.equal(
                changed, broken
            ),
            "a distance is infinite where nothing stands, or finite where something does": not torch.equal(
                self.distances == math.inf, stands
            ),
            "a distance is none": bool(
                (~(self.distances >= 0) | ((self.distances != 0) & (self.broken_by == MISCLASSIFIED))).any()
            ),
        }
        for text, wrong in faults.items():
            if wrong:
                raise ValueError(text)
        return self

    def __len__(self) -> int:
        return len(self.broken_by)

    @property
    def finished(self) -> bool:
        """No attack or no standing image is left."""
        return self.attack >= len(self.attacks) or not bool((self.broken_by == STANDS).any())

    def entered(self) -> Tensor:
        """Return the images of the running attack, in order: those that stand and those that it has broken."""
        return ((self.broken_by == STANDS) | (self.broken_by == self.attack)).nonzero()[:, 0]

    def record(self, index: Tensor, broken: Tensor, predictions: Tensor, distances: Tensor) -> None:
        """Enter one finished batch: images at `index` `(B,)`, which of them broke `(B,)`, and of those the rest."""
        hit = index[broken]
        self.broken_by[hit] = self.attack
        self.predictions[hit] = predictions
        self.distances[hit] = distances
        self.batches_done += 1

    def next_attack(self) -> None:
        """Go on to the next attack of the list."""
        self.attack, self.batches_done = self.attack + 1, 0

    def robust_accuracy(self, radius: float = math.inf) -> float:
        """Share of images with no adversarial image found within `radius`; by default within eps."""
        return float((self.distances > radius).double().mean() if radius < math.inf else self._standing())

    def _standing(self) -> float:
        return float((self.broken_by == STANDS).double().mean())

    @property
    def clean_accuracy(self) -> float:
        """Share of images classified rightly before any attack."""
        return float((self.broken_by != MISCLASSIFIED).double().mean())


def summary(state: AttackState, settings: AttackSettings) -> dict[str, Any]:
    """Return the figures of a state, finished or not: shares of all images, misclassified ones included."""
    count = len(state)
    standing = int((state.broken_by == STANDS).sum())
    clean = int((state.broken_by != MISCLASSIFIED).sum())
    left, after = clean, {}
    for number, attack in enumerate(state.attacks):
        left -= int((state.broken_by == number).sum())
        after[attack] = left / count
    warnings = list(state.warnings)
    square = state.attacks.index("square") if "square" in state.attacks and len(state.attacks) > 1 else None
    share = float((state.broken_by == square).double().mean()) if square is not None else 0.0
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
        "after_attack": after,
        "left_out": state.left_out,
        "largest_distance": float(state.distances[state.broken_by >= 0].max()) if clean > standing else 0.0,
        "warnings": warnings,
    }


def join(shards: Sequence[AttackState]) -> AttackState:
    """Return the state of all images from the finished states of their shards, in the shards' order.

    Raises:
        UsageError: shards that are unfinished or do not belong together.
    """
    unfinished = [str(number) for number, shard in enumerate(shards, 1) if not shard.finished]
    if unfinished or not shards:
        raise UsageError(
            f"shards of an attack are not finished ({', '.join(unfinished) or 'there are none'}); run them first"
        )
    first = shards[0]
    for number, shard in enumerate(shards, 1):
        if (shard.fingerprint, shard.attacks, shard.classes) != (first.fingerprint, first.attacks, first.classes):
            raise UsageError(
                f"shard {number} was made with other weights, data or settings than shard 1; run it again with the same"
            )
    return AttackState(
        fingerprint=first.fingerprint,
        classes=first.classes,
        attacks=first.attacks,
        left_out=first.left_out,
        warnings=tuple(dict.fromkeys(warning for shard in shards for warning in shard.warnings)),
        clean_predictions=torch.cat([shard.clean_predictions for shard in shards]),
        predictions=torch.cat([shard.predictions for shard in shards]),
        broken_by=torch.cat([shard.broken_by for shard in shards]),
        distances=torch.cat([shard.distances for shard in shards]),
        at_once=min(shard.at_once for shard in shards),
        attack=len(first.attacks),
    )
