"""The published corrupted test sets CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019), read in place.

A `.npy` for each corruption: uint8 `(5 n, H, W, 3)`, the five severities one after the other; `labels.npy` `(5 n,)`.
Published are n = 10,000 images of 32 x 32. Only the images in use are read. Files are
not memory-mapped: a mapped file that somebody shortens ends the process.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svdctl.data.download import Archive, Tell, check, fetch, unpack
from svdctl.data.npy_header import check_size, read_npy_header
from svdctl.errors import DataError, UnusableFileError, first_line
from svdctl.utils.files import open_regular
from svdctl.utils.lock import held

SEVERITIES = 5
PUBLISHED = {
    "cifar10": Archive(
        "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",
        "CIFAR-10-C.tar",
        "56bf5dcef84df0e2308c6dcbcbbd8499",
        2_918_471_680,
    ),
    "cifar100": Archive(
        "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar?download=1",
        "CIFAR-100-C.tar",
        "11f0ed0f1191edbf9fa23466ae6021d3",
        2_918_473_216,
    ),
}
"""By kind of data set; each unpacks into a folder of its own, `CIFAR-10-C/` and `CIFAR-100-C/`."""


@dataclass(frozen=True)
class CifarC:
    """A folder of corrupted copies of one test set."""

    folder: Path
    labels: npt.NDArray[np.int64]
    """`(n,)`, those of the test set."""
    image_shape: tuple[int, int, int]
    """Channels, height and width."""

    def images(self, name: str, severity: int, first: int = 0, end: int | None = None) -> npt.NDArray[np.uint8]:
        """Return images of one corruption at a severity from 1 to 5, from `first` up to `end`: `(m, H, W, 3)`.

        Raises:
            DataError: a file that is missing, short, or of another format.
        """
        start, last = (severity - 1) * len(self.labels), len(self.labels) if end is None else end
        images: npt.NDArray[np.uint8] = self._rows(name, start + first, start + last)
        return images

    def _rows(self, name: str, first: int, end: int) -> npt.NDArray[Any]:
        """Return images of the file of a corruption, checked."""
        channels, height, width = self.image_shape
        wanted = (SEVERITIES * len(self.labels), height, width, channels)
        path = self.folder / f"{name}.npy"

        def check_format(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
            if dtype != np.uint8 or shape != wanted:
                raise DataError(
                    f"{path} holds {dtype} of shape {shape}, not uint8 of shape {wanted}: five severities of "
                    f"{len(self.labels):,} test images; get the published file"
                )

        return _read(path, first, end, check_format)

    def require(self, names: Iterable[str]) -> None:
        """Check that the files of these corruptions are there and of the right format.

        Raises:
            DataError: the first fault found.
        """
        missing = [name for name in names if not (self.folder / f"{name}.npy").is_file()]
        if missing:
            raise DataError(
                f"{self.folder} lacks {', '.join(f'{name}.npy' for name in missing)}; add the published files, or "
                "leave those corruptions out with `settings.cifar-c.names`"
            )
        for name in names:
            self._rows(name, 0, 0)


def open_cifar_c(folder: Path, labels: npt.NDArray[np.int64], image_shape: tuple[int, int, int]) -> CifarC:
    """Return the corrupted copies in `folder` of the test set with these labels `(n,)` and images `(C, H, W)`.

    Raises:
        DataError: `labels.npy` is missing, damaged, or belongs to another test set.
    """
    path = folder / "labels.npy"
    advice = "give `settings.cifar-c.root` the folder that belongs to this data set"

    def check_format(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        fault = None
        if len(shape) != 1 or dtype.kind not in "iu":
            fault = f"holds {dtype} of shape {shape}, not one whole number an image"
        elif shape[0] != SEVERITIES * len(labels):
            fault = f"has {shape[0]:,} labels, not {SEVERITIES} severities of the {len(labels):,} test images"
        if fault is not None:
            raise DataError(f"{path} {fault}; {advice}")

    found = _read(path, 0, None, check_format)
    if differ := int((found.reshape(SEVERITIES, -1) != labels).sum()):
        raise DataError(f"{path} does not match the test set: {differ:,} of {len(found):,} labels differ; {advice}")
    return CifarC(folder, labels, image_shape)


def _read(
    path: Path, first: int, end: int | None, check_format: Callable[[np.dtype[Any], tuple[int, ...]], None]
) -> npt.NDArray[Any]:
    """Return rows of an array, from `first` up to `end`, once its type and shape are checked; nothing else is kept."""
    advice = "`settings.cifar-c.root` is the folder of the published .npy files"
    try:
        with open_regular(path) as file:
            dtype, shape, is_fortran = read_npy_header(file, "the array")
            check_size(dtype, shape, os.fstat(file.fileno()).st_size - file.tell(), "the array")
            check_format(dtype, shape)
            if is_fortran and len(shape) > 1:
                whole = np.empty(shape, dtype, order="F")
                _fill(whole.reshape(-1, order="F"), file)
                return whole[first:end].copy()
            rows = np.empty((len(range(shape[0])[first:end]), *shape[1:]), dtype)
            file.seek(first * rows[:1].nbytes, os.SEEK_CUR)
            _fill(rows.reshape(-1), file)
            return rows
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; {advice}") from error
    except UnusableFileError as error:
        raise DataError(f"{path} {error.reason}; {advice}") from error
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path} is damaged or cut short ({first_line(error, 150)}); get the published file again"
        ) from error


def _fill(numbers: npt.NDArray[Any], file: BufferedReader) -> None:
    """Read as many numbers as there is place for, `numbers` being flat."""
    if file.readinto(numbers.view(np.uint8).data) != numbers.nbytes:
        raise EOFError("it ends early")


def find_or_fetch(kind: str, root: Path, *, tell: Tell | None = None) -> Path:
    """Return the folder with the published files for `cifar10` or `cifar100`, downloaded and unpacked when absent.

    They are looked for in `root` itself and in its `CIFAR-10-C` or `CIFAR-100-C`; that folder, or the archive of the
    same name beside it, is also where they are put.

    Raises:
        DataError: they are not there and cannot be had.
    """
    archive = PUBLISHED[kind]
    name = archive.name.removesuffix(".tar")
    root = root.expanduser()
    above = root
    if root.name in {item.name.removesuffix(".tar") for item in PUBLISHED.values()}:
        # The paper's code names CIFAR-10-C itself: the folder of one set, the other one lies beside it.
        above = root.parent
    elif (root / "labels.npy").is_file():
        return root
    elif any(root.glob("*.npy")):
        raise DataError(f"{root} has no labels.npy beside its other files; get the published one")
    target = above / name
    if (target / "labels.npy").is_file():
        return target
    try:
        above.mkdir(parents=True, exist_ok=True)
        with held(above / f".{name}.lock", wait=True):
            if not (target / "labels.npy").is_file():
                _put(archive, above / archive.name, target, tell)
    except OSError as error:
        raise DataError(
            f"{archive.name} cannot be put under {above} ({error.strerror or error}); name another folder with "
            "`settings.cifar-c.root`"
        ) from error
    return target


def _put(archive: Archive, path: Path, target: Path, tell: Tell | None) -> None:
    if target.exists():
        raise DataError(
            f"{target} has no labels.npy; complete it or remove it, or name another with `settings.cifar-c.root`"
        )
    own = path.is_file()
    (check if own else fetch)(archive, path, tell=tell)
    place = target.with_name(f".{target.name}.unpacked")
    shutil.rmtree(place, ignore_errors=True)  # what a process left that was killed
    # The files alone; a tar's headers come on top of them.
    unpack(path, place, limit=archive.size)
    found = sorted(place.rglob("labels.npy"))
    if not found:
        raise DataError(f"{path} holds no labels.npy; remove it, then run again")
    found[0].parent.replace(target)
    shutil.rmtree(place, ignore_errors=True)
    if not own:
        path.unlink()
