"""Which attacks run: AutoAttack's list, less those that do not exist for these classes, images or networks."""

from pyautoattack import AutoAttack

from svdctl.errors import ShapeError, UsageError
from svdctl.evaluate.attack_settings import AttackSettings

_CLASSES = {"apgd-t": (4, "its targeted DLR loss needs four"), "apgd-dlr": (3, "its DLR loss needs three")}
"""Least numbers of classes."""

_SQUARE_TILES = 5
"""Tiles along the height of an image with which Square begins in L1 and L2."""


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
        elif attack == "square" and settings.norm != "Linf" and (reason := _why_no_tiles(*image_shape[1:])):
            left_out.append(f"square: in {settings.norm} {reason}")
        else:
            attacks.append(attack)
    if not attacks:
        raise UsageError(f"no attack of the list can run ({'; '.join(left_out)}); add apgd-ce or square to it")
    return tuple(attacks), tuple(left_out)


def _why_no_tiles(height: int, width: int) -> str | None:
    """Return why Square cannot begin on images of these sides in L1 and L2, None where it can.

    pyautoattack's square tiles have a fifth of the height, and begin at half of what five of them leave over. It lays
    as many as the image's sides hold, so that the last ones may end outside, where it stops with an error of shapes
    (tiles of one pixel outside have no pixels, and do nothing).
    """
    side = height // _SQUARE_TILES
    if side == 0:
        return f"it needs images of {_SQUARE_TILES} rows or more, and these have {height}"
    begin = (height - _SQUARE_TILES * side) // 2
    if side > 1 and any(begin + size // side * side > size for size in (height, width)):
        return f"its tiles of {side} x {side} pixels, laid from pixel {begin}, end outside images of {height} x {width}"
    return None


def wanted(settings: AttackSettings) -> tuple[str, ...]:
    """Return the attacks of a version or of a list, in order."""
    if not isinstance(settings.attacks, str):
        return settings.attacks
    return tuple(AutoAttack(lambda x: x, norm=settings.norm, version=settings.attacks, seed=0).attacks_to_run)
