"""ImageNet and Tiny-ImageNet as they are published: lists beside the images tell the classes of the validation part."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from svdctl.data.folder_layout import Layout, add_images, add_images_anywhere, folders_in, images_in
from svdctl.data.image_files import ImageFiles
from svdctl.errors import DataError
from svdctl.utils.files import read_text

_LONGEST_NAME = 60
"""Signs of a name of a class."""
_IDENTIFIER = re.compile(r"n\d{8}")
_SOLUTION = "LOC_val_solution.csv"
_ARCHIVE = ("ILSVRC", "Data", "CLS-LOC")
"""Folders of ImageNet's archive, each in the one before."""


def published_layout(path: Path) -> Layout | None:
    """Return the files of ImageNet or Tiny-ImageNet; None where a folder is neither.

    Classes are those of the folders in `train/`, sorted by their WordNet identifiers, which their names begin with. The
    validation part is the part to test on: labels of the published test images are not published.

    Raises:
        DataError: lists and images do not fit together.
        OSError: a folder or list cannot be read.
    """
    if (path / "wnids.txt").is_file() and (path / "val/val_annotations.txt").is_file():
        names = _names(path / "words.txt", "\t")
        labels = _pairs(path / "val/val_annotations.txt", _of_tiny)
        return _layout(path, path / "val/images", labels, names, set(_lines(path / "wnids.txt")))
    data = path.joinpath(*_ARCHIVE)
    data = data if data.is_dir() else path
    val = data / "val"
    if not ((data / "train").is_dir() and val.is_dir() and images_in(val) and not folders_in(val)):
        return None
    classes = folders_in(data / "train")
    if not classes or not all(_IDENTIFIER.fullmatch(folder.name) for folder in classes):
        return None
    whole = data.absolute()
    # The folders above belong to the data set where they are called as in its archive.
    places = [data, *(whole.parents[:3] if whole.parts[-3:] == _ARCHIVE else ())]
    solution = next((place / _SOLUTION for place in places if (place / _SOLUTION).is_file()), None)
    if solution is None:
        raise DataError(
            f"{val} holds images, and not a folder for each class; put ImageNet's {_SOLUTION} into {path}, or the "
            "images of each class into a folder of its own"
        )
    names = _names(solution.with_name("LOC_synset_mapping.txt"), " ")
    return _layout(data, val, _pairs(solution, _of_imagenet), names, None)


def _layout(
    path: Path, val: Path, labels: Mapping[str, str], names: Mapping[str, str], wanted: set[str] | None
) -> Layout:
    """Return the files in `train/<class>/` and those in `val`, whose classes stand in a list.

    Raises:
        DataError: a class has no images, or other classes or images stand in a list.
    """
    folders = folders_in(path / "train")
    classes = [folder.name for folder in folders]
    if wanted is not None and wanted != set(classes):
        odd = sorted(wanted ^ set(classes))
        raise DataError(f"{path}: wnids.txt and train/ have different classes ({_first(odd)}); restore them")
    number = {name: label for label, name in enumerate(classes)}
    files, found = ImageFiles(), list[int]()
    for folder in folders:
        before = len(files)
        add_images_anywhere(files, folder, f"train/{folder.name}")
        found += [number[folder.name]] * (len(files) - before)
        if len(files) == before:
            raise DataError(f"{path / 'train'}: there is no image in {folder.name}; restore its images")
    count = len(files)
    images = add_images(files, str(val), "val")
    listed = [name if name in labels else os.path.splitext(name)[0] for name in images]
    if twice := [name for name, times in Counter(listed).items() if times > 1]:
        raise DataError(
            f"{val}: several images have one name without their endings ({_first(twice)}), and the list has it once; "
            "remove the others"
        )
    stems = dict(zip(listed, images, strict=True))
    for what, odd in (
        ("have no class in the list", [stems[stem] for stem in stems if stem not in labels]),
        ("stand in the list and are not there", [stem for stem in labels if stem not in stems]),
        ("have a class that is not in train/", [stem for stem in stems if labels.get(stem) not in number]),
    ):
        if odd:
            raise DataError(
                f"{val}: {len(odd):,} images {what} ({_first(sorted(odd))}); restore the list and the images"
            )
    found += [number[labels[stem]] for stem in stems]
    shown = tuple(f"{name} {names[name]}" if name in names else name for name in classes)
    return Layout(files, torch.tensor(found, dtype=torch.int64), shown, {"train": count, "val": len(images)})


def _first(names: Sequence[str]) -> str:
    """Return the first names, cut: a line of a list may have any length."""
    return ", ".join(name[:_LONGEST_NAME] for name in names[:5])


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def _pairs(file: Path, pair: Callable[[str], tuple[str, str]]) -> dict[str, str]:
    """Return the class of each image by the name that a list gives it.

    Raises:
        DataError: a line is none of such a list, or an image stands there twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(file), 1):
        image, name = pair(line)
        if image in found or not name:
            raise DataError(f"{file}: line {number:,} ({line[:40]!r}) is none of this list; restore the file")
        found[image] = name
    found.pop("ImageId", None)
    return found


def _of_tiny(line: str) -> tuple[str, str]:
    image, _, rest = line.partition("\t")
    return image, rest.partition("\t")[0]


def _of_imagenet(line: str) -> tuple[str, str]:
    image, _, rest = line.partition(",")
    return image, rest.strip().partition(" ")[0]


def _names(file: Path, mark: str) -> dict[str, str]:
    """Return the first name of each class; none where the file is not there."""
    if not file.is_file():
        return {}
    pairs = (line.partition(mark) for line in _lines(file))
    return {name: text.partition(",")[0].strip()[:_LONGEST_NAME] for name, _, text in pairs if text.strip()}
