"""Independent pieces of work on the CPU, side by side in threads of one core each.

LAPACK and BLAS gain little from several threads within a matrix of some hundred rows; two matrices at once, or two
layers, gain all of it. Each piece is computed alone either way, so that results do not depend on who computes it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cache
from typing import TypeVar

import torch

from svdctl.spectral.exact_arithmetic import exact_arithmetic, is_exact_here

S = TypeVar("S")
T = TypeVar("T")

_BYTES_PER_THREAD = 320 << 20


def parallel_map(function: Callable[[S], T], items: Iterable[S], memory: Callable[[S], int] | None = None) -> list[T]:
    """Return `[function(item) for item in items]`, without gradients, on as many threads as torch may use.

    While several are computed, `torch.get_num_threads()` is 1: what is called there splits nothing any further. The
    first item is begun first, so that the costliest should be the first. An error of an item is raised after the others
    have ended.

    Args:
        function: of an item.
        items: any number.
        memory: returns about how many bytes an item takes while it is computed. All that are computed at once take
            320 MiB for each thread at most; an item that takes more by itself is computed alone. Absent: it is little.
    """
    threads = torch.get_num_threads()
    items = list(items)
    if memory is not None and threads > 1 and not getattr(_here, "is_worker", False):
        function = _when_there_is_room(function, memory, threads * _BYTES_PER_THREAD)
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


def _when_there_is_room(function: Callable[[S], T], memory: Callable[[S], int], most: int) -> Callable[[S], T]:
    """Return a function of an item that waits while others take the memory that it needs; the first to wait goes first.

    Args:
        function: of an item.
        memory: returns the bytes that an item takes.
        most: bytes that may be taken at once, unless one item takes more.
    """
    changed, taken = threading.Condition(), 0
    waiting: deque[object] = deque()

    def wait_and_call(item: S) -> T:
        nonlocal taken
        size, mine = memory(item), object()
        with changed:
            waiting.append(mine)
            changed.wait_for(lambda: waiting[0] is mine and (taken == 0 or taken + size <= most))
            waiting.popleft()
            taken += size
            changed.notify_all()
        try:
            return function(item)
        finally:
            with changed:
                taken -= size
                changed.notify_all()

    return wait_and_call


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
