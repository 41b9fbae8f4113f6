"""A name for the contents of a data set: two data sets have the same one exactly if they are the same."""

import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from svdctl.data.images import ImageData
from svdctl.utils.content_hash import content_digest

_BLOCK = 8 * 2**20
"""Bytes hashed at a time. Part of the definition: another size gives another fingerprint."""


def fingerprint(*parts: ImageData) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of the parts of a data set: `fingerprint(train, test)`.

    It covers the pixels, labels, class names, shape and type of every part, and the order of images and of parts. It
    depends on neither the device nor the files that the images were read from.
    """
    contents: list[str | bytes] = []
    # Blocks are hashed in threads (hashlib releases the GIL), and their digests are hashed in order.
    with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
        for part in parts:
            labels = part.labels.to(torch.int64)
            contents.append(
                json.dumps([str(part.images.dtype), list(part.images.shape), list(labels.shape), part.classes])
            )
            digests = pool.map(content_digest, (*_blocks(part.images), *_blocks(labels)))
            contents += map(bytes.fromhex, digests)
    return content_digest(*contents)


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a tensor in groups of at most `_BLOCK` bytes, one row at least."""
    row = max(tensor[:1].nbytes, 1)
    return tensor.split(max(_BLOCK // row, 1)) if len(tensor) else ()
