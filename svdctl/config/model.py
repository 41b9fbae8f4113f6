"""The network and the kind of its convolutions."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from svdctl.config.base import Config

ConvInit = Literal["orthogonal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]


class Wrn(Config):
    """Wide residual network with pre-activation blocks; depth 6n + 4."""

    kind: Literal["wrn"] = "wrn"
    depth: PositiveInt = 16
    width: PositiveInt = 10
    """Factor on the base widths 16, 32, 64 of the three stages."""

    @model_validator(mode="after")
    def _depth(self) -> Self:
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"a WRN's depth is 6n + 4 (10, 16, 22, 28, ...), not {self.depth}")
        return self


class Vgg(Config):
    """VGG-19 with batch normalisation, for images of side 32 or more."""

    kind: Literal["vgg"] = "vgg"


Model = Annotated[Wrn | Vgg, Field(discriminator="kind")]


class Free(Config):
    """Frames are ordinary weights."""

    kind: Literal["free"] = "free"


class Penalty(Config):
    """Frames are drawn towards orthonormal columns by a term of the loss (the paper's way)."""

    kind: Literal["penalty"] = "penalty"
    weight: Annotated[float, Field(gt=0)] = 1e5
    """k in `k / count * sum(||U^T U - I||_F^2)`."""
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
    """Start every convolution anew in this way; absent: the network's own way."""


class TT(Config):
    """Tensor-train convolutions: 1x1, core, 1x1."""

    kind: Literal["tt"] = "tt"
    rank: PositiveInt | None = None
    rank_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ranks as a share of each layer's widths, instead of `rank`."""
    compress_first: bool = True
    """Off: the first convolution stays as it is."""
    frames: Frames = Retract()
    init: ConvInit | None = None

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        if (self.rank is None) == (self.rank_scale is None):
            raise ValueError("TT layers need exactly one of rank (--dec-rank) and rank_scale (--dec-scale)")
        return self


Layer = Annotated[Standard | TT, Field(discriminator="kind")]
