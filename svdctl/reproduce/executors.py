"""Executors run jobs: in this process, in worker processes of this machine, or on a Ray cluster (`ray_executor`)."""

import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from svdctl.plugins import loaded_plugins
from svdctl.reproduce.execute import execute
from svdctl.reproduce.job import JOB, OUTCOME, Job, Outcome

ATTEMPTS = 3
"""Times that a job is started whose worker is lost."""


class Executor(ABC):
    """Takes jobs and gives their outcomes.

    Attributes:
        slots: jobs at a time.
        active: jobs without an outcome, by what the executor knows them by.
    """

    def __init__(self, slots: float) -> None:
        self.slots = slots
        self.active: dict[Any, Job] = {}

    def has_room(self) -> bool:
        """Return whether another job may be submitted now."""
        return len(self.active) < self.slots

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Start a job."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Outcome]:
        """Return the outcomes that have come; waits for the first one no longer than this."""

    def stop(self) -> None:
        """End what runs, its state saved."""
        self.active.clear()


def lost(job: Job, reason: str) -> Outcome:
    """Return the outcome of a job whose worker is gone for good, and write it into the status of the run."""
    job.store.write_status(job.key, state="failed", reason=reason)
    return Outcome(job.id, "failed", reason=reason)


class InProcess(Executor):
    """Runs one job after another in this process.

    Args:
        on_notice: called at once with the reason why what was there of a run is not used.
    """

    def __init__(self, on_notice: Callable[[Job, str], None]) -> None:
        super().__init__(1)
        self._on_notice = on_notice
        self._outcomes: list[Outcome] = []

    def submit(self, job: Job) -> None:
        self.active[job.id] = job
        self._outcomes.append(execute(job, lambda text: self._on_notice(job, text)))

    def wait(self, seconds: float) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        self.active.clear()
        return outcomes


@dataclass(eq=False)
class _Worker:
    slot: int
    process: subprocess.Popen[str]
    output: IO[str]
    errors: IO[str]


class Processes(Executor):
    """Runs jobs in worker processes, each with its share of threads, or a GPU of its own where there are any."""

    # `-P`: a module in the current folder hides none of those that a worker imports. svdctl is the one that runs here.
    command: tuple[str, ...] = (
        sys.executable, "-P", "-c",
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); import svdctl; del sys.path[0]; "
        "from svdctl.reproduce.worker import main; main()",
    )  # fmt: skip

    def __init__(self, slots: int, gpus: list[str] | None = None) -> None:
        super().__init__(slots)
        self._gpus = _visible_gpus() if gpus is None else gpus
        self._threads = max(1, len(os.sched_getaffinity(0)) // slots)
        self._starts: Counter[str] = Counter()

    def submit(self, job: Job) -> None:
        slot = next(slot for slot in count() if all(worker.slot != slot for worker in self.active))
        self._starts[job.key] += 1
        # Files, not pipes: a worker that writes much never waits for a reader.
        given, output, errors = (tempfile.TemporaryFile("w+") for _ in range(3))  # noqa: SIM115 - the worker's
        with given:
            given.write(JOB.dump_json(job).decode())
            given.seek(0)
            process = subprocess.Popen(
                (*self.command, *(word for name in loaded_plugins() for word in ("--plugin", name))),
                stdin=given,
                stdout=output,
                stderr=errors,
                text=True,
                # Ctrl-C in a terminal reaches all of its processes: workers get one signal, from `stop`.
                start_new_session=True,
                env={**os.environ, **self._environment(slot)},
            )
        self.active[_Worker(slot, process, output, errors)] = job

    def _environment(self, slot: int) -> dict[str, str]:
        found = {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        if self._gpus:
            found["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return found

    def wait(self, seconds: float) -> list[Outcome]:
        until = time.monotonic() + seconds
        while True:
            ended = [worker for worker in self.active if worker.process.poll() is not None]
            outcomes = [outcome for worker in ended if (outcome := self._outcome(worker)) is not None]
            if outcomes or time.monotonic() >= until:
                return outcomes
            time.sleep(0.1)

    def _outcome(self, worker: _Worker) -> Outcome | None:
        """Return the outcome of a worker that ended; None when it was lost and its job started again."""
        job, code = self.active.pop(worker), worker.process.returncode
        worker.output.seek(0)
        worker.errors.seek(0)
        with worker.output, worker.errors:
            last = worker.output.read().strip().rpartition("\n")[2]
            errors = worker.errors.read().strip().splitlines()
        try:
            return OUTCOME.validate_json(last)
        except ValidationError:
            if code < 0 and self._starts[job.key] < ATTEMPTS:
                self.submit(job)
                return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return lost(job, f"the worker process {how}" + (f": {errors[-1][:200]}" if errors else ""))

    def stop(self) -> None:
        for worker in self.active:
            worker.process.terminate()
        for worker in self.active:
            try:
                worker.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                worker.process.kill()
            worker.output.close()
            worker.errors.close()
        super().stop()


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
