"""Which attacks run: AutoAttack's list, less those that do not exist for these classes, images or networks."""

from pyautoattack import AutoAttack

from svdctl.errors import ShapeError, UsageError
from svdctl.evaluate.attack_settings import AttackSettings

_CLASSES = {"apgd-t": (4, "its targeted DLR loss needs four"), "apgd-dlr": (3, "its DLR loss needs three")}
"""Least numbers of classes."""

_SQUARE_ROWS = 5
"""Rows below which Square's tiles for L1 and L2, a fifth of the image's height, would have no pixels."""


def plan(
    settings: AttackSettings, classes: int, image_shape: tuple[int, ...], *, differentiable: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the attacks of `settings` that run, and a sentence for each that is left out.

    The network has `classes` logits on images `(C, H, W)`.

    Raises:
        ShapeError: fewer than two classes.
        UsageError: no attack is left.
    """
    if classes < 2:
        raise ShapeError(f"the network returns {classes} logit; an attack needs at least two classes")
    attacks, left_out = [], []
    for attack in wanted(settings):
        if attack != "square" and not differentiable:
            left_out.append(f"{attack}: it follows gradients, and the network gives none")
        elif attack in _CLASSES and classes < _CLASSES[attack][0]:
            left_out.append(f"{attack}: {_CLASSES[attack][1]} classes, and there are {classes}")
        elif attack == "square" and settings.norm != "Linf" and image_shape[1] < _SQUARE_ROWS:
            reason = f"it needs images of {_SQUARE_ROWS} rows or more, and these have {image_shape[1]}"
            left_out.append(f"square: in {settings.norm} {reason}")
        else:
            attacks.append(attack)
    if not attacks:
        raise UsageError(f"no attack of the list can run ({'; '.join(left_out)}); add apgd-ce or square to it")
    return tuple(attacks), tuple(left_out)


def wanted(settings: AttackSettings) -> tuple[str, ...]:
    """Return the attacks of a version or of a list, in order."""
    if not isinstance(settings.attacks, str):
        return settings.attacks
    return tuple(AutoAttack(lambda x: x, norm=settings.norm, version=settings.attacks, seed=0).attacks_to_run)
