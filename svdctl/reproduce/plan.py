"""From a request to jobs: rows resolved to configurations, equal runs made one."""

import fnmatch
from dataclasses import dataclass, field, replace
from pathlib import Path

from svdctl.config.configuration import configuration
from svdctl.config.data_config import Data
from svdctl.config.presets import list_presets, run_name
from svdctl.config.train_config import TrainConfig
from svdctl.data.data_source import at_place
from svdctl.errors import UsageError
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.plugins import loaded_plugins
from svdctl.reproduce.columns import STATIC, metric_of
from svdctl.reproduce.job import Job
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.table_config import Assignments, Network, Request, ResultTable, Row, SpeedFigure
from svdctl.reproduce.table_schema import gather, nearest
from svdctl.train.run_hash import run_hash


@dataclass(frozen=True)
class TableRow:
    """A row with its jobs, one for each seed, in the order of the seeds."""

    row: Row
    jobs: tuple[Job, ...]

    @property
    def config(self) -> TrainConfig:
        """Return the configuration with the first seed."""
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
        """Return whether any column needs a trained network."""
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
    _check_patterns(request, {n: t for n, (_, t) in gathered.items() if isinstance(t, ResultTable)})
    for name, (path, table) in gathered.items():
        try:
            if isinstance(table, ResultTable):
                rows = [r for r in table.rows if any(fnmatch.fnmatch(r.name, p) for p in request.rows or ("*",))]
                tables += [_plan_table(name, path, table, rows, request)] if rows else []
            elif not request.rows and request.columns == "all":
                figures[name] = table
                for scale in (table.full, table.smoke):
                    network_configs(scale.network)
        except UsageError as error:
            where = "" if isinstance(table, ResultTable) else f"{path}: network: "
            faults += [where + fault for fault in error.faults]
    if faults:
        raise UsageError(dict.fromkeys(faults))
    if not tables and not figures:
        raise UsageError(f"`columns = static`: {', '.join(gathered)} has none, all of it is measured; leave it out")
    return Plan(request, tuple(tables), figures)


def _check_patterns(request: Request, tables: dict[str, ResultTable]) -> None:
    """Refuse patterns that match no row.

    Raises:
        UsageError: with all of them.
    """
    names = list(dict.fromkeys(row.name for table in tables.values() for row in table.rows))
    shown = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
    faults = [
        f"`rows = {pattern}`: no row of {', '.join(tables) or 'a figure'} is called so"
        f"{nearest(pattern.strip('*'), names)} ({shown})"
        for pattern in request.rows
        if not fnmatch.filter(names, pattern)
    ]
    if faults:
        raise UsageError(faults)


def _plan_table(name: str, path: Path, table: ResultTable, rows: list[Row], request: Request) -> TablePlan:
    smoke = table.smoke if request.scale == "smoke" else None
    if request.scale == "smoke" and smoke is None:
        raise UsageError(f"{path}: the table has no [smoke] section; add one, or leave `scale = smoke` out")
    columns = tuple(c for c in table.columns if request.columns == "all" or c in STATIC)
    if request.columns == "static":
        # How dear control is goes with how long it takes: not for networks that need none.
        cost = ("control-cost",) if "control-time" in table.columns else ()
        columns = tuple(dict.fromkeys(("parameters", *columns, "compression", *cost)))
    title = name if smoke is None else f"{name}-smoke"
    plan = TablePlan(
        title + "-static" * (request.columns == "static") + "-part" * (len(rows) < len(table.rows)),
        path,
        table,
        smoke is not None,
        columns,
        request.seeds or table.seeds,
        table.evaluate if smoke is None else smoke.evaluate,
        (),
        request.set,
    )
    made: list[TableRow] = []
    faults: list[str] = []
    for row in rows:
        try:
            made.append(TableRow(row, tuple(_job(plan, row, seed, title, request) for seed in plan.seeds)))
        except UsageError as error:
            faults += [f"{path}: row {row.name!r}: {fault}" for fault in error.faults]
    if faults:
        raise UsageError(dict.fromkeys(faults))
    return replace(plan, rows=tuple(made))


def _job(plan: TablePlan, row: Row, seed: int, title: str, request: Request) -> Job:
    """Return the job of a row with one seed."""
    table = plan.table
    smoke = (*table.smoke.set, *row.smoke) if plan.smoke and table.smoke is not None else ()
    preset, own = row.preset, plan.source.parent / row.preset
    if preset.endswith(".toml") and own.is_file():
        preset = str(own)
    elif not preset.endswith(".toml") and preset.replace("_", "-") not in list_presets():
        raise UsageError(f"there is no preset {preset}{nearest(preset, list_presets())}")
    assignments = (*table.set, *row.set, *smoke, *request.set, f"seed={seed}")
    config = configuration(preset, assignments)
    update: dict[str, object] = {
        "name": run_name(f"{title}-{row.name}-s{seed}"),
        "out_dir": request.out_dir,
        "data": _located(config.data, request),
        "plugins": tuple(dict.fromkeys((*config.plugins, *loaded_plugins()))),
    }
    if request.wandb != "off":
        update["log"] = config.log.model_copy(update={"wandb": request.wandb, "wandb_group": title})
    config = config.model_copy(update=update)
    metrics = tuple(dict.fromkeys(filter(None, map(metric_of, plan.columns))))
    store = RunStore(request.out_dir, request.reuse)
    return Job(run_hash(config), config, preset, assignments, plan.evaluate, metrics, store, request.cifar_c_root)


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
