"""Work on layers shared among processes: each layer's by one of them, what it changed sent to all."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from svdctl.distributed.group import Group
from svdctl.spectral.parallel_map import parallel_map
from svdctl.spectral.stacks import multiply_
from svdctl.utils.progress import Advance, no_advance

T = TypeVar("T")


def on_layers(
    work: Callable[[list[str]], Mapping[str, T]],
    costs: Mapping[str, float],
    threads: bool,
    advance: Advance = no_advance,
) -> dict[str, T]:
    """Return what the work gives for each layer, in the order of `costs`.

    Args:
        work: on the layers of some names.
        costs: by layer, in any unit.
        threads: for layers on the CPU: the work is given one layer at a time, the costliest first, several at a time in
            threads of one core each. Otherwise it is given all layers at once.
        advance: is told how many layers are done, in any thread.
    """
    order = sorted(costs, key=lambda name: -costs[name])
    done, lock = 0, threading.Lock()

    def on_one(name: str) -> Mapping[str, T]:
        nonlocal done
        result = work([name])
        with lock:
            done += 1
            advance(done, len(order), "layers")
        return result

    parts = parallel_map(on_one, order) if threads else [work(list(costs))] if costs else []
    found = {name: result for part in parts for name, result in part.items()}
    return {name: found[name] for name in costs}


class LayerScheduler:
    """One kind of work on named layers; who does which follows from their costs.

    `each` times its work, and costs become running means of these times; `scaled` and `collected` leave them.

    Args:
        costs: expected cost by layer, in any unit.
        group: the processes.
        threads: see `on_layers`.
    """

    def __init__(self, costs: Mapping[str, float], group: Group, threads: bool = False) -> None:
        self.group = group
        self.threads = threads
        self.advance: Advance = no_advance
        """Is told how many of this process's layers are done, where they are worked on one by one."""
        self.costs = dict(costs)
        self._timed = False

    def owners(self) -> dict[str, int]:
        """Return the rank that works on each layer: the costliest first, each to the one with the least to do."""
        loads = [0.0] * self.group.world
        found = {}
        for name in sorted(self.costs, key=lambda name: (-self.costs[name], name)):
            found[name] = loads.index(min(loads))
            loads[found[name]] += self.costs[name]
        return found

    def mine(self) -> list[str]:
        """Return the layers of this process, in the network's order."""
        owners = self.owners()
        return [name for name in self.costs if owners[name] == self.group.rank]

    def each(self, work: Callable[[list[str]], Mapping[str, bool]], written: Callable[[str], Iterable[Tensor]]) -> None:
        """Do the work on all layers.

        Args:
            work: changes layers, and says of each whether it did; see `on_layers`.
            written: the tensors that it may have changed of one.
        """

        def timed(names: list[str]) -> dict[str, tuple[float, float]]:
            began = time.perf_counter()
            changed = work(names)
            seconds = (time.perf_counter() - began) / sum(self.costs[name] for name in names)
            return {name: (float(changed[name]), seconds * self.costs[name]) for name in names}

        done = self._on_mine(timed)
        if self.group.alone:
            return
        owners, places = self.owners(), {name: index for index, name in enumerate(self.costs)}
        table = torch.zeros(len(places), 2, dtype=torch.float64)
        for name, row in done.items():
            table[places[name]] = torch.tensor(row, dtype=torch.float64)
        table = self.group.summed_(table.to(self.group.device)).cpu()
        parcels: dict[int, list[Tensor]] = {rank: [] for rank in range(self.group.world)}
        for name, (changed, _) in zip(places, table.tolist(), strict=True):
            if changed:
                parcels[owners[name]] += written(name)
        self.group.spread_(parcels)
        self._note(dict(zip(places, table[:, 1].tolist(), strict=True)))

    def scaled(
        self, factors: Callable[[list[str]], Sequence[Sequence[Tensor]]], tensors: Callable[[str], Sequence[Tensor]]
    ) -> dict[str, list[Tensor]]:
        """Multiply tensors of all layers by numbers, which one all-reduce sends; no host synchronisation.

        Args:
            factors: the numbers (0-d) of layers.
            tensors: what they multiply, as many.

        Returns:
            The numbers of each layer, in every process.
        """
        mine = self.mine()
        own = {name: list(row) for name, row in zip(mine, factors(mine), strict=True)}
        if not self.group.alone:
            widest = max((len(tensors(name)) for name in self.costs), default=0)
            table = torch.zeros(len(self.costs), widest, dtype=torch.float64, device=self.group.device)
            for row, name in zip(table, self.costs, strict=True):
                if name in own:
                    row[: len(own[name])] = torch.stack(own[name])
            rows = zip(self.costs, self.group.summed_(table), strict=True)
            own = {name: list(row[: len(tensors(name))]) for name, row in rows}
        pairs = [pair for name in self.costs for pair in zip(tensors(name), own[name], strict=True)]
        if pairs:
            multiply_([tensor for tensor, _ in pairs], [factor for _, factor in pairs])
        return own

    def collected(self, work: Callable[[list[str]], Mapping[str, T]]) -> dict[str, T]:
        """Return what the work gives for each layer, small things, in every process; see `on_layers`."""
        found: dict[str, T] = {}
        for part in self.group.gathered(self._on_mine(work)):
            found |= part
        return {name: found[name] for name in self.costs}

    def _on_mine(self, work: Callable[[list[str]], Mapping[str, T]]) -> dict[str, T]:
        return on_layers(work, {name: self.costs[name] for name in self.mine()}, self.threads, self.advance)

    def _note(self, seconds: Mapping[str, float]) -> None:
        """Take the mean of the latest time and those before it: one that was disturbed does not move everything."""
        old = self.costs if self._timed else seconds
        self.costs = {name: (old[name] + seconds[name]) / 2 for name in self.costs}
        self._timed = True
