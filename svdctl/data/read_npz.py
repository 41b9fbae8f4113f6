"""Images and labels out of an `.npz` file, looked at before they are read: no file runs code or fills the memory."""

import os
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch

from svdctl.data.images import ImageData
from svdctl.data.npy_header import check_size, read_npy_header
from svdctl.data.npz import missing_file
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError, UnusableFileError, first_line
from svdctl.utils.files import open_regular

SMALL = 64 * 2**20
"""Bytes up to which an array may be packed as tightly as it likes."""
_DENSEST = 200
"""How many bytes one byte of a file may unpack to beyond that: photographs reach 2, bombs 1,000."""
MOST_MEMBERS = 1000
CHUNK = 2**24
"""Bytes that are read at a time."""


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
        raise DataError(missing_file(path)) from error
    except UnusableFileError as error:
        raise DataError(f"{path} {error.reason}; give `data.path` an .npz file") from error
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
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _require_one_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            members = _members(archive, path)
            names = [f"{kind}_{part}" for part in ("train", "test") for kind in "xy"]
            if missing := [name for name in names if name not in members]:
                raise DataError(f"{path} has no array {', '.join(missing)}; it needs {', '.join(names)}")
            validation = [name for name in ("x_val", "y_val") if name in members]
            if len(validation) == 1:
                raise DataError(f"{path} has one of x_val and y_val; it needs both or none of them")
            names += validation
            for name in names:
                _check(archive, members[name], path, name, size)
            return {name: _read(archive, members[name], name) for name in names}


_END, _END_SIZE = b"PK\5\6", 22
_LOCATOR, _LOCATOR_SIZE = b"PK\6\7", 20
_END64, _END64_SIZE = b"PK\6\6", 56


def _require_one_directory(file: IO[bytes], size: int) -> None:
    """Refuse an archive that programs could read in two ways, or whose directory is far too long for a few arrays.

    Raises:
        ValueError: it does not end as numpy writes it: the directory, what it needs beyond 4 GB, its end.
    """
    tail = _END_SIZE + _LOCATOR_SIZE + _END64_SIZE
    start = max(0, size - tail)
    file.seek(start)
    last = file.read(tail)
    file.seek(0)
    end = last[-_END_SIZE:]
    if len(end) < _END_SIZE or end[:4] != _END or end[-2:] != b"\0\0":
        raise ValueError("it does not end as an archive of numpy does")
    entries, length, offset = struct.unpack("<HLL", end[10:20])
    before = size - _END_SIZE
    locator = last[-_END_SIZE - _LOCATOR_SIZE : -_END_SIZE]
    if locator[:4] == _LOCATOR:
        before -= _LOCATOR_SIZE + _END64_SIZE
        record = last[-tail : -_END_SIZE - _LOCATOR_SIZE]
        if before < 0 or record[:4] != _END64 or struct.unpack("<Q", locator[8:16]) != (before,):
            raise ValueError("its directory can be read in two ways")
        entries, length, offset = struct.unpack("<QQQ", record[32:56])
    if offset + length != before:
        raise ValueError("its directory is not where it is said to be")
    if entries > MOST_MEMBERS or length > MOST_MEMBERS * 1000:
        raise ValueError(f"it has more than {MOST_MEMBERS} members")


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the members by the names of their arrays.

    Raises:
        DataError: two of them have one name, so that it matters who reads them.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise DataError(f"{path} has the array {name!r:.60} twice; write it anew with numpy.savez")
        found[name] = member
    return found


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str, size: int) -> None:
    """Check a member by what the directory and its header say of it.

    Raises:
        ValueError, DataError: it does not hold together, or unfolds to far more than there is of it.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in a way that numpy does not use")
    if member.compress_size > size or (member.compress_type == zipfile.ZIP_STORED) * member.file_size > size:
        raise ValueError(f"{name} claims more bytes than the file has")
    if member.file_size > SMALL and member.file_size > _DENSEST * member.compress_size:
        raise DataError(
            f"{path} is not loaded: its array {name} unpacks from {member.compress_size:,} bytes to "
            f"{member.file_size:,}; if it is really meant, write it with numpy.savez, uncompressed"
        )
    with archive.open(member) as file:
        dtype, shape, _ = read_npy_header(file, name)
        check_size(dtype, shape, member.file_size - file.tell(), name)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    """Return the array of the very member that was checked.

    Raises:
        ValueError, zipfile.BadZipFile: it is cut short, or its checksum is wrong.
    """
    with archive.open(member) as file:
        dtype, shape, fortran_order = read_npy_header(file, name)
        array = np.empty(check_size(dtype, shape, member.file_size - file.tell(), name), np.uint8)
        view, done = array.data, 0
        while done < len(array):
            chunk = file.read(min(CHUNK, len(array) - done))
            if not chunk:
                raise ValueError(f"{name} is cut short")
            view[done : done + len(chunk)] = chunk
            done += len(chunk)
        # The checksum is compared when the end is read.
        if file.read(1):
            raise ValueError(f"{name} is longer than it says")
    found = array.view(dtype)
    return found.reshape(shape[::-1]).T if fortran_order else found.reshape(shape)


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
