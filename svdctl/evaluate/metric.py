"""Metrics of `eval-robust`: one object each, from its protocol to its cell in a table; a user registers own ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from svdctl.config.base import Config
from svdctl.config.data_config import Data
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import UsageError
from svdctl.evaluate.figures import Figures
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.registry import METRICS
from svdctl.utils.table import Basis

if TYPE_CHECKING:
    from torch import Tensor

    from svdctl.data.images import ImageData
    from svdctl.evaluate.evaluated_model import EvaluatedModel
    from svdctl.evaluate.evaluation_data import EvaluationData
    from svdctl.evaluate.inference import Classifier
    from svdctl.evaluate.results import Record
    from svdctl.utils.matplotlib_defaults import Figure
    from svdctl.utils.network_probe import Probe

T = TypeVar("T")


@dataclass(frozen=True)
class TableColumn:
    """A column of a table of `reproduce`."""

    name: str
    """In table files, in CSV and JSON."""
    header: str | Callable[[Evaluate], str]
    """What stands above it, with the unit."""
    factor: float = 1.0
    """From the stored value to the shown one."""
    decimals: int = 2
    suffix: str = ""
    better: Literal["high", "low"] | None = None
    basis: Basis = "measured"
    """What its figures rest on."""

    def title(self, evaluate: Evaluate) -> str:
        """Return the header in a table that is evaluated in this way."""
        return self.header if isinstance(self.header, str) else self.header(evaluate)

    def shown(self, value: float) -> str:
        """Return a value as the table shows it."""
        return f"{value * self.factor:,.{self.decimals}f}{self.suffix}"


def percent(name: str, header: str, better: Literal["high", "low"] = "high", basis: Basis = "measured") -> TableColumn:
    """Return a column of shares that are shown per cent."""
    return TableColumn(name, f"{header}, %", 100.0, better=better, basis=basis)


@dataclass
class MeasurementContext:
    """What metrics of one checkpoint measure with."""

    classifier: "Classifier"
    """The network on its device."""
    model: "EvaluatedModel"
    """Where it comes from, and what it was trained on."""
    data: "EvaluationData"
    config: EvaluateConfig
    probe: "Probe"
    """What the network answers to fixed images; binds what is kept to it."""
    folder: Path
    """Results of this checkpoint."""
    progress: Callable[[int, int, str], None]
    """Takes what is done, of how much, and a text."""
    notice: Callable[[str], None]
    """Takes a sentence for the user."""
    known: Callable[[str], "Sequence[Record]"] = lambda metric: ()
    """Returns the sound records of a metric of this checkpoint under any protocol; none where all is measured anew."""
    unfinished: Path | None = None
    """Where the metric at work keeps what it has measured so far."""
    _made: dict[str, Any] = field(default_factory=dict)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returned when it was first called under this key."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    @property
    def logits(self) -> "Tensor":
        """Return logits `(N, classes)` of all test images, on the CPU: one pass serves all metrics."""
        images = self.data.test.images
        return self.once(
            "logits",
            lambda: self.classifier.logits(images, lambda done: self.progress(done, len(images), "test images")),
        )

    @property
    def labels(self) -> "Tensor":
        """Return labels `(N,)` of the test images."""
        return self.data.test.labels


@dataclass(frozen=True)
class Unfinished:
    """Where a metric keeps what it has measured until all is."""

    path: Path
    """Removed when all is measured, and before a measurement that begins anew."""
    protocol: Mapping[str, Any]
    """All that decides the figures; what is kept belongs to it and to `MeasurementContext.probe`."""


@dataclass(frozen=True)
class Measured:
    """What a measurement found."""

    results: Mapping[str, Any]
    """Figures, as `Metric.figures` describes them."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """One for each test image, where there are such."""


@dataclass(frozen=True)
class Order:
    """Figures that were compared, and a sentence about them."""

    figures: dict[str, float]
    text: str


@dataclass(frozen=True)
class PictureContext:
    """What pictures of figures are made of."""

    records: Mapping[str, "Record"]
    """By metric."""
    rows: Callable[["Record"], list[dict[str, str]]]
    """Reads the rows of single images."""
    name: str
    """Of the checkpoint."""


@dataclass(frozen=True)
class OutputContext(PictureContext):
    """What files beside `results.json` are made of."""

    folder: Path
    export: str
    """A file name for it, with the hash of its weights."""
    config: EvaluateConfig
    known: Callable[[str], "Sequence[Record]"] = lambda metric: ()
    """Returns the sound records of a metric of this checkpoint under any protocol."""

    def marked(self, record: "Record") -> list[dict[str, str]]:
        """Return the rows of single images with a column that says whether an earlier call measured them."""
        return [{**row, "kept": record.marks} for row in self.rows(record)]


class Metric(ABC):
    """A metric: what it measures, how its figures are checked, and how they are shown. It holds no state.

    The least that a metric has is `kind`, `figures` and `measure`.
    """

    kind: str
    """Name on the command line and in files."""
    title: str = ""
    """Name in reports; empty: the kind."""
    config: type[Config] = Config
    """Its own settings; `EvaluateConfig.settings` has them under its kind."""
    version: int = 1
    """Version of the metric's definition; stored figures of another version are measured again."""
    precision: str | None = None
    """Precision of the network, whatever the configuration says; None: the one of the configuration."""
    figures: type[Figures]
    """Model of its results."""
    columns: tuple[TableColumn, ...] = ()
    """Columns of the metric in tables of `reproduce`; a name is used by one metric only."""
    evidence: str = "measured"
    """What its figures rest on, in a few words: measured, proved, or bounded from one side by what was tried."""
    owned_files: tuple[str, ...] = ()
    """Names of files beside `results.json` that the metric writes; pictures are shown in `report.md`."""
    same_but_for: tuple[str, ...] = ()
    """Keys that the protocol of stored figures may have in addition, and still be the protocol of this metric."""
    uses_logits: bool = True
    """Whether it needs one pass over the test images, which metrics share."""

    @property
    def basis(self) -> Basis:
        """Return what its figures rest on: that of its columns in tables of `reproduce`."""
        return self.columns[0].basis if self.columns else "measured"

    def settings(self, config: EvaluateConfig, data: Data) -> Any:
        """Return its settings in a call on some data."""
        return config.settings.get(self.kind) or self.config()

    def settings_for(self, context: MeasurementContext) -> Any:
        """Return its settings for a checkpoint, where what is absent depends on the checkpoint too."""
        return self.settings(context.config, context.data.data)

    def protocol(self, context: MeasurementContext, config: Any) -> dict[str, Any]:
        """Return what decides the figures, besides weights, data and precision: JSON values."""
        return config.model_dump(mode="json") if isinstance(config, Config) else {}

    def former_protocol(self, context: MeasurementContext, config: Any) -> dict[str, Any]:
        """Return the protocol in the form of stored results that have no checksum; they are all of version 1."""
        return self.protocol(context, config)

    def migrate(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return results without a checksum in today's form."""
        return results

    def unfinished_file(self, context: MeasurementContext, config: Any, fingerprint: str) -> Path:
        """Return where it keeps what is not finished, under the fingerprint of its protocol."""
        return context.folder / "unfinished" / f"{self.kind}-{fingerprint}.json"

    @abstractmethod
    def measure(self, context: MeasurementContext, config: Any, unfinished: Unfinished) -> Measured | str:
        """Measure; a sentence says that only a part is finished, of which no record is made.

        Raises:
            SvdctlError: it cannot be measured; other metrics are.
        """

    def fault_of_rows(self, results: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> bool:
        """Return whether the rows of single images contradict the figures; any ValueError or KeyError says so too."""
        return False

    def recheck(self, context: MeasurementContext, results: Mapping[str, Any]) -> str | None:
        """Return what contradicts kept figures, where that can be found out in little time; None if nothing does."""
        return None

    def compare(self, context: MeasurementContext, output: OutputContext) -> Order | None:
        """Compare its figures with those of other metrics, after all are measured.

        Raises:
            EvaluationError: they contradict one another.
        """
        return None

    def cells(self, record: "Record") -> dict[str, str]:
        """Return its figures in tables of checkpoints, by their headers."""
        values = self.values(record.results)
        return {
            column.title(Evaluate()): column.shown(values[column.name])
            for column in self.columns
            if column.name in values
        }

    def intervals(self, record: "Record") -> dict[str, tuple[float, float]]:
        """Return the intervals at 95 % of figures that are shares, by the headers of `cells`."""
        return {}

    def summary(self, record: "Record") -> str:
        """Return its figures in one line."""
        return ", ".join(f"{title} {text}" for title, text in self.cells(record).items())

    def protocol_text(self, record: "Record") -> str:
        """Return how it was measured, in a sentence or two."""
        own = [f"{key} {value}" for key, value in record.protocol.items() if key not in ("weights", "data")]
        return ", ".join(own)

    def conditions(self, record: "Record") -> str:
        """Return what figures that stand in one column of a table share; where it differs, a footnote says so."""
        return self.protocol_text(record)

    def covered(self, record: "Record", header: str) -> str:
        """Return what a figure is the mean over where its header leaves it open; empty: it does not."""
        return ""

    def remarks(self, record: "Record") -> Iterator[str]:
        """Yield what a reader of the figures must know besides, in tables too."""
        yield from ()

    def notes(self, record: "Record") -> Sequence[str]:
        """Return what is said once in a report."""
        return ()

    def draw(self, record: "Record", output: PictureContext, path: Path | None) -> "Figure | None":
        """Return the picture of a record, None where it has none; with a path it is written there too."""
        return None

    def outputs(self, record: "Record", output: OutputContext) -> list[Path]:
        """Write and draw what belongs to a record; return the files."""
        return []

    def values(self, results: Mapping[str, Any]) -> dict[str, float]:
        """Return the values of its columns."""
        return {column.name: results[column.name] for column in self.columns if results.get(column.name) is not None}

    def deviations(self, results: Mapping[str, Any], evaluate: Evaluate, whole: int | None) -> Iterator[str]:
        """Yield how a measurement differs from the paper's protocol, a sentence each.

        Args:
            results: its figures.
            evaluate: how the table is evaluated.
            whole: test images that there are; None: not known.
        """
        yield from ()

    def passes(self, evaluate: Evaluate, images: int, classes: int) -> tuple[float, float]:
        """Return the passes of one image, forward alone and forward and backward, that a measurement takes at most.

        Those for `logits` are not counted.

        Args:
            evaluate: how a table is evaluated.
            images: of the test set.
            classes: of the network.
        """
        return 0.0, 0.0

    def check_data(  # noqa: B027
        self, config: EvaluateConfig, data: Data, test: "ImageData"
    ) -> None:
        """Look for what is needed besides the data set, before any training.

        Raises:
            DataError: it is not there and cannot be had.
        """


def register_metric(metric: Metric | type[Metric]) -> Metric | type[Metric]:
    """Add a metric to `eval-robust` and `reproduce`; usable as a decorator of its class. Return what was given.

    Args:
        metric: an object, or a class that is made without arguments.

    Raises:
        UsageError: another metric has this kind, or a column of this name.

    >>> import svdctl
    >>> from svdctl.evaluate.figures import Figures, Share
    >>> from svdctl.evaluate.metric import Measured, Metric, percent
    >>> class ConfidenceFigures(Figures):
    ...     confidence: Share
    >>> @svdctl.register_metric
    ... class Confidence(Metric):
    ...     kind, figures, columns = "my-confidence", ConfidenceFigures, (percent("my-confidence", "confidence"),)
    ...
    ...     def measure(self, context, config, unfinished):
    ...         return Measured({"confidence": float(context.logits.softmax(1).amax(1).mean())})
    """
    instance = metric() if isinstance(metric, type) else metric
    # Those that ship with svdctl are imported one after another, and are looked up when all are there.
    others = [] if METRICS.is_builtin(instance) else METRICS.variants()
    taken = {column.name: known.kind for known in others if known.kind != instance.kind for column in known.columns}
    for column in instance.columns:
        if column.name in taken:
            raise UsageError(f"metrics {taken[column.name]} and {instance.kind} both have a column {column.name!r}")
    return METRICS.register(metric)
