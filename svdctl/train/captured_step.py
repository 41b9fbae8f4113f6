"""Training steps recorded as CUDA graphs: a replay runs all kernels of a step without Python."""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from svdctl.config.optimizer_config import ScheduleConfig
from svdctl.config.run_config import Hardware
from svdctl.data.batches import Batch

WARM_UP = 3
"""Eager steps of each kind before it is recorded: they make the optimiser's state, and cuDNN and the compiler choose
their kernels."""

Result = TypeVar("Result")


def why_not_captured(
    hardware: Hardware, device: torch.device, processes: int, schedule: ScheduleConfig | None = None
) -> str | None:
    """Return why no step of a run on a device is captured; None: those that read nothing back are."""
    if hardware.capture == "off":
        return "`hardware.capture` is off"
    if device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if processes > 1:
        return (
            "messages between processes are not captured: torch captures those of DDP only where its handling of their "
            "errors is off, and all processes must record and replay at the same steps, whatever their parts of a batch"
        )
    if hardware.precision == "16-mixed":
        return "16-mixed reads the scale of the loss in every step; bf16-mixed does not"
    if schedule is not None and schedule.cycles_momentum:
        return "the schedule cycles the momentum, which torch's optimisers take as a number and a graph would keep"
    return None


def waits_for_host(work: Callable[[], Result]) -> tuple[Result, str | None]:
    """Return what `work` returns, and the line of code at which it waited for a CUDA device; None: it did not."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = work()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    waits = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    for warning in caught:
        if warning not in waits and "Synchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result, f"{waits[0].filename}:{waits[0].lineno}" if waits else None


class CapturedSteps:
    """Runs steps eagerly at first, then as replays of CUDA graphs, one graph for each kind of step.

    Eager steps, recording and replays are on one stream of their own, and the caller's stream waits for it, so that a
    caller need not know. A step whose warm-up waited for the host is never recorded.

    Args:
        step: the work of a step on its batch, on the device alone: it reads and writes tensors that stay where they
            are, makes what it needs besides, and changes nothing else.
        device: a CUDA device.
        notice: is given a sentence when a kind of step cannot be recorded.
    """

    def __init__(self, step: Callable[[Batch], None], device: torch.device, notice: Callable[[str], None]) -> None:
        self._step, self._notice = step, notice
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._warm: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self._refused: set[Hashable] = set()

    @property
    def replayed(self) -> int:
        """Return the number of kinds of steps that are replayed."""
        return len(self._graphs)

    def run(self, batch: Batch, kind: Hashable, *, capture: bool) -> None:
        """Make one step.

        Args:
            batch: its images.
            kind: equal for steps that do the same work on other numbers.
            capture: whether a step of this kind may be recorded.
        """
        kind = (kind, batch.sizes, *(value.shape for value in batch.tensors().values()))
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            if not capture or kind in self._refused:
                self._step(batch)
            elif kind in self._graphs:
                self._replay(batch, kind)
            elif self._warm.get(kind, 0) < WARM_UP:
                self._warm[kind] = self._warm.get(kind, 0) + 1
                self._warm_up(batch, kind, last=self._warm[kind] == WARM_UP)
            else:
                self._record(batch, kind)
        caller.wait_stream(self._stream)

    def _warm_up(self, batch: Batch, kind: Hashable, *, last: bool) -> None:
        """Make an eager step; the last one before recording shows whether it waits for the host."""
        if not last:
            self._step(batch)
            return
        _, where = waits_for_host(lambda: self._step(batch))
        if where is not None:
            self._refuse(kind, f"it waits for the device ({where})")

    def _record(self, batch: Batch, kind: Hashable) -> None:
        """Record a step and replay it for this batch; recording itself computes nothing."""
        # Its own copies: the graph reads every later batch from where this one lies.
        copies: dict[str, Any] = {name: value.clone() for name, value in batch.tensors().items()}
        kept = replace(batch, **copies)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                self._step(kept)
        except RuntimeError as error:
            self._refuse(kind, str(error).strip().splitlines()[0])
            self._step(batch)
            return
        self._graphs[kind] = graph, kept
        graph.replay()

    def _replay(self, batch: Batch, kind: Hashable) -> None:
        graph, kept = self._graphs[kind]
        torch._foreach_copy_([*kept.tensors().values()], [*batch.tensors().values()])
        graph.replay()

    def _refuse(self, kind: Hashable, reason: str) -> None:
        self._refused.add(kind)
        self._notice(f"a step cannot be captured as a CUDA graph, and runs eagerly: {reason}")
