"""Which images a run sees, how they are augmented, and how the model normalises them."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from svdctl.config.base import Config
from svdctl.config.variants import variant
from svdctl.registry import DATA


class DataConfig(Config):
    """Base of the configuration of a data set; `kind` is a literal of each."""

    kind: str


if TYPE_CHECKING:
    Data = DataConfig
else:
    Data = variant(DATA)


class Augment(Config):
    """Random changes of the training images, drawn in batches on the device."""

    flip: bool = True
    """Mirror each image left to right with probability one half."""
    crop: Annotated[int, Field(ge=0)] = 4
    """Pixels added on each side before a random crop back to the original size; 0 for no crop."""
    pad: Literal["zero", "symmetric"] = "zero"
    """What the added pixels hold."""
    mixup: PositiveFloat | None = None
    """a of Beta(a, a), from which the shares are drawn by which two images are mixed, and their losses (Zhang et al.
    2018); one share for each batch. Absent: none are."""


class Normalization(Config):
    """Means and standard deviations of the channels; the model's first module, never the data's."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
