"""Which attacks run: AutoAttack's list, less those that do not exist for these classes, images or networks."""

from dataclasses import dataclass

from pyautoattack import AutoAttack

from svdctl.config.attack_settings import AttackName, AttackSettings
from svdctl.errors import ShapeError, UsageError

_SQUARE_ROWS = 5
"""Rows below which Square's tiles for L1 and L2, a fifth of the image's height, would have no pixels."""


@dataclass(frozen=True)
class AttackPlan:
    """Attacks in the order in which they run, and a sentence for each one that is left out."""

    attacks: tuple[str, ...]
    left_out: tuple[str, ...]


def plan(
    settings: AttackSettings, classes: int, image_shape: tuple[int, ...], *, differentiable: bool = True
) -> AttackPlan:
    """Return the attacks of `settings` for a network with `classes` logits on images `(C, H, W)`.

    Raises:
        ShapeError: fewer than two classes.
        UsageError: no attack is left.
    """
    if classes < 2:
        raise ShapeError(f"the network returns {classes} logit; an attack needs at least two classes")
    reasons = {
        attack: _why_not(attack, settings.norm, classes, image_shape, differentiable) for attack in wanted(settings)
    }
    attacks = tuple(attack for attack, reason in reasons.items() if reason is None)
    left_out = tuple(f"{attack}: {reason}" for attack, reason in reasons.items() if reason is not None)
    if not attacks:
        raise UsageError(f"no attack of the list can run ({'; '.join(left_out)}); add apgd-ce or square to it")
    return AttackPlan(attacks, left_out)


def wanted(settings: AttackSettings) -> tuple[AttackName, ...]:
    """Return the attacks of a version or of a list, in order."""
    if not isinstance(settings.attacks, str):
        return settings.attacks
    return tuple(AutoAttack(lambda x: x, norm=settings.norm, version=settings.attacks, seed=0).attacks_to_run)


def _why_not(attack: str, norm: str, classes: int, image_shape: tuple[int, ...], differentiable: bool) -> str | None:
    if attack != "square" and not differentiable:
        return "it follows gradients, and the network gives none"
    if attack == "apgd-t" and classes < 4:
        return f"its targeted DLR loss needs four classes, and there are {classes}"
    if attack == "apgd-dlr" and classes < 3:
        return f"its DLR loss needs three classes, and there are {classes}"
    if attack == "square" and norm != "Linf" and image_shape[1] < _SQUARE_ROWS:
        return f"in {norm} it needs images of {_SQUARE_ROWS} rows or more, and these have {image_shape[1]}"
    return None
