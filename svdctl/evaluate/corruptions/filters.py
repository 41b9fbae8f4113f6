"""Linear maps of images, one matrix for each axis, exact in float64.

Any edge rule, kernel or change of size is such a matrix, and whole batches go through it at once. Weights are rounded
to multiples of 2^-18: with pixels of 8 bits or noise of 17, and one matrix for each axis, every product and sum fits
into float64's 53 bits. The result is then the same in any order of summation: for any batch, thread count or device.
"""

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from svdctl.evaluate.corruptions.published_constants import PublishedGenerator, generator_of

Array = NDArray[np.float64]
Edge = Literal["edge", "symmetric", "reflect"]
"""What lies outside, in the words of `numpy.pad`: the edge pixel (aaa|abcd), the image reflected about the edge
(cba|abcd) or about the edge pixel (dcb|abcd)."""

GRID = 2.0**18


def to_bytes(grey: Tensor) -> Tensor:
    """Return grey levels as uint8, cut off at 0 and 255 and rounded down, as the published generator stores them.

    What lies within 2^-10 below a whole level counts as that level, so that arithmetic noise costs no level.
    """
    return (grey + 2.0**-10).clamp_(0, 255).to(torch.uint8)


def _generator(images: Tensor) -> PublishedGenerator:
    height, width = images.shape[-2:]
    return generator_of(height, width)


def constant(images: Tensor, name: str, severity: int) -> Any:
    """Return the number or numbers of a corruption at a severity, of the generator that the images' size belongs to."""
    return _generator(images).constants[name][severity - 1]


def base_side(images: Tensor) -> int:
    """Return the side of images of the generator that the images' size belongs to: 32, 64 or 224."""
    return _generator(images).side


def scale(images: Tensor) -> float:
    """Return the factor from the generator's lengths to those at the images' size: the shorter side over its side."""
    return min(images.shape[-2:]) / base_side(images)


def gaussian_taps(sigma: float, truncate: float = 4.0) -> Array:
    """Return the weights of a Gaussian cut off at `truncate` sigma, sum 1, as scipy's `gaussian_filter1d` has them."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return np.ones(1)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return taps / taps.sum()


def tap_matrix(size: int, taps: Array, edge: Edge) -> Array:
    """Return the `(size, size)` matrix of a correlation with an odd number of centred taps."""
    inside = sliding_window_view(np.pad(np.arange(size), len(taps) // 2, mode=edge), len(taps))
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], inside), taps)
    return matrix


def zoom_matrix(size: int, zoom: float) -> Array:
    """Return `(size, source)`: `source = ceil(size / zoom)` pixels enlarged linearly, the middle `size` of them kept.

    End points stay end points, as in scipy's `zoom` of order 1.
    """
    source = math.ceil(size / zoom)
    enlarged = max(round(source * zoom), size)
    first = (enlarged - size) // 2
    at = (first + np.arange(size)) * ((source - 1) / max(enlarged - 1, 1))
    return _linear(source, at)


def resize_matrix(size: int, new_size: int) -> Array:
    """Return `(new_size, size)`: linear interpolation between pixels' centres, beyond them the edge pixels' values."""
    at = (np.arange(new_size, dtype=np.float64) + 0.5) * (size / new_size) - 0.5
    return _linear(size, at.clip(0, size - 1))


def _linear(size: int, at: NDArray[Any]) -> Array:
    return (1 - np.abs(at[:, None] - np.arange(size))).clip(0)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return `rows @ image @ columns.T` of images `(*, H, W)` of any type, float64; matrices `(P, H)` and `(Q, W)`."""
    return rows.to(images.device) @ (images.double() @ columns.to(images.device).mT)


@lru_cache(maxsize=128)
def _gaussian_matrix(size: int, sigma: float, edge: Edge, truncate: float) -> Tensor:
    return on_grid(tap_matrix(size, gaussian_taps(sigma, truncate), edge))


def gaussian_filter(images: Tensor, sigma: float, edge: Edge = "edge", truncate: float = 4.0) -> Tensor:
    """Return images `(*, H, W)` smoothed along both axes, float64; `sigma` in pixels."""
    rows, columns = (_gaussian_matrix(size, sigma, edge, truncate) for size in images.shape[-2:])
    return separable(images, rows, columns)


def field_gain(sigma: float, new_sigma: float, truncate: float = 4.0) -> float:
    """Return how much stronger noise must be, so that smoothed by `new_sigma` it spreads as smoothed by `sigma`."""
    old, new = gaussian_taps(sigma, truncate), gaussian_taps(new_sigma, truncate)
    # Each axis multiplies the standard deviation by the Euclidean norm of its taps.
    return float((old**2).sum() / (new**2).sum())


def on_grid(matrix: Array) -> Tensor:
    """Return non-negative rows of sum 1 rounded to multiples of 2^-18, their sum still exactly 1."""
    whole = np.round(matrix * GRID)
    whole[np.arange(len(whole)), matrix.argmax(axis=1)] += GRID - whole.sum(axis=1)
    return torch.from_numpy(whole / GRID)
