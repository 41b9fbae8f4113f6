"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from svdctl.config.data_config import Augment, DataConfig
from svdctl.data.data_source import DataSource, register_data
from svdctl.errors import DataError, first_line
from svdctl.utils.progress import Reporter

if TYPE_CHECKING:
    from svdctl.data.train_test import TrainTest

_LARGEST = 2**28
"""Bytes that any published file of CIFAR has at most; the archives have 170 million. Checksums read the whole."""


class Cifar10(DataConfig):
    """CIFAR-10 through torchvision, downloaded when absent."""

    kind: Literal["cifar10"] = "cifar10"
    root: Path = Path("data")
    """Folder of CIFAR, downloaded to it when missing. It holds torchvision's `cifar-10-batches-py`."""


class Cifar100(DataConfig):
    """CIFAR-100 through torchvision, downloaded when absent."""

    kind: Literal["cifar100"] = "cifar100"
    root: Path = Path("data")
    """Folder of CIFAR, downloaded to it when missing. It holds torchvision's `cifar-100-python`."""


@register_data
class Cifar10Source(DataSource):
    """50,000 training and 10,000 test images of 3 x 32 x 32 in 10 classes."""

    kind = "cifar10"
    config: type[DataConfig] = Cifar10
    place = "root"
    published_corruptions = "cifar10"
    number = 10
    archive_bytes = 170_498_071

    def load(self, config: Cifar10 | Cifar100) -> "TrainTest":
        return self.load_reporting(config, Reporter())

    def load_reporting(self, config: Cifar10 | Cifar100, reporter: Reporter) -> "TrainTest":
        with reporter.part(f"looking for {self.kind} in {config.root}"):
            is_missing = self.would_download(config)
        if is_missing:
            self._fetch_archive(config.root.expanduser(), reporter)
        with reporter.part(f"reading {self.kind}"):
            return self._read(config)

    def _fetch_archive(self, root: Path, reporter: Reporter) -> None:
        """Download the archive, which torchvision then unpacks, unless it is there.

        Raises:
            DataError: it cannot be downloaded.
        """
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        from svdctl.data.download import Archive, fetch

        dataset = getattr(datasets, self.kind.upper())
        path = root / dataset.filename
        if check_integrity(str(path), dataset.tgz_md5):
            return
        archive = Archive(dataset.url, dataset.filename, dataset.tgz_md5, self.archive_bytes)
        try:
            with reporter.part(f"downloading {self.kind} to {root}") as advance:
                fetch(archive, path, tell=lambda what, done, total: advance(done, total, ""), attempts=3, pause=1.0)
        except DataError as error:
            raise DataError(
                f"{self.kind} is not complete under {root}: {error}, or name the folder of a copy with `data.root`"
            ) from error
        except OSError as error:
            raise self._incomplete(root, error) from error

    def _incomplete(self, root: Path, error: BaseException) -> DataError:
        return DataError(
            f"{self.kind} is not complete under {root} and could not be downloaded ({first_line(error)}); put "
            f"cifar-{self.number}-python.tar.gz of https://www.cs.toronto.edu/~kriz/ there, or name another folder "
            "with `data.root`"
        )

    def _read(self, config: Cifar10 | Cifar100) -> "TrainTest":
        """Return the images of files that are there, or of an archive that is unpacked first."""
        import torch
        from torchvision import datasets

        from svdctl.data.images import ImageData
        from svdctl.data.train_test import TrainTest

        root = config.root.expanduser()
        dataset = getattr(datasets, self.kind.upper())
        try:
            parts = [dataset(root=str(root), train=train, download=True) for train in (True, False)]
        except (RuntimeError, OSError, EOFError) as error:
            raise self._incomplete(root, error) from error
        images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
        labels = [torch.tensor(part.targets, dtype=torch.int64) for part in parts]
        classes = tuple(parts[0].classes)
        train, test = (ImageData(image, label, classes) for image, label in zip(images, labels, strict=True))
        return TrainTest(train, test).checked(f"{self.kind} under {root}")

    def title(self, config: Cifar10 | Cifar100) -> str:
        return f"CIFAR-{self.number}"

    def would_download(self, config: Cifar10 | Cifar100) -> bool:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        dataset = getattr(datasets, self.kind.upper())
        folder = config.root.expanduser() / dataset.base_folder
        self._check_sizes(config.root.expanduser())
        sums = {**dict(dataset.train_list), **dict(dataset.test_list), dataset.meta["filename"]: dataset.meta["md5"]}
        return not all(check_integrity(str(folder / name), md5) for name, md5 in sums.items())

    def _check_sizes(self, root: Path) -> None:
        """Refuse files that are far larger than the published ones, before their checksums are computed.

        Raises:
            DataError: naming the file.
        """
        from torchvision import datasets

        dataset = getattr(datasets, self.kind.upper())
        names = [name for name, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]
        for file in (root / dataset.filename, *(root / dataset.base_folder / name for name in names)):
            if file.is_file() and (size := file.stat().st_size) > _LARGEST:
                raise DataError(f"{file} has {size:,} bytes, far more than the published one; remove it and run again")

    def classes(self, config: DataConfig) -> int:
        return self.number

    def image_shape(self, config: DataConfig) -> tuple[int, int, int]:
        return 3, 32, 32

    def augmentation(self, config: DataConfig) -> Augment:
        return Augment(flip=True, crop=4)

    def counts(self, config: DataConfig) -> tuple[int, int]:
        return 50_000, 10_000


@register_data
class Cifar100Source(Cifar10Source):
    """The same in 100 classes."""

    kind = "cifar100"
    config = Cifar100
    published_corruptions = "cifar100"
    number = 100
    archive_bytes = 169_001_437
