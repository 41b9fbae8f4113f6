"""A user's own images in folders, one a class."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from svdctl.config.data_config import Augment, DataConfig
from svdctl.data.data_source import DataSource, register_data
from svdctl.errors import DataError
from svdctl.utils.progress import Reporter

if TYPE_CHECKING:
    from svdctl.data.train_test import TrainTest


LARGEST = 2**14
"""Side of an image of 0.8 GB, 3.2 GB in float32; a small file can name any."""


class Folder(DataConfig):
    """The user's own images, one sub-folder a class, with `train/`, `val/`, `test/` above them or split by svdctl."""

    kind: Literal["folder"] = "folder"
    path: Path
    """Folder with `train/<class>/*` and `test/<class>/*` or `val/<class>/*` or both, or with `<class>/*` alone.

    `val/` beside `test/` is the validation part, alone the test part. What begins with a dot is left out.
    """
    size: Annotated[int, Field(gt=0, le=LARGEST)] = 32
    """Side in pixels that every image must have, or is resized to when `resize` is on; at most 16,384."""
    resize: bool = False
    """Scale and centre-crop images of another size; otherwise a different size is an error."""
    channels: Literal[1] | None = None
    """1: grey images keep their one channel, and images in colour are an error; absent: all have three."""
    storage: Literal["resident", "streamed"] | None = None
    """Keep images in memory, decoded (resident), or read them whenever they are needed (streamed). Absent: resident up
    to 2 GiB. The pixels are the same."""
    workers: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Threads that read and decode images. At most 1,024; absent: one for each core, at most 16."""


@register_data
class FolderSource(DataSource):
    """Images in PNG, JPEG, PPM, BMP, TIFF, WebP and GIF."""

    kind = "folder"
    config = Folder
    without_effect = ("storage", "workers")

    def missing(self, config: Folder) -> str | None:
        if config.path.expanduser().is_dir():
            return None
        return f"there is no folder {config.path}; give `data.path` the folder that holds the classes"

    def load(self, config: Folder) -> "TrainTest":
        return self.load_reporting(config, Reporter())

    def load_reporting(self, config: Folder, reporter: Reporter) -> "TrainTest":
        from svdctl.data.decode_image import ImageForm
        from svdctl.data.read_folder import read_folder

        if (fault := self.missing(config)) is not None:
            raise DataError(fault)
        form = ImageForm(config.size, config.resize, config.channels or 3)
        streamed = None if config.storage is None else config.storage == "streamed"
        return read_folder(config.path, form, streamed=streamed, workers=config.workers, reporter=reporter)

    def image_shape(self, config: Folder) -> tuple[int, int, int]:
        return config.channels or 3, config.size, config.size

    def augmentation(self, config: Folder) -> Augment:
        return Augment(flip=True, crop=config.size // 8)
