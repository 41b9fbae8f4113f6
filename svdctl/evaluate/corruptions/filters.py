"""Linear maps of images as sparse matrices over their pixels, exact in float64.

Any edge rule, kernel or change of size is such a matrix, and whole batches go through it at once. Weights are rounded
to multiples of 2^-18: with pixels of 8 bits or noise of 17, and one matrix for each axis, every product and sum fits
into float64's 53 bits. The result is then the same in any order of summation: for any batch, thread count or device.
"""

import warnings
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

Array = NDArray[np.float64]
Edge = Literal["nearest", "reflect", "mirror"]
"""What lies outside, in scipy's words: the edge pixel (aaa|abcd), the image reflected about the edge (cba|abcd) or
about the edge pixel (dcb|abcd)."""

GRID = 2.0**18


def to_bytes(grey: Tensor) -> Tensor:
    """Return grey levels as uint8, cut off at 0 and 255 and rounded down, as the published generator stores them.

    What lies within 2^-10 below a whole level counts as that level, so that arithmetic noise costs no level.
    """
    return (grey + 2.0**-10).clamp_(0, 255).to(torch.uint8)


def scale(images: Tensor) -> float:
    """Return the factor from lengths at 32 x 32 to those at the images' size: the shorter side over 32."""
    return min(images.shape[-2:]) / 32


def gaussian_taps(sigma: float, truncate: float = 4.0) -> Array:
    """Return the weights of a Gaussian cut off at `truncate` sigma, sum 1, as scipy's `gaussian_filter1d` has them."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return np.ones(1)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return taps / taps.sum()


def tap_matrix(size: int, taps: Array, edge: Edge) -> Array:
    """Return the `(size, size)` matrix of a correlation with an odd number of centred taps."""
    outside = np.arange(size)[:, None] + np.arange(len(taps))[None] - len(taps) // 2
    if edge == "nearest":
        inside = outside.clip(0, size - 1)
    elif edge == "reflect":
        inside = outside % (2 * size)
        inside = np.minimum(inside, 2 * size - 1 - inside)
    else:
        inside = outside % (2 * size - 2)
        inside = np.minimum(inside, 2 * size - 2 - inside)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], inside), np.broadcast_to(taps, inside.shape))
    return matrix


def zoom_matrix(size: int, zoom: float) -> Array:
    """Return `(size, source)`: `source = ceil(size / zoom)` pixels enlarged linearly, the middle `size` of them kept.

    End points stay end points, as in scipy's `zoom` of order 1.
    """
    source = int(np.ceil(size / zoom))
    enlarged = max(round(source * zoom), size)
    first = (enlarged - size) // 2
    at = (first + np.arange(size)) * ((source - 1) / max(enlarged - 1, 1))
    return _linear(source, at)


def resize_matrix(size: int, new_size: int) -> Array:
    """Return `(new_size, size)`: linear interpolation between pixels' centres, beyond them the edge pixels' values."""
    at = (np.arange(new_size, dtype=np.float64) + 0.5) * (size / new_size) - 0.5
    return _linear(size, at.clip(0, size - 1))


def _linear(size: int, at: NDArray[Any]) -> Array:
    below = np.floor(at).astype(int).clip(0, size - 1)
    above = np.minimum(below + 1, size - 1)
    matrix = np.zeros((len(at), size))
    np.add.at(matrix, (np.arange(len(at)), below), 1 - (at - below))
    np.add.at(matrix, (np.arange(len(at)), above), at - below)
    return matrix


class LinearMap:
    """A linear map of images, given by sparse matrices over the pixels in row-major order, applied one by one."""

    def __init__(self, shape: tuple[int, int], *matrices: sparse.sparray) -> None:
        """`shape` is that of the results; the first matrix applies first."""
        self.shape = shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*beta state.*")
            self.matrices = [
                torch.sparse_csr_tensor(
                    torch.from_numpy(matrix.indptr.astype(np.int32)),
                    torch.from_numpy(matrix.indices.astype(np.int32)),
                    torch.from_numpy(matrix.data),
                    size=matrix.shape,
                    check_invariants=False,
                )
                for matrix in map(sparse.csr_array, matrices)
            ]

    def __call__(self, images: Tensor) -> Tensor:
        """Return images `(*, H, W)` of any type, mapped: float64."""
        # Pixels first: each weight then multiplies one contiguous row, the same pixel of all images.
        flat = images.reshape(-1, images.shape[-2] * images.shape[-1]).T.contiguous().double()
        for matrix in self.matrices:
            flat = matrix.to(flat.device) @ flat
        return flat.T.view(*images.shape[:-2], *self.shape)


def separable(rows: Array, columns: Array) -> LinearMap:
    """Return the map `rows @ image @ columns.T`, without rounding: `rows` is `(P, H)`, `columns` is `(Q, W)`."""
    across = sparse.kron(sparse.eye_array(rows.shape[1]), columns)
    down = sparse.kron(rows, sparse.eye_array(columns.shape[0]))
    return LinearMap((rows.shape[0], columns.shape[0]), across, down)


@lru_cache(maxsize=128)
def gaussian_map(height: int, width: int, sigma: float, edge: Edge = "nearest", truncate: float = 4.0) -> LinearMap:
    """Return a Gaussian filter along both axes; `sigma` in pixels."""
    taps = gaussian_taps(sigma, truncate)
    return separable(on_grid(tap_matrix(height, taps, edge)), on_grid(tap_matrix(width, taps, edge)))


def gaussian_filter(images: Tensor, sigma: float, edge: Edge = "nearest", truncate: float = 4.0) -> Tensor:
    """Return images `(*, H, W)` smoothed along both axes, float64; `sigma` in pixels."""
    height, width = images.shape[-2:]
    return gaussian_map(height, width, sigma, edge, truncate)(images)


def field_gain(sigma: float, new_sigma: float, truncate: float = 4.0) -> float:
    """Return how much stronger noise must be, so that smoothed by `new_sigma` it spreads as smoothed by `sigma`."""
    old, new = gaussian_taps(sigma, truncate), gaussian_taps(new_sigma, truncate)
    # Each axis multiplies the standard deviation by the Euclidean norm of its taps.
    return float((old**2).sum() / (new**2).sum())


def on_grid(matrix: Array) -> Array:
    """Return non-negative rows of sum 1 rounded to multiples of 2^-18, their sum still exactly 1."""
    whole = np.round(matrix * GRID)
    whole[np.arange(len(whole)), matrix.argmax(axis=1)] += GRID - whole.sum(axis=1)
    return whole / GRID
