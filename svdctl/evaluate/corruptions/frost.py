"""Plates of ice crystals, drawn once for each image size: what the frost corruption takes instead of photographs.

Crystals are ferns as they grow on a cold window: a bent stem, branches at 60 degrees on both sides, twigs on these.
All lengths are in pixels of a 32 x 32 image; they scale with the size, and with the factor by which the published
generator of that size scales its photographs, so that crystals have the size in an image that those have.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from svdctl.evaluate.corruptions.keyed_random import Draws
from svdctl.evaluate.corruptions.published_constants import GENERATORS, generator_of

PLATES = 5
"""Different plates, as many as the published generator has photographs to choose from."""

SPREAD = 4
"""A plate is this many times as wide as an image is long."""

Array = NDArray[np.float64]


@lru_cache(maxsize=2)
def plates(height: int, width: int) -> Tensor:
    """Return all plates `(5, 3, P, P)` float32 of grey levels for images of this size; P is 4 times the longer side."""
    return torch.stack([_plate(number, height, width) for number in range(PLATES)])


def _unit(height: int, width: int) -> float:
    """Return how many pixels of an image of this size are one of a 32 x 32 image."""
    own, first = generator_of(height, width), GENERATORS[0]
    return own.frost_zoom / first.frost_zoom * min(height, width) / own.side


def _plate(number: int, height: int, width: int) -> Tensor:
    draws = Draws(torch.tensor([number]))
    side = SPREAD * max(height, width)
    unit = _unit(height, width)
    density = _crystals(draws, side, unit)
    # Thin breath of ice between the crystals, thicker in some places than in others.
    breath = gaussian_filter(_uniform(draws, side, side), 7 * unit, mode="wrap")
    breath = (0.5 + 0.3 * breath / breath.std()).clip(0.1, 1.2)
    grain = gaussian_filter(_uniform(draws, side, side), 0.5 * unit, mode="wrap")
    ice = 1 - np.exp(-1.7 * density * (0.3 + breath)) * (1 - 0.2 * breath)
    ice = (ice + 0.04 * grain / grain.std()).clip(0, 1)
    dark, white = np.array([24.0, 44.0, 66.0]), np.array([240.0, 248.0, 255.0])
    levels = dark[:, None, None] + (white - dark)[:, None, None] * ice
    return torch.from_numpy(levels.astype(np.float32))


def _crystals(draws: Draws, side: int, unit: float) -> Array:
    """Return how much ice lies over each pixel of a plate `(side, side)`, from 0; it wraps around."""
    ferns = max(1, round((side / unit / 15) ** 2))
    branches, twigs = 8, 3
    length = (30 + 12 * _uniform(draws, ferns)) * unit
    angle = _uniform(draws, ferns) * math.pi
    bend = _uniform(draws, ferns) * 0.9
    start = (_uniform(draws, ferns, 2) + 1) * (side / 2)

    stem = start[:, None] + _arc(angle[:, None], bend[:, None], length[:, None] * _steps(90 * unit))
    density = _splat(stem, 1.5 * length, side)

    # Branches leave the stem at regular steps and are longest near its foot.
    at = _steps(branches, 0.6)
    foot = start[:, None] + _arc(angle[:, None], bend[:, None], length[:, None] * at)
    heading = angle[:, None, None] + bend[:, None, None] * at[:, None] + np.array([-1, 1]) * (math.pi / 3)
    reach = 0.34 * length[:, None, None] * (1 - at[:, None]) ** 0.7 * (0.8 + 0.35 * _uniform(draws, *heading.shape))
    branch = foot[:, :, None, None] + _ray(heading[..., None], reach[..., None] * _steps(32 * unit))
    density += _splat(branch, 0.85 * reach, side)

    at = _steps(twigs, 0.7)
    foot = foot[:, :, None, None] + _ray(heading[..., None], reach[..., None] * at)
    turned = heading[..., None, None] + np.array([-1, 1]) * (math.pi / 3)
    short = np.repeat(0.3 * reach[..., None, None] * (1 - at[:, None]), 2, axis=-1)
    twig = foot[..., None, None, :] + _ray(turned[..., None], short[..., None] * _steps(8 * unit))
    density += _splat(twig, 0.4 * short, side)
    # Lines widen with the size, so the same ice lies thinner on each pixel: that is made up for.
    return gaussian_filter(density, 0.3 * unit, mode="wrap") * unit


def _steps(count: float, first: float = 0.5) -> Array:
    """Return places from 0 to 1, `count` rounded up of them, the first one this share of a step from 0."""
    return (np.arange(math.ceil(count)) + first) / math.ceil(count)


def _arc(angle: Array, bend: Array, distance: Array) -> Array:
    """Return points `(..., 2)` at distances along a stem that turns by `bend` radians in all."""
    return _ray(angle + bend * distance / distance[..., -1:] / 2, distance)


def _ray(angle: Array, distance: Array) -> Array:
    return np.stack((np.cos(angle) * distance, np.sin(angle) * distance), axis=-1)


def _splat(lines: Array, ice: Array, side: int) -> Array:
    """Return the ice `(...)` of lines, points `(..., P, 2)`, shared evenly among these and the four pixels around each.

    The picture `(side, side)` wraps around.
    """
    weights = np.broadcast_to(ice[..., None] / lines.shape[-2], lines.shape[:-1]).ravel()
    x, y = lines[..., 0].ravel(), lines[..., 1].ravel()
    left, top = np.floor(x), np.floor(y)
    total = np.zeros(side * side)
    for right in (0, 1):
        for down in (0, 1):
            share = np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top)) * weights
            cell = ((top + down) % side) * side + (left + right) % side
            total += np.bincount(cell.astype(int), share, side * side)
    return total.reshape(side, side)


def _uniform(draws: Draws, *shape: int) -> Array:
    return draws.uniform(*shape)[0].numpy()
