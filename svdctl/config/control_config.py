"""What every control of singular values can be set to, and the limit on BatchNorm."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from svdctl.config.base import Config

PROVE_EVERY_STEPS_ON_CUDA = 100
"""What `auto` becomes there; its cost is measured in each run, as `proof_time`."""


class ControlConfig(Config):
    """The settings of a control method; those of a user's own may have more."""

    kind: str
    max_sigma: PositiveFloat = 1.0
    """Largest singular value allowed for convolutions."""
    every_steps: PositiveInt = 1
    """Steps between two applications of the control."""
    prove_every_steps: Literal["auto"] | NonNegativeInt = "auto"
    """Steps between two proofs that all layers are within their maxima; 0: at evaluations and checkpoints only. `auto`
    becomes 100 on a CUDA device and 0 elsewhere when a run starts."""
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
