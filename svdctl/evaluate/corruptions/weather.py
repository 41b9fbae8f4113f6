"""Snow, fog and frost.

Every function takes images `(N, 3, H, W)` uint8, a severity from 1 to 5 and the images' draws, and returns uint8.
"""

import math

import torch
from torch import Tensor

from svdctl.evaluate.corruptions.blur import along_line
from svdctl.evaluate.corruptions.filters import (
    constant,
    on_grid,
    resize_matrix,
    scale,
    separable,
    to_bytes,
    zoom_matrix,
)
from svdctl.evaluate.corruptions.frost import PLATES, plates
from svdctl.evaluate.corruptions.keyed_random import Draws


def snow(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Add flakes, noise enlarged, thresholded and blurred along a steep line, and their half-turn to a whiter image.

    Flakes grow with the size: they fall on a grid of the generator's size, enlarged linearly to the image.
    """
    mean, std, zoom, threshold, radius, sigma, mix = constant(images, "snow", severity)
    factor = scale(images)
    height, width = images.shape[-2:]
    grid = (round(height / factor), round(width / factor))
    noise = draws.normal(*(math.ceil(size / zoom) for size in grid))
    layer = separable(noise, *(on_grid(zoom_matrix(size, zoom)) for size in grid)) * std + mean
    layer = to_bytes(torch.where(layer < threshold, 0, layer) * 255)
    if grid != (height, width):
        sizes = zip(grid, (height, width), strict=True)
        layer = to_bytes(separable(layer, *(on_grid(resize_matrix(old, new)) for old, new in sizes)))
    angles = (draws.uniform(1)[:, 0] - 2) * (math.pi / 4)
    flakes = along_line(layer[:, None], angles, radius * factor, sigma * factor)
    whiter = torch.maximum(images.float(), grey(images) * 1.5 + 127.5)
    return to_bytes(images * mix + whiter * (1 - mix) + flakes + flakes.flip(2, 3))


def grey(images: Tensor) -> Tensor:
    """Return luma `(N, 1, H, W)` float32 of images `(N, 3, H, W)`: 0.299 R + 0.587 G + 0.114 B."""
    red, green, blue = images.float().split(1, dim=1)
    return red * 0.299 + green * 0.587 + blue * 0.114


def fog(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Add plasma, and darken the sum so that the brightest level stays."""
    strength, decay = constant(images, "fog", severity)
    height, width = images.shape[-2:]
    cloud = plasma(draws, max(height, width), decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True).double()
    return to_bytes((images + cloud * (255 * strength)) * (brightest / (brightest + 255 * strength)))


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Return diamond-square fractals `(N, size, size)`, 0 to 1, periodic; size: the next power of two from `side`.

    From one step size to the next the random part shrinks by `decay` squared: the published generator multiplies a
    uniform draw from +-wibble by wibble once more, and divides wibble by the decay.
    """
    size = 1 << max(side - 1, 1).bit_length()
    field = torch.zeros(len(draws.keys), size, size, dtype=torch.float64, device=draws.keys.device)
    step, spread = size, 1.0
    while step >= 2:
        half, count = step // 2, size // step
        corners = field[:, ::step, ::step].clone()
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + draws.uniform(count, count) * spread
        field[:, half::step, half::step] = centres
        tops = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = tops / 4 + draws.uniform(count, count) * spread
        sides = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, half::step, ::step] = sides / 4 + draws.uniform(count, count) * spread
        step, spread = half, spread / decay**2
    field -= field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def frost(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return a weighted sum of the image and a random crop of drawn ice crystals.

    The published files take photographs of frost, which svdctl does not ship: the texture is another, the weights are
    the same.
    """
    image_weight, frost_weight = constant(images, "frost", severity)
    height, width = images.shape[-2:]
    drawn = plates(height, width).to(images.device)
    number, top, left = draws.bits(3, width=32).unbind(1)
    number = (number * PLATES) >> 32
    top, left = ((at * (drawn.shape[-1] - size + 1)) >> 32 for at, size in ((top, height), (left, width)))
    ice = drawn.unfold(2, height, 1).unfold(3, width, 1)[number, :, top, left]
    return to_bytes(images * image_weight + ice * frost_weight)
