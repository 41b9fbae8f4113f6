"""The network and the kind of its convolutions."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from svdctl.config.base import Config

STRIDE = 2**5
"""What LipConvNet's five stages divide the sides of an image by, and multiply its first width by."""
GROUPS = 6
"""Convolutions of LipConvNet by rank: those of each stage, and the last one."""

ConvInit = Literal["orthogonal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]


class Wrn(Config):
    """Wide residual network with pre-activation blocks; depth 6n + 4."""

    kind: Literal["wrn"] = "wrn"
    depth: Annotated[int, Field(ge=1, le=2_000)] = 16
    width: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Factor on the base widths 16, 32, 64 of the three stages."""

    @model_validator(mode="after")
    def _depth(self) -> Self:
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"a WRN's depth is 6n + 4 (10, 16, 22, 28, ...), not {self.depth}")
        return self


class Vgg(Config):
    """VGG-19 with batch normalisation, for images of side 32 or more."""

    kind: Literal["vgg"] = "vgg"


class LipConv(Config):
    """LipConvNet: five stages of `block_size` convolutions with MinMax, sides of the images divisible by 32."""

    kind: Literal["lipconv"] = "lipconv"
    block_size: Annotated[int, Field(ge=1, le=500)] = 4
    """Convolutions in each stage: 1, 4 and 6 give LipConvNet-5, -20 and -30."""
    in_channels: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Width of the first stage; each stage doubles it."""
    checkpoint_activations: bool = False
    """Compute activations a second time in the backward pass instead of keeping them: less memory, more time."""

    @property
    def channels(self) -> int:
        """Channels before the last convolution."""
        return STRIDE * self.in_channels


Model = Annotated[Wrn | Vgg | LipConv, Field(discriminator="kind")]


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
