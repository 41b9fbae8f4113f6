"""The frequencies of one layer shared among processes.

All of them run the same code on the same bits and meet wherever matrices at many frequencies are worked on: each takes
a part of the batch and gets the others' results. What is decided by those results is decided alike by all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Crew:
    """Processes at work on one layer, seen from one of them.

    Attributes:
        place: of this process among them.
        size: how many they are.
        pieces: every process's tensor, given this one's and the length of each along the first axis.
    """

    place: int
    size: int
    pieces: Callable[[Tensor, Sequence[int]], Sequence[Tensor]]


_CREW: ContextVar[Crew | None] = ContextVar("crew", default=None)


@contextmanager
def shared_by(crew: Crew) -> Iterator[None]:
    """Within it, and in this thread, `distributed_map` shares its batches."""
    token = _CREW.set(crew)
    try:
        yield
    finally:
        _CREW.reset(token)


def distributed_map(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`function(batch)`, for a function that looks at each entry along the first axis alone; shared by the crew."""
    crew = _CREW.get()
    if crew is None or len(batch) < 2:
        return function(batch)
    parts = batch.tensor_split(crew.size)
    own = parts[crew.place]
    # Without a part, one entry tells shape and type of the others' results.
    result = function(own) if len(own) else function(batch[:1])[:0]
    return torch.cat(list(crew.pieces(result, [len(part) for part in parts])))
