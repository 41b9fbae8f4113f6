"""The figures of a finished attack, each with what it needs to be understood later."""

from dataclasses import asdict, dataclass
from typing import Any

import pyautoattack

from svdctl.config.attack_settings import AttackSettings
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, STANDS, AttackState
from svdctl.evaluate.figures import wilson_interval

_SQUARE_SHARE = 0.002


@dataclass(frozen=True)
class AttackResult:
    """Accuracies are shares of all `count` images, misclassified ones included."""

    protocol: str
    norm: str
    eps: float
    seed: int
    batch_size: int
    pyautoattack: str
    count: int
    clean_accuracy: float
    robust_accuracy: float
    robust_interval: tuple[float, float]
    """Wilson's interval at 95 %."""
    after_attack: dict[str, float]
    """Accuracy after each attack, in the order in which they ran; those that found nothing left to do included."""
    left_out: tuple[str, ...]
    largest_distance: float
    """Largest perturbation that counts; 0 when no attack succeeded."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summary(state: AttackState, settings: AttackSettings) -> AttackResult:
    """The figures of a state, finished or not."""
    count = len(state)
    standing = int((state.broken_by == STANDS).sum())
    clean = int((state.broken_by != MISCLASSIFIED).sum())
    left, after = clean, {}
    for number, attack in enumerate(state.attacks):
        left -= int((state.broken_by == number).sum())
        after[attack] = left / count
    return AttackResult(
        protocol=settings.protocol,
        norm=settings.norm,
        eps=settings.eps,
        seed=settings.seed,
        batch_size=settings.batch_size,
        pyautoattack=pyautoattack.__version__,
        count=count,
        clean_accuracy=clean / count,
        robust_accuracy=standing / count,
        robust_interval=wilson_interval(standing, count),
        after_attack=after,
        left_out=state.left_out,
        largest_distance=float(state.distances[state.broken_by >= 0].max()) if clean > standing else 0.0,
        warnings=(*state.warnings, *_of_square(state), *_of_protocol(settings)),
    )


def _of_square(state: AttackState) -> list[str]:
    if "square" not in state.attacks or len(state.attacks) == 1:
        return []
    share = float((state.broken_by == state.attacks.index("square")).double().mean())
    if share <= _SQUARE_SHARE:
        return []
    return [
        f"Square, which sees no gradient, broke {share:.1%} of the images after the attacks that do had failed: "
        "gradients mislead, and the robust accuracy may be too high"
    ]


def _of_protocol(settings: AttackSettings) -> list[str]:
    if settings.protocol == "pixels":
        return []
    return [
        "protocol paper: normalised images were attacked as if they were pixels, so eps is not in pixels and bounds "
        "nothing; for comparison with the paper's code only"
    ]
