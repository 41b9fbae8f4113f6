"""How a network is attacked with AutoAttack, and on how many images."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from svdctl.config.base import Config
from svdctl.errors import nearest

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = get_args(Version)
Norm = Literal["L1", "L2", "Linf"]
Protocol = Literal["pixels", "paper"]


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
    eps: PositiveFloat = 0.5
    """Radius of the ball, in pixels of [0, 1]. With `protocol = "paper"` in normalised units."""
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
