"""The report of an evaluation as Markdown."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from svdctl.evaluate.report import EvaluationReport, ReportedCheckpoint, title_of
from svdctl.utils.escapes import markdown, one_line
from svdctl.utils.table import markdown as markdown_table

COMPARISON = "comparison.png"
"""The picture of all checkpoints of a report."""


def markdown_report(report: EvaluationReport, *, has_picture: bool) -> str:
    """Return the report as Markdown; links are relative to its folder.

    Args:
        report: what is known.
        has_picture: whether `COMPARISON` is drawn.
    """
    lines = ["# Evaluation", ""]
    tables = report.tables()
    about = f"svdctl {report.version}, {report.time}."
    if len(tables) == 1:
        lines += [f"{about} Data: {markdown(tables[0].title)}.", ""]
    else:
        lines += [f"{about} Figures on different data stand in different tables.", ""]
    for table in tables:
        lines += [f"## On {markdown(table.title)}", ""] * (len(tables) > 1)
        lines += [markdown_table(replace(table, title="")), ""]
    lines += [" ".join(report.marks()), ""] * bool(report.marks())
    lines += [f"![comparison]({COMPARISON})", ""] * has_picture
    lines += [*_listed("What failed", [f"{failure.place}: {failure.error}" for failure in report.failures])]
    lines += [*_listed("What is not as it was measured", report.changes())]
    lines += ["## Protocols", "", markdown_table(report.protocols())]
    for title, notes in report.notes().items():
        lines += [f"{title}:", "", *(f"- {markdown(note)}" for note in notes), ""]
    lines += [line for checkpoint in report.checkpoints for line in _details(checkpoint, report.folder)]
    return "\n".join(lines).rstrip() + "\n"


def _listed(heading: str, sentences: list[str]) -> list[str]:
    lines = [f"- {markdown(sentence)}" for sentence in sentences]
    return [f"## {heading}", "", *lines, ""] if lines else []


def _details(checkpoint: ReportedCheckpoint, folder: Path) -> Iterator[str]:
    yield from (f"## {markdown(checkpoint.name)}", "")
    figures = _link(checkpoint.results / "results.json", folder)
    place = one_line(checkpoint.path).replace("`", " ")
    yield f"`{place}`, weights `{checkpoint.weights[:12]}`. All figures: [results.json]({figures})."
    yield ""
    for reported in checkpoint.records:
        yield f"- **{reported.title}**: {markdown(reported.summary)}{reported.record.mark}. {reported.how}"
        yield from (f"  - {markdown(line)}" for line in reported.remarks)
    for kind, text in checkpoint.left_out.items():
        yield f"- **{title_of(kind)}**: {markdown(text)}."
    if checkpoint.order:
        yield f"- {markdown(checkpoint.order)}"
    yield ""
    for picture in checkpoint.pictures:
        yield from (f"![{picture.stem}]({_link(picture, folder)})", "")


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix(), errors="replace")
