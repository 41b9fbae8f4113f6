"""Table files: rows are presets with overrides, columns are metrics; where they are, and what is wrong in them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationInfo

from svdctl.config.base import Config
from svdctl.config.presets import described_files, preset_folder, read_toml
from svdctl.config.validation_errors import of_a_file, validated
from svdctl.errors import UsageError, nearest
from svdctl.evaluate.metric import TableColumn
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.plugins import load_plugins, plugin_name
from svdctl.registry import METRICS
from svdctl.utils.toml_lines import TomlLines

STATIC = ("parameters", "compression", "control-cost")
"""Columns that follow from the configuration alone."""
DERIVED = (
    TableColumn("parameters", "parameters", decimals=0, basis=""),
    TableColumn("compression", "compression", suffix="x", better="high", basis=""),
    TableColumn("control-cost", "control, modelled", decimals=1, suffix="x cheaper", better="high", basis="estimated"),
    TableColumn("control-time", "control, % of training", 100.0, 1, better="low"),
    TableColumn("train-hours", "training, hours", better="low"),
)


def known_columns() -> dict[str, TableColumn]:
    """Return all columns by name, those of metrics included; a metric cannot replace one of `DERIVED`."""
    return {column.name: column for column in (*(c for metric in METRICS.variants() for c in metric.columns), *DERIVED)}


def metric_of(name: str) -> str | None:
    """Return the metric that a column belongs to; None for one of `DERIVED`."""
    columns = {column.name: metric.kind for metric in METRICS.variants() for column in metric.columns}
    return columns.get(name)


SMOKE = "SMOKE SCALE, not the paper's experiment: "
"""Before the title of what is made at that scale."""
DATA_NAME, NETWORK = "{data}", "{network}"
"""In titles of tables of trained networks: what rows are trained on, and what they are. In labels: the data."""
OWN = {"seed": "`seeds`, or by seeds of the table", "name": "the name of the row", "out_dir": "`out_dir`"}
"""Keys of a run that its table sets, and what sets them."""


def _free(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        key = word.partition("=")[0].strip()
        if key in OWN:
            raise ValueError(f"{word}: {key} is set by {OWN[key]}; leave it out here")
    return words


def _single_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError(f"{text!r:.80} is no line of text; leave out control characters")
    return text


def _once(values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    names = [str(getattr(value, "name", value)) for value in values]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{info.field_name} has {', '.join(twice)} twice; name each once")
    return values


def _named_rows(rows: Any) -> Any:
    """Return the rows of a table as such; faults in them name their row."""
    if not isinstance(rows, list):
        return rows
    found, faults = [], []
    for number, table in enumerate(rows, 1):
        row, more = validated(Row, table)
        name = table.get("name") if isinstance(table, dict) else None
        faults += [f"row {name!r}: {fault}" if name else f"row {number}: {fault}" for fault in of_a_file(more)]
        found.append(row)
    if faults:
        raise ValueError("\n".join(faults))
    return found


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], AfterValidator(_once)]
Line = Annotated[str, AfterValidator(_single_line)]
"""Text that is printed in every format."""
Assignments = Annotated[tuple[str, ...], AfterValidator(_free)]
"""`key.path=value` each, as `configuration` takes them."""


class Row(Config):
    """One trained network."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
    """What patterns of rows match, and files of the paper's numbers name."""
    label: Line | None = None
    """What the table shows; absent: the name."""
    group: str | None = None
    """Rows of one group stand together under a rule."""
    preset: str
    """Shipped preset by name, or a TOML file beside the table file."""
    set: Assignments = ()
    """Changes to the preset."""
    smoke: Assignments = ()
    """Further changes at smoke scale, after those of the whole table."""
    notes: tuple[Line, ...] = ()
    """Footnotes of this row."""

    @property
    def shown(self) -> str:
        """Return the label, or the name."""
        return self.label or self.name


class Smoke(Config):
    """The same table in minutes: small networks, few epochs, embedded data, every step of the way real."""

    set: Assignments = ()
    """Changes to every row, after the row's own."""
    evaluate: Evaluate = Evaluate()


