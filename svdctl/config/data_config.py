"""Which images a run sees, how they are augmented, and how the model normalises them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, Tag, field_validator, model_validator

from svdctl.config.base import Config
from svdctl.config.variants import variant
from svdctl.registry import DATA

Share = Annotated[float, Field(gt=0, le=1)]


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
    resized_crop: tuple[Share, Share] | None = None
    """Least and largest share of an image's area in a random crop, of aspect 3/4 to 4/3, that is scaled up to the whole
    image, in place of `crop` (Szegedy et al. 2015); absent: none."""

    @model_validator(mode="before")
    @classmethod
    def _one_crop(cls, table: Any) -> Any:
        """Let `resized_crop` take the place of the other crop's default."""
        if isinstance(table, Mapping) and table.get("resized_crop") is not None:
            return {"crop": 0, **table}
        return table

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.resized_crop is not None:
            if self.crop:
                raise ValueError("`augment.resized_crop` takes the place of `augment.crop`; set that to 0")
            if self.resized_crop[0] > self.resized_crop[1]:
                raise ValueError("`augment.resized_crop` is the least share, then the largest; exchange them")
        return self


def _form(numbers: object) -> str:
    return "one" if isinstance(numbers, list | tuple) and len(numbers) == 1 else "each"


# Tagged, so that a fault is told of the form that was written and not of both.
Means = Annotated[
    Annotated[tuple[float], Tag("one")] | Annotated[tuple[float, float, float], Tag("each")], Discriminator(_form)
]
Deviations = Annotated[
    Annotated[tuple[PositiveFloat], Tag("one")]
    | Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Tag("each")],
    Discriminator(_form),
]


class Normalization(Config):
    """Means and standard deviations of the channels; the model's first module, never the data's."""

    mean: Means = (0.5, 0.5, 0.5)
    """Mean of each channel, or one for all; 0, with deviations of 1, leaves pixels as they are."""
    std: Deviations = (0.5, 0.5, 0.5)
    """Standard deviation of each channel, or one for all."""

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_or_each(cls, numbers: Any) -> Any:
        if isinstance(numbers, list | tuple) and len(numbers) not in (1, 3):
            raise ValueError(f"{len(numbers)} numbers are given; give 3, one for each channel, or 1 for all")
        return numbers

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError("`normalize.mean` and `normalize.std`: give as many numbers of one as of the other")
        return self
