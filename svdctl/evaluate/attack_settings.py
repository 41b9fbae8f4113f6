"""How a network is attacked with AutoAttack, and on how many images."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from svdctl.config.base import Config
from svdctl.errors import nearest

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = get_args(Version)
Norm = Literal["L1", "L2", "Linf"]
Protocol = Literal["pixels", "paper"]


LARGE_LINF = 0.1
"""Radius beyond which a change of every pixel is no small one."""


def fraction(value: Any) -> Any:
    """Return the number that a text such as `8/255` stands for; what is no text, as it is.

    Raises:
        PydanticCustomError: another text.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)/(\d{1,9}(?:\.\d{1,9})?)", value.strip())
    try:
        return float(match[1]) / float(match[2]) if match else float(value)
    except (ValueError, ZeroDivisionError) as error:
        raise PydanticCustomError("fraction", "write 0.5 or 8/255") from error


Radius = Annotated[PositiveFloat, BeforeValidator(fraction)]
"""A radius in pixels of [0, 1]: a number, or a fraction of the range as `8/255`."""


def shown_radius(eps: float) -> str:
    """Return a radius as it is read: as `8/255` where six digits do not say it and that many 255ths do.

    >>> from svdctl.evaluate.attack_settings import shown_radius
    >>> shown_radius(0.5), shown_radius(8 / 255), shown_radius(1), shown_radius(0.2)
    ('0.5', '8/255', '1', '0.2')
    """
    parts = eps * 255
    is_fraction = float(f"{eps:g}") != eps and math.isclose(parts, round(parts), rel_tol=1e-9)
    return f"{round(parts)}/255" if is_fraction else f"{eps:g}"


def warning_of_radius(norm: str, eps: float, protocol: str) -> str | None:
    """Return what is to be said of an attack that changes every pixel by much; None for any other."""
    if norm != "Linf" or eps <= LARGE_LINF or protocol != "pixels":
        return None
    return (
        f"Linf within {shown_radius(eps)} changes every pixel by up to {min(eps, 1.0):.0%} of its range, which can "
        "make another image of it; 8/255 is usual for CIFAR, 4/255 for ImageNet"
    )


def attack_title(attacks: str | Sequence[str]) -> str:
    """Return what the attacks of a protocol are called: a version is AutoAttack, a list is named.

    >>> from svdctl.evaluate.attack_settings import attack_title
    >>> attack_title("standard"), attack_title(("apgd-ce", "square"))
    ('AutoAttack', 'apgd-ce + square')
    """
    return "AutoAttack" if isinstance(attacks, str) else " + ".join(attacks)


def notice_of_radius(norm: str, eps: float, protocol: str) -> str | None:
    """Return what is to be said before an attack begins; an eps of 1 or more may be meant in other units.

    >>> from svdctl.evaluate.attack_settings import notice_of_radius
    >>> notice_of_radius("L2", 8.0, "pixels")
    'eps = 8 in L2: pixels are in [0, 1]; for 8 of their 255 steps write 8/255'
    """
    if norm not in ("L2", "Linf") or eps < 1 or protocol != "pixels":
        return warning_of_radius(norm, eps, protocol)
    return f"eps = {eps:g} in {norm}: pixels are in [0, 1]; for {eps:g} of their 255 steps write {eps:g}/255"


def attack_names(names: Any) -> Any:
    """Return attacks by name, or a version of AutoAttack that stands alone; capitals and underscores are forgiven.

    Raises:
        ValueError: there is no such attack.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names  # a version, or what pydantic refuses
    plain, single = [name.lower().replace("_", "-") for name in names], get_args(AttackName)
    if len(plain) == 1 and plain[0] in VERSIONS:
        return plain[0]
    if unknown := [name for name in plain if name not in single]:
        hint = nearest(unknown[0], (*single, *VERSIONS))
        known = f"{', '.join(single)}, or, alone, one of {', '.join(VERSIONS)}"
        raise ValueError(f"there is no attack {', '.join(unknown)}{hint} (choose of {known})")
    return tuple(plain)


class AttackSettings(Config):
    """Everything that determines the outcome of an attack on given weights and images."""

    norm: Norm = "L2"
    """Norm in which a perturbation is measured."""
    eps: Radius = 0.5
    """Radius of the ball, in pixels of [0, 1], as 0.5 or 8/255. With `protocol = "paper"` in normalised units."""
    attacks: Annotated[
        Version | Annotated[tuple[AttackName, ...], Field(min_length=1)], BeforeValidator(attack_names)
    ] = "standard"
    """Some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t and square, in the order in which they run, or a version of
    AutoAttack."""
    batch_size: PositiveInt = 250
    """Images attacked together; random draws depend on it, so another size gives slightly other figures."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the images under attack and of random draws; that of the evaluation takes its place."""
    examples: PositiveInt | Literal["all"] | None = None
    """Test images, drawn from the seed, or all (32 of the digits, all of other data)."""
    protocol: Protocol = "pixels"
    """pixels, or paper: normalised images, as in the paper's code, for comparison only. `pixels`: normalisation belongs
    to the network; `paper`: normalised images are attacked as if they were pixels."""

    @model_validator(mode="after")
    def _each_attack_once(self) -> Self:
        if not isinstance(self.attacks, str) and len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks = {list(self.attacks)} names one twice; name each attack once")
        return self
