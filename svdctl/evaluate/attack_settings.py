"""How a network is attacked with AutoAttack, and on how many images."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from svdctl.config.base import Config

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = get_args(Version)
Norm = Literal["L1", "L2", "Linf"]
Protocol = Literal["pixels", "paper"]


class AttackSettings(Config):
    """Everything that determines the outcome of an attack on given weights and images."""

    norm: Norm = "L2"
    """Norm of the perturbation."""
    eps: PositiveFloat = 0.5
    """Radius of the ball, in pixels of [0, 1]. With `protocol = "paper"` in normalised units."""
    attacks: Version | Annotated[tuple[AttackName, ...], Field(min_length=1)] = "standard"
    """Some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t and square, in the order in which they run, or a version of
    AutoAttack."""
    batch_size: PositiveInt = 250
    """Images attacked together; random draws depend on it, so another size gives slightly other figures."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
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
