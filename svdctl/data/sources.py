"""From a data configuration to images in memory."""

from dataclasses import dataclass
from functools import singledispatch
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svdctl.config.base import Config
from svdctl.config.data_config import Cifar10, Cifar100, Digits, Folder, Npz
from svdctl.data.arrays import read_arrays
from svdctl.data.images import ImageData
from svdctl.data.split import stratified_split
from svdctl.errors import DataError


@dataclass(frozen=True)
class TrainTest:
    """The training and the test part of a data set."""

    train: ImageData
    test: ImageData
    validation: ImageData | None = None
    """The data set's own validation part; without one, a run that needs it splits it from the training part."""

    def parts(self) -> dict[str, ImageData]:
        """Return the parts that there are, by name."""
        found = {"training": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in found.items() if part is not None}

    def checked(self, where: str) -> "TrainTest":
        """Itself, after checking all parts and that they belong together."""
        for name, part in self.parts().items():
            part.checked(f"{where}, {name} part")
            if self.train.image_shape != part.image_shape:
                raise DataError(
                    f"{where}: training images are {self.train.image_shape}, {name} images {part.image_shape}; "
                    "make them one size"
                )
            if self.train.classes != part.classes:
                odd = sorted(set(self.train.classes) ^ set(part.classes))
                raise DataError(
                    f"{where}: the training and the {name} part have different classes ({', '.join(odd[:5])}); "
                    "make them the same"
                )
        return self

    def grey(self, where: str) -> "TrainTest":
        """Return the parts with images of one channel."""
        validation = None if self.validation is None else self.validation.grey(where)
        return TrainTest(self.train.grey(where), self.test.grey(where), validation)


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
            f"put {archive} of https://www.cs.toronto.edu/~kriz/ there, or name another folder with `data.root`"
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
        raise DataError(f"there is no folder {path}; give `data.path` the folder that holds the classes")
    try:
        return _read_folder(path, data).checked(str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_first_line(error)}); check its folders, links and rights") from error


def _read_folder(path: Path, data: Folder) -> TrainTest:
    parts = _divided(path)
    if not parts:
        _refuse_hidden_parts(path)
        everything = _images_below(path, data)
    elif len(parts) == 1:
        everything = _images_below(parts["train"], data)
    else:
        read = {name: _images_below(folder, data) for name, folder in parts.items()}
        test = read.pop("test" if "test" in read else "val")
        return TrainTest(read["train"], test, read.get("val"))
    rest, part = stratified_split(everything.checked(str(path)), 0.2, seed=0)
    return TrainTest(rest, part)


_PARTS = {
    name: names[0]
    for names in (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
    for name in names
}


def _divided(path: Path) -> dict[str, Path]:
    """The folders `train`, `val` and `test` of a data set that is divided; none where all folders are classes."""
    folders = _folders(path)
    named = [folder for folder in folders if folder.name.lower() in _PARTS]
    others = [folder for folder in folders if folder not in named]
    # A class may have such a name: then there are images in it and other classes beside it.
    parts = [folder for folder in named if not others or (_folders(folder) and not _images(folder))]
    found = {_PARTS[folder.name.lower()]: folder for folder in parts}
    names = ", ".join(f"{folder.name}/" for folder in parts)
    if len(found) < len(parts):
        raise DataError(f"{path}: {names} name one part twice; keep one of them")
    if found and "train" not in found:
        raise DataError(f"{path} has {names} and no train/; put the images to train on into {path / 'train'}/<class>/")
    if len(found) == 1 and others:
        raise DataError(
            f"{path}: train/ holds folders, and beside it stands {others[0].name}/; move the classes into train/, and "
            "what is no class elsewhere"
        )
    return found


def _refuse_hidden_parts(path: Path) -> None:
    """Refuse folders that would be classes by their place, and look like parts of the data by what is in them.

    Raises:
        DataError: two folders without images of their own share names of the folders in them.
    """
    inside: dict[str, set[str]] = {}
    for folder in _folders(path):
        inner = folder
        # Archives often wrap a folder into another one: seg_train/seg_train/<class>/.
        while len(below := _folders(inner)) == 1 and not _images(inner) and not below[0].is_symlink():
            inner = below[0]
        if not _images(inner):
            inside[folder.name] = {entry.name for entry in below}
    for (first, some), (second, others) in combinations(inside.items(), 2):
        if len(shared := sorted(some & others)) > 1:
            raise DataError(
                f"{path}: {first}/ and {second}/ both hold the folders {', '.join(shared[:3])}, so they are hardly "
                "classes; call the parts of a data set train/, val/ and test/, each with a folder a class, or put the "
                "images of a class into its own folder"
            )


def _visible(path: Path) -> bool:
    """Whether a file or folder is meant as data: not what programs keep out of sight, as `.ipynb_checkpoints`."""
    return not path.name.startswith(".")


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and _visible(entry))


def _images(path: Path) -> list[Path]:
    """The files in a folder, not below it, that are images by their names."""
    return sorted(
        entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES and _visible(entry) and entry.is_file()
    )


