"""Make a table from the results of jobs, with means and standard deviations over seeds, and write its files."""

import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdctl.data.data_source import title_of
from svdctl.reproduce.estimate import static_figures
from svdctl.reproduce.plan import PaperNumbers, TablePlan
from svdctl.reproduce.run_store import Job, Outcome
from svdctl.reproduce.table_files import DATA_NAME, STATIC, Row, known_columns
from svdctl.utils import table as formats
from svdctl.utils.atomic_write import write_atomically, write_picture
from svdctl.utils.html_page import Page, render

if TYPE_CHECKING:
    from svdctl.utils.matplotlib_defaults import Figure


@dataclass(frozen=True)
class SeedFigures:
    """The figures of one cell of a table over the seeds; JSON has them under the same names."""

    mean: float | None
    """None where no seed has a figure."""
    spread: float | None
    """Standard deviation of the sample; None below two seeds."""
    values: tuple[float, ...]
    """One figure for each seed that has been measured."""
    kept: str
    """Whether an earlier call measured it: empty, `kept`, `kept, no checksum`, or the same of some of its seeds."""
    paper_shown: float | None
    """The paper's number, in the unit that is shown."""
    difference_shown: float | None
    """Ours minus the paper's, in that unit."""


@dataclass(frozen=True)
class ResultRow:
    """Hold the figures, footnotes and runs of one row of a table."""

    row: Row
    jobs: tuple[Job, ...]
    outcomes: tuple[Outcome, ...]
    """Of the jobs."""
    figures: Mapping[str, SeedFigures]
    """By column."""
    notes: tuple[int, ...]
    """Numbers of its footnotes, from 1."""

    @property
    def measured(self) -> int:
        """Return the number of seeds that have figures."""
        return max((len(one.values) for column, one in self.figures.items() if column not in STATIC), default=0)

    @property
    def label(self) -> str:
        """Return what the row is called, with the data that it is trained on where its label asks for them."""
        return self.row.shown.replace(DATA_NAME, title_of(self.jobs[0].config.data))

    @property
    def shown(self) -> str:
        """Return the label, with the number of measured seeds while some are missing."""
        some = 0 < self.measured < len(self.outcomes)
        return self.label + f" ({self.measured} of {len(self.outcomes)} seeds)" * some

    @property
    def reasons(self) -> list[str]:
        """Return the seed and the error of each run of the row that failed."""
        pairs = zip(self.jobs, self.outcomes, strict=True)
        return [f"seed {job.config.seed}: {outcome.reason}" for job, outcome in pairs if outcome.reason is not None]

    def text(self, column: str) -> str:
        """Return `97.12 ± 0.30`, the paper's number and the difference behind it; a word or dash without a figure."""
        look, one = known_columns()[column], self.figures[column]
        if one.mean is None:
            text = "failed" if self.reasons else "-"
        else:
            text = look.shown(one.mean)
            if one.spread is not None:
                text = f"{text.removesuffix(look.suffix)} ± {look.shown(one.spread)}"
            if column not in STATIC and len(one.values) < self.measured:
                text += f" ({len(one.values)} of {len(self.outcomes)} seeds)"
            text += f" ({one.kept})" * bool(one.kept)
        if one.paper_shown is None:
            return text
        difference = "" if one.difference_shown is None else f", {one.difference_shown:+,.{look.decimals}f}"
        return f"{text} (paper {one.paper_shown:,.{look.decimals}f}{difference})"


