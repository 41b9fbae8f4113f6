"""Tables of `reproduce` and the figure of speed as pages: the table, its picture, its runs, and where it comes from."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from svdctl.reproduce.run_store import Job, Outcome
from svdctl.utils.content_hash import file_digest
from svdctl.utils.html_page import FactList, FoldedList, Page, PagePicture, PageSection, written_by
from svdctl.utils.table import Cell, Column, Table

if TYPE_CHECKING:
    from svdctl.reproduce.speed import SpeedResults
    from svdctl.reproduce.table_results import Results
    from svdctl.utils.matplotlib_defaults import Figure

_DIGITS = 12
"""Of a hash: what tells one from all others that a reader may meet."""


def table_page(results: "Results", command: Callable[[Job], str], figure: "Figure | None") -> Page:
    """Return the page of a table.

    Args:
        results: the table.
        command: returns the command that trains a run.
        figure: `draw_bars` of it; None: it is not drawn yet.
    """
    plan = results.plan
    sections = [
        PageSection("Table", [_untitled(results.table)]),
        *_picture(figure, "A dot for each row, with its spread over seeds; the same figures as in the table."),
    ]
    if plan.trains:
        lines = [f"{row.label}, seed {job.config.seed}: {command(job)}" for row in results.rows for job in row.jobs]
        commands = FoldedList("The commands that train them", lines)
        sections.append(PageSection("Runs", [_runs(results), commands]))
        asked = plan.evaluate.model_dump(mode="json", exclude_none=True)
        measured = FactList([(name, _text(value)) for name, value in asked.items() if value])
        told = "What the table file has below [evaluate], and its defaults; what is absent is as in the paper."
        sections.append(PageSection("How it was measured", [told, measured]))
    facts = [("table file", str(plan.source)), ("SHA-256 of it", file_digest(plan.source)), *written_by()]
    complete = "every cell has a figure of every seed" if results.complete else "not finished: cells are empty"
    sections.append(PageSection("Where this comes from", [FactList([("state", complete), *facts])]))
    return Page(plan.title, results.caption, sections)


def speed_page(results: "SpeedResults", figure: "Figure | None") -> Page:
    """Return the page of the figure of speed, of which `figure` is the picture."""
    sections = [
        *_picture(figure, "Seconds of full and of TT layers side by side; the same figures as in the table."),
        PageSection("Table", [_untitled(results.table)]),
        PageSection("Where this comes from", [FactList([("measured on", results.machine), *written_by()])]),
    ]
    return Page(results.title, results.table.caption, sections)


def _untitled(table: Table) -> Table:
    """Return a table without the texts that the page has above it."""
    return Table(table.columns, table.rows, "", "", table.notes, table.failures, table.groups)


def _picture(figure: "Figure | None", caption: str) -> Iterator[PageSection]:
    if figure is not None:
        from svdctl.utils.inline_svg import svg_text  # matplotlib takes a second to import

        yield PageSection("Picture", [PagePicture(svg_text(figure, "table", caption), caption)])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _runs(results: "Results") -> Table:
    """Return a table of the runs of a table: what became of each, and what tells it from others."""
    columns = [
        Column("row", "row", "left"),
        Column("seed", "seed"),
        Column("state", "state", "left"),
        *(Column(name, f"{name}, SHA-256", "left", droppable=True) for name in ("run", "weights", "data")),
        Column("protocols", "protocols, SHA-256", "left", droppable=True),
        Column("folder", "folder", "left", droppable=True),
    ]
    rows = []
    for row in results.rows:
        for job, outcome in zip(row.jobs, row.outcomes, strict=True):
            known = dict(outcome.hashes)
            hashes = [job.key, known.pop("weights", ""), known.pop("data", "")]
            texts = [_state(outcome), *(text[:_DIGITS] for text in hashes)]
            texts += [", ".join(f"{kind} {text}" for kind, text in known.items()), outcome.folder or ""]
            seed = Cell(str(job.config.seed), job.config.seed)
            rows.append([Cell(row.label), seed, *map(Cell, texts)])
    return Table(columns, rows)


def _state(outcome: Outcome) -> str:
    if outcome.reason is not None:
        return f"failed: {outcome.reason}"
    if not outcome.values:
        return "not yet there"
    return "kept" if outcome.is_reused else "done"
