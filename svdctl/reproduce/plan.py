"""From a request to jobs: rows resolved to configurations, equal runs made one."""

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from svdctl.config.base import Config
from svdctl.config.configuration import configuration
from svdctl.config.presets import list_presets, read_toml, run_name
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import of_a_file
from svdctl.data.data_source import at_place, title_of
from svdctl.errors import UsageError, nearest
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.plugins import loaded_plugins
from svdctl.registry import ARCHITECTURES
from svdctl.reproduce.run_store import Job, RunStore
from svdctl.reproduce.table_files import (
    DATA_NAME,
    NETWORK,
    SMOKE,
    STATIC,
    Assignments,
    Network,
    Request,
    ResultTable,
    Row,
    SpeedFigure,
    gather,
    metric_of,
)
from svdctl.train.run_hash import run_hash
from svdctl.utils.toml_lines import TomlLines

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PaperNumbers = dict[str, dict[str, dict[str, Number]]]
"""By table, row and column."""


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
        """Return the title, with its mark at smoke scale; it names the networks and data of the rows where it says so.

        Data that the smoke scale or the command line put in place of the file's own are named in any case.
        """
        configs = [row.config for row in self.rows]
        networks = (ARCHITECTURES.get(config.model.kind).name(config.model) for config in configs)
        title = self.table.title.replace(NETWORK, _listed(networks)).replace(DATA_NAME, self.data)
        named = f" (data: {self.data})" if self.has_other_data and DATA_NAME not in self.table.title else ""
        return SMOKE * self.smoke + title + named

    @property
    def data(self) -> str:
        """Return the data of the rows as titles call them."""
        return _listed(title_of(job.config.data) for row in self.rows for job in row.jobs)

    @property
    def has_other_data(self) -> bool:
        """Return whether the smoke scale or the command line change the data."""
        smoke = self.table.smoke if self.smoke else None
        changes = (*self.overrides, *(smoke.set if smoke is not None else ()))
        changes += tuple(word for row in self.rows for word in row.row.smoke) if smoke is not None else ()
        return any(word.startswith("data.") for word in changes)

    @property
    def names_data(self) -> bool:
        """Return whether the title names the data that are used."""
        return DATA_NAME in self.table.title or self.has_other_data

    @property
    def trains(self) -> bool:
        """Return whether any column needs a trained network."""
        return any(column not in STATIC for column in self.columns)


@dataclass(frozen=True)
class Plan:
    """Everything that a request asks for."""

    request: Request
    tables: tuple[TablePlan, ...]
    figures: dict[str, SpeedFigure]
    paper: PaperNumbers

    def jobs(self) -> list[Job]:
        """Return every training once, in the order of the rows; tables that share it have their metrics joined."""
        found: dict[str, Job] = {}
        for job in (job for table in self.tables if table.trains for row in table.rows for job in row.jobs):
            known = found.setdefault(job.id, job)
            found[job.id] = replace(known, metrics=tuple(dict.fromkeys((*known.metrics, *job.metrics))))
        return list(found.values())


def _listed(names: Iterable[str]) -> str:
    """Return different names as `a, b and c`."""
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} and {last}" if first else last


def make_plan(request: Request) -> Plan:
    """Resolve every row of every table asked for.

    Raises:
        UsageError: with all faults of names, files, patterns and configurations.
    """
    if request.engine == "ray":
        request = everywhere(request)
    gathered = gather(request.tables)
    rows = {name: table.rows for name, (_, table) in gathered.items() if isinstance(table, ResultTable)}
    names = list(dict.fromkeys(row.name for some in rows.values() for row in some))
    shown = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
    faults = [
        f"`rows = {pattern}`: no row of {', '.join(rows) or 'a figure'} is called so"
        f"{nearest(pattern.strip('*'), names)} ({shown})"
        for pattern in request.rows
        if not fnmatch.filter(names, pattern)
    ]
    tables: list[TablePlan] = []
    figures: dict[str, SpeedFigure] = {}
    for name, (path, table) in gathered.items():
        if isinstance(table, ResultTable):
            if any(_is_chosen(row, request) for row in table.rows):
                tables += _plan_table(name, path, table, request, faults)
        elif not request.rows and request.columns == "all":
            figures[name] = table
            for key, scale in {"full.network": table.full, "smoke.network": table.smoke}.items():
                with _collected(faults, path, "network", key):
                    network_configs(scale.network)
    if not faults and not tables and not figures:
        faults.append(f"`columns = static`: {', '.join(gathered)} has none, all of it is measured; leave it out")
    if faults:
        raise UsageError(dict.fromkeys(faults))
    paper = {} if request.paper_numbers is None else read_paper_numbers(request.paper_numbers, tables)
    return Plan(request, tuple(tables), figures, paper)


