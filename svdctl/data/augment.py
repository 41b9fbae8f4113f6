"""Random flips and crops of whole batches, on the batch's device."""

import math
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
        draws: `(N, 3)` or more columns, uniform in [0, 1): flip, row and column of each image.
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
        offsets = (draws[:, 1:3] * (2 * crop + 1)).long()
        rows = rows + offsets[:, :1]
        columns = columns + offsets[:, 1:]
        images = pad(images, crop, pad_mode)
    # Flat indices make one gather of the whole batch, three times faster than indexing by four tensors.
    padded_width = images.shape[-1]
    flat = (rows[:, :, None] * padded_width + columns[:, None, :]).flatten(1)
    gathered = images.flatten(2).gather(2, flat[:, None, :].expand(-1, images.shape[1], -1))
    return gathered.reshape(*gathered.shape[:2], height, width)


_ASPECTS = math.log(3 / 4), math.log(4 / 3)


def resized_crop(images: Tensor, draws: Tensor, area: tuple[float, float]) -> Tensor:
    """Cut a random part out of each image and scale it up to the image's size, bilinearly (Szegedy et al. 2015).

    Args:
        images: `(N, C, H, W)`, floating point.
        draws: `(N, 4)` uniform in [0, 1): area, aspect, row and column of each part.
        area: least and largest share of the image's area. The logarithm of the aspect, width by height in units of the
            image's, is uniform between those of 3/4 and 4/3; a side that is too long then is the image's.
    """
    share = area[0] + (area[1] - area[0]) * draws[:, 0]
    root = torch.exp((_ASPECTS[0] + (_ASPECTS[1] - _ASPECTS[0]) * draws[:, 1]) / 2)
    sides = torch.stack([share.sqrt() * root, share.sqrt() / root], dim=1).clamp(max=1)  # widths and heights
    # In the coordinates of grid_sample, in which the image is from -1 to 1. A product of matrices, as in torch's
    # affine_grid, would be rounded otherwise in batches of other sizes.
    centers = (1 - sides) * (2 * draws[:, 2:4].flip(1) - 1)
    height, width = images.shape[-2:]
    x, y = (
        side[:, None] * _pixel_centers(size, images.device) + center[:, None]
        for side, center, size in zip(sides.unbind(1), centers.unbind(1), (width, height), strict=True)
    )
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _pixel_centers(size: int, device: torch.device) -> Tensor:
    """Return where the pixels of a side are that goes from -1 to 1, `(size,)`."""
    return (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
