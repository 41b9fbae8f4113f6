"""What every control of singular values can be set to, and the limit on BatchNorm."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from svdctl.config.base import Config


class ControlConfig(Config):
    """The settings of a control method; those of a user's own may have more."""

    kind: str
    max_sigma: PositiveFloat = 1.0
    """Largest singular value allowed for convolutions."""
    every_steps: PositiveInt = 1
    """Steps between two applications of the control."""
    linear_max: PositiveFloat | None = None
    """Largest singular value allowed for linear layers; absent: they are left alone."""
    procedure: Literal["certified", "paper"] = "certified"
    """certified, or paper: no proof, for comparisons only (svdctl's own). `paper` makes two power steps or one clip
    pass, and no seal."""


class BatchNormControl(Config):
    """BatchNorm is scaled so that `max |gamma / sqrt(running_var + eps)| <= max_gain`, eps the layer's own."""

    max_gain: PositiveFloat
    """Largest gain allowed for BatchNorm."""
    every_steps: PositiveInt = 1
    """Steps between two applications of the limit on BatchNorm."""
