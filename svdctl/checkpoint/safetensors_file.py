"""Files of safetensors: their tensors and their metadata."""

from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from svdctl.checkpoint.pickled_calls import unread
from svdctl.checkpoint.pickles import check_nesting
from svdctl.checkpoint.work_limit import WorkLimit
from svdctl.errors import CheckpointError, UnusableFileError, first_line
from svdctl.utils.memory_copy import in_memory

_WITHOUT_TYPE = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")
"""Types of numbers in safetensors that are smaller than a byte or scales alone."""


def read_safetensors(path: Path, limit: WorkLimit | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file by their names, views of a copy of it in memory, and its metadata.

    Args:
        path: the file.
        limit: of all files that are read together; None: of this one.

    Raises:
        CheckpointError: damaged, changed while it is read, or another kind of file.
    """
    limit = limit or WorkLimit(path.stat().st_size, str(path))
    try:
        with in_memory(path) as place, safetensors.safe_open(place, framework="pt") as file:
            contents = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118
            extra = dict(file.metadata() or {})
    except UnusableFileError as error:
        raise CheckpointError(str(error)) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} needs more memory than there is; use a larger machine") from error
    except Exception as error:
        # The library reports damage by its own type and by several of Python's.
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({first_line(error, 150)}); use another copy"
        ) from error
    check_nesting(contents, limit)
    return contents, extra


def _tensor(file: Any, name: str) -> Tensor:
    """Return a tensor of a file of safetensors; one of numbers that torch has no type for is not read."""
    part = file.get_slice(name)
    if part.get_dtype() in _WITHOUT_TYPE:
        return unread(f"numbers of type {part.get_dtype()}, which torch does not compute with", part.get_shape())
    return file.get_tensor(name)
