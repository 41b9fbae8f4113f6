"""Independent pieces of work on the CPU, side by side in threads of one core each.

LAPACK and BLAS gain little from several threads within a matrix of some hundred rows; two matrices at once, or two
layers, gain all of it. Each piece is computed alone either way, so that results do not depend on who computes it.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cache
from typing import TypeVar

import torch

from svdctl.spectral.exact_arithmetic import exact_arithmetic, is_exact_here

S = TypeVar("S")
T = TypeVar("T")


def parallel_map(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Return `[function(item) for item in items]`, without gradients, on as many threads as torch may use.

    Inside, `torch.get_num_threads()` is 1: what is called there splits nothing any further. The first item is begun
    first, so that the costliest should be the first. An error of an item is raised after the others have ended.
    """
    threads = torch.get_num_threads()
    items = list(items)
    if threads == 1 or len(items) < 2 or getattr(_here, "is_worker", False):
        with torch.no_grad():
            return [function(item) for item in items]
    inference, exact = torch.is_inference_mode_enabled(), is_exact_here()

    def quiet(item: S) -> T:
        # A thread inherits none of these.
        with torch.inference_mode(inference), torch.no_grad(), exact_arithmetic() if exact else nullcontext():
            return function(item)

    futures = [_pool(threads, os.getpid()).submit(quiet, item) for item in items]
    try:
        wait(futures)  # the layers of a network are not left half written
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise
    return [future.result() for future in futures]


_here = threading.local()


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process; a forked one has none of its parent's."""
    begun = threading.Barrier(threads, timeout=60)

    def begin() -> None:
        _here.is_worker = True
        torch.get_num_threads()  # torch takes over the number of others at a thread's first question, and then never
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, "spectral", initializer=begin)
    for waiting in [pool.submit(begun.wait) for _ in range(threads)]:
        waiting.result()
    # Each thread has a number of its own; threads that are yet to be started take the last one that was set.
    torch.set_num_threads(threads)
    return pool
