"""Which folders of a data set are parts and classes, and which files are images of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from svdctl.data.image_files import ImageFiles
from svdctl.data.train_test import only_in_one
from svdctl.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
MOST_FOLDERS = 100_000
"""Folders that a class may have in it."""
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Layout:
    """The files of a data set.

    Attributes:
        files: of all parts, one after the other.
        labels: the class of each file.
        classes: their names.
        parts: names of the parts with the number of files of each; `all` alone where svdctl divides them.
    """

    files: ImageFiles
    labels: Tensor
    classes: tuple[str, ...]
    parts: Mapping[str, int]


def classes_in_folders(path: Path) -> Layout:
    """Return the files of a data set with one folder a class, in `train/`, `val/` and `test/` or not divided.

    Raises:
        DataError: folders of which it is not clear what they are, classes without images, classes that differ.
        OSError: a folder cannot be read.
    """
    parts = _divided(path)
    if not parts:
        _refuse_hidden_parts(path)
    files, labels, counts = ImageFiles(), list[int](), dict[str, int]()
    classes: dict[str, tuple[str, ...]] = {}
    for part, folder in (parts if len(parts) > 1 else {"all": parts.get("train", path)}).items():
        before = len(files)
        classes[part] = _add_classes(files, labels, folder, "" if folder == path else folder.name)
        counts[part] = len(files) - before
        first = classes[next(iter(classes))]
        if classes[part] != first:
            name = {"val": "validation" if "test" in parts else "test"}.get(part, part)
            raise DataError(
                f"{path}: the training and the {name} part have different classes "
                f"{only_in_one(first, classes[part], name)}; make them the same"
            )
    return Layout(files, torch.tensor(labels, dtype=torch.int64), first, counts)


def _add_classes(files: ImageFiles, labels: list[int], path: Path, shown: str) -> tuple[str, ...]:
    """Add the images of each class of a part; return the names of the classes.

    Raises:
        DataError: there is no class, or one without images.
    """
    folders, empty = folders_in(path), []
    for label, folder in enumerate(folders):
        before = len(files)
        add_images_anywhere(files, folder, f"{shown}/{folder.name}" if shown else folder.name)
        labels += [label] * (len(files) - before)
        if len(files) == before:
            empty.append(folder.name)
    if empty or not folders:
        names = ", ".join(empty[:5]) + f" and {len(empty) - 5:,} more" * (len(empty) > 5)
        what = f"there is no image in {names}" if empty else "there is no folder in it"
        raise DataError(
            f"{path}: {what}; expected one sub-folder a class, with images in each ({', '.join(sorted(SUFFIXES))})"
        )
    return tuple(folder.name for folder in folders)


def _divided(path: Path) -> dict[str, Path]:
    """Return the folders `train`, `val` and `test` of a data set that is divided; none where all are classes."""
    folders = folders_in(path)
    named = {folder: part for folder in folders for part, names in PARTS.items() if folder.name.lower() in names}
    others = [folder for folder in folders if folder not in named]
    # A class may have such a name: then there are images in it and other classes beside it.
    parts = {
        folder: part for folder, part in named.items() if not others or (folders_in(folder) and not images_in(folder))
    }
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
    return {part: found[part] for part in PARTS if part in found}


def _refuse_hidden_parts(path: Path) -> None:
    """Refuse folders that would be classes by their place, and look like parts of the data by what is in them.

    Raises:
        DataError: two folders without images of their own share names of the folders in them.
    """
    inside: dict[str, set[str]] = {}
    for folder in folders_in(path):
        inner = folder
        # Archives often wrap a folder into another one: seg_train/seg_train/<class>/.
        while len(below := folders_in(inner)) == 1 and not images_in(inner) and not below[0].is_symlink():
            inner = below[0]
        if not images_in(inner):
            inside[folder.name] = {entry.name for entry in below}
    for (first, some), (second, others) in combinations(inside.items(), 2):
        if len(shared := sorted(some & others)) > 1:
            raise DataError(
                f"{path}: {first}/ and {second}/ both hold the folders {', '.join(shared[:3])}, so they are hardly "
                "classes; call the parts of a data set train/, val/ and test/, each with a folder a class, or put the "
                "images of a class into its own folder"
            )


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    """Return what is meant as data in a folder: not what programs keep out of sight, as `.ipynb_checkpoints`."""
    with os.scandir(path) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, and links to folders, by name."""
    return [path / entry.name for entry in _entries(path) if entry.is_dir()]


def images_in(path: str | Path) -> list[os.DirEntry[str]]:
    """Return the files in a folder, not below it, that are images by their names."""
    return [entry for entry in _entries(path) if _is_image(entry.name) and entry.is_file()]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def add_images(files: ImageFiles, path: str, shown: str) -> list[str]:
    """Add the images in a folder, not below it; return their names."""
    found = [(entry.name, entry.stat()) for entry in images_in(path)]
    if found:
        files.add_folder(path, shown, found)
    return [name for name, _ in found]


def add_images_anywhere(files: ImageFiles, path: Path, shown: str) -> None:
    """Add the images in a folder, then those of each folder in it; one that several links lead to counts once.

    Raises:
        DataError: a link to a folder that it lies in, more folders than any data set has.
    """
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(str(path), shown, ())]
    while waiting:
        folder, name, above = waiting.pop()
        state = os.stat(folder)
        here = (state.st_dev, state.st_ino)
        if here in above:
            raise DataError(f"{folder} leads back to a folder that it lies in; remove the link")
        if here in seen:
            continue
        seen.add(here)
        if len(seen) > MOST_FOLDERS:
            raise DataError(f"{path} holds more than {MOST_FOLDERS:,} folders; give the folder of the images alone")
        add_images(files, folder, name)
        for entry in reversed(_entries(folder)):
            if entry.is_dir():
                # The system follows 40 links of one path, and says of more that there is no folder.
                inner = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                waiting.append((inner, f"{name}/{entry.name}", (*above, here)))
