"""Losses of digital pictures: large pixels, JPEG, and elastic distortion.

Every function takes images `(N, 3, H, W)` uint8, a severity from 1 to 5 and the images' draws, and returns uint8.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from svdctl.evaluate.corruptions.filters import Array, base_side, constant, field_gain, gaussian_filter, to_bytes
from svdctl.evaluate.corruptions.keyed_random import Draws


def pixelate(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Shrink to this share of the size and enlarge again, with Pillow's BOX filter, bit for bit."""
    share = constant(images, "pixelate", severity)
    height, width = images.shape[-2:]
    small = _resized(images, int(height * share), int(width * share))
    return _resized(small, height, width).to(torch.uint8)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    # Pillow goes along rows first and stores whole grey levels in between.
    columns = torch.from_numpy(box_matrix(images.shape[-1], width)).to(images.device)
    rows = torch.from_numpy(box_matrix(images.shape[-2], height)).to(images.device)
    across = (images.double() @ columns.mT + 0.5).floor_()
    return (rows @ across + 0.5).floor_()


def box_matrix(size: int, new_size: int) -> Array:
    """Return Pillow's box filter `(new_size, size)`, in its 22-bit fixed-point weights; sums are exact in float64."""
    ratio = size / new_size
    stretch = max(ratio, 1.0)
    matrix = np.zeros((new_size, size))
    for at in range(new_size):
        centre = (at + 0.5) * ratio
        first = max(int(centre - 0.5 * stretch + 0.5), 0)
        last = min(int(centre + 0.5 * stretch + 0.5), size)
        offset = (np.arange(first, last) - centre + 0.5) / stretch
        weights = ((offset > -0.5) & (offset <= 0.5)).astype(np.float64)
        matrix[at, first:last] = np.floor(weights / weights.sum() * 2**22 + 0.5) / 2**22
    return matrix


def jpeg_compression(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Encode with Pillow at this quality, and decode."""
    quality = constant(images, "jpeg_compression", severity)
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    decoded = np.empty_like(arrays)
    for image, result in zip(arrays, decoded, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        result[:] = np.asarray(Image.open(file, formats=("JPEG",)))
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device)


def elastic_transform(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Apply a random affine map, then shifts that vary smoothly over the image; linear between pixels.

    The smoothed shifts have the spread, relative to the size, that they have at the generator's size.
    """
    shift, smoothing, jitter = constant(images, "elastic_transform", severity)
    height, width = images.shape[-2:]
    side = min(height, width)
    y, x = (torch.arange(size, device=images.device, dtype=torch.float64) for size in (height, width))
    rows, columns = _affine(y[:, None], x[None], side, draws.uniform(3, 2) * (jitter * side))
    warped = _read(images.double(), rows, columns, align_corners=True)
    if shift:
        strength = shift * side * field_gain(smoothing * base_side(images), smoothing * side, truncate=3)
        moved = gaussian_filter(draws.uniform(2, height, width), smoothing * side, "symmetric", truncate=3) * strength
        warped = _read(warped, y[:, None] + moved[:, 1], x[None] + moved[:, 0], align_corners=False)
    return to_bytes(warped)


def _affine(y: Tensor, x: Tensor, side: int, jitter: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns `(N, H, W)` that an affine map reads; three points `(N, 3, 2)` (x, y) move by `jitter`.

    The points span a right angle about the centre, with legs of two thirds of the side.
    """
    leg = 2 * (side // 3)
    centre_x, centre_y = x.shape[-1] // 2, y.shape[-2] // 2
    corner_x, corner_y = centre_x + leg // 2, centre_y - leg // 2
    down, corner, left = (jitter[:, point, :, None, None] for point in range(3))
    # Where the legs lie now, and the pixel's coordinates along them.
    down_x, down_y = down[:, 0] - corner[:, 0], leg + down[:, 1] - corner[:, 1]
    left_x, left_y = left[:, 0] - corner[:, 0] - leg, left[:, 1] - corner[:, 1]
    area = down_x * left_y - down_y * left_x
    off_x, off_y = x - corner_x - corner[:, 0], y - corner_y - corner[:, 1]
    along_down = (off_x * left_y - off_y * left_x) / area
    along_left = (down_x * off_y - down_y * off_x) / area
    return corner_y + leg * along_down, corner_x - leg * along_left


def _read(images: Tensor, rows: Tensor, columns: Tensor, *, align_corners: bool) -> Tensor:
    """Interpolate images linearly, reflected about edge pixels or, if not `align_corners`, about edges."""
    height, width = images.shape[-2:]
    if align_corners:
        grid = torch.stack((columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1), dim=-1)
    else:
        grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)
    return torch.nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=align_corners
    )
