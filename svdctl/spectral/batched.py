"""Factorisations of many small matrices at once, in the way that is fastest on their device.

LAPACK takes a batch one matrix after the other. On a CPU the batch is therefore shared out over threads that work on
one matrix each; on a GPU batched operations take it whole. Each matrix is factorised on its own either way, so that
the result does not depend on the number of threads.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from svdctl.spectral.faster_device import bisection_is_faster, products_are_faster
from svdctl.spectral.matrix_sign import polar_by_products
from svdctl.spectral.parallel_map import parallel_map
from svdctl.spectral.symbol import gram
from svdctl.spectral.tridiagonal import eigenvalues_by_bisection

# For speed.
_SMALLEST_SHARE = 4
_SIDES = range(24, 1025)
_ORTHONORMAL = 0.01


def parallel_batched(function: Callable[..., Tensor], matrices: Tensor, *more: Tensor) -> Tensor:
    """Return `function(matrices, ...)` of batches `(B, ...)`, computed by as many threads as torch may use."""
    threads = torch.get_num_threads()
    few = len(matrices) < _SMALLEST_SHARE * threads
    if matrices.device.type != "cpu" or threads == 1 or few or max(matrices.shape[-2:]) not in _SIDES:
        return function(matrices, *more)
    parts = zip(*(batch.chunk(threads) for batch in (matrices, *more)), strict=True)
    return torch.cat(parallel_map(lambda part: function(*part), parts))


def eigenvalues_of(matrices: Tensor) -> Tensor:
    """Return the eigenvalues `(B, n)` of Hermitian matrices, ascending; many on a device all at once."""
    if bisection_is_faster(len(matrices), matrices.device):
        return eigenvalues_by_bisection(matrices)
    return parallel_batched(torch.linalg.eigvalsh, matrices)


def is_positive_definite(matrices: Tensor) -> Tensor:
    """Return whether the Cholesky factorisation of each Hermitian matrix runs to its end, `(B,)`; no host sync."""
    return parallel_batched(lambda part: torch.linalg.cholesky_ex(part).info == 0, matrices)


def on_tall(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Return `function(matrices)`, computed of the transposes of wide matrices, for a function that agrees with it."""
    return function(matrices.mT).mT if matrices.shape[-2] < matrices.shape[-1] else function(matrices)


def polar_factors(matrices: Tensor) -> Tensor:
    """Return the nearest matrices whose singular values are all 1, `(B, m, n)`.

    By products, where these are faster and no value is zero, or so close to it that products end below 1.
    """
    if products_are_faster(matrices.device):
        eps = torch.finfo(matrices.dtype).eps
        found = on_tall(lambda tall: polar_by_products(tall, eps, math.sqrt(eps)), matrices)
        defect = gram(found)
        defect.diagonal(dim1=-2, dim2=-1).sub_(1)
        if bool(defect.abs().amax() < _ORTHONORMAL):
            return found

    def polar(part: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(part, full_matrices=False)
        return left @ right

    return parallel_batched(polar, matrices)


def clip_singular_values(matrices: Tensor, grams: Tensor, max_sigma: float) -> Tensor:
    """Return the nearest matrices of norm at most `max_sigma`: `A - (A V) g V^H`.

    V are eigenvectors of `A^H A` whose eigenvalue x is above `max_sigma^2`, and `g = 1 - max_sigma / sqrt(x)`: on a CPU
    the others cost nothing.

    Args:
        matrices: A, `(B, m, n)`.
        grams: `A^H A`, `(B, n, n)`.
        max_sigma: the largest singular value allowed.
    """

    def clip(part: Tensor, gram: Tensor) -> Tensor:
        squares, vectors = torch.linalg.eigh(gram)
        share = 1 - max_sigma / squares.clamp_min(max_sigma**2).sqrt()
        scaled = share[..., None] * vectors.mH
        if part.device.type != "cpu" or gram.shape[-1] not in _SIDES:
            return torch.baddbmm(part, part @ vectors, scaled, alpha=-1)
        clipped = part.clone()
        for place, count in enumerate((squares > max_sigma**2).sum(1).tolist()):
            if count:
                clipped[place].addmm_(part[place] @ vectors[place, :, -count:], scaled[place, -count:], alpha=-1)
        return clipped

    return parallel_batched(clip, matrices, grams)
