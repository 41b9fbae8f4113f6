"""From a request to runs: rows resolved, equal runs made one."""

import fnmatch
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from svdctl.config.table_config import (
    STATIC,
    Assignments,
    Column,
    Evaluate,
    Request,
    ResultTable,
    Row,
    SpeedFigure,
)
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError
from svdctl.reproduce.row_configs import network_configs, row_config
from svdctl.reproduce.table_schema import gather, nearest
from svdctl.train.run_hash import run_hash


@dataclass(frozen=True)
class PlannedRun:
    """One training and what is measured of it."""

    key: str
    """`run_hash` of the configuration."""
    config: TrainConfig
    preset: str
    assignments: tuple[str, ...]
    """`key.path=value`; with the preset they give `config`, its name and places aside."""
    evaluate: Evaluate
    metrics: tuple[str, ...]
    """Metrics of `eval-robust`."""

    @property
    def id(self) -> str:
        """Equal for one training that is evaluated in one way."""
        return f"{self.key}-{hashlib.sha256(self.evaluate.model_dump_json().encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class TableRow:
    """A row with its runs, one a seed, in the order of the seeds."""

    row: Row
    runs: tuple[PlannedRun, ...]

    @property
    def config(self) -> TrainConfig:
        """Of the first seed."""
        return self.runs[0].config


@dataclass(frozen=True)
class TablePlan:
    """A table as it will be made."""

    name: str
    """Of its outputs: `table2`, with `-smoke`, `-static` and, when rows were chosen, `-part` behind it."""
    source: Path
    table: ResultTable
    smoke: bool
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    evaluate: Evaluate
    rows: tuple[TableRow, ...]
    overrides: Assignments

    @property
    def title(self) -> str:
        """With its mark at smoke scale."""
        return f"SMOKE SCALE, not the paper's experiment: {self.table.title}" if self.smoke else self.table.title

    @property
    def trains(self) -> bool:
        """Whether any column needs a trained network."""
        return any(column not in STATIC for column in self.columns)


@dataclass(frozen=True)
class Plan:
    """Everything that a request asks for."""

    request: Request
    tables: tuple[TablePlan, ...]
    figures: dict[str, SpeedFigure] = field(default_factory=dict)

    def runs(self) -> list[PlannedRun]:
        """Every training once, in the order of the rows; its evaluations joined where tables share it."""
        found: dict[str, PlannedRun] = {}
        for run in (run for table in self.tables if table.trains for row in table.rows for run in row.runs):
            known = found.setdefault(run.id, run)
            metrics = tuple(dict.fromkeys((*known.metrics, *run.metrics)))
            found[run.id] = replace(known, metrics=metrics)
        return list(found.values())


def make_plan(request: Request) -> Plan:
    """Resolve every row of every table asked for.

    Raises:
        UsageError: with all faults of names, files, patterns and configurations.
    """
    faults: list[str] = []
    tables: list[TablePlan] = []
    figures: dict[str, SpeedFigure] = {}
    gathered = gather(request.tables)
    chosen = _choose_rows(request, {n: t for n, (_, t) in gathered.items() if isinstance(t, ResultTable)})
    for name, (path, table) in gathered.items():
        if isinstance(table, SpeedFigure):
            if not request.rows and request.columns == "all":
                try:
                    for scale in (table.full, table.smoke):
                        network_configs(scale.network)
                except UsageError as error:
                    faults += [f"{path}: network: {fault}" for fault in error.faults]
                figures[name] = table
            continue
        if not chosen[name]:
            continue
        try:
            tables.append(_plan_table(name, path, table, chosen[name], request))
        except UsageError as error:
            faults += error.faults
    if faults:
        raise UsageError(dict.fromkeys(faults))
    if not tables and not figures:
        raise UsageError(f"--columns static: {', '.join(gathered)} has none, all of it is measured; leave it out")
    return Plan(request, tuple(tables), figures)


def _choose_rows(request: Request, tables: dict[str, ResultTable]) -> dict[str, list[Row]]:
    """The rows of each table that the patterns match; a pattern that matches none anywhere is a fault."""
    if not request.rows:
        return {name: list(table.rows) for name, table in tables.items()}
    names = list(dict.fromkeys(row.name for table in tables.values() for row in table.rows))
    faults = [
        f"--rows {pattern}: no row of {', '.join(tables) or 'a figure'} is called so"
        f"{nearest(pattern.strip('*'), names)} ({shortened(names)})"
        for pattern in request.rows
        if not fnmatch.filter(names, pattern)
    ]
    if faults:
        raise UsageError(faults)
    return {
        name: [row for row in table.rows if any(fnmatch.fnmatch(row.name, pattern) for pattern in request.rows)]
        for name, table in tables.items()
    }


def shortened(names: list[str]) -> str:
    """At most twelve names."""
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _plan_table(name: str, path: Path, table: ResultTable, rows: list[Row], request: Request) -> TablePlan:
    smoke = request.scale == "smoke"
    if smoke and table.smoke is None:
        raise UsageError(f"{path}: the table has no [smoke] section; add one, or leave --scale smoke out")
    evaluate = table.smoke.evaluate if smoke and table.smoke is not None else table.evaluate
    columns = tuple(c for c in table.columns if request.columns == "all" or c in STATIC)
    if request.columns == "static":
        # How dear control is goes with how long it takes: not for networks that need none.
        cost: tuple[Column, ...] = ("control-cost",) if "control-time" in table.columns else ()
        columns = tuple(dict.fromkeys(("parameters", *columns, "compression", *cost)))
    metrics = tuple(dict.fromkeys(m for column in columns for m in metrics_of(column)))
    seeds = request.seeds or table.seeds
    title = f"{name}-smoke" if smoke else name
    made: list[TableRow] = []
    faults: list[str] = []
    for row in rows:
        runs = []
        for seed in seeds:
            try:
                config, preset, assignments = row_config(path, table, row, seed, title, request)
            except UsageError as error:
                faults += [f"{path}: row {row.name!r}: {fault}" for fault in error.faults]
                break
            runs.append(PlannedRun(run_hash(config), config, preset, assignments, evaluate, metrics))
        made.append(TableRow(row, tuple(runs)))
    if faults:
        raise UsageError(dict.fromkeys(faults))
    part = "-part" if len(rows) < len(table.rows) else ""
    output = title + ("-static" if request.columns == "static" else "") + part
    return TablePlan(output, path, table, smoke, columns, seeds, evaluate, tuple(made), request.set)


def metrics_of(column: Column) -> Iterator[str]:
    """The metrics of `eval-robust` that a column needs."""
    if column in ("accuracy", "cifar-c", "ece"):
        yield column
    elif column == "autoattack":
        yield "autoattacks"
    elif column.startswith("certified"):
        yield "certified"
