"""Blurs: out of focus, through frosted glass, along a line, into the picture.

Every function takes images `(N, 3, H, W)` uint8, a severity from 1 to 5 and the images' draws, and returns uint8.
"""

import math
import warnings
from functools import lru_cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from svdctl.evaluate.corruptions.filters import (
    constant,
    gaussian_filter,
    gaussian_taps,
    on_grid,
    scale,
    separable,
    tap_matrix,
    to_bytes,
    zoom_matrix,
)
from svdctl.evaluate.corruptions.keyed_random import Draws

_DOUBLINGS = 6
_SMALL_DISK = 8
_FINE = 2.0**40
"""One matrix alone on pixels of 8 bits leaves room for weights this fine in exact float64 sums."""


def gaussian_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Apply a Gaussian filter; its sigma scales with the size."""
    sigma = constant(images, "gaussian_blur", severity) * scale(images)
    return to_bytes(gaussian_filter(images, sigma))


def glass_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Apply a Gaussian filter, replace every inner pixel by a random neighbour once or twice, filter again.

    Neighbours lie up to a reach above and to the left, as far as one less below and to the right: with a reach of one
    pixel, a pixel takes its own colour or that of the one above, to the left, or both. Pixels are replaced one after
    another from the last to the first, so that one which lies after the pixel gives the colour that it has taken.
    """
    sigma, reach, rounds = constant(images, "glass_blur", severity)
    sigma *= scale(images)
    reach = max(1, round(reach * scale(images)))
    blurred = to_bytes(gaussian_filter(images, sigma))
    height, width = images.shape[-2:]
    row = torch.arange(reach + 1, height - reach + 1, device=images.device)
    column = torch.arange(reach + 1, width - reach + 1, device=images.device)
    for _ in range(rounds):
        # Two draws for each pixel, uniform among the 2 * reach shifts.
        shift = ((draws.bits(2, len(row), len(column), width=16) * (2 * reach)) >> 16) - reach
        source = torch.arange(height * width, device=images.device).view(height, width).repeat(len(images), 1, 1)
        inner = (slice(None), slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
        source[inner] += shift[:, 0] * width + shift[:, 1]
        copied = source.flatten(1) if reach == 1 else first_sources(source.flatten(1))
        taken = copied[:, None].expand(-1, images.shape[1], -1)
        blurred = blurred.flatten(2).gather(2, taken).view(images.shape)
    return to_bytes(gaussian_filter(blurred, sigma))


def first_sources(source: Tensor) -> Tensor:
    """Return the pixels `(N, P)` whose colours are taken, where those that follow the pixel have taken theirs before.

    Args:
        source: `(N, P)` int64, the number of the pixel that each one copies.
    """
    number = torch.arange(source.shape[1], device=source.device)
    followed = source > number
    # Of a chain of copies, what doubles at each round. A chain of more than 64 has a chance below 1e-20.
    for _ in range(_DOUBLINGS):
        source, followed = (
            torch.where(followed, source.gather(1, source), source),
            followed & followed.gather(1, source),
        )
    return source


def defocus_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur with a disk, its edge smoothed by a small Gaussian."""
    radius, alias_sigma = constant(images, "defocus_blur", severity)
    factor = scale(images)
    sums, count = disk_sums(images, radius * factor)
    # The published generator smoothes small disks by 3 x 3 taps, others by 5 x 5.
    reach = max(1, round((1 if radius <= _SMALL_DISK else 2) * factor))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (alias_sigma * factor)) ** 2)
    rows, columns = (on_grid(tap_matrix(size, taps / taps.sum(), "reflect")) for size in images.shape[-2:])
    return to_bytes(separable(sums, rows, columns) / count)


def disk_sums(images: Tensor, radius: float) -> tuple[Tensor, int]:
    """Return sums `(N, C, H, W)` int64 over the pixels with centres within `radius` of each pixel, and their number.

    Images are reflected about their edge pixels. A disk is a run of pixels in each of some rows, and a run is the
    difference of two sums from the left: the work grows with the radius, not with its square.
    """
    reach = int(radius)
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images.float(), (reach,) * 4, mode="reflect").long()
    before = torch.nn.functional.pad(padded.cumsum(-1), (1, 0))
    sums = torch.zeros(images.shape, dtype=torch.int64, device=images.device)
    count = 0
    for row in range(-reach, reach + 1):
        half = math.isqrt(math.floor(radius**2 - row**2))
        lines = before[..., reach + row : reach + row + height, :]
        sums += (
            lines[..., reach + half + 1 : reach + half + 1 + width] - lines[..., reach - half : reach - half + width]
        )
        count += 2 * half + 1
    return sums, count


def zoom_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return the mean of the image and of its central zooms from 1 in equal steps."""
    height, width = images.shape[-2:]
    matrix = _zooms(height, width, *constant(images, "zoom_blur", severity)).to(images.device)
    # Pixels first: each weight then multiplies one contiguous row, the same pixel of all images.
    pixels = images.reshape(-1, height * width).T.contiguous().double()
    return to_bytes((matrix @ pixels).T.view(images.shape))


@lru_cache(maxsize=32)
def _zooms(height: int, width: int, end: float, step: float) -> Tensor:
    """Return the map of flat images `(H W, H W)`, sparse; no product of one matrix for each axis."""
    # The generators' expression: by rounding it includes some ends, as 1.06 and 1.11.
    zooms = np.arange(1, end, step).tolist()
    share = 1 / (len(zooms) + 1)
    total = sparse.csr_array(sparse.eye_array(height * width) * share)
    for zoom in zooms:
        rows, columns = (_central_zoom(size, zoom) for size in (height, width))
        total = total + sparse.kron(rows * share, columns, format="csr")
    # What rounding takes away goes to each row's first weight: constant images stay.
    total.data = np.round(total.data * _FINE)
    total.data[total.indptr[:-1]] += _FINE - total.sum(axis=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta state.*")
        starts, places, weights = map(torch.from_numpy, (total.indptr, total.indices, total.data / _FINE))
        return torch.sparse_csr_tensor(starts, places, weights, size=total.shape, check_invariants=False)


def _central_zoom(size: int, zoom: float) -> sparse.csr_array:
    part = zoom_matrix(size, zoom)
    before = (size - part.shape[1]) // 2
    return sparse.csr_array(np.pad(part, ((0, 0), (before, size - part.shape[1] - before))))


def motion_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur with a one-sided half-Gaussian along a line within 45 degrees of the horizontal."""
    radius, sigma = constant(images, "motion_blur", severity)
    angles = draws.uniform(1)[:, 0] * (math.pi / 4)
    return along_line(images, angles, radius * scale(images), sigma * scale(images)).to(torch.uint8)


def along_line(images: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Return each image `(N, C, H, W)` of whole grey levels blurred from every pixel onwards in its direction: float32.

    Args:
        images: uint8, or whole numbers from 0 to 255 in any type.
        angles: `(N,)` radians, from the direction of columns towards that of rows.
        radius: the line has `2 * ceil(radius) + 1` taps, each at the nearest whole pixel.
        sigma: of the half-Gaussian, in pixels.

    Results are rounded to whole levels. Weights are multiples of 2^-15, so that float32 holds every sum exactly.
    """
    length = 2 * math.ceil(radius) + 1
    taps = gaussian_taps(sigma, truncate=(length - 1) / sigma)[length - 1 :]
    weights = np.round(taps / taps.sum() * 2**15)
    weights[0] += 2**15 - weights.sum()
    step = torch.arange(length, device=images.device)
    down = (step * angles.sin()[:, None] - 0.5).ceil().long()
    right = (step * angles.cos()[:, None] - 0.5).ceil().long()
    number, _, height, width = images.shape
    reach = length - 1
    padded = torch.nn.functional.pad(images.float(), (reach,) * 4, mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(number, device=images.device)
    total = torch.zeros(images.shape, device=images.device)
    for tap in range(length):
        if weights[tap]:
            total += windows[each, :, reach + down[:, tap], reach + right[:, tap]] * float(weights[tap] / 2**15)
    return (total + 0.5).floor_()
