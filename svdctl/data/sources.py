"""From a data configuration to images in memory."""

from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svdctl.config.base import Config
from svdctl.config.data import Cifar10, Cifar100, Digits, Folder, Npz
from svdctl.data.arrays import read_arrays
from svdctl.data.images import ImageData
from svdctl.data.split import stratified_split
from svdctl.errors import DataError


@dataclass(frozen=True)
class TrainTest:
    """The training and the test part of a data set."""

    train: ImageData
    test: ImageData

    def checked(self, where: str) -> "TrainTest":
        """Itself, after checking both parts and that they belong together."""
        self.train.checked(f"{where}, training part")
        self.test.checked(f"{where}, test part")
        if self.train.image_shape != self.test.image_shape:
            raise DataError(
                f"{where}: training images are {self.train.image_shape}, test images {self.test.image_shape}; "
                "make them one size"
            )
        return self


@singledispatch
def load(data: Config) -> TrainTest:
    """Load what `data` describes; every fault of files or contents is a `DataError`."""
    raise TypeError(f"no loader for {type(data).__name__}")


@load.register
def _digits(data: Digits) -> TrainTest:
    from sklearn.datasets import load_digits  # 1.5 s to import, needed here alone

    bundle = load_digits()
    # 17 grey levels on 8 x 8; four times larger by bilinear interpolation, grey on three channels.
    small = torch.from_numpy(bundle.images).float()[:, None] / 16
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    everything = ImageData(images, torch.from_numpy(bundle.target).long(), tuple(str(digit) for digit in range(10)))
    # The split is part of the data set: the same for every seed, so that runs can be compared.
    train, test = stratified_split(everything, 0.2, seed=0)
    return TrainTest(train, test)


@load.register
def _cifar10(data: Cifar10) -> TrainTest:
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, data.root, "cifar10", "cifar-10-python.tar.gz")


@load.register
def _cifar100(data: Cifar100) -> TrainTest:
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, data.root, "cifar100", "cifar-100-python.tar.gz")


def _cifar(dataset: type, root: Path, name: str, archive: str) -> TrainTest:
    root = root.expanduser()
    try:
        parts = [dataset(root=str(root), train=train, download=True) for train in (True, False)]
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(
            f"{name} is not complete under {root} and could not be downloaded ({_first_line(error)}); "
            f"put {archive} of https://www.cs.toronto.edu/~kriz/ there, or name another folder with --dataset-root"
        ) from error
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    labels = [torch.tensor(part.targets, dtype=torch.int64) for part in parts]
    classes = tuple(parts[0].classes)
    train, test = (ImageData(image, label, classes) for image, label in zip(images, labels, strict=True))
    return TrainTest(train, test).checked(f"{name} under {root}")


@load.register
def _folder(data: Folder) -> TrainTest:
    path = data.path.expanduser()
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; give --dataset folder:PATH the folder that holds the classes")
    if (path / "train").is_dir() and (path / "test").is_dir():
        train, test = _images_below(path / "train", data), _images_below(path / "test", data)
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise DataError(
                f"{path}: train/ and test/ have different classes ({', '.join(odd[:5])}); make them the same"
            )
        return TrainTest(train, test).checked(str(path))
    rest, part = stratified_split(_images_below(path, data).checked(str(path)), 0.2, seed=0)
    return TrainTest(rest, part).checked(str(path))


def _images_below(path: Path, data: Folder) -> ImageData:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(path))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: {_first_line(error)}; expected one sub-folder a class, with images in each"
        ) from error
    # One array for all, filled image by image: no second copy of the data set.
    images = np.empty((len(found.samples), data.size, data.size, 3), dtype=np.uint8)
    labels = torch.tensor([label for _, label in found.samples], dtype=torch.int64)
    for position, (file, _) in enumerate(found.samples):
        images[position] = _read_image(Path(file), data)
    return ImageData(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, tuple(found.classes))


def _read_image(file: Path, data: Folder) -> np.ndarray:
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:
        # Pillow's decoders report damage, and pictures of absurd size, by half a dozen types.
        raise DataError(f"{file} cannot be read as an image ({_first_line(error)}); repair or remove it") from error
    if image.size != (data.size, data.size):
        if not data.resize:
            raise DataError(
                f"{file} is {image.width} x {image.height}, not {data.size} x {data.size}; "
                "set the size with --set data.size=N, or let svdctl scale and crop with --set data.resize=true"
            )
        scale = data.size / min(image.size)
        size = (max(data.size, round(image.width * scale)), max(data.size, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - data.size) // 2, (image.height - data.size) // 2
        image = image.crop((left, top, left + data.size, top + data.size))
    return np.asarray(image)


@load.register
def _npz(data: Npz) -> TrainTest:
    path = data.path.expanduser()
    arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
    labels = {part: _labels(arrays[f"y_{part}"], path) for part in ("train", "test")}
    both = torch.cat(list(labels.values()))
    count = 1 + int(both.max()) if len(both) else 0
    if count > max(len(both), 2):
        raise DataError(f"{path} has {len(both)} labels that reach {count - 1}; number the classes from 0 without gaps")
    classes = tuple(str(label) for label in range(count))
    train, test = (
        ImageData(_channels_first(arrays[f"x_{part}"], path), labels[part], classes) for part in ("train", "test")
    )
    return TrainTest(train, test).checked(str(path))


def _channels_first(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8 in 0..255, not {array.dtype}")
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DataError(f"{path}: images must be (N, H, W), (N, H, W, 3) or (N, 3, H, W), not {array.shape}")
    if array.shape[1] == 1:
        array = np.repeat(array, 3, axis=1)
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be whole numbers from 0, not {array.dtype}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
