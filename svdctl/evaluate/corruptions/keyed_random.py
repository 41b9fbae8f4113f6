"""Random draws keyed by what an image shows, so that they do not depend on the batch that it comes in.

Each image has a key, a hash of its bytes, the corruption, the severity and the seed. The key starts a SplitMix64
stream (Steele, Lea and Flood 2014): word i is a mix of key + i times a constant, so a whole batch draws at once, in
integers, and gets the same words on every device and from every version of torch and numpy.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
"""As signed numbers of 64 bits, which is what torch has."""


def image_keys(images: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Return keys `(N,)` int64 of images `(N, C, H, W)` uint8, on the images' device."""
    purpose = hashlib.blake2b(repr((name, severity, seed)).encode(), digest_size=16).digest()
    array = images.cpu().contiguous().numpy()
    keys = [hashlib.blake2b(image.data, digest_size=8, key=purpose).digest() for image in array]
    return torch.from_numpy(np.frombuffer(b"".join(keys), dtype="<i8").copy()).to(images.device)


class Draws:
    """Independent draws for each of N images, from their keys; every call goes on where the last one stopped."""

    def __init__(self, keys: Tensor | Callable[[], Tensor]) -> None:
        """`keys`: `(N,)` int64, or what gives them, called at the first draw."""
        self._keys = keys
        self._used = 0

    @property
    def keys(self) -> Tensor:
        """Return the keys `(N,)` int64."""
        if not isinstance(self._keys, Tensor):
            self._keys = self._keys()
        return self._keys

    def words(self, count: int) -> Tensor:
        """Return the next `count` words of every stream: `(N, count)` int64, all 64 bits random."""
        steps = torch.arange(self._used + 1, self._used + count + 1, device=self.keys.device)
        self._used += count
        word = self.keys[:, None] + (steps * _GAMMA)[None]
        for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
            # torch shifts int64 arithmetically: the copies of the sign are cut off.
            word ^= (word >> shift) & ((1 << (64 - shift)) - 1)
            word *= factor
        return word

    def bits(self, *shape: int, width: int) -> Tensor:
        """Return `(N, *shape)` uniform whole numbers in [0, 2^width), width 16 (int32) or 32 (int64)."""
        kind = {16: torch.int16, 32: torch.int32}[width]
        count = int(np.prod(shape))
        per_word = 64 // width
        pieces = self.words(-(-count // per_word)).view(kind)[:, :count]
        wide = pieces.to(torch.int32 if width == 16 else torch.int64)
        return (wide & ((1 << width) - 1)).reshape(-1, *shape)

    def lookup(self, table: Tensor, *shape: int) -> Tensor:
        """Return `(N, *shape)` draws from the 65,536 equally likely values of a table."""
        index = self.bits(*shape, width=16)
        return table.index_select(0, index.flatten()).view(index.shape)

    def normal(self, *shape: int) -> Tensor:
        """Return `(N, *shape)` float64, standard normal."""
        return self.lookup(normal_table().to(self.keys.device), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Return `(N, *shape)` float64, uniform in (-1, 1): the odd multiples of 2^-16."""
        return (self.bits(*shape, width=16) * 2 - 65535).double() / 65536


@lru_cache(maxsize=1)
def normal_table() -> Tensor:
    """Return the means of 65,536 slices of equal probability of the standard normal distribution: float64.

    The spread lost within the slices is given back by a factor, so the variance is 1. Values are rounded to multiples
    of 2^-13, 17 bits each: sums of their products with weights of the same kind are exact in float64.
    """
    from scipy.special import ndtri

    edges = ndtri(np.arange(65537) / 65536)
    density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
    means = (density[:-1] - density[1:]) * 65536
    means /= np.sqrt(np.mean(means**2))
    return torch.from_numpy(np.round(means * 8192) / 8192)
