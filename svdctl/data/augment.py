"""Random flips and crops of whole batches, on the batch's device."""

from typing import Literal

import torch
from torch import Tensor


def pad(images: Tensor, width: int, mode: Literal["zero", "symmetric"]) -> Tensor:
    """Return images `(N, C, H, W)` with `width` pixels more on every side; `symmetric` repeats edge pixels."""
    if width == 0:
        return images
    if mode == "zero":
        return torch.nn.functional.pad(images, (width,) * 4)
    rows = _mirrored(images.shape[-2], width, images.device)
    columns = _mirrored(images.shape[-1], width, images.device)
    return images[..., rows[:, None], columns]


def _mirrored(size: int, width: int, device: torch.device) -> Tensor:
    """Return the index of each padded position; period 2 * size, as numpy's `symmetric`."""
    index = torch.arange(-width, size + width, device=device) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def augment(images: Tensor, draws: Tensor, *, flip: bool, crop: int, pad_mode: Literal["zero", "symmetric"]) -> Tensor:
    """Flip and crop each image on its own.

    Args:
        images: `(N, C, H, W)`, any dtype.
        draws: `(N, 3)` uniform in [0, 1): flip, row and column of each image.
        flip: mirror left to right where the first draw is below one half.
        crop: pixels of padding on each side; the crop has the original size.
        pad_mode: what the padding holds.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).expand(len(images), height)
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    if flip:
        mirrored = (draws[:, 0] < 0.5)[:, None]
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if crop:
        offsets = (draws[:, 1:] * (2 * crop + 1)).long()
        rows = rows + offsets[:, :1]
        columns = columns + offsets[:, 1:]
        images = pad(images, crop, pad_mode)
    # Flat indices make one gather of the whole batch, three times faster than indexing by four tensors.
    padded_width = images.shape[-1]
    flat = (rows[:, :, None] * padded_width + columns[:, None, :]).flatten(1)
    gathered = images.flatten(2).gather(2, flat[:, None, :].expand(-1, images.shape[1], -1))
    return gathered.reshape(*gathered.shape[:2], height, width)
