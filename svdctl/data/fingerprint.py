"""A name for the contents of a data set: two data sets have the same one exactly if they are the same."""

import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from svdctl.data.images import ImageData
from svdctl.data.streamed_images import identity_of, is_streamed
from svdctl.utils.content_hash import content_digest

_BLOCK = 8 * 2**20
"""Bytes hashed at a time. Part of the definition: another size gives another fingerprint."""


FILES = "files:"
"""What a fingerprint begins with that is made of what images are read from, and not of pixels."""


def fingerprint(*parts: ImageData, like: str | None = None) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of the parts of a data set: `fingerprint(train, test)`.

    It covers the pixels, labels, class names, shape and type of every part, and the order of images and of parts. It
    depends on neither the device nor the files that the images were read from.

    Of images that are read when they are needed it is `files:` and the SHA-256 over the relative name, the size in
    bytes and the label of each file, the class names and the settings of size: pixels that change and leave the size of
    their file as it is are not seen. Images of no files are known by the `identity` that `streamed_images` was given.

    Args:
        parts: of the data set.
        like: a fingerprint to compare with; the form is its, as far as the data have it.
    """
    streamed = any(is_streamed(part.images) for part in parts)
    by_files = streamed if like is None else like.startswith(FILES)
    if by_files and (found := fingerprint_of_files(*parts)) is not None:
        return found
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


def fingerprint_of_files(*parts: ImageData) -> str | None:
    """Return the fingerprint that is made of what images are read from; None where only pixels tell."""
    described = [_description(part) for part in parts]
    return None if None in described else FILES + content_digest(*filter(None, described))


def _description(part: ImageData) -> str | None:
    """Return a hash of what the images are read from, and of the labels; None where only pixels tell."""
    head = json.dumps([list(part.images.shape), part.classes])
    if part.files is not None:
        return part.files.digest(part.labels, head)
    if (found := identity_of(part.images)) is None:
        return None
    identity, rows = found
    return content_digest(f"{identity}\0{head}\0", rows, part.labels.to(torch.int64))


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a tensor in groups of at most `_BLOCK` bytes, one row at least."""
    row = max(tensor[:1].nbytes, 1)
    return tensor.split(max(_BLOCK // row, 1)) if len(tensor) else ()