def everywhere(request: Request) -> Request:
    """Return the request with absolute paths: workers of a cluster start in folders of their own."""
    reuse = tuple(path.expanduser().absolute() for path in request.reuse)
    return request.model_copy(update={**_absolute_paths(request), "reuse": reuse})


def _absolute_paths(config: Config) -> dict[str, Path]:
    return {name: value.expanduser().absolute() for name, value in config if isinstance(value, Path)}


@contextmanager
def _collected(faults: list[str], path: Path, where: str, key: str) -> Iterator[None]:
    """Collect the faults of the body, which the section `key` of a table file causes, with `where` and their lines."""
    try:
        yield
    except UsageError as error:
        lines = TomlLines.of_file(path)
        for fault in of_a_file(error.faults):
            # What is no fault of the preset's name is one of the assignments.
            is_name = fault.startswith(("preset = ", "there is no preset "))
            section = f"{key}.preset" if is_name else f"{key}.set"
            faults += [f"{path}: {where}: {told}" for told in lines.numbered([fault], section)]


def _is_chosen(row: Row, request: Request) -> bool:
    return not request.rows or any(fnmatch.fnmatch(row.name, pattern) for pattern in request.rows)


def _plan_table(name: str, path: Path, table: ResultTable, request: Request, faults: list[str]) -> Iterator[TablePlan]:
    """Yield the plan of a table, unless there are faults in it."""
    smoke = table.smoke if request.scale == "smoke" else None
    if request.scale == "smoke" and smoke is None:
        faults.append(f"{path}: the table has no [smoke] section; add one, or leave `scale = smoke` out")
        return
    columns = tuple(c for c in table.columns if request.columns == "all" or c in STATIC)
    if request.columns == "static":
        # How dear control is goes with how long it takes: not for networks that need none.
        cost = ("control-cost",) if "control-time" in table.columns else ()
        columns = tuple(dict.fromkeys(("parameters", *columns, "compression", *cost)))
    title = name if smoke is None else f"{name}-smoke"
    seeds = request.seeds or table.seeds
    metrics = tuple(dict.fromkeys(filter(None, map(metric_of, columns))))
    evaluate = table.evaluate if smoke is None else smoke.evaluate
    store = RunStore(request.out_dir, request.reuse)
    rows: list[TableRow] = []
    for row in filter(lambda row: _is_chosen(row, request), table.rows):
        with _collected(faults, path, f"row {row.name!r}", f"rows.{table.rows.index(row)}"):
            preset = _preset(row.preset, path.parent)
            changes = (*table.set, *row.set, *((*smoke.set, *row.smoke) if smoke is not None else ()), *request.set)
            jobs = []
            for seed in seeds:
                assignments = (*changes, f"seed={seed}")
                config = _at_home(configuration(preset, assignments), f"{title}-{row.name}-s{seed}", title, request)
                jobs.append(
                    Job(run_hash(config), config, preset, assignments, evaluate, metrics, store, request.cifar_c_root)
                )
            rows.append(TableRow(row, tuple(jobs)))
    suffix = "-static" * (request.columns == "static") + "-part" * any(not _is_chosen(r, request) for r in table.rows)
    yield TablePlan(title + suffix, path, table, smoke is not None, columns, seeds, evaluate, tuple(rows), request.set)


