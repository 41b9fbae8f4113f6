"""The report of an evaluation as data: every checkpoint known at its folder, with figures, protocols and failures.

`report_files.write_report` writes it as `report.md`; every form of the report is made of this object alone.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.evaluate.find_checkpoints import Discovery, names_of
from svdctl.evaluate.known_checkpoints import KnownCheckpoint, KnownCheckpoints
from svdctl.evaluate.measure_checkpoint import Evaluation, Failure
from svdctl.evaluate.results import NO_CHECKSUM, OTHER_DATA, OTHER_DATA_MARK, Record
from svdctl.registry import METRICS
from svdctl.utils.table import Basis, Cell, Column, Table


@dataclass(frozen=True)
class ReportedRecord:
    """One metric of one checkpoint under one protocol, measured now or by an earlier call."""

    record: Record
    data_key: str
    """Tells the data that it was measured on from others; `EvaluationReport.data` has them in words."""
    results: Path
    """Folder that it lies in."""

    @property
    def title(self) -> str:
        """Return the name of the metric."""
        return title_of(self.record.metric)

    @property
    def summary(self) -> str:
        """Return its figures in one line."""
        metric = METRICS.find(self.record.metric)
        if metric is None:
            return "of a metric that is not loaded (plugins); its figures are in results.json"
        return metric.summary(self.record)

    @property
    def protocol(self) -> str:
        """Return how it was measured, in a sentence or two; empty: its metric is not loaded."""
        metric = METRICS.find(self.record.metric)
        return "" if metric is None else metric.protocol_text(self.record)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what a reader must know besides."""
        metric = METRICS.find(self.record.metric)
        return () if metric is None else tuple(metric.remarks(self.record))

    @property
    def evidence(self) -> str:
        """Return what its figures rest on; empty: its metric is not loaded."""
        metric = METRICS.find(self.record.metric)
        return "" if metric is None else metric.evidence

    @property
    def how(self) -> str:
        """Return how long it took and where; of a kept one, when it was measured too."""
        record = self.record
        took = f"{record.seconds:.1f} s on {record.environment.get('device', 'a device not known')}"
        if not record.kept:
            return f"{took}."
        return f"Measured {record.environment.get('time', 'at a time not known')}, {took}."


