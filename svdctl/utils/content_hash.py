"""SHA-256 of contents, as 64 hexadecimal digits: one family of functions for all that is known by its contents."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdctl.utils.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor


def content_digest(*parts: "str | bytes | Tensor") -> str:
    """Return the hash of texts in UTF-8, of bytes and of the numbers of dense tensors, one after the other.

    Of a tensor neither type nor shape is in it, nor are there marks between the parts: what tells contents apart has to
    stand in a text before them.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode(errors="surrogatepass"))
        elif isinstance(part, bytes):
            digest.update(part)
        elif part.numel():
            digest.update(_bytes(part))
    return digest.hexdigest()


def _bytes(tensor: "Tensor") -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def json_digest(value: Any, *, compact: bool = True) -> str:
    """Return the hash of JSON values, whatever the order of their keys.

    Args:
        value: numbers that are finite, texts, lists and dicts.
        compact: without blanks; False for digests that files hold since they were made with them.

    Raises:
        TypeError, ValueError: it is no JSON value.
    """
    separators = (",", ":") if compact else (", ", ": ")
    return content_digest(json.dumps(value, sort_keys=True, separators=separators, allow_nan=False))


def file_digest(path: Path) -> str:
    """Return the hash of a file's bytes; of one that has not changed since, without reading it again.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    return _read(path, state.st_size, state.st_mtime_ns)


@cache
def _read(path: Path, size: int, changed: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
