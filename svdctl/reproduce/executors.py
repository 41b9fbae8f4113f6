"""Executors run jobs: in this process, in worker processes of this machine, or on a Ray cluster.

On a cluster, placement, retries of lost workers and queues are Ray's. The folder of runs must be storage that all
machines see: a retried job goes on from the checkpoint there.
"""

import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import chdir, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

from pydantic import ValidationError

from svdctl.errors import UsageError, first_line
from svdctl.reproduce.execute import execute
from svdctl.reproduce.run_store import JOB, OUTCOME, Job, Outcome
from svdctl.reproduce.worker import work
from svdctl.utils.progress import Reporter

ATTEMPTS = 3
"""Times that a job is started whose worker is lost."""
RETRIES = 3
MOST_JOBS = 1000
"""Jobs that Ray holds at a time."""


class Executor(ABC):
    """Runs jobs, `slots` at a time, each from a thread that waits for its outcome."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.stopped = Event()
        self._threads = ThreadPoolExecutor(slots)

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job."""
        return self._threads.submit(self.run, job)

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Return the outcome of a job; once stopped, that it was interrupted."""

    def stop(self) -> None:
        """End what runs, its state saved."""
        self.stopped.set()
        self._threads.shutdown(cancel_futures=True)


def lost(job: Job, reason: str) -> Outcome:
    """Return the outcome of a job whose worker is gone for good, and write it into the status of the run."""
    job.store.write_status(job.key, state="failed", reason=reason)
    return Outcome(job.id, "failed", reason=reason)


class InProcess(Executor):
    """Runs one job after another in this thread, which gets the signals that stop a training.

    Args:
        reporter: gets at once the reason why what was there of a run is not used.
    """

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(1)
        self._reporter = reporter

    def submit(self, job: Job) -> Future[Outcome]:
        done: Future[Outcome] = Future()
        done.set_result(self.run(job))
        return done

    def run(self, job: Job) -> Outcome:
        return execute(job, self._reporter)


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
        self.processes: set[subprocess.Popen[str]] = set()
        gpus = _visible_gpus() if gpus is None else gpus
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = str(max(1, cores // slots))
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        # The environment of each slot that is free, the first one last.
        self._free = [
            {**variables, **({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})}
            for slot in reversed(range(slots))
        ]
        self._lock = Lock()

    def run(self, job: Job) -> Outcome:
        variables, attempts = self._free.pop(), 0
        # A worker says it itself once it has imported torch, seconds later.
        job.store.write_status(job.key, state="starting")
        try:
            while True:
                attempts += 1
                code, output, errors = self._call(JOB.dump_json(job).decode(), variables)
                with suppress(ValidationError):
                    return OUTCOME.validate_json(output.strip().rpartition("\n")[2])
                if self.stopped.is_set():
                    return Outcome(job.id, "interrupted")
                if code >= 0 or attempts == ATTEMPTS:
                    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                    why = f": {errors.strip().splitlines()[-1][:200]}" if errors.strip() else ""
                    return lost(job, f"the worker process {how}{why}")
        finally:
            self._free.append(variables)

    def _call(self, text: str, variables: dict[str, str]) -> tuple[int, str, str]:
        """Return the exit code, the output and the errors of a worker; without starting one once stopped."""
        with self._lock:
            if self.stopped.is_set():
                return 0, "", ""
            process = subprocess.Popen(
                [*self.command, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # Ctrl-C in a terminal reaches all of its processes: workers get one signal, from `stop`.
                start_new_session=True,
                env={**os.environ, **variables},
            )
            self.processes.add(process)
        output, errors = process.communicate(text)
        self.processes.discard(process)
        return process.returncode, output, errors

    def stop(self) -> None:
        with self._lock:
            self.stopped.set()
        running = list(self.processes)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        super().stop()


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


class OnRay(Executor):
    """Hands all jobs to Ray at once.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None) -> None:
        super().__init__(MOST_JOBS)
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "`engine = ray` needs Ray, which is not installed; pip install 'svdctl[ray]', or leave `engine` out"
            ) from error
        self._ray: Any = ray
        host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
        try:
            if colon and port.isdigit():  # where nothing listens, Ray itself would wait for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            # Ray's processes import no module of the folder that they are started in. Whatever folder is the current
            # one, Ray adds to the places where its workers look for modules: let it be the one that holds svdctl.
            safe = {"env_vars": {"PYTHONSAFEPATH": "1"}}
            with chdir(Path(__file__).parents[2]):
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=safe)
        except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
            raise UsageError(
                f"`address = {address}`: no Ray cluster answers there ({first_line(error, 150)}); start one with `ray "
                "start --head`, or leave `address` out for this machine alone"
            ) from error
        needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
        self._work = ray.remote(max_retries=RETRIES, **needs)(work)

    def run(self, job: Job) -> Outcome:
        errors = self._ray.exceptions
        reference = self._work.remote(JOB.dump_json(job).decode())
        try:
            while not self.stopped.is_set():
                with suppress(errors.GetTimeoutError):
                    return OUTCOME.validate_json(self._ray.get(reference, timeout=1.0))
        except errors.RayError as error:
            return lost(job, f"the worker was lost {RETRIES + 1} times: {first_line(error, 200)}")
        self._ray.cancel(reference)
        return Outcome(job.id, "interrupted")

    def stop(self) -> None:
        super().stop()
        self._ray.shutdown()