@dataclass(frozen=True)
class Results:
    """Hold a table with its figures and footnotes."""

    plan: TablePlan
    rows: tuple[ResultRow, ...]
    notes: tuple[str, ...]
    """Footnotes; the last ones belong to the whole table."""

    @property
    def caption(self) -> str:
        """Return the data, where the title names them too, and a sentence on the seeds and statistics of the cells."""
        seeds = ", ".join(map(str, self.plan.seeds))
        if not self.plan.trains:
            return "Derived from the configurations; nothing was trained."
        data = f"Data: {self.plan.data}. " if self.plan.names_data else ""
        if len(self.plan.seeds) == 1:
            return f"{data}One seed ({seeds})."
        return f"{data}Mean and standard deviation over {len(self.plan.seeds)} seeds ({seeds})."

    @property
    def complete(self) -> bool:
        """Return whether every cell has a figure of every seed."""
        return all(
            len(one.values) == (1 if column in STATIC else len(self.plan.seeds))
            for row in self.rows
            for column, one in row.figures.items()
        )

    @cached_property
    def table(self) -> formats.Table:
        """Return the table for every format; CSV has full precision and stored units, the paper's numbers as given."""
        plan, known = self.plan, known_columns()
        columns = [
            formats.Column("table"),
            formats.Column("row"),
            formats.Column("label", "", "left"),
            *map(formats.Column, ("group", "preset", "seeds")),
            *(formats.Column(name, known[name].title(plan.evaluate), basis=known[name].basis) for name in plan.columns),
            *map(formats.Column, ("notes", "failures")),
        ]
        return formats.Table(
            columns,
            [list(self._cells(row)) for row in self.rows],
            plan.title,
            self.caption,
            self.notes,
            [f"{row.row.name}, {reason}" for row in self.rows for reason in row.reasons],
            [row.row.group for row in self.rows],
        )

    def _cells(self, row: ResultRow) -> Iterator[formats.Cell]:
        """Yield the cells of a row, in the order of the table's columns."""
        own, plan = row.row, self.plan
        yield from (formats.Cell("", value) for value in (plan.title, own.name))
        yield formats.Cell(row.shown, row.label, notes=row.notes)
        yield from (formats.Cell("", value) for value in (own.group, own.preset, " ".join(map(str, plan.seeds))))
        for column, one in row.figures.items():
            extra = {"spread": one.spread, "count": len(one.values), "kept": one.kept}
            if any(other.figures[column].paper_shown is not None for other in self.rows):
                extra |= {"paper_shown": one.paper_shown, "difference_shown": one.difference_shown}
            yield formats.Cell(row.text(column), one.mean, extra=extra)
        referred = {number for other in self.rows for number in other.notes}
        notes = [text for number, text in enumerate(self.notes, 1) if number in row.notes or number not in referred]
        yield formats.Cell("", " ".join(notes))
        yield formats.Cell("", "; ".join(row.reasons))

    def contents(self, command: Callable[[Job], str]) -> dict[str, Any]:
        """Return everything for JSON: each run with its configuration, folder, figures and the command for it."""
        plan, known = self.plan, known_columns()
        return {
            "title": plan.title,
            "name": plan.name,
            "scale": "smoke" if plan.smoke else "full",
            "caption": self.caption,
            "complete": self.complete,
            "seeds": plan.seeds,
            "columns": {
                name: {"header": known[name].title(plan.evaluate), "shown_factor": known[name].factor}
                for name in plan.columns
            },
            "evaluation": plan.evaluate.model_dump(mode="json"),
            "rows": [
                {
                    "row": row.row.name,
                    "label": row.label,
                    "group": row.row.group,
                    "cells": {column: asdict(one) for column, one in row.figures.items()},
                    "runs": [_run(*pair, command) for pair in zip(row.jobs, row.outcomes, strict=True)],
                }
                for row in self.rows
            ],
            "notes": self.notes,
            "versions": {"svdctl": version("svdctl"), "python": platform.python_version()},
        }


def _run(job: Job, outcome: Outcome, command: Callable[[Job], str]) -> dict[str, Any]:
    """Return a run for JSON."""
    return {
        "seed": job.config.seed,
        "hash": job.key,
        "preset": job.preset,
        "set": job.assignments,
        "command": command(job),
        "folder": outcome.folder,
        "figures": outcome.values,
        "kept": outcome.kept,
        "hashes": outcome.hashes,
        "deviations": outcome.deviations,
        "failed": outcome.reason,
    }


