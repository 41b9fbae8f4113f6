"""`--dry-run`: every run of a plan with what it would cost and what of it is there; nothing is trained or written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from svdctl.config.table_config import Request, SpeedFigure
from svdctl.reproduce.estimate import Hours, Meter
from svdctl.reproduce.paper_numbers import read_paper_numbers
from svdctl.reproduce.plan import Plan, PlannedRun, make_plan
from svdctl.reproduce.reproduction import disk_needed
from svdctl.reproduce.run_store import RunState, RunStore
from svdctl.reproduce.static_figures import run_bytes, static_figures, step_flops


@dataclass(frozen=True)
class Rehearsed:
    """One run."""

    tables: tuple[str, ...]
    """Tables and rows that it serves."""
    run: PlannedRun
    parameters: int
    compression: float
    step_flops: float
    hours: Hours
    disk: int
    found: RunState | None
    """What is there of it."""

    @property
    def hours_left(self) -> float | None:
        """Of training and measuring, a finished training counting nothing."""
        if self.hours.train is None or self.hours.evaluate is None:
            return None
        finished = self.found is not None and self.found.finished
        return self.hours.evaluate + (0.0 if finished else self.hours.train)


@dataclass(frozen=True)
class Rehearsal:
    """A whole plan."""

    plan: Plan
    runs: tuple[Rehearsed, ...]
    figures: dict[str, SpeedFigure]
    disk_needed: int
    disk_free: int


def dry_run_report(request: Request, say: Callable[[str], None]) -> Rehearsal:
    """Resolve and estimate everything; works without data.

    Raises:
        UsageError: names, files, configurations.
    """
    plan = make_plan(request)
    if request.paper_numbers is not None:
        read_paper_numbers(request.paper_numbers, plan.tables)
    store = RunStore(request.out_dir, request.reuse)
    index = store.index()
    meter = Meter()
    runs = []
    planned = plan.runs()
    for number, run in enumerate(planned, 1):
        say(f"measuring {number}/{len(planned)}: {run.config.name}")
        figures = static_figures(run.config)
        serves = tuple(
            f"{table.name}: {row.row.name}"
            for table in plan.tables
            for row in table.rows
            if any(other.id == run.id for other in row.runs)
        )
        hours, size = meter.hours(run), run_bytes(run.config)
        found = store.best(run.key, index)
        runs.append(
            Rehearsed(serves, run, figures.parameters, figures.compression, step_flops(run.config), hours, size, found)
        )
    free = shutil.disk_usage(_existing(request.out_dir.expanduser().absolute())).free
    return Rehearsal(plan, tuple(runs), plan.figures, disk_needed(planned, store), free)


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not path.exists():
        path = path.parent
    return path
