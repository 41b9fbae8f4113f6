"""Images out of folders: which folders are parts and classes, and how files become 8-bit RGB."""

import os
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svdctl.data.images import ImageData
from svdctl.data.split import stratified_split
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError, FileError, first_line
from svdctl.utils.files import open_regular


def read_folder(path: Path, size: int, *, resize: bool) -> TrainTest:
    """Return the images of a folder, one sub-folder a class.

    Args:
        path: the folder, with `train/`, `val/` and `test/` in it or with the classes alone.
        size: side of the images in pixels.
        resize: scale and crop images of another size; otherwise they are an error.

    Raises:
        DataError: folders that are none, files that are no images.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; give `data.path` the folder that holds the classes")
    try:
        return _read_parts(path, size, resize).checked(str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); check its folders, links and rights") from error


def _read_parts(path: Path, size: int, resize: bool) -> TrainTest:
    parts = _divided(path)
    if not parts:
        _refuse_hidden_parts(path)
        everything = _images_below(path, size, resize)
    elif len(parts) == 1:
        everything = _images_below(parts["train"], size, resize)
    else:
        read = {name: _images_below(folder, size, resize) for name, folder in parts.items()}
        test = read.pop("test" if "test" in read else "val")
        return TrainTest(read["train"], test, read.get("val"))
    rest, part = stratified_split(everything.checked(str(path)), 0.2, seed=0)
    return TrainTest(rest, part)


_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def _divided(path: Path) -> dict[str, Path]:
    """Return the folders `train`, `val` and `test` of a data set that is divided; none where all are classes."""
    folders = _folders(path)
    named = {folder: part for folder in folders for part, names in _PARTS.items() if folder.name.lower() in names}
    others = [folder for folder in folders if folder not in named]
    # A class may have such a name: then there are images in it and other classes beside it.
    parts = {folder: part for folder, part in named.items() if not others or (_folders(folder) and not _images(folder))}
    found = {part: folder for folder, part in parts.items()}
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


def _entries(path: Path) -> list[Path]:
    """Return what is meant as data in a folder: not what programs keep out of sight, as `.ipynb_checkpoints`."""
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if entry.is_dir()]


def _images(path: Path) -> list[Path]:
    """Return the files in a folder, not below it, that are images by their names."""
    return [entry for entry in _entries(path) if entry.suffix.lower() in _SUFFIXES and entry.is_file()]


_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_LONGEST = 64
"""How many times as long as the other a side may be; scaled to the wanted size, the picture is as many squares."""
_LARGE = 2**24
"""Pixels that any picture may have; one of more has at least a byte for every ten."""
_PIXELS_A_BYTE = 10
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


_MOST_FOLDERS = 100_000
"""Folders that a class may have in it."""


def _images_anywhere(path: Path) -> list[Path]:
    """Return the images in a folder, then those of each folder in it; one that several links lead to counts once.

    Raises:
        DataError: a link to a folder that it lies in, more folders than any data set has.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(path, ())]
    while waiting:
        folder, above = waiting.pop()
        state = folder.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:
            raise DataError(f"{folder} leads back to a folder that it lies in; remove the link")
        if here in seen:
            continue
        seen.add(here)
        if len(seen) > _MOST_FOLDERS:
            raise DataError(f"{path} holds more than {_MOST_FOLDERS:,} folders; give the folder of the images alone")
        found += _images(folder)
        # The system follows 40 links of one path, and says of more that there is no folder.
        below = (inner.resolve() if inner.is_symlink() else inner for inner in reversed(_folders(folder)))
        waiting += [(inner, (*above, here)) for inner in below]
    return found


def _images_below(path: Path, size: int, resize: bool) -> ImageData:
    samples = {folder.name: _images_anywhere(folder) for folder in _folders(path)}
    empty = [name for name, files in samples.items() if not files]
    if empty or not samples:
        what = f"there is no image in {', '.join(empty[:5])}" if empty else "there is no folder in it"
        raise DataError(
            f"{path}: {what}; expected one sub-folder a class, with images in each ({', '.join(sorted(_SUFFIXES))})"
        )
    labels = torch.tensor([label for label, files in enumerate(samples.values()) for _ in files], dtype=torch.int64)
    # One array for all, filled image by image: no second copy of the data set.
    images = np.empty((len(labels), size, size, 3), dtype=np.uint8)
    for position, file in enumerate(file for files in samples.values() for file in files):
        images[position] = _read_image(file, size, resize)
    return ImageData(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, tuple(samples))


def _read_image(file: Path, size: int, resize: bool) -> np.ndarray:
    try:
        # Some of Pillow's other formats start programs. Its warnings name no file: those about sizes are for what
        # `_check_size` judges, those about damaged tags for what the picture does without.
        with warnings.catch_warnings(), open_regular(file) as source:
            warnings.simplefilter("ignore")
            opened = Image.open(source, formats=_FORMATS)
            _check_size(opened, file, size, resize, os.fstat(source.fileno()).st_size)
            image = _rgb(opened, file)
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders report damage, and pictures of absurd size, by half a dozen types.
        reason = error.reason if isinstance(error, FileError) else first_line(error)
        raise DataError(f"{file} cannot be read as an image ({reason}); repair or remove it") from error
    if image.size != (size, size):
        scale = size / min(image.size)
        scaled = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def _check_size(image: Image.Image, file: Path, size: int, resize: bool, length: int) -> None:
    """Judge a picture by its header, before memory is taken for it.

    Raises:
        DataError: another size than is wanted, or far more pixels than the wanted size and the file account for.
    """
    width, height = image.size
    if (width, height) != (size, size) and not resize:
        raise DataError(
            f"{file} is {width} x {height}, not {size} x {size}; "
            "set the size with `data.size = N`, or let svdctl scale and crop with `data.resize = true`"
        )
    if max(width, height) > _LONGEST * min(width, height):
        raise DataError(
            f"{file} is {width} x {height}, one side more than {_LONGEST} times the other; crop or remove it"
        )
    if width * height > max(_LARGE, (_LONGEST * size) ** 2) and width * height > _PIXELS_A_BYTE * length:
        raise DataError(
            f"{file} is {width} x {height}, far more than a photograph of {length:,} bytes has; scale it down or "
            "remove it"
        )


def _rgb(image: Image.Image, file: Path) -> Image.Image:
    """Return three channels of 8 bits; of 16 bits all are scaled, where Pillow would cut grey ones off at 255."""
    wide, tags = image.mode.startswith("I;16"), getattr(image, "tag_v2", {})
    unsigned = image.format in ("PNG", "PPM") and (wide or image.mode == "I")
    # TIFF has 12 bits too, which Pillow does not scale, and white as 0.
    if unsigned or (wide and tuple(tags.get(258, ())) == (16,) and tags.get(262) == 1):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if wide or image.mode in ("I", "F"):
        bits = "9 to 16 bits of which 65535 is not white, or 0 not black" if wide else "32 bits of unknown range"
        raise DataError(f"{file} holds numbers of {bits}; convert it to 8 bits, or to all of 16")
    return image.convert("RGB")
