"""Run proofs about many layers in rounds: what they ask for in a round is computed together.

A proof is a generator. It yields steps, functions of many arguments at once, and is sent what they give for its own;
so one branch and bound serves a single layer and a network, and a device is read once a round.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Step:
    """What a proof asks for.

    Args:
        function: takes the arguments of all proofs that ask for the same, and returns an answer to each.
        argument: this proof's own.
        rank: steps of the lowest one go first, and those of others wait for proofs that may come to ask for the same.
    """

    function: Callable[[list[Any]], Sequence[Any]]
    argument: Any
    rank: int = 0


Proof = Generator[Step, Any, T]


def run_together(proofs: Sequence[Proof[T]]) -> list[T]:
    """Return what each proof returns, all run in rounds."""
    results: dict[int, T] = {}
    steps: dict[int, Step] = {}

    def advance(place: int, answer: Any) -> None:
        try:
            steps[place] = proofs[place].send(answer)
        except StopIteration as end:
            results[place] = end.value

    for place in range(len(proofs)):
        advance(place, None)
    while steps:
        lowest = min(step.rank for step in steps.values())
        asked = {place: step for place, step in steps.items() if step.rank == lowest}
        for place in asked:
            del steps[place]
        steps_of: dict[Callable[[list[Any]], Sequence[Any]], list[int]] = {}
        for place, step in asked.items():
            steps_of.setdefault(step.function, []).append(place)
        for function, places in steps_of.items():
            answers = function([asked[place].argument for place in places])
            for place, answer in zip(places, answers, strict=True):
                advance(place, answer)
    return [results[place] for place in range(len(proofs))]
