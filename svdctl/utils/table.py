"""One object for a table, and its renderers: terminal, Markdown, LaTeX, CSV, JSON and HTML.

Nothing in a cell is markup: each renderer escapes what its format would obey.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from svdctl.utils import escapes
from svdctl.utils.escapes import html_text, markdown_line, one_line, tex
from svdctl.utils.printable import printable

FAILED = "Failed; tried again by the next call:"


@dataclass(frozen=True)
class Column:
    """A column; one without a header is in CSV and JSON only."""

    key: str
    """Name in CSV and JSON."""
    header: str | None = None
    """What stands above it, with the unit."""
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Cell:
    """A figure, or why there is none."""

    text: str
    """As it is read: rounded, in the unit of the header; a dash or a word where there is no figure."""
    value: Any = None
    """As CSV and JSON have it: full precision, stored unit."""
    mark: str = ""
    """What stands behind the text in parentheses, as `kept`."""
    notes: tuple[int, ...] = ()
    """Numbers of its footnotes, from 1."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of CSV and keys of JSON; `spread` of the column `accuracy` is `accuracy_spread`."""

    @property
    def shown(self) -> str:
        """Return the text and the mark."""
        return f"{self.text} ({self.mark})" if self.mark else self.text


@dataclass(frozen=True)
class Table:
    """Cells in rows of as many columns; the texts around them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    caption: str = ""
    notes: Sequence[str] = ()
    """Footnotes, the first of them has number 1; those that no cell refers to belong to the whole table."""
    failures: Sequence[str] = ()
    """A line for each thing that failed."""
    groups: Sequence[object] = ()
    """One for each row: where it changes, LaTeX and HTML draw a rule."""

    @property
    def headers(self) -> list[str]:
        """Return the headers of the columns that are shown."""
        return [column.header for column in self.columns if column.header is not None]

    @property
    def shown_rows(self) -> list[list[Cell]]:
        """Return the cells of the columns that are shown."""
        return [
            [cell for column, cell in zip(self.columns, row, strict=True) if column.header is not None]
            for row in self.rows
        ]

    @property
    def rights(self) -> list[bool]:
        """Return whether the cells of a column that is shown stand at its right edge."""
        return [column.align == "right" for column in self.columns if column.header is not None]

    @property
    def numbered_notes(self) -> list[str]:
        """Return the footnotes; before those that cells refer to stand their numbers."""
        return [number + text for number, text in self.notes_by_number]

    @property
    def notes_by_number(self) -> list[tuple[str, str]]:
        """Return the footnotes with their numbers, as `[1] `; empty where no cell refers to them."""
        referred = {number for row in self.rows for cell in row for number in cell.notes}
        return [(f"[{number}] " * (number in referred), text) for number, text in enumerate(self.notes, 1)]

    def starts_group(self, row: int) -> bool:
        """Return whether a rule stands above this row."""
        return bool(self.groups) and row > 0 and self.groups[row] != self.groups[row - 1]


def terminal(table: Table, *, rule: bool = True) -> str:
    """Return lines for a terminal, columns padded to one width, without a final line feed; `rule`: below the header."""
    lines = [table.headers, *([_bracketed(cell) for cell in row] for row in table.shown_rows)]
    lines = [[printable(text.replace("\n", " ")) for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, table.rights, strict=True)
        ).rstrip()
        for line in lines
    ]
    if rule:
        padded.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(_with_texts(table, padded, one_line))


def markdown(table: Table) -> str:
    """Return a Markdown table with its title, caption and notes; it ends with a line feed."""
    lines = [
        f"| {' | '.join(map(escapes.markdown, table.headers))} |",
        f"|{''.join('---:|' if right else '---|' for right in table.rights)}",
    ]
    lines += [f"| {' | '.join(_bracketed(cell, escapes.markdown) for cell in row)} |" for row in table.shown_rows]
    return "\n".join(_with_texts(table, lines, markdown_line)) + "\n"


def _bracketed(cell: Cell, escaped: Callable[[str], str] = str) -> str:
    return f"{escaped(cell.shown)} [{', '.join(map(str, cell.notes))}]" if cell.notes else escaped(cell.shown)


def _with_texts(table: Table, lines: list[str], escaped: Callable[[str], str]) -> list[str]:
    """Return the lines of a table between its title and caption, and its notes, each text escaped."""
    before = [f"# {escaped(table.title)}", ""] if table.title else []
    before += [escaped(table.caption), ""] if table.caption else []
    notes = ["", *(f"- {number}{escaped(text)}" for number, text in table.notes_by_number)] if table.notes else []
    failed = ["", FAILED, "", *(f"- {escaped(text)}" for text in table.failures)] if table.failures else []
    return [*before, *lines, *notes, *failed]


def latex(table: Table) -> str:
    """Return a whole LaTeX document with booktabs; the table environment in it can be copied into another."""
    caption = ". ".join(tex(text) for text in (table.title, table.caption) if text)
    lines = [
        "% " + one_line(table.title),
        r"\documentclass{article}",
        r"\usepackage[margin=15mm]{geometry}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in table.rights)}}}",
        r"\toprule",
        " & ".join(map(tex, table.headers)) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.shown_rows):
        lines += [r"\midrule"] * table.starts_group(number)
        lines.append(" & ".join(map(_tex_cell, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [*table.numbered_notes, *(f"Failed: {line}." for line in table.failures)]
    if notes:
        joined = r" \\ ".join(map(tex, notes))
        lines += ["", r"\smallskip", rf"\parbox{{0.9\linewidth}}{{\scriptsize {joined}}}"]
    return "\n".join([*lines, r"\end{table}", r"\end{document}"]) + "\n"


def _tex_cell(cell: Cell) -> str:
    return tex(cell.shown) + (rf"\textsuperscript{{{','.join(map(str, cell.notes))}}}" if cell.notes else "")


def html(table: Table) -> str:
    """Return a `<table>` element with its caption, and its notes as a list; for notebooks."""
    head = [text for text in (table.title, table.caption) if text]
    lines = ["<table>", *(f"<caption>{html_text('. '.join(head))}</caption>" for _ in head[:1])]
    lines.append(f"<tr>{''.join(f'<th>{html_text(text)}</th>' for text in table.headers)}</tr>")
    for number, row in enumerate(table.shown_rows):
        style = ' style="border-top: 1px solid"' if table.starts_group(number) else ""
        cells = (_html_cell(cell, right) for cell, right in zip(row, table.rights, strict=True))
        lines.append(f"<tr{style}>{''.join(cells)}</tr>")
    lines.append("</table>")
    notes = [*table.numbered_notes, *(f"Failed: {line}." for line in table.failures)]
    if notes:
        lines.append(f"<ul>{''.join(f'<li>{html_text(text)}</li>' for text in notes)}</ul>")
    return "\n".join(lines) + "\n"


def _html_cell(cell: Cell, right: bool) -> str:
    notes = f"<sup>{', '.join(map(str, cell.notes))}</sup>" if cell.notes else ""
    return f'<td style="text-align: {"right" if right else "left"}">{html_text(cell.shown)}{notes}</td>'


def records(table: Table) -> list[dict[str, Any]]:
    """Return the values of each row by column, further ones as `<column>_<name>`; None for what is not finite."""
    return [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for column, cell in zip(table.columns, row, strict=True)
            for name, value in (
                (column.key, cell.value),
                *((f"{column.key}_{name}", value) for name, value in cell.extra.items()),
            )
        }
        for row in table.rows
    ]


def csv_text(rows: Sequence[Mapping[str, Any]], header: Sequence[str] = ()) -> str:
    """Return rows as CSV with a header; lists are joined by `x`, None is empty.

    Args:
        rows: values by column, as `records` returns them; a row may lack columns of others.
        header: the columns; empty: those of the rows, in the order in which they appear.
    """
    file = io.StringIO()
    names = header or list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _csv_value(value) for name, value in row.items()})
    return file.getvalue()


def _csv_value(value: Any) -> Any:
    if isinstance(value, list):
        value = "x".join(map(str, value))
    return escapes.csv_cell(value) if isinstance(value, str) else value


def json_text(contents: Mapping[str, Any]) -> str:
    """Return JSON with a final line feed, printable signs beyond ASCII as they are.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
    """
    return escapes.json_signs(json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
