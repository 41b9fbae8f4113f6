"""`svdctl reproduce`: a plan, an engine that works it off, tables and figures."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from svdctl.config.corruption_names import CLEAN
from svdctl.config.data_config import Cifar10, Cifar100
from svdctl.config.table_config import Request
from svdctl.data.sources import load as load_data
from svdctl.errors import Interrupted, UsageError
from svdctl.evaluate.corruptions.cifar_c import find_or_fetch, open_cifar_c
from svdctl.reproduce import run_figures
from svdctl.reproduce.execute import Job, Outcome
from svdctl.reproduce.executors import Engine, InProcess, Processes
from svdctl.reproduce.paper_numbers import PaperNumbers, read_paper_numbers
from svdctl.reproduce.plan import Plan, PlannedRun, make_plan
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.static_figures import run_bytes
from svdctl.reproduce.table_files import write_figure, write_table
from svdctl.reproduce.table_results import Results, RunFigures, assemble
from svdctl.utils.signals import terminated_as_interrupt

GO_ON = "the same command goes on where it was"
BUSY_PAUSE = 5.0
"""Seconds until a run whose folder another command holds is looked at again."""


class Board(Protocol):
    """Who is told how the rows are getting on."""

    def start(self, plan: Plan, runs: Sequence[PlannedRun], store: RunStore) -> None:
        """The work begins."""

    def outcome(self, run: PlannedRun, outcome: Outcome) -> None:
        """A run has ended, one way or the other."""

    def passed_over(self, run: PlannedRun, why: str) -> None:
        """What was there of a run is not used; may be called twice with the same reason."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def command(self, run: PlannedRun) -> str:
        """Return the command line that trains a run."""

    def close(self) -> None:
        """The work has ended; may be called twice."""


@dataclass(frozen=True)
class ReproduceResult:
    """What a call leaves."""

    tables: tuple[Results, ...]
    files: tuple[Path, ...]
    failed: tuple[str, ...]
    """A line for each run that failed."""


def reproduce(request: Request, board: Board) -> ReproduceResult:
    """Make the tables and figures that are asked for; what is finished from an earlier call is used.

    Raises:
        UsageError: before anything is trained: names, files, configurations, disk, engine.
        DataError: data that are not there and cannot be had.
        Interrupted: stopped; everything is saved.
    """
    if request.engine == "ray":
        request = everywhere(request)
    plan = make_plan(request)
    paper = read_paper_numbers(request.paper_numbers, plan.tables) if request.paper_numbers is not None else {}
    store = RunStore(request.out_dir, request.reuse)
    store.prepare()
    runs = plan.runs()
    figures: dict[str, RunFigures] = {}
    # First of all: an engine that is not there is told at once.
    engine = make_engine(request, board.passed_over)
    try:
        with terminated_as_interrupt():
            if runs:
                check_disk(runs, store)
                check_data(runs, request.cifar_c_root)
                figures = _work_off(plan, engine, store, paper, board)
            results, files = _write(plan, figures, paper, board, pictures=True)
            for name, figure in plan.figures.items():
                files += write_figure(request, name, figure, store, board.say)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"stopped; {GO_ON}") from error
    finally:
        engine.stop()
        board.close()
    failed = [
        f"{table.plan.name}: {row.row.row.name}, {reason}"
        for table in results
        for row in table.rows
        for reason in row.reasons
    ]
    return ReproduceResult(tuple(results), tuple(files), tuple(failed))


def _work_off(plan: Plan, engine: Engine, store: RunStore, paper: PaperNumbers, board: Board) -> dict[str, RunFigures]:
    """Do all runs; tables are written anew after each of them."""
    runs = plan.runs()
    board.start(plan, runs, store)
    by_id = {run.id: run for run in runs}
    figures: dict[str, RunFigures] = {}
    jobs = [Job(run, store, plan.request.cifar_c_root) for run in runs]
    for outcome in drive(jobs, engine, store, board.say, board.passed_over):
        figures[outcome.id] = outcome.figures
        board.outcome(by_id[outcome.id], outcome)
        _write(plan, figures, paper, board, pictures=False)
    return figures


