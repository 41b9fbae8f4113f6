"""`--dry-run`: every run of a plan with what it would cost and what of it is there; nothing is trained or written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svdctl.reproduce.estimate import Hours, hours, run_bytes, static_figures
from svdctl.reproduce.job import Job
from svdctl.reproduce.paper_numbers import read_paper_numbers
from svdctl.reproduce.plan import Plan, make_plan
from svdctl.reproduce.reproduction import disk_needed
from svdctl.reproduce.run_store import RunState, RunStore
from svdctl.reproduce.table_config import Request


@dataclass(frozen=True)
class JobEstimate:
    """What one job would cost."""

    rows: list[str]
    """Tables and rows that it is for."""
    job: Job
    static: dict[str, float]
    """What follows from its configuration."""
    hours: Hours | None
    """None: not known."""
    disk: int
    """Bytes of its run folder."""
    found: RunState | None
    """What is there of it."""


@dataclass(frozen=True)
class DryRun:
    """A whole plan."""

    plan: Plan
    jobs: list[JobEstimate]
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
    index, jobs, measured = store.index(), plan.jobs(), dict[str, Any]()
    rows: dict[str, list[str]] = {}
    for table in plan.tables:
        for row in table.rows:
            for job in row.jobs:
                rows.setdefault(job.id, []).append(f"{table.name}: {row.row.name}")
    estimates = []
    for number, job in enumerate(jobs, 1):
        say(f"measuring {number}/{len(jobs)}: {job.config.name}")
        static, size = static_figures(job.config), run_bytes(job.config)
        estimates.append(JobEstimate(rows[job.id], job, static, hours(job, measured), size, store.best(job.key, index)))
    folder = request.out_dir.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return DryRun(plan, estimates, disk_needed(jobs, store), shutil.disk_usage(there).free)
