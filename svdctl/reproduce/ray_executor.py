"""Jobs on a Ray cluster: placement, retries of lost workers and queues are Ray's.

The folder of runs must be storage that all machines see: a retried job goes on from the checkpoint there.
"""

import socket
from typing import Any

from pydantic import TypeAdapter

from svdctl.errors import UsageError
from svdctl.reproduce.execute import JOB, Job, Outcome
from svdctl.reproduce.table_results import RunFigures

RETRIES = 3


def work(text: str) -> str:
    """One job on a worker of the cluster; JSON in, JSON out."""
    from svdctl.reproduce.execute import JOB, Outcome, execute

    return TypeAdapter(Outcome).dump_json(execute(JOB.validate_json(text))).decode()


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would wait there for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(_no_cluster(address, error)) from error


def _no_cluster(address: str | None, error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
    return (
        f"--address {address}: no Ray cluster answers there ({first}); start one with `ray start --head`, or leave "
        "--address out for this machine alone"
    )


class OnRay:
    """Hands all jobs to Ray at once.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "--engine ray needs Ray, which is not installed; pip install 'svdctl[ray]', or leave --engine out"
            ) from error
        self._ray: Any = ray
        if address is not None:
            _check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise UsageError(_no_cluster(address, error)) from error
        resources = ray.cluster_resources()
        needs = {"num_gpus": 1} if resources.get("GPU", 0) >= 1 else {"num_cpus": 1}
        self._work = ray.remote(max_retries=RETRIES, **needs)(work)
        self._jobs: dict[Any, Job] = {}

    def has_room(self) -> bool:
        return True

    def active(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs[self._work.remote(JOB.dump_json(job).decode())] = job

    def wait(self, seconds: float) -> list[Outcome]:
        if not self._jobs:
            return []
        ready, _ = self._ray.wait(list(self._jobs), timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        job = self._jobs.pop(reference)
        try:
            return TypeAdapter(Outcome).validate_json(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            reason = f"the worker was lost {RETRIES + 1} times: {first}"
            job.store.write_status(job.run.key, state="failed", reason=reason)
            return Outcome(job.run.id, "failed", RunFigures(reason=reason))

    def stop(self) -> None:
        for reference in self._jobs:
            self._ray.cancel(reference)
        self._jobs.clear()
        self._ray.shutdown()
