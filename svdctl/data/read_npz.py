"""Images and labels out of an `.npz` file, looked at before they are read: no file runs code or fills the memory."""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from svdctl.data.images import ImageData
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError, first_line

SMALL = 64 * 2**20
"""Bytes up to which an array may be packed as tightly as it likes."""
_DENSEST = 200
"""How many bytes one byte of a file may unpack to beyond that: photographs reach 2, bombs 1,000."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path) -> TrainTest:
    """Return the images and labels of an `.npz` file.

    Raises:
        DataError: missing, damaged, with objects in it, unpacking to far more than the file holds, or arrays that are
            no images and labels.
    """
    path = path.expanduser()
    try:
        arrays = _read_arrays(path)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; give `data.path` an existing .npz") from error
    except MemoryError as error:
        raise DataError(f"{path} needs more memory than there is; use a larger machine or fewer images") from error
    except Exception as error:
        # zipfile, its decompressors and numpy report damage by a dozen types.
        raise DataError(
            f"{path} is not a readable .npz of plain arrays ({first_line(error)}); write it with numpy.savez"
        ) from error
    names = [part for part in ("train", "test", "val") if f"x_{part}" in arrays]
    labels = {part: _labels(arrays[f"y_{part}"], path) for part in names}
    classes = tuple(map(str, range(_classes(labels, path))))
    parts = [ImageData(_channels_first(arrays[f"x_{part}"], path), labels[part], classes) for part in names]
    return TrainTest(*parts).checked(str(path))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
        names = [f"{kind}_{part}" for part in ("train", "test") for kind in "xy"]
        if missing := [name for name in names if name not in members]:
            raise DataError(f"{path} has no array {', '.join(missing)}; it needs {', '.join(names)}")
        validation = [name for name in ("x_val", "y_val") if name in members]
        if len(validation) == 1:
            raise DataError(f"{path} has one of x_val and y_val; it needs both or none of them")
        names += validation
        for name in names:
            _check(archive, members[name], path, name)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names}


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str) -> None:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is of version {version} of numpy's format")
        shape, _, dtype = _HEADERS[version](file)
        there = member.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which svdctl does not load")
    size = math.prod(shape) * dtype.itemsize
    if size != there:
        raise ValueError(f"{name} claims {size:,} bytes, and the file has {there:,} of it")
    if size > SMALL and size > _DENSEST * member.compress_size:
        raise DataError(
            f"{path} is not loaded: its array {name} unpacks from {member.compress_size:,} bytes to {size:,}; if it is "
            "really meant, write it with numpy.savez, uncompressed"
        )


def _classes(labels: dict[str, torch.Tensor], path: Path) -> int:
    """Return how many classes there are, each of them with a training image, and no label beyond them in any part."""
    advice = "number the classes from 0 without gaps, and give each of them training images"
    have = labels["train"].unique()
    if len(have) == 0:
        return 0
    for part, found in labels.items():
        others = found[~torch.isin(found, have[have >= 0])]
        if len(others):
            text = f"has the label {int(others[0])}, and training images have 0 to {int(have[-1])}"
            raise DataError(f"{path}: y_{part} {text}; {advice}")
    gap = next((label for label, there in enumerate(have.tolist()) if label != there), None)
    if gap is not None:
        raise DataError(f"{path}: no training image has the label {gap}, and some have {int(have[-1])}; {advice}")
    return len(have)


def _channels_first(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8 in 0..255, not {array.dtype}")
    images = array[:, None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        images = np.moveaxis(images, -1, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"{path}: images must be (N, H, W), (N, H, W, 3) or (N, 3, H, W), not {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images))


def _labels(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be whole numbers from 0, not {array.dtype}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