def drive(
    jobs: Sequence[Job],
    engine: Engine,
    store: RunStore,
    say: Callable[[str], None],
    passed_over: Callable[[PlannedRun, str], None],
) -> Iterator[Outcome]:
    """Give jobs to an engine as it has room, leaving those that another command works on for later.

    Args:
        jobs: one for each run.
        engine: where they are done.
        store: where their status is.
        say: who is told what is waited for.
        passed_over: who is told, while a run is at work, why what was there of it is not used.

    Raises:
        Interrupted: a job was stopped by a signal.
    """
    by_id = {job.run.id: job for job in jobs}
    waiting = deque(jobs)
    told: set[str] = set()
    not_before: dict[str, float] = {}
    given: dict[str, float] = {}
    while waiting or engine.active():
        for _ in range(len(waiting)):
            if not engine.has_room():
                break
            job = waiting.popleft()
            if time.monotonic() >= not_before.get(job.run.id, 0.0) and store.is_free(job.run.key):
                given[job.run.id] = time.time()  # the clock of the status, which other processes write
                engine.submit(job)
            else:
                waiting.append(job)
                if job.run.key not in told and not engine.active():
                    told.add(job.run.key)
                    say(f"another command works on {job.run.config.name}: waiting for it")
        if not engine.active():
            time.sleep(1)
        outcomes = engine.wait(1.0)
        for id, since in given.items():
            status = store.read_status(by_id[id].run.key)
            for why in status.get("passed_over", []) if status.get("time", 0) >= since else []:
                passed_over(by_id[id].run, why)
        for outcome in outcomes:
            given.pop(outcome.id)
            if outcome.state == "busy":
                waiting.append(by_id[outcome.id])
                not_before[outcome.id] = time.monotonic() + BUSY_PAUSE
            elif outcome.state == "interrupted":
                raise Interrupted(GO_ON)
            else:
                yield outcome


def everywhere(request: Request) -> Request:
    """The request with absolute paths: workers of a cluster start in folders of their own."""
    paths: dict[str, object] = {
        "out_dir": request.out_dir.expanduser().absolute(),
        "reuse": tuple(path.expanduser().absolute() for path in request.reuse),
    }
    for name in ("dataset_root", "cifar_c_root"):
        path = getattr(request, name)
        if path is not None:
            paths[name] = path.expanduser().absolute()
    return request.model_copy(update=paths)


def make_engine(request: Request, passed_over: Callable[[PlannedRun, str], None]) -> Engine:
    """The engine asked for; one that works here tells at once what is passed over.

    Raises:
        UsageError: Ray is not there.
    """
    if request.engine == "ray":
        from svdctl.reproduce.ray_executor import OnRay

        return OnRay(request.address)
    if request.address is not None:
        raise UsageError("--address is that of a Ray cluster; add --engine ray, or leave it out")
    return InProcess(passed_over) if request.jobs == 1 else Processes(request.jobs)


def check_disk(runs: Sequence[PlannedRun], store: RunStore) -> None:
    """Refuse a plan that the disk cannot hold, before anything is trained.

    Raises:
        UsageError: too little space.
    """
    needed = disk_needed(runs, store)
    free = shutil.disk_usage(store.out_dir.expanduser()).free
    if needed > free:
        raise UsageError(
            f"the plan needs {needed / 1e9:.1f} GB below {store.out_dir}, and {free / 1e9:.1f} GB are free; free space "
            "there, choose fewer --rows, or give another --out-dir"
        )


def disk_needed(runs: Sequence[PlannedRun], store: RunStore) -> int:
    """Bytes of the runs that have no checkpoint to go on from."""
    index = store.index()
    new = {}
    for run in runs:
        found = store.best(run.key, index)
        if found is None or not (found.folder / "last.pt").is_file():
            new[run.key] = run
    return sum(run_bytes(run.config) for run in new.values())


def check_data(runs: Sequence[PlannedRun], cifar_c_root: Path | None) -> None:
    """Load every data set once, and find the corrupted ones, so that what cannot be had is told before any training.

    Raises:
        DataError: what is missing and where it belongs.
    """
    needed = {run.config.data.model_dump_json(): run.config.data for run in runs}
    loaded = {key: load_data(data).test for key, data in needed.items()}
    asked: dict[str, set[str]] = {}
    for run in runs:
        if "cifar-c" in run.metrics:
            config = run_figures.evaluation_config(run, Path("last.pt"), cifar_c_root)
            asked.setdefault(run.config.data.model_dump_json(), set()).update(config.corruptions.names)
    for key, names in asked.items():
        data, test = needed[key], loaded[key]
        if isinstance(data, Cifar10 | Cifar100):
            folder = find_or_fetch(data.kind, cifar_c_root or data.root, tell=lambda text, done, total: None)
            open_cifar_c(folder, test.labels.numpy(), test.image_shape).require(sorted(names - {CLEAN}))


def _write(
    plan: Plan, figures: Mapping[str, RunFigures], paper: PaperNumbers, board: Board, *, pictures: bool
) -> tuple[list[Results], list[Path]]:
    results = [assemble(table, figures, paper) for table in plan.tables]
    out_dir = plan.request.out_dir
    files = [file for result in results for file in write_table(out_dir, result, board.command, picture=pictures)]
    return results, files
