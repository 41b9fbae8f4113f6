"""Edges of pictures and distances to them, for whole batches."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad


def canny(images: Tensor, low: int, high: int) -> Tensor:
    """Return Canny's edges `(N, H, W)` bool of images `(N, H, W)` uint8.

    3 x 3 Sobel gradients measured by the sum of their absolute values; crests are kept that are above `high`, or above
    `low` and connected to such ones. Ties on a crest are decided as OpenCV does.
    """
    height, width = images.shape[-2:]
    padded = pad(images[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0]
    across = window_sums(padded, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    down = window_sums(padded, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]])
    steep_x, steep_y = across.abs(), down.abs()
    strength = steep_x + steep_y
    around = pad(strength, (1, 1, 1, 1))

    def at(down: int, right: int) -> Tensor:
        return around[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    def crest(row: int, column: int, *, strict: bool) -> Tensor:
        before, after = at(-row, -column), at(row, column)
        return (strength > before) & ((strength > after) if strict else (strength >= after))

    # tan 22.5 and tan 67.5 degrees part horizontal, diagonal and vertical gradients.
    horizontal = steep_y < steep_x * 0.41421356
    vertical = steep_y > steep_x * 2.41421356
    diagonal = torch.where((across < 0) == (down < 0), crest(1, 1, strict=True), crest(1, -1, strict=True))
    kept = torch.where(
        horizontal, crest(0, 1, strict=False), torch.where(vertical, crest(1, 0, strict=False), diagonal)
    )
    weak = kept & (strength > low)
    edges = kept & (strength > high)
    while True:
        grown = weak & (max_pool2d(edges[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0)
        if torch.equal(grown, edges):
            return edges
        edges = grown


def window_sums(padded: Tensor, weights: list[list[int]]) -> Tensor:
    """Return weighted sums `(N, H, W)` over 3 x 3 pixels of `(N, H + 2, W + 2)`.

    No convolution of torch's: on a GPU it may go through transforms, which round sums of whole numbers.
    """
    height, width = padded.shape[-2] - 2, padded.shape[-1] - 2
    total = padded.new_zeros(len(padded), height, width)
    for down, row in enumerate(weights):
        for right, weight in enumerate(row):
            if weight:
                total += padded[:, down : down + height, right : right + width] * weight
    return total


def distance_to(marked: Tensor, farthest: float) -> Tensor:
    """Return the Euclidean distance `(N, H, W)` float64 from every pixel to the nearest marked one, at most `farthest`.

    One axis at a time: the squared distance is the least, over the pixels of the row, of the squared distance to that
    pixel plus that pixel's squared distance along its column.
    """
    height, width = marked.shape[-2:]
    reach = int(farthest)
    far = (reach + 1) ** 2
    squared = torch.where(marked, 0, far).to(torch.int32)
    for axis, size in ((1, height), (2, width)):
        best = squared.clone()
        for step in range(1, min(reach, size - 1) + 1):
            near, away = best.narrow(axis, 0, size - step), best.narrow(axis, step, size - step)
            torch.minimum(near, squared.narrow(axis, step, size - step) + step * step, out=near)
            torch.minimum(away, squared.narrow(axis, 0, size - step) + step * step, out=away)
        squared = best
    return squared.double().sqrt().clamp(max=farthest)