class TableFile(Config):
    """What every kind of table file has."""

    title: Line
    """Title of the output."""
    plugins: tuple[str, ...] = ()
    """Modules, or files by a path from this file's folder, that register what it names."""


class ResultTable(TableFile):
    """A table of trained networks."""

    kind: Literal["table"] = "table"
    columns: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_once)]
    """Names; `reproduce.columns` knows which there are."""
    seeds: Annotated[Seeds, Field(min_length=1)] = (3407,)
    """Seeds of every row, a run each; figures are means over them."""
    set: Assignments = ()
    """Changes to every row, before the row's own."""
    evaluate: Evaluate = Evaluate()
    notes: tuple[Line, ...] = ()
    """Footnotes of the whole table that the file itself asks for."""
    smoke: Smoke | None = None
    rows: Annotated[tuple[Row, ...], Field(min_length=1), BeforeValidator(_named_rows), AfterValidator(_once)]


class Axis(Config):
    """One thing that grows while the others stay."""

    values: Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
    """The values that it takes."""
    channels: PositiveInt | None = None
    """Width of the layer; absent on the axis of widths."""
    size: PositiveInt | None = None
    """Side of the input; absent on the axis of input sizes."""
    rank: PositiveInt | None = None
    """TT rank; absent on the axis of ranks, and on that of widths, where it is `rank_share` of the width."""
    rank_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """TT rank over the width, where `rank` is absent."""


class Network(Config):
    """The whole network that is measured beside single layers."""

    preset: str = "wrn-cifar10"
    """Shipped preset of the network."""
    set: Assignments = ()
    """Changes to the preset."""
    ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (192, 256, 320)
    """TT ranks that are measured beside the full network."""
    batch: PositiveInt = 16
    """Images of a training step."""


class SpeedScale(Config):
    """What is measured, and how often."""

    repeats: Annotated[int, Field(ge=3)] = 5
    """Repetitions of each measurement, of which the median counts."""
    seconds: PositiveFloat = 20.0
    """No further repetition of one measurement after this long, three at least."""
    width: Axis
    rank: Axis
    input: Axis
    network: Network = Network()


class SpeedFigure(TableFile):
    """Time of the spectrum and of one control pass, full against TT."""

    kind: Literal["speed"] = "speed"
    max_sigma: PositiveFloat = 1.0
    """Bound of the control pass; random kernels are scaled to twice it first."""
    full: SpeedScale
    smoke: SpeedScale


class Collection(TableFile):
    """Several tables under one name."""

    kind: Literal["collection"] = "collection"
    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of shipped tables, or table files beside this one."""


class Request(Config):
    """What `svdctl reproduce` is asked to do."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of shipped tables, or table files."""
    rows: tuple[str, ...] = ()
    """Patterns of row names; none: all rows."""
    seeds: Seeds = ()
    """Instead of the table's own."""
    scale: Literal["full", "smoke"] = "full"
    """`smoke`: small stand-ins on embedded data, in minutes."""
    columns: Literal["all", "static"] = "all"
    """`static`: those that need no training."""
    out_dir: Path = Path("runs")
    """Folder of the runs; outputs go to `tables/` in it."""
    reuse: tuple[Path, ...] = ()
    """Further folders whose finished runs are used."""
    dataset_root: Path | None = None
    """Where CIFAR lies; absent: where the presets say."""
    cifar_c_root: Path | None = None
    """Where CIFAR-C lies; absent: beside CIFAR."""
    set: Assignments = ()
    """Changes to every row, after all others."""
    paper_numbers: Path | None = None
    """TOML file with the paper's numbers, shown beside those of the runs."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases."""
    jobs: PositiveInt = 1
    """Runs at a time on this machine, each in a process of its own."""
    engine: Literal["local", "ray"] = "local"
    """What runs them: this machine, or a Ray cluster."""
    address: str | None = None
    """Of a Ray cluster; absent: Ray starts one on this machine."""


KINDS: dict[str, type[TableFile]] = {"table": ResultTable, "speed": SpeedFigure, "collection": Collection}