def assemble(plan: TablePlan, outcomes: Mapping[str, Outcome], paper: PaperNumbers) -> Results:
    """Return a table from the outcomes of its jobs, by their ids; those that are missing leave cells empty."""
    notes: dict[str, int] = {}
    rows = []
    # Deviations that every finished run of the table has stand once, without marks.
    known = [outcomes[job.id].deviations for row in plan.rows for job in row.jobs
             if job.id in outcomes and outcomes[job.id].values]  # fmt: skip
    everywhere = [text for text in (known[0] if known else ()) if all(text in other for other in known)]
    for row in plan.rows:
        own = tuple(outcomes.get(job.id, Outcome()) for job in row.jobs)
        texts = dict.fromkeys(text for one in own for text in one.deviations if text not in everywhere)
        texts |= dict.fromkeys(row.row.notes * plan.trains)
        marks = tuple(notes.setdefault(text, len(notes) + 1) for text in texts)
        static = static_figures(row.config) if {*STATIC} & {*plan.columns} else {}
        given = paper.get(plan.source.stem, {}).get(row.row.name, {})
        figures = {column: _over_seeds(column, own, static, given.get(column)) for column in plan.columns}
        rows.append(ResultRow(row.row, row.jobs, own, figures, marks))
    data = [f"Data: {plan.data}."] * (plan.trains and not plan.names_data)
    general = [*_general_notes(plan), *everywhere, *plan.table.notes * plan.trains, *data]
    return Results(plan, tuple(rows), (*notes, *general))


def _over_seeds(
    column: str, outcomes: Sequence[Outcome], static: Mapping[str, float], paper: float | None
) -> SeedFigures:
    """Return the cell of a column: of one that needs no training its figure, else those of the outcomes."""
    found = [one for one in outcomes if column in one.values]
    values = (static[column],) if column in static else tuple(one.values[column] for one in found)
    mean = statistics.fmean(values) if values else None
    marks = [one.kept[column] for one in found if column in one.kept]
    kept = max(marks, key=len, default="")
    return SeedFigures(
        mean,
        statistics.stdev(values) if len(values) > 1 else None,
        values,
        kept if len(marks) in (0, len(found)) else f"{kept} for {len(marks)} of {len(found)} seeds",
        paper,
        None if mean is None or paper is None else mean * known_columns()[column].factor - paper,
    )


def _general_notes(plan: TablePlan) -> Iterator[str]:
    """Yield the footnotes that apply to the whole table."""
    if plan.smoke and plan.table.smoke is not None:
        changes = ", ".join(plan.table.smoke.set) or "the overrides of each row"
        yield (
            f"Smoke scale: it shows that all of it works and is not the paper's experiment ({changes}, and changes of "
            "each row). Rows are called by what they stand for."
        )
    if plan.overrides:
        yield f"Changed on the command line: {', '.join(plan.overrides)}."


def write_table(out_dir: Path, results: Results, command: Callable[[Job], str], *, picture: bool) -> list[Path]:
    """Write a table in every format and return the files; the picture, which takes longest, only when asked for."""
    from svdctl.reproduce.table_page import table_page

    found = results.table
    stem = out_dir.expanduser() / "tables" / results.plan.name
    figure = None
    if picture:
        from svdctl.reproduce.bar_plot import draw_bars  # matplotlib takes a second to import

        figure = draw_bars(results)
    page = partial(table_page, results, command)
    return write_formats(stem, found, formats.records(found), results.contents(command), page, figure)


def write_formats(
    stem: Path,
    table: formats.Table,
    records: Sequence[Mapping[str, Any]],
    contents: Mapping[str, Any],
    page: Callable[["Figure | None"], Page],
    figure: "Figure | None",
) -> list[Path]:
    """Write a table in every format and return the files.

    Args:
        stem: their folder and name without an ending.
        table: for Markdown and LaTeX.
        records: for CSV.
        contents: for JSON.
        page: makes the page of HTML, with the picture in it.
        figure: the picture; None: it is not drawn yet.
    """
    texts = {
        "md": formats.markdown(table),
        "csv": formats.csv_text(records),
        "tex": formats.latex(table),
        "json": formats.json_text(contents),
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in texts.items():
        write_atomically(stem.with_name(f"{stem.name}.{suffix}"), text)
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in texts]
    if figure is not None:
        files.append(stem.with_name(f"{stem.name}.png"))
        write_picture(figure, files[-1])
    files.append(stem.with_name(f"{stem.name}.html"))
    write_atomically(files[-1], render(page(figure)))
    return files
