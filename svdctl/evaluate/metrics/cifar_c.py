"""Accuracy on corrupted test images: the published files for CIFAR, svdctl's own corruptions for all other data."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt

from svdctl.config.base import Config
from svdctl.config.corruption_names import (
    BENCHMARK,
    CLEAN,
    CORRUPTIONS,
    expand_corruptions,
    list_name,
    named_lists,
    which_of_all,
)
from svdctl.config.data_config import Data
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.data.data_source import place_of, source_of
from svdctl.evaluate.figures import Figures, Share, is_share_of, near
from svdctl.evaluate.metric import (
    Measured,
    MeasurementContext,
    Metric,
    OutputContext,
    PictureContext,
    TableColumn,
    Unfinished,
    register_metric,
)
from svdctl.evaluate.table_evaluation import Evaluate

if TYPE_CHECKING:
    from svdctl.data.images import ImageData
    from svdctl.evaluate.corruptions.corruption_metric import Source
    from svdctl.evaluate.results import Record
    from svdctl.utils.matplotlib_defaults import Figure


class CorruptionSettings(Config):
    """Which corrupted test sets are classified."""

    names: Annotated[tuple[str, ...], AfterValidator(expand_corruptions), Field(min_length=1)] | None = None
    """Corruptions, or the lists `all` and `benchmark`; `natural` stands for the test images as they are. Absent: the
    benchmark's 15; all 19 of a network that follows the paper, as its code."""
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    """Severities of the corruptions, of 1 to 5."""
    examples: PositiveInt | None = None
    """Test images, the first ones of an order drawn from the seed; absent: all."""
    root: Path | None = None
    """Folder with the published files, downloaded there when absent (that of CIFAR; other data: svdctl's own)."""


class CorruptionFigures(Figures):
    """Accuracy by corruption and severity."""

    count: PositiveInt
    clean: Share
    accuracy: dict[str, dict[str, Share]]
    mean_by_corruption: dict[str, Share]
    mean_by_severity: dict[str, Share]
    figures: dict[str, Share]
    mean: Share | None
    source: str
    constants: str | None = None
    """Data set whose published generator has the constants of drawn corruptions; None: CIFAR-C, or published files."""
    notes: tuple[str, ...]

    def faults(self) -> Mapping[str, bool]:
        from svdctl.evaluate.corruptions.corruption_metric import means_of

        rows = {frozenset(row) for row in self.accuracy.values()}
        shares = [self.clean, *(share for row in self.accuracy.values() for share in row.values())]
        if len(rows) > 1 or frozenset() in rows:
            return {"corruptions have different severities": True}
        right = means_of(self.accuracy)
        return {
            "a share is no number of images": not is_share_of(self.count, *shares),
            "means are not those of the table": not all(_same(getattr(self, name), right[name]) for name in right),
        }


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(near(value[name], other[name]) for name in value)
    return value is other if value is None or other is None else near(value, other)


def _header(evaluate: Evaluate) -> str:
    """Return a header that says over which corruptions the figure is the mean."""
    names = [name for name in evaluate.corruption_names if name != CLEAN]
    return f"corrupted, {list_name(names, evaluate.severities)}, %"


