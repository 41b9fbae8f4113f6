"""From finished runs to the cells of a table: means and spreads over seeds, footnotes, reasons of failure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svdctl.config.table_config import STATIC, Column
from svdctl.reproduce.columns import header_of
from svdctl.reproduce.job import Outcome
from svdctl.reproduce.paper_numbers import PaperNumbers
from svdctl.reproduce.plan import TablePlan, TableRow
from svdctl.reproduce.static_figures import static_figures


@dataclass(frozen=True)
class Cell:
    """One figure of a row."""

    values: tuple[float, ...]
    """One for each seed that has it."""
    paper: float | None = None
    """The paper's number, in the unit that is shown."""
    kept: str = ""
    """Whether an earlier call measured it: empty, `kept`, `kept, no checksum`, or the same of some of its seeds."""

    @property
    def mean(self) -> float | None:
        """Over the seeds; None without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the sample; None below two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class ResultRow:
    """A row as it is printed."""

    row: TableRow
    cells: Mapping[Column, Cell]
    notes: tuple[int, ...]
    """Numbers of its footnotes, from 1."""
    outcomes: tuple[Outcome, ...]
    """Of its jobs."""

    @property
    def measured(self) -> int:
        """Seeds that have figures."""
        return max((len(cell.values) for column, cell in self.cells.items() if column not in STATIC), default=0)

    @property
    def shown(self) -> str:
        """The label, and how many seeds stand behind the figures while some are missing."""
        label = self.row.row.shown
        return (
            f"{label} ({self.measured} of {len(self.outcomes)} seeds)"
            if 0 < self.measured < len(self.outcomes)
            else label
        )

    @property
    def marked(self) -> str:
        """The same with the numbers of its footnotes."""
        return f"{self.shown} [{', '.join(map(str, self.notes))}]" if self.notes else self.shown

    @property
    def reasons(self) -> list[str]:
        """Why runs of it failed, with their seeds."""
        return [
            f"seed {job.config.seed}: {outcome.reason}"
            for job, outcome in zip(self.row.jobs, self.outcomes, strict=True)
            if outcome.reason is not None
        ]


@dataclass(frozen=True)
class Results:
    """A table with its figures."""

    plan: TablePlan
    rows: tuple[ResultRow, ...]
    notes: tuple[str, ...]
    """Footnotes; the last ones belong to the whole table."""

    def notes_of(self, row: ResultRow) -> list[str]:
        """Its own footnotes, and those of the whole table."""
        referred = {number for other in self.rows for number in other.notes}
        return [text for number, text in enumerate(self.notes, 1) if number in row.notes or number not in referred]

    def header(self, column: Column) -> str:
        """What stands above a column."""
        return header_of(column, self.plan.evaluate)

    @property
    def caption(self) -> str:
        """Number of seeds, and what stands in a cell."""
        count = len(self.plan.seeds)
        seeds = ", ".join(map(str, self.plan.seeds))
        if not self.plan.trains:
            return "Derived from the configurations; nothing was trained."
        if count == 1:
            return f"One seed ({seeds})."
        return f"Mean and standard deviation over {count} seeds ({seeds})."

    @property
    def complete(self) -> bool:
        """Whether every cell has a figure of every seed."""
        return all(
            len(cell.values) == (1 if column in STATIC else len(self.plan.seeds))
            for row in self.rows
            for column, cell in row.cells.items()
        )


def assemble(plan: TablePlan, outcomes: Mapping[str, Outcome], paper: PaperNumbers) -> Results:
    """The table from the figures of its runs, by their ids; runs that are missing leave their cells empty."""
    notes: dict[str, int] = {}
    rows = []
    numbers = paper.get(plan.source.stem, {})
    everywhere = _common(plan, outcomes)
    for row in plan.rows:
        runs = tuple(outcomes.get(job.id, Outcome()) for job in row.jobs)
        own = dict.fromkeys(text for run in runs for text in run.deviations if text not in everywhere)
        marks = tuple(notes.setdefault(text, len(notes) + 1) for text in own)
        static = static_figures(row.config)
        fixed = {
            "parameters": float(static.parameters),
            "compression": static.compression,
            "control-cost": static.control_ratio,
        }
        there = numbers.get(row.row.name, {})
        cells = {
            column: Cell(
                (fixed[column],)
                if column in STATIC
                else tuple(run.values[column] for run in runs if column in run.values),
                there.get(column),
                _kept(column, runs),
            )
            for column in plan.columns
        }
        rows.append(ResultRow(row, cells, marks, runs))
    general = [*_general_notes(plan), *everywhere, *plan.table.notes * plan.trains]
    return Results(plan, tuple(rows), (*notes, *general))


def _kept(column: Column, runs: Sequence[Outcome]) -> str:
    """The mark of a cell whose figures, or some of them, were measured by an earlier call."""
    marks = [run.kept.get(column, "") for run in runs if column in run.values]
    some = [mark for mark in marks if mark]
    weakest = max(some, key=len, default="")
    return weakest if len(some) == len(marks) else f"{weakest} for {len(some)} of {len(marks)} seeds" if some else ""


def _common(plan: TablePlan, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Deviations that every finished run of the table has: said once, without marks."""
    keys = [job.id for row in plan.rows for job in row.jobs if job.id in outcomes]
    known = [outcomes[key].deviations for key in keys if outcomes[key].values]
    return [text for text in (known[0] if known else ()) if all(text in other for other in known)]


def _general_notes(plan: TablePlan) -> list[str]:
    notes = []
    if plan.smoke and plan.table.smoke is not None:
        changes = ", ".join(plan.table.smoke.set) or "the overrides of each row"
        notes.append(
            f"Smoke scale: it shows that all of it works and is not the paper's experiment ({changes}, and changes of "
            "each row). Rows are called by what they stand for."
        )
    if plan.overrides:
        notes.append(f"Changed on the command line: {', '.join(plan.overrides)}.")
    return notes
