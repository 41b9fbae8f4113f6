"""The four noises: each pixel of each channel on its own.

Every function takes images `(N, 3, H, W)` uint8, a severity from 1 to 5 and the images' draws, and returns uint8.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from svdctl.evaluate.corruptions.filters import constant, to_bytes
from svdctl.evaluate.corruptions.keyed_random import Draws, normal_table


def gaussian_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return `x + N(0, sigma)`."""
    sigma = constant(images, "gaussian_noise", severity)
    table = (255 * sigma * normal_table()).float().to(images.device)
    return to_bytes(images + draws.lookup(table, *images.shape[1:]))


def speckle_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return `x + x N(0, sigma)`."""
    sigma = constant(images, "speckle_noise", severity)
    table = (1 + sigma * normal_table()).float().to(images.device)
    return to_bytes(images * draws.lookup(table, *images.shape[1:]))


def impulse_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Set this share of the values to 0 or 255, with equal chances."""
    share = constant(images, "impulse_noise", severity)
    chance = draws.bits(*images.shape[1:], width=32)
    salted = torch.where(chance < round(share / 2 * 2**32), 255, images)
    pepper = (chance >= round(share / 2 * 2**32)) & (chance < round(share * 2**32))
    return salted.masked_fill_(pepper, 0)


def shot_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return `Poisson(x c) / c`: photons counted, the more the less noise."""
    photons = constant(images, "shot_noise", severity)
    counts = poisson(images, photons, draws)
    # Each possible count has one grey level.
    levels = to_bytes(torch.arange(_most(photons)) * (255 / photons)).to(images.device)
    return levels.index_select(0, counts.flatten()).view(images.shape)


GUIDE = 1024
_ROW = 2**33
"""What is added to the values of each grey level, so that all of them ascend and are searched at once."""


def poisson(images: Tensor, photons: int, draws: Draws) -> Tensor:
    """Return Poisson counts of mean `image / 255 * photons`, as `images` in shape and device, int32; exact to 2^-32.

    The inverse of the distribution function at a uniform 32-bit number. The number's first 10 bits look up the count;
    where more than one count begins with them, the function's values decide.
    """
    cumulative, guide = (table.to(images.device) for table in poisson_tables(photons))
    chance = draws.bits(*images.shape[1:], width=32).flatten()
    level = images.flatten().to(torch.int64)
    counts = guide.index_select(0, level * GUIDE + (chance >> 22))
    unsure = (counts < 0).nonzero().squeeze(1)
    row = level.index_select(0, unsure)
    place = torch.searchsorted(cumulative, chance.index_select(0, unsure) + row * _ROW, right=True)
    counts.index_copy_(0, unsure, (place - row * _most(photons)).to(counts.dtype))
    return counts.view(images.shape)


@lru_cache(maxsize=5)
def poisson_tables(photons: int) -> tuple[Tensor, Tensor]:
    """Return for every grey level: `P(count <= k)` in units of 2^-32, and the count at each 1,024th of the probability.

    Both flattened: int64 `(256 * K)`, with 2^33 times the level added, and int32 `(256 * 1024)`, -1 where the 1,024th
    has more than one count.
    """
    from scipy.special import pdtr

    rate = np.arange(256)[:, None] / 255 * photons
    counts = np.arange(_most(photons))
    cumulative = np.round(pdtr(counts[None], rate) * 2**32).astype(np.int64)
    cumulative[:, -1] = 2**32
    ends = np.arange(GUIDE)[:, None] * 2**22 + [0, 2**22 - 1]
    least, most = np.stack([np.searchsorted(row, ends, side="right") for row in cumulative]).transpose(2, 0, 1)
    guide = np.where(least == most, least, -1).astype(np.int32)
    cumulative += np.arange(256)[:, None] * _ROW
    return torch.from_numpy(cumulative.ravel()), torch.from_numpy(guide.ravel())


def _most(photons: int) -> int:
    # Beyond 7 standard deviations above the largest mean, and some, nothing is left at 2^-32.
    return int(photons + 7 * photons**0.5 + 20)
