"""Factorisations of many small matrices at once; the one place that knows how a device likes them.

LAPACK takes a batch one matrix after the other, and its threads gain little within a matrix of some hundred rows. On a
CPU the batch is therefore shared out over threads that work on one matrix each; on a GPU the batched kernels take it
whole. Each matrix is factorised on its own either way, so that the result does not depend on the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

_SMALLEST_SHARE = 4
_SIDES = range(24, 1025)


def shared_out(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """`function(matrices)` of a batch `(B, m, n)`, computed by as many threads as torch may use."""
    threads = torch.get_num_threads()
    few = len(matrices) < _SMALLEST_SHARE * threads
    if matrices.device.type != "cpu" or threads == 1 or few or max(matrices.shape[-2:]) not in _SIDES:
        return function(matrices)

    def quiet(part: Tensor) -> Tensor:
        with torch.no_grad():  # a thread does not inherit it
            return function(part)

    return torch.cat(list(_pool(threads).map(quiet, matrices.chunk(threads))))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # The number is kept for each thread apart: the caller's own stays.
    return ThreadPoolExecutor(threads, "spectral", initializer=lambda: torch.set_num_threads(1))


def singular_values_of(matrices: Tensor) -> Tensor:
    """Singular values `(B, min(m, n))`, descending."""
    return shared_out(torch.linalg.svdvals, matrices)


def eigenvalues_of(matrices: Tensor) -> Tensor:
    """Eigenvalues `(B, n)` of Hermitian matrices, ascending."""
    return shared_out(torch.linalg.eigvalsh, matrices)


def is_positive_definite(matrices: Tensor) -> Tensor:
    """Whether the Cholesky factorisation of each Hermitian matrix runs to its end, `(B,)`; no exception, no sync."""
    return shared_out(lambda part: torch.linalg.cholesky_ex(part).info == 0, matrices)


def polar_factors(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all 1, `(B, m, n)`."""

    def polar(part: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(part, full_matrices=False)
        return left @ right

    return shared_out(polar, matrices)


def function_of(matrices: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`V f(D) V^H` of Hermitian matrices `V D V^H`, `(B, n, n)`, for a function of eigenvalues `(B, n)`."""

    def apply(part: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(part)
        return (vectors * function(values).to(vectors.dtype)[:, None, :]) @ vectors.mH

    return shared_out(apply, matrices)
