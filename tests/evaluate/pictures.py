"""Images that corruptions are tested on: pieces of photographs, which have edges, colours and flat parts."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor


@lru_cache(maxsize=16)
def photographs(count: int, height: int = 32, width: int = 32) -> Tensor:
    """`(count, 3, height, width)` uint8, all different, none of one colour."""
    pages = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    draws = np.random.default_rng(0)
    tiles = []
    for number in range(count):
        page = pages[number % 2]
        side = int(draws.integers(150, 400))
        left, top = draws.integers(0, page.width - side), draws.integers(0, page.height - side)
        part = page.crop((left, top, left + side, top + side))
        tiles.append(np.asarray(part.resize((width, height), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()


def flat(level: int, count: int = 1, side: int = 32) -> Tensor:
    """Grey images that differ from each other in one corner pixel only, so that each has its own draws."""
    images = torch.full((count, 3, side, side), level, dtype=torch.uint8)
    images[:, 0, 0, 0] = (torch.arange(count) % 251).to(torch.uint8)
    images[:, 1, 0, 0] = (torch.arange(count) // 251).to(torch.uint8)
    return images
