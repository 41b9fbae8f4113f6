"""`svdctl reproduce`: a plan, an executor for its jobs, tables and figures."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from svdctl.data.data_source import load as load_data
from svdctl.data.images import ImageData
from svdctl.errors import Interrupted, UsageError
from svdctl.registry import METRICS
from svdctl.reproduce.estimate import disk_needed
from svdctl.reproduce.execute import evaluation_config
from svdctl.reproduce.executors import Executor, InProcess, OnRay, Processes
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.run_store import Job, Outcome, RunState, RunStore
from svdctl.reproduce.speed import write_figure
from svdctl.reproduce.table_files import Request
from svdctl.reproduce.table_results import Results, assemble, write_table
from svdctl.utils.progress import Reporter
from svdctl.utils.signals import answer_to_stop, terminated_as_interrupt

GO_ON = "the same command goes on where it was"
BUSY_PAUSE = 5.0
"""Seconds between two attempts to lock the folder of a run that another command is training."""


@dataclass(frozen=True)
class ReproduceResult:
    """Hold the tables and files of a call, and the runs that failed."""

    tables: tuple[Results, ...]
    files: tuple[Path, ...]
    failed: tuple[str, ...]
    """A line for each run that failed."""


def reproduce(plan: Plan, reporter: Reporter, command_line: Callable[[Job], str]) -> ReproduceResult:
    """Make tables and figures; runs and measurements that earlier calls have finished are used.

    Args:
        plan: what is made.
        reporter: gets the plan, the outcomes of its jobs, and notices.
        command_line: returns the command that trains a run; tables name it.

    Raises:
        UsageError: before anything is trained: disk, executor.
        DataError: data that are not there and cannot be had.
        Interrupted: stopped; everything is saved.
    """
    request = plan.request
    store = RunStore(request.out_dir, request.reuse)
    store.prepare()
    jobs = plan.jobs()
    outcomes: dict[str, Outcome] = {}
    # First of all: an executor that is not there is an error at once.
    executor = make_executor(request, reporter)

    def kept() -> str:
        measured = sum(outcome.state == "done" for outcome in list(outcomes.values()))
        return f"what is trained and measured is kept in {request.out_dir}, {measured} of {len(jobs)} runs whole"

    with terminated_as_interrupt():  # until the workers have stopped too
        try:
            with answer_to_stop(kept):
                if jobs:
                    states = store.states(jobs)
                    check_disk(jobs, store, states)
                    check_data(jobs, reporter)
                    # Those that are there first: their figures are seen at once, and all the others take time.
                    jobs.sort(key=lambda job: not is_finished(states[job.key]))
                    reporter.begin(plan)
                    for outcome in drive(jobs, executor, reporter):
                        outcomes[outcome.id] = outcome
                        reporter.finish(outcome)
                        # A table of an earlier call has more than one of the first runs that are there.
                        if not outcome.is_reused:
                            _write(plan, outcomes, command_line, pictures=False)
                results, files = _write(plan, outcomes, command_line, pictures=True)
                for name, figure in plan.figures.items():
                    files += write_figure(request, name, figure, store, reporter.say)
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(f"stopped; {kept()}; {GO_ON}") from error
        finally:
            executor.stop()
            reporter.close()
    failed = [f"{table.plan.name}: {line}" for table in results for line in table.table.failures]
    return ReproduceResult(tuple(results), tuple(files), tuple(failed))


def drive(jobs: Sequence[Job], executor: Executor, reporter: Reporter) -> Iterator[Outcome]:
    """Yield the outcomes of jobs; runs that another command holds are left for later.

    Args:
        jobs: one for each run.
        executor: gets them as it has room.
        reporter: gets what is waited for, and, while a run is at work, why what was there of it is not used.

    Raises:
        Interrupted: a job was stopped by a signal.
    """
    waiting = deque(jobs)
    active: dict[Future[Outcome], tuple[Job, float]] = {}
    announced: set[str] = set()
    not_before: dict[str, float] = {}
    while waiting or active:
        for _ in range(len(waiting)):
            if len(active) >= executor.slots:
                break
            job = waiting.popleft()
            if time.monotonic() >= not_before.get(job.id, 0.0) and job.store.is_free(job.key):
                since = time.time()  # the clock of the status, which other processes write
                active[executor.submit(job)] = (job, since)
            else:
                waiting.append(job)
                if job.key not in announced and not active:
                    announced.add(job.key)
                    reporter.say(f"another command works on {job.config.name}: waiting for it")
        if not active:
            time.sleep(1)
        done, _ = wait(active, timeout=1, return_when=FIRST_COMPLETED)
        for job, since in active.values():
            status = job.store.read_status(job.key)
            for why in status.get("passed_over", []) if status.get("time", 0) >= since else []:
                reporter.notice(f"{job.config.name}: {why}")
        for future in done:
            job, _ = active.pop(future)
            outcome = future.result()
            if outcome.state == "busy":
                waiting.append(job)
                not_before[job.id] = time.monotonic() + BUSY_PAUSE
            elif outcome.state == "interrupted":
                raise Interrupted(GO_ON)
            else:
                yield outcome


def make_executor(request: Request, reporter: Reporter) -> Executor:
    """Return the executor of a request; one in this process reports at once why what is there of a run is not used.

    Raises:
        UsageError: Ray is not there.
    """
    if request.engine == "ray":
        return OnRay(request.address)
    if request.address is not None:
        raise UsageError("`address` is that of a Ray cluster; add `engine = ray`, or leave it out")
    return InProcess(reporter) if request.jobs == 1 else Processes(request.jobs)


def is_finished(state: RunState | None) -> bool:
    """Return whether a run is there and trained."""
    return state is not None and state.finished


def check_disk(jobs: Sequence[Job], store: RunStore, states: Mapping[str, RunState | None]) -> None:
    """Refuse a plan that the disk cannot hold, before anything is trained.

    Args:
        jobs: of the plan.
        store: where they are written.
        states: how far they are, by `key`.

    Raises:
        UsageError: too little space.
    """
    needed = disk_needed(jobs, states)
    free = shutil.disk_usage(store.out_dir.expanduser()).free
    if needed > free:
        raise UsageError(
            f"the plan needs {needed / 1e9:.1f} GB below {store.out_dir}, and {free / 1e9:.1f} GB are free; free space "
            "there, choose fewer `rows`, or give another `out_dir`"
        )


def check_data(jobs: Sequence[Job], reporter: Reporter) -> None:
    """Load every data set once, and find the corrupted ones: what cannot be had is an error before any training.

    Raises:
        DataError: what is missing and where it belongs.
    """
    tests: dict[str, ImageData] = {}
    checked: set[str] = set()
    for job in jobs:
        key = job.config.data.model_dump_json()
        tests[key] = tests.get(key) or load_data(job.config.data, reporter=reporter).test
        for kind in job.metrics:
            if (what := f"{key} {kind} {job.evaluate.model_dump_json()}") not in checked:
                checked.add(what)
                config = evaluation_config(job, Path("last.pt"))
                METRICS.get(kind).check_data(config, job.config.data, tests[key])


def _write(
    plan: Plan, outcomes: Mapping[str, Outcome], command_line: Callable[[Job], str], *, pictures: bool
) -> tuple[list[Results], list[Path]]:
    results = [assemble(table, outcomes, plan.paper) for table in plan.tables]
    out_dir = plan.request.out_dir
    files = [file for result in results for file in write_table(out_dir, result, command_line, picture=pictures)]
    return results, files
