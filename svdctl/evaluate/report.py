"""`report.md`: all checkpoints of a call side by side, what each figure means, and pictures."""

import os
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from svdctl.evaluate.measure_checkpoint import Evaluation, Failure
from svdctl.evaluate.results import OTHER_DATA, OTHER_DATA_MARK, Record
from svdctl.registry import METRICS
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.escapes import markdown, one_line
from svdctl.utils.table import Cell, Column, Table
from svdctl.utils.table import markdown as markdown_table


def write_report(folder: Path, evaluations: Sequence[Evaluation], failures: Sequence[Failure]) -> Path:
    """Write the comparison of what this call measured or found measured."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    path = folder / "report.md"
    records = [record for evaluation in evaluations for record in evaluation.records.values()]
    failed = [f"- {markdown(f'{failure.place}: {failure.error}')}" for failure in failures]
    lines = [
        "# Evaluation",
        "",
        f"svdctl {version('svdctl')}, {time.strftime('%Y-%m-%d %H:%M')}. Data: {markdown(evaluations[0].data)}, "
        f"test part, {records[0].protocol['data']['count']:,} images.",
        "",
        markdown_table(comparison(evaluations)),
        *_kept(records),
        *(["## What failed", "", *failed, ""] if failed else []),
        "## Protocols",
        "",
        _protocols(records),
        *_notes(evaluations),
        *(line for evaluation in evaluations for line in _details(evaluation, folder)),
    ]
    write_atomically(path, "\n".join(lines).rstrip() + "\n")
    return path


def _kept(records: Sequence[Record]) -> list[str]:
    """Return what the marks behind figures mean."""
    marks = {record.kept for record in records} - {""}
    lines = ["kept: measured by an earlier call under the same protocol, read from `results.json`."] if marks else []
    if "kept, no checksum" in marks:
        lines.append("No checksum: written by a version that made none; a changed figure would go unseen.")
    if marks:
        lines.append("The Lipschitz constant of kept certificates was proved again.")
    if any(record.other_data for record in records):
        lines.append(f"{OTHER_DATA_MARK}: {OTHER_DATA}.")
    return [" ".join(lines), ""] if lines else []


def _protocols(records: Sequence[Record]) -> str:
    """Return a table of the protocols: one line for each metric, and one more for each other that differs."""
    seen: dict[str, dict[str, Any]] = {}
    for record in records:
        text = METRICS.get(record.metric).protocol_text(record)
        seen.setdefault(record.metric, {}).setdefault(text, None)
    rows = [[Cell(_title(metric)), Cell(text)] for metric, texts in seen.items() for text in texts]
    return markdown_table(Table([Column("metric", "metric", "left"), Column("protocol", "protocol", "left")], rows))


def _notes(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Yield what metrics say once for all checkpoints."""
    for metric in METRICS.variants():
        records = [e.records[metric.kind] for e in evaluations if metric.kind in e.records]
        notes = dict.fromkeys(note for record in records for note in metric.notes(record))
        if notes:
            yield from (f"{_title(metric.kind)}:", "", *(f"- {markdown(note)}" for note in notes), "")


def _details(evaluation: Evaluation, folder: Path) -> Iterator[str]:
    results = evaluation.found.results
    yield from (f"## {markdown(evaluation.found.name)}", "")
    path = evaluation.found.path
    figures = _link(results / "results.json", folder)
    place = one_line(path).replace("`", " ")
    yield f"`{place}`, weights `{evaluation.model.weights[:12]}`. All figures: [results.json]({figures})."
    yield ""
    for metric, record in evaluation.records.items():
        own = METRICS.get(metric)
        yield f"- **{_title(metric)}**: {markdown(own.summary(record))}{record.mark}. {_how(record)}"
        yield from (f"  - {markdown(line)}" for line in own.remarks(record))
    yield from (f"- **{_title(metric)}**: {markdown(text)}." for metric, text in evaluation.left_out.items())
    if evaluation.order is not None:
        yield f"- {markdown(evaluation.order.text)}"
    yield ""
    owned = (results / name for metric in METRICS.variants() for name in metric.owned_files if name.endswith(".png"))
    for picture in (picture for picture in owned if picture in evaluation.files):
        yield from (f"![{picture.stem}]({_link(picture, folder)})", "")


def _how(record: Record) -> str:
    """Return how long a figure took and where; of a kept one, which call measured it too."""
    took = f"{record.seconds:.1f} s on {record.environment.get('device', 'a device not known')}"
    return f"Measured {record.environment.get('time', 'at a time not known')}, {took}." if record.kept else f"{took}."


def comparison(evaluations: Sequence[Evaluation]) -> Table:
    """Return checkpoints down and figures across, in the order of the metrics; a dash where a figure is missing."""
    rows: list[dict[str, Cell]] = [{} for _ in evaluations]
    titles: dict[str, None] = {}
    for metric in METRICS.variants():
        for evaluation, row in zip(evaluations, rows, strict=True):
            if (record := evaluation.records.get(metric.kind)) is not None:
                own = {title: Cell(text, mark=record.marks) for title, text in metric.cells(record).items()}
                row |= own
                titles |= dict.fromkeys(own)
    return Table(
        [Column("checkpoint", "checkpoint", "left"), *(Column(title, title) for title in titles)],
        [
            [Cell(evaluation.found.name), *(row.get(title, Cell("-")) for title in titles)]
            for evaluation, row in zip(evaluations, rows, strict=True)
        ],
    )


def _title(kind: str) -> str:
    return METRICS.get(kind).title or kind


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix(), errors="replace")
