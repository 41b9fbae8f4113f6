"""The report of an evaluation as one page: tables, pictures, protocols, and where each figure comes from."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from svdctl.errors import MalformedFileError, first_line
from svdctl.evaluate.metric import PictureContext
from svdctl.evaluate.report import EvaluationReport, ReportedCheckpoint, ReportedRecord, title_of
from svdctl.evaluate.results import Record, read_rows
from svdctl.registry import METRICS
from svdctl.utils.content_hash import content_digest
from svdctl.utils.files import read_bytes
from svdctl.utils.html_page import FactList, FoldedList, Page, PagePicture, PageSection, written_by
from svdctl.utils.table import Cell, Column, Table

if TYPE_CHECKING:
    from svdctl.utils.matplotlib_defaults import Figure

DRAWN = 6
"""Checkpoints whose pictures are in the page: of each call's own first. Others' lie beside their results."""


def evaluation_page(report: EvaluationReport, comparison: "Figure | None" = None) -> Page:
    """Return the page of a report: what `report.md` has, and its pictures.

    Args:
        report: what is known.
        comparison: the picture of all checkpoints; None: there is none.
    """
    count = len(report.checkpoints)
    lead = f"{count} checkpoint{'s' * (count != 1)} on {'; on '.join(report.data.values())}."
    sections = [PageSection("Figures", [*report.tables(), *report.marks(), *_comparison(comparison)])]
    if report.failures:
        failed = [f"{failure.place}: {failure.error}" for failure in report.failures]
        sections.append(PageSection("What failed", [FoldedList(f"{len(failed)} failed", failed, is_open=True)]))
    if changes := report.changes():
        listed = FoldedList("Their figures are those of before", changes, is_open=True)
        sections.append(PageSection("What is not as it was measured", [listed]))
    for number, checkpoint in enumerate(report.checkpoints):
        sections.append(PageSection(checkpoint.name, [*_parts(checkpoint, f"c{number}", is_drawn=number < DRAWN)]))
    notes = [FoldedList(title, lines, is_open=True) for title, lines in report.notes().items()]
    sections.append(PageSection("How it was measured", [report.protocols(), *notes]))
    sections.append(PageSection("Where this comes from", [FactList(written_by())]))
    return Page("Evaluation", lead, sections)


def _comparison(figure: "Figure | None") -> Iterator[PagePicture]:
    if figure is not None:
        from svdctl.utils.inline_svg import svg_text  # matplotlib takes a second to import

        caption = "The checkpoints compared; bars are intervals at 95 %"
        yield PagePicture(svg_text(figure, "comparison", caption), caption)


def _parts(
    checkpoint: ReportedCheckpoint, name: str, *, is_drawn: bool
) -> Iterator[str | Table | FactList | FoldedList | PagePicture]:
    """Yield what a page says of one checkpoint; the ids of its pictures begin with `name`."""
    yield _records(checkpoint)
    if remarks := [text for reported in checkpoint.records for text in reported.remarks]:
        yield FoldedList("To be known besides", list(dict.fromkeys(remarks)), is_open=True)
    if checkpoint.left_out:
        lines = [f"{title_of(kind)}: {text}" for kind, text in checkpoint.left_out.items()]
        yield FoldedList("What gives no figures", lines, is_open=True)
    if checkpoint.order:
        yield checkpoint.order
    if is_drawn:
        yield from _pictures(checkpoint, name)
    elif checkpoint.pictures:
        yield f"Its pictures: {', '.join(map(str, checkpoint.pictures))}."
    facts = [("checkpoint", str(checkpoint.path)), ("weights, SHA-256", checkpoint.weights)]
    yield FactList([*facts, ("results", str(checkpoint.results / "results.json"))])


def _records(checkpoint: ReportedCheckpoint) -> Table:
    """Return the figures of a checkpoint in words, with what they rest on, where they were measured, and hashes."""
    headers = ("metric", "figures", "rests on", "measured on", "data, SHA-256", "protocol, SHA-256")
    rows = []
    for reported in checkpoint.records:
        record = reported.record
        known = [record.environment.get(key) for key in ("time", "device", "processor")]
        where = ", ".join(str(text) for text in (*known, f"{record.seconds:.1f} s") if text)
        hashes = reported.data_key[:12], record.key.rpartition(" ")[2]
        texts = (reported.title, reported.summary, reported.evidence, where, *hashes)
        rows.append([Cell(text, mark=record.marks if place == 1 else "") for place, text in enumerate(texts)])
    return Table([Column(header, header, "left", droppable=True) for header in headers], rows)


def _pictures(checkpoint: ReportedCheckpoint, name: str) -> Iterator[PagePicture | str]:
    """Yield a picture of the first record of each metric on each data set; a sentence where none can be drawn."""
    from svdctl.utils.inline_svg import svg_text  # matplotlib takes a second to import

    shown: dict[tuple[str, str], ReportedRecord] = {}
    for reported in checkpoint.records:
        shown.setdefault((reported.data_key, reported.record.metric), reported)
    rows = partial(_rows, {reported.record.key: reported.results for reported in shown.values()})
    for number, ((data_key, kind), reported) in enumerate(shown.items()):
        if (metric := METRICS.find(kind)) is None:
            continue
        records = {other: found.record for (key, other), found in shown.items() if key == data_key}
        try:
            figure = metric.draw(reported.record, PictureContext(records, rows, checkpoint.name), None)
            caption = f"{title_of(kind)}: {metric.evidence}"
            picture = None if figure is None else PagePicture(svg_text(figure, f"{name}-{number}", caption), caption)
        except Exception as error:  # whatever is wrong with one picture, the others are drawn
            yield f"{title_of(kind)}: its picture cannot be drawn ({first_line(error)})."
            continue
        if picture is not None:
            yield picture


def _rows(folders: Mapping[str, Path], record: Record) -> list[dict[str, str]]:
    """Return the rows of single images of a record.

    Args:
        folders: in which the results of records lie, by their keys.
        record: of these.

    Raises:
        OSError: they are not there, or not those that were measured.
    """
    path = folders[record.key] / str(record.details)
    if record.details_sha256 not in (None, content_digest(read_bytes(path))):
        raise MalformedFileError(str(path), "fails its checksum", "evaluate the checkpoint again")
    return read_rows(path)
