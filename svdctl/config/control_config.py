"""What is done to the singular values after the optimiser's step."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from svdctl.config.base import Config


class NoControl(Config):
    """Singular values are left alone."""

    kind: Literal["none"] = "none"


class _Bounded(Config):
    max_sigma: PositiveFloat = 1.0
    """Largest singular value allowed for convolutions."""
    every_steps: PositiveInt = 1
    """Steps between two applications."""
    linear_max: PositiveFloat | None = None
    """The same for linear layers; absent: linear layers are left alone."""
    procedure: Literal["certified", "paper"] = "certified"
    """`paper`: two power steps or one clip pass and no seal, for comparisons only."""


class Clip(_Bounded):
    """Singular values above `max_sigma` become `max_sigma`; the kernel moves as little as it can."""

    kind: Literal["clip"] = "clip"
    every_steps: PositiveInt = 100


class Divide(_Bounded):
    """The kernel is scaled by `min(1, max_sigma / sigma)`, sigma from power steps with kept vectors."""

    kind: Literal["divide"] = "divide"


class DivideExact(_Bounded):
    """The same with the exact sigma_max of the rigorous engine at each application."""

    kind: Literal["divide-exact"] = "divide-exact"


class DivideEach(_Bounded):
    """Every factor of a TT layer is divided on its own; other layers as `divide`."""

    kind: Literal["divide-each"] = "divide-each"


class Assign(_Bounded):
    """All singular values become `max_sigma`."""

    kind: Literal["assign"] = "assign"
    every_steps: PositiveInt = 100


Control = Annotated[NoControl | Clip | Divide | DivideExact | DivideEach | Assign, Field(discriminator="kind")]


class BatchNormControl(Config):
    """BatchNorm is scaled so that `max |gamma / sqrt(running_var + eps)| <= max_gain`, eps the layer's own."""

    max_gain: PositiveFloat
    """The limit of that gain."""
    every_steps: PositiveInt = 1
    """Steps between two limitings."""