@dataclass(frozen=True)
class ReportedCheckpoint:
    """All that is known of one checkpoint."""

    name: str
    """As much of its path as tells it from the others of the report."""
    path: Path
    weights: str
    """Hash of the weights that were measured."""
    results: Path
    """Folder of its results: `results.json`, tables, pictures."""
    records: tuple[ReportedRecord, ...]
    """By metric in the order of the metrics, those of this call before others, later ones before earlier ones."""
    state: str = ""
    """What must stand behind its name: it was removed or changed since, or could not be compared; empty: it is as
    measured."""
    why: str = ""
    """That in a sentence."""
    order: str = ""
    """A sentence on figures of several metrics on the same images; empty: they were not compared."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """By metric, why it gives no figures."""
    damage: tuple[str, ...] = ()
    """A sentence for each record in its results that does not count."""

    @property
    def pictures(self) -> list[Path]:
        """Return the pictures of its figures."""
        kinds = {reported.record.metric for reported in self.records}
        names = (name for metric in METRICS.variants() if metric.kind in kinds for name in metric.owned_files)
        return [self.results / name for name in names if name.endswith(".png") and (self.results / name).is_file()]

    def with_more(self, other: "ReportedCheckpoint") -> "ReportedCheckpoint":
        """Return this one with the records that lie in another folder of results of the same weights."""
        keys = {reported.record.key for reported in self.records}
        more = [reported for reported in other.records if reported.record.key not in keys]
        kinds = METRICS.kinds()
        place = {kind: number for number, kind in enumerate(kinds)}
        records = sorted([*self.records, *more], key=lambda reported: place.get(reported.record.metric, len(kinds)))
        left_out = {**other.left_out, **self.left_out}
        order, damage = self.order or other.order, (*self.damage, *other.damage)
        return replace(self, records=tuple(records), left_out=left_out, order=order, damage=damage)

    def on(self, data_key: str) -> list[Record]:
        """Return its records on some data."""
        return [reported.record for reported in self.records if reported.data_key == data_key]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything known at a folder."""

    folder: Path
    checkpoints: tuple[ReportedCheckpoint, ...]
    """Those of this call first."""
    data: Mapping[str, str]
    """The data sets in words, by their keys, those of this call first."""
    failures: tuple[Failure, ...]
    """What this call could not measure."""
    lost: tuple[str, ...]
    """A sentence for everything that an earlier report named and is not known any more."""
    version: str
    """Of svdctl."""
    time: str
    """When it was made."""

    @property
    def records(self) -> list[ReportedRecord]:
        """Return the records of all checkpoints."""
        return [reported for checkpoint in self.checkpoints for reported in checkpoint.records]

    def tables(self) -> list[Table]:
        """Return one table for each data set: checkpoints down, figures across; the title names the data."""
        tables = []
        for key, text in self.data.items():
            rows = [
                (Cell(checkpoint.name, mark=checkpoint.state), found)
                for checkpoint in self.checkpoints
                if (found := checkpoint.on(key))
            ]
            if rows:
                tables.append(comparison(rows, title=text))
        return tables

    def protocols(self) -> Table:
        """Return how was measured: one line for each metric, and one more for each protocol that differs."""
        seen = dict.fromkeys((reported.title, reported.protocol) for reported in self.records if reported.protocol)
        titles = dict.fromkeys(title for title, _ in seen)
        rows = [[Cell(title), Cell(text)] for name in titles for title, text in seen if title == name]
        return Table([Column("metric", "metric", "left"), Column("protocol", "protocol", "left")], rows)

    def notes(self) -> dict[str, list[str]]:
        """Return by title of a metric what it says once for all checkpoints."""
        found: dict[str, list[str]] = {}
        for metric in METRICS.variants():
            records = [reported.record for reported in self.records if reported.record.metric == metric.kind]
            if notes := list(dict.fromkeys(note for record in records for note in metric.notes(record))):
                found[title_of(metric.kind)] = notes
        return found

    def changes(self) -> list[str]:
        """Return a sentence for everything that is not as it was when it was measured."""
        found = []
        for one in self.checkpoints:
            if one.state:
                found.append(f"{one.name}: {one.state} ({one.why}); its figures are those of before")
            found += [f"{one.name}: {text}; that figure is not shown" for text in one.damage]
        return [*found, *self.lost]

    def marks(self) -> list[str]:
        """Return what the marks behind figures mean, a sentence each."""
        records = [reported.record for reported in self.records]
        known = {word for record in records for word in record.kept.split(", ")}
        lines = []
        if "kept" in known:
            lines.append("kept: measured by an earlier call under the same protocol, read from results.json.")
            if any(record.kept.startswith("kept") and record.metric == "certified" for record in records):
                lines.append("The Lipschitz constant of kept certificates was proved again.")
        if "earlier" in known:
            lines.append("earlier: of an earlier call, not asked for by this one; read from results.json alone.")
        if NO_CHECKSUM in known:
            lines.append("No checksum: written by a version that made none; a changed figure would go unseen.")
        if any(record.other_data for record in records):
            lines.append(f"{OTHER_DATA_MARK}: {OTHER_DATA}.")
        return lines


def title_of(kind: str) -> str:
    """Return the name of a metric in reports."""
    metric = METRICS.find(kind)
    return (metric.title if metric is not None else "") or kind


def report_of(
    discovery: Discovery, evaluations: Sequence[Evaluation], failures: Sequence[Failure], config: EvaluateConfig
) -> EvaluationReport:
    """Return the report of a folder after a call: what the call measured, and all that is known besides.

    Args:
        discovery: says which folder the report is of.
        evaluations: what the call measured, in its order.
        failures: what it could not measure.
        config: of the call.

    Raises:
        EvaluationError: a newer svdctl wrote what the folder knows.
        OSError: the folder cannot be read or written.
    """
    folder = discovery.report
    known = KnownCheckpoints(folder, search=discovery.all_below)
    measured = {known.add(evaluation): evaluation for evaluation in evaluations}
    states = known.states(measured, config)
    known.write()
    places = {key: known.where(one.path).resolve() for key, one in known.known.items()}
    names = names_of(dict.fromkeys(places.values()))
    found: dict[tuple[Path, str], ReportedCheckpoint] = {}
    texts = {evaluation.data_key: evaluation.data for evaluation in evaluations if evaluation.data_key}
    others = sorted(known.known.keys() - measured.keys(), key=lambda key: (names[places[key]], key))
    for key in [*measured, *others]:
        one, evaluation, place = known.known[key], measured.get(key), places[key]
        texts = {**one.data, **texts}
        state, why = states[key]
        checkpoint = ReportedCheckpoint(
            names[place],
            place if evaluation is None else evaluation.found.path,
            known.stored[key].weights or one.weights,
            known.where(one.results) if evaluation is None else evaluation.found.results,
            tuple(_records(one, known.where(one.results), known.stored[key].records, evaluation)),
            state,
            why,
            one.order,
            one.left_out,
            known.stored[key].damage,
        )
        same = found.get((place, checkpoint.weights))
        found[place, checkpoint.weights] = checkpoint if same is None else same.with_more(checkpoint)
    checkpoints = tuple(found.values())
    used = dict.fromkeys(reported.data_key for checkpoint in checkpoints for reported in checkpoint.records)
    data = {key: _data_text(key, texts, checkpoints) for key in used}
    when = time.strftime("%Y-%m-%d %H:%M")
    lost = tuple(known.notices)
    return EvaluationReport(folder, checkpoints, data, tuple(failures), lost, version("svdctl"), when)


