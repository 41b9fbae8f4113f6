"""From a request to jobs: rows resolved to configurations, equal runs made one."""

import fnmatch
from dataclasses import dataclass, field, replace
from pathlib import Path

from svdctl.config.configuration import configuration
from svdctl.config.data_config import Data
from svdctl.config.presets import list_presets, run_name
from svdctl.config.table_config import (
    Assignments,
    Evaluate,
    Network,
    Request,
    ResultTable,
    Row,
    SpeedFigure,
)
from svdctl.config.train_config import TrainConfig
from svdctl.data.data_source import at_place
from svdctl.errors import UsageError
from svdctl.reproduce.columns import STATIC, metric_of
from svdctl.reproduce.job import Job
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.table_schema import gather, nearest
from svdctl.train.run_hash import run_hash


@dataclass(frozen=True)
class TableRow:
    """A row with its jobs, one for each seed, in the order of the seeds."""

    row: Row
    jobs: tuple[Job, ...]

    @property
    def config(self) -> TrainConfig:
        """The configuration with the first seed."""
        return self.jobs[0].config


@dataclass(frozen=True)
class TablePlan:
    """A table as it will be made."""

    name: str
    """Of its outputs: `table2`, with `-smoke`, `-static` and, when rows were chosen, `-part` behind it."""
    source: Path
    table: ResultTable
    smoke: bool
    columns: tuple[str, ...]
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

    def jobs(self) -> list[Job]:
        """Return every training once, in the order of the rows; tables that share it have their metrics joined."""
        found: dict[str, Job] = {}
        for job in (job for table in self.tables if table.trains for row in table.rows for job in row.jobs):
            known = found.setdefault(job.id, job)
            found[job.id] = replace(known, metrics=tuple(dict.fromkeys((*known.metrics, *job.metrics))))
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
        raise UsageError(f"`columns = static`: {', '.join(gathered)} has none, all of it is measured; leave it out")
    return Plan(request, tuple(tables), figures)


def _choose_rows(request: Request, tables: dict[str, ResultTable]) -> dict[str, list[Row]]:
    """Return the rows of each table that the patterns match.

    Raises:
        UsageError: a pattern matches none anywhere.
    """
    if not request.rows:
        return {name: list(table.rows) for name, table in tables.items()}
    names = list(dict.fromkeys(row.name for table in tables.values() for row in table.rows))
    faults = [
        f"`rows = {pattern}`: no row of {', '.join(tables) or 'a figure'} is called so"
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
    """Return at most twelve names."""
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _plan_table(name: str, path: Path, table: ResultTable, rows: list[Row], request: Request) -> TablePlan:
    smoke = request.scale == "smoke"
    if smoke and table.smoke is None:
        raise UsageError(f"{path}: the table has no [smoke] section; add one, or leave `scale = smoke` out")
    evaluate = table.smoke.evaluate if smoke and table.smoke is not None else table.evaluate
    columns = tuple(c for c in table.columns if request.columns == "all" or c in STATIC)
    if request.columns == "static":
        # How dear control is goes with how long it takes: not for networks that need none.
        cost = ("control-cost",) if "control-time" in table.columns else ()
        columns = tuple(dict.fromkeys(("parameters", *columns, "compression", *cost)))
    metrics = tuple(dict.fromkeys(filter(None, map(metric_of, columns))))
    seeds = request.seeds or table.seeds
    title = f"{name}-smoke" if smoke else name
    store = RunStore(request.out_dir, request.reuse)
    made: list[TableRow] = []
    faults: list[str] = []
    for row in rows:
        jobs = []
        try:
            for seed in seeds:
                config, preset, assignments = _row_config(path, table, row, seed, title, request)
                key = run_hash(config)
                jobs.append(Job(key, config, preset, assignments, evaluate, metrics, store, request.cifar_c_root))
        except UsageError as error:
            faults += [f"{path}: row {row.name!r}: {fault}" for fault in error.faults]
        made.append(TableRow(row, tuple(jobs)))
    if faults:
        raise UsageError(dict.fromkeys(faults))
    part = "-part" if len(rows) < len(table.rows) else ""
    output = title + ("-static" if request.columns == "static" else "") + part
    return TablePlan(output, path, table, smoke, columns, seeds, evaluate, tuple(made), request.set)


def _row_config(
    path: Path, table: ResultTable, row: Row, seed: int, title: str, request: Request
) -> tuple[TrainConfig, str, tuple[str, ...]]:
    """Return the configuration of one run, and the preset and assignments that give it."""
    smoke = (*table.smoke.set, *row.smoke) if request.scale == "smoke" and table.smoke is not None else ()
    beside = path.parent / row.preset
    preset = str(beside) if row.preset.endswith(".toml") and beside.is_file() else row.preset
    if preset == row.preset and not row.preset.endswith(".toml") and row.preset.replace("_", "-") not in list_presets():
        raise UsageError(f"there is no preset {row.preset}{nearest(row.preset, list_presets())}")
    assignments = (*table.set, *row.set, *smoke, *request.set, f"seed={seed}")
    config = configuration(preset, assignments)
    update: dict[str, object] = {
        "name": run_name(f"{title}-{row.name}-s{seed}"),
        "out_dir": request.out_dir,
        "data": _located(config.data, request),
    }
    if request.wandb != "off":
        update["log"] = config.log.model_copy(update={"wandb": request.wandb, "wandb_group": title})
    return config.model_copy(update=update), preset, assignments


def _located(data: Data, request: Request) -> Data:
    """Return the data at the place of this request; absolute paths for a cluster, whose workers start elsewhere."""
    data = at_place(data, request.dataset_root)
    paths = {name: value for name, value in data if isinstance(value, Path)} if request.engine == "ray" else {}
    return data.model_copy(update={name: path.expanduser().absolute() for name, path in paths.items()})


def network_configs(network: Network) -> dict[int, TrainConfig]:
    """Return the configurations of the whole network of a speed figure, by rank; the uncompressed one as 0.

    Raises:
        UsageError: the preset or an assignment is wrong.
    """
    layers = {0: ["layer.kind=standard"]} | {
        rank: ["layer.kind=tt", f"layer.rank={rank}", "layer.frames.kind=retract"] for rank in network.ranks
    }
    return {rank: configuration(network.preset, [*network.set, *layer]) for rank, layer in layers.items()}
