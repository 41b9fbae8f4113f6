"""Which images a run sees, how they are augmented, and how the model normalises them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from svdctl.config.base import Config


class Digits(Config):
    """The 1,797 scans embedded in scikit-learn, shown as 3 x 32 x 32."""

    kind: Literal["digits"] = "digits"


class Cifar10(Config):
    """CIFAR-10 through torchvision, downloaded when absent."""

    kind: Literal["cifar10"] = "cifar10"
    root: Path = Path("data")
    """Folder that holds, or will hold, torchvision's `cifar-10-batches-py`."""


class Cifar100(Config):
    """CIFAR-100 through torchvision, downloaded when absent."""

    kind: Literal["cifar100"] = "cifar100"
    root: Path = Path("data")
    """Folder that holds, or will hold, torchvision's `cifar-100-python`."""


class Folder(Config):
    """The user's own images, one sub-folder a class, with `train/`, `val/`, `test/` above them or split by svdctl."""

    kind: Literal["folder"] = "folder"
    path: Path
    """Folder with `train/<class>/*` and `test/<class>/*` or `val/<class>/*` or both, or with `<class>/*` alone.

    `val/` beside `test/` is the validation part, alone the test part. What begins with a dot is left out.
    """
    size: PositiveInt = 32
    """Side in pixels that every image must have, or is resized to when `resize` is on."""
    resize: bool = False
    """Scale and centre-crop images of another size; otherwise a different size is an error."""


class Npz(Config):
    """Arrays `x_train, y_train, x_test, y_test`, and `x_val, y_val` for a validation part, in one `.npz` file."""

    kind: Literal["npz"] = "npz"
    path: Path


Data = Annotated[Digits | Cifar10 | Cifar100 | Folder | Npz, Field(discriminator="kind")]


class Augment(Config):
    """Random changes of the training images, drawn in batches on the device."""

    flip: bool = True
    """Mirror each image left to right with probability one half."""
    crop: Annotated[int, Field(ge=0)] = 4
    """Pixels added on each side before a random crop back to the original size; 0 for no crop."""
    pad: Literal["zero", "symmetric"] = "zero"
    """What the added pixels hold."""


class Normalization(Config):
    """Means and standard deviations of the channels; the model's first module, never the data's."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
