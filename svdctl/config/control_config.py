"""What every control of singular values can be set to, and the limit on BatchNorm."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from svdctl.config.base import Config

PROVE_EVERY_STEPS_ON_CUDA = 100
"""What `auto` becomes there; its cost is measured in each run, as `proof_time`."""

NOT_CONTROLLED = "NONE: singular values are not controlled (`control.kind = clip` or `control.kind = divide` does)"
"""What is said of a run without a control, for displays to make it stand out."""


class ControlConfig(Config):
    """The settings of a control method; those of a user's own may have more."""

    kind: str
    max_sigma: PositiveFloat = 1.0
    """Largest singular value that convolutions may have."""
    max_sigma_start: PositiveFloat | None = None
    """Maximum at the first step, from which it moves to `max_sigma`. That of linear layers keeps its ratio to it.
    Absent: `max_sigma` holds from the first step."""
    max_sigma_epochs: PositiveInt | None = None
    """Epochs until it has moved from `max_sigma_start` to `max_sigma`, by the same amount at each step."""
    every_steps: PositiveInt = 1
    """Steps of training between two applications of the control."""
    prove_every_steps: Literal["auto"] | NonNegativeInt = "auto"
    """Steps between two proofs that all layers are within their maxima; 0: at evaluations and checkpoints only. `auto`
    becomes 100 on a CUDA device and 0 elsewhere when a run starts."""
    linear_max: PositiveFloat | None = None
    """Largest singular value that linear layers may have. Absent: they are left alone."""
    procedure: Literal["certified", "paper"] = "certified"
    """How the control computes: with proofs that it holds (certified), or as in the paper's code, without proof, for
    comparisons only (paper). `paper` makes two power steps or one clip pass, and no seal."""

    @model_validator(mode="after")
    def _whole_schedule(self) -> Self:
        if (self.max_sigma_start is None) != (self.max_sigma_epochs is None):
            raise ValueError("`control.max_sigma_start` and `control.max_sigma_epochs` belong together; give both")
        return self

    def maximum_scale(self, step: int, steps_per_epoch: int) -> float:
        """Return what all maxima are multiplied by after so many steps; 1 once the schedule has ended."""
        if self.max_sigma_start is None or self.max_sigma_epochs is None:
            return 1.0
        left = max(0.0, 1 - step / (self.max_sigma_epochs * steps_per_epoch))
        return 1 + (self.max_sigma_start / self.max_sigma - 1) * left


class BatchNormControl(Config):
    """BatchNorm is scaled so that `max |gamma / sqrt(running_var + eps)| <= max_gain`, eps the layer's own."""

    max_gain: PositiveFloat
    """Largest gain that BatchNorm may have."""
    every_steps: PositiveInt = 1
    """Steps of training between two applications of the limit on BatchNorm."""