def table_folder() -> Path:
    """Return the folder of the shipped table files."""
    return preset_folder() / "tables"


def list_tables() -> dict[str, str]:
    """Return name and one-line description (the file's first line) of every shipped table."""
    return described_files(table_folder())


def list_rows() -> list[str]:
    """Return the names of all rows of the shipped tables."""
    rows = (row for path in sorted(table_folder().glob("*.toml")) for row in read_toml(path, path.name).get("rows", []))
    return list(dict.fromkeys(row["name"] for row in rows))


def find_table(name: str, folder: Path | None = None) -> Path:
    """Return the file of a table: of this name in a folder, if one is given; one that ships with svdctl; by its path.

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    shipped = table_folder() / f"{name.lower().replace('_', '-')}.toml"
    own = Path(name).expanduser()
    places = [
        *([folder / f"{name}.toml"] if folder else []),
        *([shipped] if shipped.stem in list_tables() else []),
        own,
    ]
    for path in places:
        if path.is_file():
            return path
    if own.suffix == ".toml" or len(own.parts) > 1:
        raise UsageError(f"{name}: there is no such table file; check its path")
    raise UsageError(f"{name}: there is no such table{nearest(name, list_tables())} (`list` shows all)")


def read_table(path: Path) -> TableFile:
    """Read and check one table file.

    Raises:
        UsageError: with every fault, each naming file, row and key.
    """
    contents = read_toml(path, str(path), "table file")
    kind = str(contents.get("kind", "table"))
    if kind not in KINDS:
        raise UsageError(f"{path}: kind is one of {', '.join(map(repr, KINDS))}, not {kind!r:.40}")
    table, faults = validated(KINDS[kind], contents)
    if table is not None:
        try:
            load_plugins(plugin_name(plugin, path.parent) for plugin in table.plugins)
            known, columns = known_columns(), getattr(table, "columns", ())
            faults = [
                f"columns: there is no column {name!r}{nearest(name, known)}" for name in columns if name not in known
            ]
        except UsageError as error:
            faults = [*error.faults]
    if table is None or faults:
        lines = TomlLines.of_file(path)
        raise UsageError([f"{path}: {_numbered(fault, lines, contents)}" for fault in of_a_file(faults)])
    return table


def _numbered(fault: str, lines: TomlLines, contents: dict[str, Any]) -> str:
    """Return a fault with the line of the key that it is about, in the row that it begins with."""
    named = re.match(r"row (.+?): ", fault)
    if named is None:
        return lines.numbered([fault])[0]
    names = [repr(row.get("name")) if isinstance(row, dict) else "" for row in contents["rows"]]
    number = names.index(named[1]) if named[1] in names else int(named[1]) - 1
    return named[0] + lines.numbered([fault[named.end() :]], f"rows.{number}")[0]


def gather(names: Iterable[str]) -> dict[str, tuple[Path, ResultTable | SpeedFigure]]:
    """Return the tables of these names in order, collections opened, each once; keys name their outputs.

    Raises:
        UsageError: with the faults of all names.
    """
    found: dict[str, tuple[Path, ResultTable | SpeedFigure]] = {}
    faults: list[str] = []
    waiting: list[tuple[str, Path | None]] = [(name, None) for name in names]
    seen: set[Path] = set()
    while waiting:
        try:
            path = find_table(*waiting.pop(0))
            table = None if path.resolve() in seen else read_table(path)
        except UsageError as error:
            faults += error.faults
            continue
        seen.add(path.resolve())
        if isinstance(table, Collection):
            waiting[:0] = [(name, path.parent) for name in table.tables]
        elif isinstance(table, ResultTable | SpeedFigure):
            if path.stem in found:
                faults.append(
                    f"{path}: another table is called {path.stem} too, and they share outputs; rename the file"
                )
            found[path.stem] = (path, table)
    if not found and not faults:
        faults.append(f"{', '.join(names)}: the collection names no table but itself; name others in tables")
    if faults:
        raise UsageError(faults)
    return found