_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


def _images_anywhere(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """The images in a folder, then those of each folder in it; `above` are the folders around it, links resolved."""
    here = path.resolve()
    if here in above:
        raise DataError(f"{path} leads back to a folder that it lies in; remove the link")
    return _images(path) + [file for folder in _folders(path) for file in _images_anywhere(folder, (*above, here))]


def _images_below(path: Path, data: Folder) -> ImageData:
    samples = {folder.name: _images_anywhere(folder) for folder in _folders(path)}
    empty = [name for name, files in samples.items() if not files]
    if empty or not samples:
        what = f"there is no image in {', '.join(empty[:5])}" if empty else "there is no folder in it"
        raise DataError(
            f"{path}: {what}; expected one sub-folder a class, with images in each ({', '.join(sorted(_SUFFIXES))})"
        )
    labels = torch.tensor([label for label, files in enumerate(samples.values()) for _ in files], dtype=torch.int64)
    # One array for all, filled image by image: no second copy of the data set.
    images = np.empty((len(labels), data.size, data.size, 3), dtype=np.uint8)
    for position, file in enumerate(file for files in samples.values() for file in files):
        images[position] = _read_image(file, data)
    return ImageData(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, tuple(samples))


def _read_image(file: Path, data: Folder) -> np.ndarray:
    try:
        with Image.open(file) as opened:
            image = _rgb(opened, file)
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders report damage, and pictures of absurd size, by half a dozen types.
        raise DataError(f"{file} cannot be read as an image ({_first_line(error)}); repair or remove it") from error
    if image.size != (data.size, data.size):
        if not data.resize:
            raise DataError(
                f"{file} is {image.width} x {image.height}, not {data.size} x {data.size}; "
                "set the size with `data.size = N`, or let svdctl scale and crop with `data.resize = true`"
            )
        scale = data.size / min(image.size)
        size = (max(data.size, round(image.width * scale)), max(data.size, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - data.size) // 2, (image.height - data.size) // 2
        image = image.crop((left, top, left + data.size, top + data.size))
    return np.asarray(image)


def _rgb(image: Image.Image, file: Path) -> Image.Image:
    """Three channels of 8 bits; of 16 bits all are scaled, where Pillow would cut grey ones off at 255."""
    if image.mode.startswith("I;16") and not _uses_16_bits(image):
        raise DataError(
            f"{file} holds numbers of 9 to 16 bits of which 65535 is not white, or 0 not black; convert it to 8 "
            "bits, or to all of 16"
        )
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"{file} holds numbers of 32 bits, of which nothing tells how bright they are; convert it to 8 or 16 bits"
        )
    return image.convert("RGB")


def _uses_16_bits(image: Image.Image) -> bool:
    """Whether black is 0 and white 65535: TIFF has 12 bits too, which Pillow does not scale, and white as 0."""
    if image.format in ("PNG", "PPM"):
        return True
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and tuple(tags.get(258, ())) == (16,) and tags.get(262) == 1


@load.register
def _npz(data: Npz) -> TrainTest:
    path = data.path.expanduser()
    arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"), optional=("x_val", "y_val"))
    names = [part for part in ("train", "test", "val") if f"x_{part}" in arrays or f"y_{part}" in arrays]
    if "val" in names and not {"x_val", "y_val"} <= arrays.keys():
        raise DataError(f"{path} has one of x_val and y_val; it needs both or none of them")
    labels = {part: _labels(arrays[f"y_{part}"], path) for part in names}
    count = _classes(labels, path)
    classes = tuple(str(label) for label in range(count))
    parts = [ImageData(_channels_first(arrays[f"x_{part}"], path), labels[part], classes) for part in names]
    return TrainTest(*parts).checked(str(path))


def _classes(labels: dict[str, torch.Tensor], path: Path) -> int:
    """How many classes there are, each of them with a training image, and no label beyond them in any part."""
    for part, found in labels.items():
        if found.numel() and int(found.min()) < 0:
            raise DataError(f"{path}: y_{part} has the label {int(found.min())}; number the classes from 0")
    train = labels["train"]
    count = 1 + int(train.max()) if len(train) else 0
    if count > max(len(train), 2):
        raise DataError(
            f"{path} has {len(train)} labels that reach {count - 1}; number the classes from 0 without gaps"
        )
    have = set(train.unique().tolist())
    if missing := [str(label) for label in range(count) if label not in have]:
        raise DataError(
            f"{path}: no training image has the label {', '.join(missing[:5])}, and some have {count - 1}; number "
            "the classes from 0 without gaps, and give each of them training images"
        )
    for part, found in labels.items():
        if train.numel() and found.numel() and int(found.max()) >= count:
            raise DataError(
                f"{path}: y_{part} has the label {int(found.max())}, and training images have 0 to {count - 1}; "
                "number the classes from 0 without gaps, and give each of them training images"
            )
    return count


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
