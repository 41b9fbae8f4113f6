"""Jobs on a Ray cluster: placement, retries of lost workers and queues are Ray's.

The folder of runs must be storage that all machines see: a retried job goes on from the checkpoint there.
"""

import socket
from typing import Any

from svdctl.errors import UsageError
from svdctl.plugins import loaded_plugins
from svdctl.reproduce.executors import Executor, lost
from svdctl.reproduce.job import JOB, OUTCOME, Job, Outcome
from svdctl.reproduce.worker import work

RETRIES = 3


class OnRay(Executor):
    """Hands all jobs to Ray at once.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None) -> None:
        super().__init__(float("inf"))
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "`engine = ray` needs Ray, which is not installed; pip install 'svdctl[ray]', or leave `engine` out"
            ) from error
        self._ray: Any = ray
        try:
            if address is not None:
                _check_answers(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
            raise UsageError(
                f"`address = {address}`: no Ray cluster answers there ({_first_line(error, 150)}); start one with `ray "
                "start --head`, or leave `address` out for this machine alone"
            ) from error
        needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
        self._work = ray.remote(max_retries=RETRIES, **needs)(work)

    def submit(self, job: Job) -> None:
        self.active[self._work.remote(JOB.dump_json(job).decode(), loaded_plugins())] = job

    def wait(self, seconds: float) -> list[Outcome]:
        ready = self._ray.wait(list(self.active), timeout=seconds)[0] if self.active else []
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        job = self.active.pop(reference)
        try:
            return OUTCOME.validate_json(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            return lost(job, f"the worker was lost {RETRIES + 1} times: {_first_line(error, 200)}")

    def stop(self) -> None:
        for reference in self.active:
            self._ray.cancel(reference)
        super().stop()
        self._ray.shutdown()


def _check_answers(address: str) -> None:
    """Connect to an address: where nothing listens, Ray itself would wait for minutes.

    Raises:
        OSError, OverflowError: nothing answers.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _first_line(error: BaseException, length: int) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
