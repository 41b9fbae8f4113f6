"""Seconds of a work on a device, once or in rounds."""

import math
import time
from collections.abc import Callable

import torch

from svdctl.config.table_config import SpeedScale

SETTLE = 1e-3
"""Seconds below which a measurement is repeated within one timing."""
LONG = 5.0
"""Seconds from which the first run of a work, which warms up, is counted too."""


def timed(work: Callable[[], None], device: torch.device, loops: int = 1) -> float:
    """Seconds of one run of the work, the mean of several."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(loops):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / loops


def in_rounds(works: list[Callable[[], None]], scale: SpeedScale, device: torch.device) -> list[tuple[float, ...]]:
    """Seconds of each work in each round; a first round warms up, and counts when its works are long."""
    began = time.perf_counter()
    first = [timed(work, device) for work in works]
    loops = [max(1, min(100, math.ceil(SETTLE / max(taken, 1e-6)))) for taken in first]
    times = [[taken] for taken in first] if max(first) > LONG else [[] for _ in works]
    while len(times[0]) < scale.repeats and (len(times[0]) < 3 or time.perf_counter() - began < scale.seconds):
        for work, loop, found in zip(works, loops, times, strict=True):
            found.append(timed(work, device, loop))
    return [tuple(found) for found in times]