@register_metric
class CorruptionAccuracy(Metric):
    """Mean accuracy over corruptions and severities."""

    kind = "cifar-c"
    title = "Corruptions"
    config = CorruptionSettings
    figures = CorruptionFigures
    columns = (TableColumn("cifar-c", _header, 100.0, better="high"),)
    owned_files = ("corruptions.csv", "corruptions.png")
    uses_logits = False

    def settings_for(self, context: MeasurementContext) -> CorruptionSettings:
        """Return its settings with the names of all corruptions that are meant."""
        own: CorruptionSettings = self.settings(context.config, context.data.data)
        if own.names is not None:
            return own
        return own.model_copy(update={"names": CORRUPTIONS if context.model.follows_paper else BENCHMARK})

    def protocol(self, context: MeasurementContext, config: CorruptionSettings) -> dict[str, Any]:
        return _protocol(context, config, _source(context, config).identity)

    def former_protocol(self, context: MeasurementContext, config: CorruptionSettings) -> dict[str, Any]:
        return _protocol(context, config, _source(context, config).identity_before)

    def migrate(self, results: dict[str, Any]) -> dict[str, Any]:
        from svdctl.evaluate.corruptions.corruption_metric import means_of

        kept = {name: value for name, value in results.items() if "benchmark" not in name}
        # The means that are there have to be those of the table; their names are new.
        return means_of(kept["accuracy"]) | kept

    def measure(self, context: MeasurementContext, config: CorruptionSettings, unfinished: Unfinished) -> Measured:
        from svdctl.evaluate.corruptions import corruption_metric

        return Measured(corruption_metric.measure(context, config, _source(context, config), unfinished))

    def cells(self, record: "Record") -> dict[str, str]:
        name = "CIFAR-C" if record.results["source"] == "published" else "corrupted"
        return {f"{name}, {title}": f"{mean:.2%}" for title, mean in record.results["figures"].items()}

    def summary(self, record: "Record") -> str:
        results = record.results
        if results["mean"] is None:
            return f"clean {results['clean']:.2%}, no corruption asked for"
        means = ", ".join(f"{_in_words(name)}: {share:.2%}" for name, share in results["figures"].items())
        return f"{means} (clean {results['clean']:.2%})"

    def protocol_text(self, record: "Record") -> str:
        results, protocol = record.results, record.protocol
        return (
            f"{self.conditions(record)}; {which_of_all(results['accuracy'])}, severities "
            f"{', '.join(map(str, protocol['severities']))}; means over corruptions and severities: "
            f"{', '.join(results['figures']) or 'none'}"
        )

    def conditions(self, record: "Record") -> str:
        """Return where the images come from, and how many; the figure's name says over what it is the mean."""
        results, protocol = record.results, record.protocol
        how = (
            "published files"
            if results["source"] == "published"
            else f"svdctl's own corruptions with {protocol.get('constants', 'CIFAR-C')}'s constants, seed "
            f"{protocol['seed']}"
        )
        return f"{how}; {results['count']:,} test images"

    def covered(self, record: "Record", header: str) -> str:
        """Return which corruptions are meant, where a header as `3 corruptions` has their number alone."""
        is_named = any(header.partition(", ")[2].startswith(name) for name in named_lists())
        return "" if is_named else which_of_all(record.results["accuracy"])

    def remarks(self, record: "Record") -> Iterator[str]:
        if set(record.results["accuracy"]) != set(CORRUPTIONS):
            yield which_of_all(record.results["accuracy"])

    def notes(self, record: "Record") -> Sequence[str]:
        notes: list[str] = record.results["notes"]
        return notes

    def draw(self, record: "Record", output: PictureContext, path: Path | None) -> "Figure | None":
        from svdctl.evaluate.evaluation_plots import plot_corruptions  # matplotlib takes a second to import

        return plot_corruptions(record.results, output.name + record.data_mark, path, record.protocol["data"])

    def outputs(self, record: "Record", output: OutputContext) -> list[Path]:
        from svdctl.evaluate.results import copy_files, write_rows

        record = self._widest(record, output)
        results = record.results
        table, picture = output.folder / "corruptions.csv", output.folder / "corruptions.png"
        shares = {"natural": {"0": results["clean"]}, **results["accuracy"]}
        rows = [
            {"corruption": name, "severity": severity, "accuracy": f"{share:.6f}", "kept": record.marks}
            for name, row in shares.items()
            for severity, share in row.items()
        ]
        write_rows(table, rows)
        picture.unlink(missing_ok=True)
        files = [table]
        if results["accuracy"]:
            files.append(picture)
            self.draw(record, output, picture)
        if output.config.cifar_c_res is None:
            return files
        target = output.config.cifar_c_res.expanduser()
        (target / f"{output.export}.png").unlink(missing_ok=True)
        return [*files, *copy_files(files, target, output.export)]

    def _widest(self, record: "Record", output: OutputContext) -> "Record":
        """Return the record to be shown: one of more corruptions on the same images where one is known."""

        def cells(record: "Record") -> set[tuple[str, str]]:
            return {(name, severity) for name, row in record.results["accuracy"].items() for severity in row}

        def is_same(other: "Record") -> bool:
            same = self.conditions(other) == self.conditions(record)
            # In one precision, and of one drawing of images, too.
            return same and _of_images(other.protocol) == _of_images(record.protocol) and cells(other) > cells(record)

        wider = [other.model_copy(update={"kept": "earlier"}) for other in output.known(self.kind) if is_same(other)]
        return max([record, *wider], key=lambda known: len(cells(known)))

    def values(self, results: Mapping[str, Any]) -> dict[str, float]:
        return {} if results["mean"] is None else {"cifar-c": results["mean"]}

    def deviations(self, results: Mapping[str, Any], evaluate: Evaluate, whole: int | None) -> Iterator[str]:
        if results["source"] == "drawn":
            constants = results.get("constants") or "CIFAR-C"
            yield f"Corruptions are svdctl's own, drawn with {constants}'s constants from the test images of the data."
        names = sorted(results["mean_by_corruption"])
        parts = []
        if names != sorted(CORRUPTIONS):
            parts.append(which_of_all(names))
        if len(evaluate.severities) < 5:
            parts.append(f"severity {', '.join(map(str, evaluate.severities))} of 5")
        if whole is None or results["count"] != whole:
            parts.append(f"{results['count']:,}{f' of {whole:,}' if whole else ''} test images")
        if parts:
            yield f"Accuracy on corruptions: mean over {'; '.join(parts)}."

    def passes(self, evaluate: Evaluate, images: int, classes: int) -> tuple[float, float]:
        names = sum(name != CLEAN for name in evaluate.corruption_names)
        return names * len(evaluate.severities) * min(images, evaluate.corruption_examples or images), 0.0

    def check_data(self, config: EvaluateConfig, data: Data, test: "ImageData") -> None:
        from svdctl.evaluate.corruptions.published_files import find_or_fetch, open_cifar_c

        published = source_of(data).published_corruptions
        if published is not None:
            settings = self.settings(config, data)
            folder = find_or_fetch(published, settings.root or place_of(data), tell=lambda text, done, total: None)
            names = sorted({*(settings.names or CORRUPTIONS)} - {CLEAN})
            open_cifar_c(folder, test.labels.numpy(), test.image_shape).require(names)


def _in_words(name: str) -> str:
    """Return `2 corruptions at severities 1 and 5` for the stored name `2 corruptions, severity 1, 5`."""
    listed, _, severities = name.partition(", severity ")
    *before, last = severities.split(", ")
    several = f"severities {', '.join(before)} and {last}" if before else f"severity {last}"
    return f"{listed} at {several}" if severities else listed


def _of_images(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a protocol says beside the corruptions and severities that are asked for, and their files."""
    asked = ("names", "severities", "contents", "files")
    return {key: value for key, value in protocol.items() if key not in asked}


def _source(context: MeasurementContext, config: CorruptionSettings) -> "Source":
    from svdctl.evaluate.corruptions.corruption_metric import open_source

    return context.once("corrupted images", lambda: open_source(context, config))


def _protocol(context: MeasurementContext, config: CorruptionSettings, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **identity,
        "names": list(config.names or ()),
        "severities": list(config.severities),
        "examples": config.examples,
        **({"seed": context.config.seed} if config.examples is not None else {}),
    }
