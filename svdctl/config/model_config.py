"""The network and the kind of its convolutions."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from svdctl.config.base import Config
from svdctl.config.variants import variant
from svdctl.registry import ARCHITECTURES

ConvInit = Literal["orthogonal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]


class ModelConfig(Config):
    """Base of the configuration of an architecture; `kind` is a literal of each."""

    kind: str


if TYPE_CHECKING:
    Model = ModelConfig
else:
    Model = variant(ARCHITECTURES)


class Free(Config):
    """Frames are ordinary weights."""

    kind: Literal["free"] = "free"


class Penalty(Config):
    """Frames are drawn towards orthonormal columns by a term of the loss (the paper's way)."""

    kind: Literal["penalty"] = "penalty"
    weight: Annotated[float, Field(gt=0)] = 1e5
    """Weight k of the penalty that keeps frames orthonormal. It is `k / count * sum(||U^T U - I||_F^2)`."""
    count: Literal["paper", "entries"] = "paper"
    """`paper`: twice the squared output rank of each layer; `entries`: the entries of all Gram matrices."""


class Retract(Config):
    """Frames are made orthonormal after every step; the rest moves into the core, momentum carried along."""

    kind: Literal["retract"] = "retract"
    method: Literal["polar", "qr"] = "polar"


class Parametrize(Config):
    """Frames are orthonormal by torch's orthogonal parametrization."""

    kind: Literal["parametrize"] = "parametrize"


Frames = Annotated[Free | Penalty | Retract | Parametrize, Field(discriminator="kind")]


class Standard(Config):
    """Ordinary convolutions."""

    kind: Literal["standard"] = "standard"
    init: ConvInit | None = None
    """Start every convolution anew in this way. Absent: the network's own way."""


def _form(rank: object) -> str:
    return "each" if isinstance(rank, list | tuple) else "one"


# Tagged, so that a fault is told of the form that was written and not of both.
Ranks = Annotated[
    Annotated[PositiveInt, Tag("one")] | Annotated[tuple[PositiveInt, ...], Tag("each")], Discriminator(_form)
]


class _Ranked(Config):
    rank: Ranks | None = None
    """One rank for all layers, or for LipConvNet one for each stage and one for the last convolution."""
    frames: Frames = Retract()


class TT(_Ranked):
    """Tensor-train convolutions: 1x1, core, 1x1."""

    kind: Literal["tt"] = "tt"
    rank_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ranks as a share of each layer's widths, instead of `rank`."""
    compress_first: bool = True
    """Off: the first convolution stays as it is."""
    init: ConvInit | None = None

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        if (self.rank is None) == (self.rank_scale is None):
            raise ValueError("TT layers need exactly one of `layer.rank` and `layer.rank_scale`")
        return self


class Soc(Config):
    """Skew orthogonal convolutions: the exponential of a skew-symmetric one."""

    kind: Literal["soc"] = "soc"


class Sott(_Ranked):
    """Skew orthogonal convolutions of width `rank` between two frames."""

    kind: Literal["sott"] = "sott"
    pointwise_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the skew kernel of 1x1 convolutions; wider ones have 0.7, as in the paper's code these have too."""

    @model_validator(mode="after")
    def _has_rank(self) -> Self:
        if self.rank is None:
            raise ValueError("SOTT layers need a rank, or one for each of 6 groups (`layer.rank`)")
        return self


Layer = Annotated[Standard | TT | Soc | Sott, Field(discriminator="kind")]