def _records(
    known: KnownCheckpoint, results: Path, stored: Sequence[Record], evaluation: Evaluation | None
) -> Iterator[ReportedRecord]:
    """Yield the records of a checkpoint in the order in which they are shown."""
    own = {} if evaluation is None else evaluation.records
    keys = {record.key for record in own.values()}
    kinds = dict.fromkeys([*METRICS.kinds(), *(record.metric for record in stored)])
    for kind in kinds:
        if kind in own and evaluation is not None:
            yield ReportedRecord(own[kind], evaluation.data_key, results)
        for record in reversed(stored):
            if record.metric == kind and record.key not in keys:
                data_key = data_key_of(record)
                is_other = data_key in known.other_data
                yield ReportedRecord(record.model_copy(update={"other_data": is_other}), data_key, results)


def data_key_of(record: Record) -> str:
    """Return what tells the data of a record from others: the fingerprint of the test part."""
    data = record.protocol.get("data")
    known = data if isinstance(data, Mapping) else {}
    return str(known.get("fingerprint") or known.get("sha256") or "")


def _data_text(key: str, texts: Mapping[str, str], checkpoints: Sequence[ReportedCheckpoint]) -> str:
    """Return `cifar10, test part, 10,000 images`."""
    record = next(record for checkpoint in checkpoints for record in checkpoint.on(key))
    about = record.protocol.get("data")
    about = about if isinstance(about, Mapping) else {}
    kind = texts.get(key) or f"{about.get('kind', 'data that are not known')} ({key[:12]})"
    count = about.get("count")
    return f"{kind}, test part" + (f", {count:,} images" if isinstance(count, int) else "")


def comparison(rows: Sequence[tuple[Cell, Sequence[Record]]], title: str = "") -> Table:
    """Return checkpoints down and figures across, in the order of the metrics; a dash where a figure is missing.

    Of records of one checkpoint that have the same column the first one stands in it. A figure that was measured under
    other conditions than most of its column has a footnote that says which.

    Args:
        rows: name and records of each checkpoint.
        title: of the table.
    """
    found: list[dict[str, tuple[str, Record]]] = [{} for _ in rows]
    titles: dict[str, Basis] = {}
    for metric in METRICS.variants():
        for (_, records), row in zip(rows, found, strict=True):
            for record in (record for record in records if record.metric == metric.kind):
                for header, text in metric.cells(record).items():
                    row.setdefault(header, (text, record))
                    titles.setdefault(header, metric.basis)
    notes: dict[str, int] = {}
    lines = [[name] for name, _ in rows]
    for header in titles:
        conditions = [_conditions(row[header][1], header) if header in row else "" for row in found]
        most = Counter(filter(None, conditions)).most_common(1)[0][0]
        for line, row, own in zip(lines, found, conditions, strict=True):
            if header not in row:
                line.append(Cell("-"))
                continue
            text, record = row[header]
            note = () if own == most else (notes.setdefault(f"Measured otherwise: {own}.", len(notes) + 1),)
            line.append(Cell(text, _number(text), mark=record.marks, notes=note))
    first = Column("checkpoint", "checkpoint", "left", elastic=True)
    others = (Column(header, header, basis=basis) for header, basis in titles.items())
    return Table([first, *others], lines, title=title, notes=list(notes))


def _number(text: str) -> float | None:
    """Return the number that a figure shows, to sort by; None: it shows none."""
    try:
        return float(text.removesuffix("%").replace(",", ""))
    except ValueError:
        return None


def _conditions(record: Record, header: str) -> str:
    metric = METRICS.get(record.metric)
    measured_by = record.protocol.get("version", 1)
    other = "" if measured_by == metric.version else f" (version {measured_by} of the metric, now {metric.version})"
    covered = metric.covered(record, header)
    return metric.conditions(record) + (f"; {covered}" if covered else "") + other
