"""Arrays out of an .npz file: looked at before they are read, so that no file can run code or fill the memory."""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from svdctl.errors import DataError

SMALL = 64 * 2**20
"""Bytes up to which an array may be packed as tightly as it likes."""
_DENSEST = 200
"""How many bytes one byte of a file may unpack to beyond that: photographs reach 2, bombs 1,000."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: Path, names: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Return the named arrays of an .npz, and the optional ones that are there.

    Raises:
        DataError: missing, damaged, with objects in it, or unpacking to far more than the file holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
            missing = [name for name in names if name not in members]
            if missing:
                raise DataError(f"{path} has no array {', '.join(missing)}; it needs {', '.join(names)}")
            names = [*names, *(name for name in optional if name in members)]
            for name in names:
                _check(archive, members[name], path, name)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; give `data.path` an existing .npz") from error
    except MemoryError as error:
        raise DataError(f"{path} needs more memory than there is; use a larger machine or fewer images") from error
    # All that zipfile, its decompressors and numpy raise of a damaged file; none is swallowed.
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, struct.error, OSError, EOFError, KeyError,
        LookupError, TypeError, ValueError, RuntimeError, SyntaxError,
    ) as error:  # fmt: skip
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is not a readable .npz of plain arrays ({first[:200]}); write it with numpy.savez"
        ) from error


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str) -> None:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is of version {version} of numpy's format")
        shape, _, dtype = _HEADERS[version](file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which svdctl does not load")
    size = math.prod(shape) * dtype.itemsize
    if header + size != member.file_size:
        raise ValueError(f"{name} claims {size:,} bytes, and the file has {member.file_size - header:,} of it")
    if size > SMALL and size > _DENSEST * member.compress_size:
        raise DataError(
            f"{path} is not loaded: its array {name} unpacks from {member.compress_size:,} bytes to {size:,}; if it is "
            "really meant, write it with numpy.savez, uncompressed"
        )
