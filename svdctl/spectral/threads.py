"""Independent pieces of work on the CPU, side by side in threads of one core each.

LAPACK and BLAS gain little from several threads within a matrix of some hundred rows; two matrices at once, or two
layers, gain all of it. Each piece is computed alone either way, so that results do not depend on who computes it.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def side_by_side(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`[function(item) for item in items]`, without gradients, on as many threads as torch may use.

    Inside, `torch.get_num_threads()` is 1: what is called there splits nothing any further. The first item is begun
    first, so that the costliest should be the first. An error of an item is raised after the others have ended.
    """
    threads = torch.get_num_threads()
    items = list(items)
    if threads == 1 or len(items) < 2:
        with torch.no_grad():
            return [function(item) for item in items]
    inference = torch.is_inference_mode_enabled()

    def quiet(item: S) -> T:
        with torch.inference_mode(inference), torch.no_grad():  # a thread inherits neither
            return function(item)

    futures = [_pool(threads, os.getpid()).submit(quiet, item) for item in items]
    for future in futures:
        future.exception()  # waits; the layers of a network are not left half written
    return [future.result() for future in futures]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # The number is kept for each thread apart: the caller's own stays. A forked process has none of the threads.
    return ThreadPoolExecutor(threads, "spectral", initializer=lambda: torch.set_num_threads(1))
