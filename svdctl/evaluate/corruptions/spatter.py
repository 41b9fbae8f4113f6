"""Drops of water or mud on the lens."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from svdctl.evaluate.corruptions.canny import canny, distance_to, window_sums
from svdctl.evaluate.corruptions.filters import constant, field_gain, gaussian_filter, scale, to_bytes
from svdctl.evaluate.corruptions.keyed_random import Draws

WATER = (175, 238, 238)
"""Pale turquoise."""

MUD = (63, 42, 20)


def spatter(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Cover where smoothed noise exceeds a threshold: with water, shaded by the distance to its edge, or with mud.

    Takes images `(N, 3, H, W)` uint8, a severity from 1 to 5 and the images' draws, and returns uint8.
    """
    mean, std, sigma, threshold, factor, is_mud = constant(images, "spatter", severity)
    size = scale(images)
    noise = gaussian_filter(draws.normal(*images.shape[-2:]), sigma * size)
    liquid = noise * (std * field_gain(sigma, sigma * size)) + mean
    colour = torch.tensor(MUD if is_mud else WATER, device=images.device).view(1, 3, 1, 1)
    if not is_mud:
        amount = shaded(to_bytes(torch.where(liquid < threshold, 0, liquid) * 255), 20 * size) * factor
        return to_bytes(images + amount[:, None] * colour)
    amount = gaussian_filter((liquid > threshold).double(), factor * size)
    amount = torch.where(amount < 0.8, 0, amount)[:, None]
    return to_bytes(images * (1 - amount) + amount * colour)


def shaded(liquid: Tensor, farthest: float) -> Tensor:
    """Return water `(N, H, W)` uint8, shaded by an embossed map of the distance to its edges: float64, 0 to 1."""
    distance = distance_to(canny(liquid, 50, 150), farthest)
    relief = equalized(_reflected_sums(distance, _BOX).div(9).floor())
    relief = _reflected_sums(relief, _EMBOSS).clamp(0, 255)
    relief = (_reflected_sums(relief, _BOX) / 9 + 0.5).floor()
    light = liquid * relief
    return light / light.amax((1, 2), keepdim=True).clamp(min=1)


_BOX = [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
_EMBOSS = [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]


def _reflected_sums(images: Tensor, weights: list[list[int]]) -> Tensor:
    """Return weighted sums over 3 x 3 pixels of `(N, H, W)` float64, reflected about the edge pixels."""
    return window_sums(pad(images[:, None], (1, 1, 1, 1), mode="reflect")[:, 0], weights)


def equalized(levels: Tensor) -> Tensor:
    """Return images `(N, H, W)` of whole levels, 0 to 255, with levels spread evenly, as OpenCV does it.

    The lowest level becomes 0, every other 255 times the share of pixels up to it among those above the lowest; an
    image of one level stays.
    """
    index = levels.long().flatten(1)
    counts = torch.zeros(len(levels), 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(1, index, torch.ones_like(index))
    pixels = index.shape[1]
    lowest = index.amin(1, keepdim=True)
    at_lowest = counts.gather(1, lowest)
    share = (counts.cumsum(1) - at_lowest).double() * (255 / (pixels - at_lowest).clamp(min=1))
    table = torch.where(at_lowest == pixels, lowest.double(), share.round())
    return table.gather(1, index).view(levels.shape)
