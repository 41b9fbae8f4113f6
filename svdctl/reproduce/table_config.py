"""What a table file says: rows are presets with overrides, columns are metrics."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationInfo

from svdctl.config.base import Config
from svdctl.config.validation_errors import validated
from svdctl.evaluate.table_evaluation import Evaluate

SMOKE = "SMOKE SCALE, not the paper's experiment: "
"""Before the title of what is made at that scale."""
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
        faults += [f"row {name!r}: {fault}" if name else f"row {number}: {fault}" for fault in more]
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
    plugins: tuple[str, ...] = ()
    """Modules, or files by a path from this file's folder, that register what it names."""


class ResultTable(TableFile):
    """A table of trained networks."""

    kind: Literal["table"] = "table"
    columns: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_once)]
    """Names; `reproduce.columns` knows which there are."""
    seeds: Annotated[Seeds, Field(min_length=1)] = (3407,)
    set: Assignments = ()
    """Changes to every row, before the row's own."""
    evaluate: Evaluate = Evaluate()
    notes: tuple[Line, ...] = ()
    """Footnotes that the file itself asks for."""
    smoke: Smoke | None = None
    rows: Annotated[tuple[Row, ...], Field(min_length=1), BeforeValidator(_named_rows), AfterValidator(_once)]


class Axis(Config):
    """One thing that grows while the others stay."""

    values: Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
    channels: PositiveInt | None = None
    """Width of the layer; absent on the axis of widths."""
    size: PositiveInt | None = None
    """Side of the input; absent on the axis of input sizes."""
    rank: PositiveInt | None = None
    """TT rank; absent on the axis of ranks, and on that of widths, where it is `rank_share` of the width."""
    rank_share: Annotated[float, Field(gt=0, le=1)] = 0.3


class Network(Config):
    """The whole network that is measured beside single layers."""

    preset: str = "wrn-cifar10"
    set: Assignments = ()
    ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (192, 256, 320)
    batch: PositiveInt = 16
    """Images of a training step."""


class SpeedScale(Config):
    """What is measured, and how often."""

    repeats: Annotated[int, Field(ge=3)] = 5
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


class Request(Config):
    """What `svdctl reproduce` is asked to do."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: tuple[str, ...] = ()
    """Patterns of row names; none: all rows."""
    seeds: Seeds = ()
    """Instead of the table's own."""
    scale: Literal["full", "smoke"] = "full"
    columns: Literal["all", "static"] = "all"
    out_dir: Path = Path("runs")
    reuse: tuple[Path, ...] = ()
    """Further folders whose finished runs are used."""
    dataset_root: Path | None = None
    cifar_c_root: Path | None = None
    set: Assignments = ()
    """Changes to every row, after all others."""
    paper_numbers: Path | None = None
    wandb: Literal["off", "offline", "online"] = "off"
    jobs: PositiveInt = 1
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    """Of a Ray cluster; absent: Ray starts one on this machine."""
