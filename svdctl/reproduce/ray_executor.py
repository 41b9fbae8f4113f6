"""Jobs on a Ray cluster: placement, retries of lost workers and queues are Ray's.

The folder of runs must be storage that all machines see: a retried job goes on from the checkpoint there.
"""

import socket
from contextlib import suppress
from typing import Any

from svdctl.errors import UsageError
from svdctl.plugins import loaded_plugins
from svdctl.reproduce.executors import Executor, lost
from svdctl.reproduce.job import JOB, OUTCOME, Job, Outcome
from svdctl.reproduce.worker import work

RETRIES = 3
MOST_JOBS = 1000
"""Jobs that Ray holds at a time."""


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
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
            raise UsageError(
                f"`address = {address}`: no Ray cluster answers there ({_first_line(error, 150)}); start one with `ray "
                "start --head`, or leave `address` out for this machine alone"
            ) from error
        needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
        self._work = ray.remote(max_retries=RETRIES, **needs)(work)

    def run(self, job: Job) -> Outcome:
        errors = self._ray.exceptions
        reference = self._work.remote(JOB.dump_json(job).decode(), loaded_plugins())
        try:
            while not self.stopped.is_set():
                with suppress(errors.GetTimeoutError):
                    return OUTCOME.validate_json(self._ray.get(reference, timeout=1.0))
        except errors.RayError as error:
            return lost(job, f"the worker was lost {RETRIES + 1} times: {_first_line(error, 200)}")
        self._ray.cancel(reference)
        return Outcome(job.id, "interrupted")

    def stop(self) -> None:
        super().stop()
        self._ray.shutdown()


def _first_line(error: BaseException, length: int) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
