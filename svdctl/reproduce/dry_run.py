"""`--dry-run`: every run of a plan with what it would cost and what of it is there; nothing is trained or written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from svdctl.reproduce.estimate import Hours, Meter, Static, run_bytes, static_figures, step_flops
from svdctl.reproduce.job import Job
from svdctl.reproduce.paper_numbers import read_paper_numbers
from svdctl.reproduce.plan import Plan, make_plan
from svdctl.reproduce.reproduction import disk_needed
from svdctl.reproduce.run_store import RunState, RunStore
from svdctl.reproduce.table_config import Request


@dataclass(frozen=True)
class JobEstimate:
    """What one job would cost."""

    rows: tuple[str, ...]
    """Tables and rows that it is for."""
    job: Job
    static: Static
    step_flops: float
    hours: Hours | None
    """None: not known."""
    disk: int
    """Bytes of its run folder."""
    found: RunState | None
    """What is there of it."""

    @property
    def hours_left(self) -> float | None:
        """Hours of training and measuring; a finished training counts nothing."""
        if self.hours is None:
            return None
        return self.hours.evaluate + (0.0 if self.found is not None and self.found.finished else self.hours.train)


@dataclass(frozen=True)
class DryRun:
    """A whole plan."""

    plan: Plan
    jobs: tuple[JobEstimate, ...]
    disk_needed: int
    disk_free: int


def dry_run(request: Request, say: Callable[[str], None]) -> DryRun:
    """Resolve and estimate everything; works without data.

    Raises:
        UsageError: names, files, configurations.
    """
    plan = make_plan(request)
    if request.paper_numbers is not None:
        read_paper_numbers(request.paper_numbers, plan.tables)
    store = RunStore(request.out_dir, request.reuse)
    index, meter = store.index(), Meter()
    estimates, jobs = [], plan.jobs()
    for number, job in enumerate(jobs, 1):
        say(f"measuring {number}/{len(jobs)}: {job.config.name}")
        rows = tuple(
            f"{table.name}: {row.row.name}"
            for table in plan.tables
            for row in table.rows
            if any(other.id == job.id for other in row.jobs)
        )
        static, found = static_figures(job.config), store.best(job.key, index)
        flops, hours, size = step_flops(job.config), meter.hours(job), run_bytes(job.config)
        estimates.append(JobEstimate(rows, job, static, flops, hours, size, found))
    folder = request.out_dir.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return DryRun(plan, tuple(estimates), disk_needed(jobs, store), shutil.disk_usage(there).free)