def _preset(name: str, folder: Path) -> str:
    """Return a preset as `configuration` takes it: of a file in this folder, its path.

    Raises:
        UsageError: none that ships has this name, with the nearest one.
    """
    if name.endswith(".toml"):
        return str(folder / name) if (folder / name).is_file() else name
    if name.replace("_", "-") not in list_presets():
        raise UsageError(f"there is no preset {name}{nearest(name, list_presets())}")
    return name


def _at_home(config: TrainConfig, name: str, group: str, request: Request) -> TrainConfig:
    """Return a configuration with names and places of this request: they have no effect on the results."""
    data = at_place(config.data, request.dataset_root)
    if request.engine == "ray":  # whose workers start elsewhere
        data = data.model_copy(update=_absolute_paths(data))
    log = {} if request.wandb == "off" else {"wandb": request.wandb, "wandb_group": group}
    update = {
        "name": run_name(name),
        "out_dir": request.out_dir,
        "data": data,
        "plugins": tuple(dict.fromkeys((*config.plugins, *loaded_plugins()))),
        "log": config.log.model_copy(update=log),
    }
    return config.model_copy(update=update)


def network_configs(network: Network) -> dict[int, TrainConfig]:
    """Return the configurations of the whole network of a speed figure, by rank; the uncompressed one as 0.

    Raises:
        UsageError: the preset or an assignment is wrong.
    """
    layers = {0: ["layer.kind=standard"]} | {
        rank: ["layer.kind=tt", f"layer.rank={rank}", "layer.frames.kind=retract"] for rank in network.ranks
    }
    return {rank: configuration(network.preset, [*network.set, *layer]) for rank, layer in layers.items()}


def read_paper_numbers(path: Path, tables: Sequence[TablePlan]) -> PaperNumbers:
    """Read a user's file of the paper's numbers, and check it against the tables that are made.

    It is TOML: a section for each table, in it a row by its name, in it a value for each column, in the unit of the
    table (accuracies and times in per cent, compression as a factor). Sections of other tables are passed over.
    svdctl ships no numbers, because none could be verified.

        [table2.divide-tt192]
        accuracy = 12.34
        ece = 1.23

    Raises:
        UsageError: with every fault.
    """
    where = f"`paper_numbers = {path}`"
    contents = read_toml(path, where)
    plans = {plan.source.stem: plan for plan in tables}
    if not plans:
        raise UsageError(f"{where}: no table of trained networks is asked for; leave it out")
    given = {name: rows for name, rows in contents.items() if name in plans}
    lines = TomlLines.of_file(path)
    faults = [
        fault
        for name, rows in given.items()
        if isinstance(rows, dict)
        for fault in _unknown_names(name, rows, plans[name], lines)
    ]
    if not given:
        near = nearest(next(iter(plans)), contents)
        faults.append(f"it has no section for {' or '.join(plans)}{near}; add [TABLE.ROW]")
    numbers: PaperNumbers = {}
    try:
        numbers = TypeAdapter(PaperNumbers).validate_python(given)
    except ValidationError as error:
        for fault in error.errors():
            place = ".".join(map(str, fault["loc"]))
            needed = (
                "section; write [TABLE.ROW] and numbers below it"
                if fault["type"] == "dict_type"
                else "number; write it in the table's unit, without a sign for it"
            )
            faults.append(f"{place} = {fault['input']!r:.40} is no {needed}")
    if faults:
        raise UsageError([f"{where}: {fault}" for fault in lines.numbered(faults)])
    return numbers


def _unknown_names(name: str, rows: dict[str, Any], plan: TablePlan, lines: TomlLines) -> Iterator[str]:
    """Yield a sentence for each row and column that a table does not have."""
    known = [row.name for row in plan.table.rows]
    columns = {*plan.table.columns, *plan.columns}
    for row, values in rows.items():
        if row not in known:
            yield from lines.numbered([f"{name} has no row {row}{nearest(row, known)}"], f"{name}.{row}")
        elif isinstance(values, dict):
            for column in values.keys() - columns:
                fault = f"{name}.{row} has no column {column}{nearest(column, columns)}"
                yield from lines.numbered([fault], f"{name}.{row}.{column}")
