"""The header of an array in numpy's format: its type, order and shape, before any memory is taken for it."""

import math
from typing import IO

import numpy as np
from numpy.lib import format as npy

from svdctl.errors import first_line

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy_header(file: IO[bytes], name: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Return the type, the shape, and whether the first axis is the fastest (Fortran's order); the numbers follow.

    Raises:
        ValueError: it is broken, or the array, called `name`, holds Python objects or items of no size.
    """
    # It is a Python expression: parsing a hostile one ends in any of a dozen types, MemoryError among them.
    try:
        version = npy.read_magic(file)
        shape, fortran_order, dtype = _READERS[version](file)
    except Exception as error:
        raise ValueError(f"the header of {name} is broken ({first_line(error, 100)})") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which svdctl does not load")
    if dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"the header of {name} is broken (shape {str(shape)[:60]} of {dtype})")
    return dtype, shape, fortran_order


def check_size(dtype: np.dtype, shape: tuple[int, ...], there: int, name: str) -> int:
    """Return the bytes of an array's numbers.

    Raises:
        ValueError: there are others than `there`.
    """
    size = math.prod(shape) * dtype.itemsize
    if size != there:
        raise ValueError(f"{name} claims {size:,} bytes, and the file has {there:,} of it")
    return size
