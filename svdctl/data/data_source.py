"""Data sets by kind: what a configuration describes, and how its images are read."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from svdctl.config.data_config import Augment, DataConfig
from svdctl.errors import DataError, UsageError
from svdctl.registry import DATA
from svdctl.utils.progress import Reporter

if TYPE_CHECKING:
    from svdctl.data.train_test import TrainTest

DEFAULT_PLACE = Path("data")
S = TypeVar("S", bound="DataSource | type[DataSource]")


class DataSource(ABC):
    """One kind of data set; an object without state, registered with `register_data`.

    Attributes:
        kind: the name in configurations (`data.kind`) and on the command line.
        config: the schema of its options, a `DataConfig` whose `kind` is this one.
        place: the key of a folder that says where the files lie and not what they are; it may change on resume.
        attacked_by_default: test images that `eval-robust` attacks unless it is told otherwise; None: all.
        published_corruptions: the name under which corrupted test images are published; None: svdctl draws them.
        without_effect: keys that change neither images nor labels, but how they are read.
    """

    kind: str
    config: type[DataConfig]
    place: str | None = None
    attacked_by_default: int | None = None
    published_corruptions: str | None = None
    without_effect: tuple[str, ...] = ()

    @abstractmethod
    def load(self, config: Any) -> "TrainTest":
        """Return the images and labels.

        Raises:
            DataError: files that are missing, damaged or unusable.
        """

    def load_reporting(self, config: Any, reporter: Reporter) -> "TrainTest":
        """Return the same as `load`; data that take long tell the reporter how far they are, and remarks."""
        with reporter.part(f"reading {self.kind}"):
            return self.load(config)

    def missing(self, config: Any) -> str | None:
        """Return the sentence on what is not where the configuration says; found without importing what takes time."""
        return None

    def would_download(self, config: Any) -> bool:
        """Return whether `load` does not find all files where the configuration says, and would fetch them to there."""
        return False

    def classes(self, config: Any) -> int | None:
        """Return the number of classes as far as it is known before loading."""
        return None

    def image_shape(self, config: Any) -> tuple[int, int, int] | None:
        """Return channels, height and width as far as they are known before loading."""
        return None

    def counts(self, config: Any) -> tuple[int, int] | None:
        """Return the numbers of training and test images as far as they are known before loading."""
        return None

    def augmentation(self, config: Any) -> Augment:
        """Return the random changes of training images that suit the data, where no preset or flag says otherwise."""
        return Augment(flip=False, crop=0)

    def from_text(self, path: str) -> dict[str, Any]:
        """Return the section of a configuration that `KIND:PATH` means, `KIND` alone with an empty path.

        Raises:
            UsageError: a path that is needed and missing, or not needed.
        """
        if bool(path) != self.takes_path:
            raise UsageError(f"`data.kind = {self.kind}` {'takes no path' if path else f'needs a path: {self.form}'}")
        return {"kind": self.kind, **({"path": path} if path else {})}

    @property
    def takes_path(self) -> bool:
        """Return whether a path belongs to the name of the data."""
        return "path" in self.config.model_fields

    @property
    def form(self) -> str:
        """Return the form in which the data are named: `KIND` or `KIND:PATH`."""
        return f"{self.kind}:PATH" if self.takes_path else self.kind

    def describe(self, config: Any) -> str:
        """Return the data as a user names them."""
        return f"{self.kind}:{config.path}" if self.takes_path else self.kind

    def title(self, config: Any) -> str:
        """Return the data as titles of tables and pictures call them, `CIFAR-10`."""
        return self.describe(config)


def register_data(source: S) -> S:
    """Add a kind of data set, so that `data.kind` of a configuration can name it; usable as a decorator of a class.

    Args:
        source: an object of a class derived from `svdctl.data.data_source.DataSource`, or such a class.

    Returns:
        What was given.

    Raises:
        UsageError: another data set has its kind already.

    >>> from typing import Literal
    >>> import torch
    >>> from svdctl.config.data_config import Augment, DataConfig
    >>> from svdctl.data.data_source import DataSource, load
    >>> from svdctl.data.images import ImageData
    >>> from svdctl.data.train_test import TrainTest
    >>> class Grey(DataConfig):
    ...     kind: Literal["grey"] = "grey"
    ...     count: int = 10
    >>> @svdctl.register_data
    ... class GreySource(DataSource):
    ...     kind, config = "grey", Grey
    ...     def load(self, config):
    ...         labels = torch.arange(config.count) % 2
    ...         images = (labels * 255).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    ...         part = ImageData(images.contiguous(), labels, ("black", "white"))
    ...         return TrainTest(part, part)
    >>> len(load(Grey(count=4)).train)
    4
    """
    DATA.register(source)
    return source


def source_of(config: DataConfig) -> DataSource:
    """Return the source that a configuration belongs to."""
    found = DATA.get(config.kind)
    assert isinstance(found, DataSource)
    return found


def load(config: DataConfig, *, download: bool = True, reporter: Reporter | None = None) -> "TrainTest":
    """Return the images that a configuration describes.

    Args:
        config: the data.
        download: whether files that are absent may be downloaded to where it says.
        reporter: is told how far it is, and remarks; None: nobody is.

    Raises:
        DataError: for every fault of files or contents.
    """
    source = source_of(config)
    if not download and source.would_download(config):
        raise DataError(
            f"{source.kind} is not complete under {place_of(config)}, where a file says that it is, and a file alone "
            "downloads nothing; name its folder with `data.root`"
        )
    return source.load_reporting(config, reporter or Reporter()).checked(source.describe(config))


def describe(config: DataConfig) -> str:
    """Return data as a user names them."""
    return source_of(config).describe(config)


def title_of(config: DataConfig) -> str:
    """Return data as titles of tables and pictures call them."""
    return source_of(config).title(config)


def place_of(config: DataConfig) -> Path:
    """Return the folder of the files of data that have one, else the default folder of data."""
    return Path(getattr(config, source_of(config).place or "", DEFAULT_PLACE))


def at_place(config: DataConfig, place: Path | None) -> DataConfig:
    """Return the configuration with the place of its files, where it has one; None leaves it."""
    key = source_of(config).place
    return config if key is None or place is None else config.model_copy(update={key: place})


def relocated(config: DataConfig, given: Mapping[str, Any]) -> DataConfig:
    """Return the configuration of the same data at another place.

    Args:
        config: the data.
        given: their new `path` or `root`; where it has a `kind`, it is theirs.

    Raises:
        UsageError: another kind, or a place that such data do not have.
    """
    source = source_of(config)
    if (kind := given.get("kind", config.kind)) != config.kind:
        raise UsageError(f"`data.kind = {kind}`: the data are {config.kind}, and only their place can be another")
    if source.place not in given and "root" in given:
        instead = "name their new place with `data.path`" if source.takes_path else "leave it out"
        raise UsageError(f"`data.root` is a place of files; the data are {config.kind}, {instead}")
    return type(config).model_validate({**config.model_dump(), **given})


def same_data(config: DataConfig) -> str:
    """Return a text that is equal for configurations of one data set, wherever its files lie."""
    source = source_of(config)
    return config.model_dump_json(exclude={*source.without_effect, *filter(None, [source.place])})
