"""A user's own images in folders, one a class."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from svdctl.config.data_config import Augment, DataConfig
from svdctl.data.data_source import DataSource, register_data

if TYPE_CHECKING:
    from svdctl.data.train_test import TrainTest


class Folder(DataConfig):
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


@register_data
class FolderSource(DataSource):
    """Images in PNG, JPEG, PPM, BMP, TIFF, WebP and GIF."""

    kind = "folder"
    config = Folder

    def load(self, config: Folder) -> "TrainTest":
        from svdctl.data.read_folder import read_folder

        return read_folder(config.path, config.size, resize=config.resize)

    def image_shape(self, config: Folder) -> tuple[int, int, int]:
        return 3, config.size, config.size

    def augmentation(self, config: Folder) -> Augment:
        return Augment(flip=True, crop=config.size // 8)
