"""Where jobs run: in this process, in several processes of this machine, or on a Ray cluster."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Protocol

from pydantic import TypeAdapter, ValidationError

from svdctl.reproduce.execute import JOB, Job, Outcome, execute
from svdctl.reproduce.plan import PlannedRun
from svdctl.reproduce.table_results import RunFigures

ATTEMPTS = 3
"""Times that a job is started whose worker is lost."""


class Engine(Protocol):
    """Takes jobs, gives outcomes."""

    def has_room(self) -> bool:
        """Whether another job may be submitted now."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes that have come; waits for the first one no longer than this."""

    def active(self) -> int:
        """Jobs without an outcome."""

    def stop(self) -> None:
        """End what runs, its state saved."""


class InProcess:
    """One job after another, here.

    Args:
        tell: who is told at once why what was there of a run is not used.
    """

    def __init__(self, tell: Callable[[PlannedRun, str], None]) -> None:
        self._tell = tell
        self._outcomes: list[Outcome] = []

    def has_room(self) -> bool:
        return not self._outcomes

    def submit(self, job: Job) -> None:
        self._outcomes.append(execute(job, lambda text: self._tell(job.run, text)))

    def wait(self, seconds: float) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def active(self) -> int:
        return len(self._outcomes)

    def stop(self) -> None: ...


@dataclass
class _Worker:
    job: Job
    slot: int
    process: subprocess.Popen[str]
    output: IO[str]
    errors: IO[str]


class Processes:
    """Several worker processes on this machine, each with its share of threads, or its own GPU where there are any."""

    command: tuple[str, ...] = (sys.executable, "-m", "svdctl.reproduce.worker")

    def __init__(self, count: int, gpus: list[str] | None = None) -> None:
        self._count = count
        self._gpus = _visible_gpus() if gpus is None else gpus
        self._threads = max(1, len(os.sched_getaffinity(0)) // count)
        self._workers: list[_Worker] = []
        self._starts: dict[str, int] = {}

    def has_room(self) -> bool:
        return len(self._workers) < self._count

    def active(self) -> int:
        return len(self._workers)

    def submit(self, job: Job) -> None:
        slot = min(set(range(self._count)) - {worker.slot for worker in self._workers})
        self._starts[job.run.key] = self._starts.get(job.run.key, 0) + 1
        # Files, not pipes: a worker that writes much never waits for a reader.
        given, output, errors = (tempfile.TemporaryFile("w+") for _ in range(3))  # noqa: SIM115 - the worker's
        with given:
            given.write(JOB.dump_json(job).decode())
            given.seek(0)
            process = subprocess.Popen(
                self.command,
                stdin=given,
                stdout=output,
                stderr=errors,
                text=True,
                # Ctrl-C in a terminal reaches all of its processes: workers are told once, by `stop`.
                start_new_session=True,
                env={**os.environ, **self._environment(slot)},
            )
        self._workers.append(_Worker(job, slot, process, output, errors))

    def _environment(self, slot: int) -> dict[str, str]:
        found = {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        if self._gpus:
            found["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return found

    def wait(self, seconds: float) -> list[Outcome]:
        until = time.monotonic() + seconds
        while True:
            ended = [worker for worker in self._workers if worker.process.poll() is not None]
            outcomes = [outcome for worker in ended if (outcome := self._end(worker)) is not None]
            if outcomes or time.monotonic() >= until:
                return outcomes
            time.sleep(0.1)

    def _end(self, worker: _Worker) -> Outcome | None:
        """The outcome of a worker that ended; None when it was lost and its job started again."""
        self._workers.remove(worker)
        worker.output.seek(0)
        worker.errors.seek(0)
        with worker.output, worker.errors:
            last = worker.output.read().strip().rpartition("\n")[2]
            errors = worker.errors.read().strip().splitlines()
        key = worker.job.run.key
        try:
            return TypeAdapter(Outcome).validate_json(last)
        except ValidationError:
            code = worker.process.returncode
        if code < 0 and self._starts[key] < ATTEMPTS:
            self.submit(worker.job)
            return None
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = f": {errors[-1][:200]}" if errors else ""
        reason = f"the worker process was {how}{said}" if code < 0 else f"the worker process {how}{said}"
        worker.job.store.write_status(key, state="failed", reason=reason)
        return Outcome(worker.job.run.id, "failed", RunFigures(reason=reason))

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                worker.process.kill()
            worker.output.close()
            worker.errors.close()
        self._workers.clear()


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
