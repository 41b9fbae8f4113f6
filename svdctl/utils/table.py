"""One object for a table, and its renderers: terminal, Markdown, LaTeX, CSV, JSON and HTML.

Nothing in a cell is markup: each renderer escapes what its format would obey.
"""

import bisect
import csv
import io
import itertools
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Literal

from svdctl.utils import escapes
from svdctl.utils.escapes import html_text, markdown_line, one_line, tex
from svdctl.utils.printable import columns_of, printable

FAILED = "Failed; tried again by the next call:"
_COMFORTABLE = 24
"""Columns of a terminal that an elastic column keeps before another column is left out."""
_NARROWEST = 8
"""Columns of a terminal that an elastic column keeps in any case."""
_MOST_LINES = 4
"""Lines of a terminal over which a text is folded before its middle is cut."""
_INDENT = 2
"""Columns by which further lines of a folded text are indented."""
_BETWEEN = "._-/,: "
"""Signs behind which a text is folded."""
_SHORT = 4
"""Columns of a terminal that are not worth a line which says that all cells begin with them."""
_SHARES = (0.5, 0.7, 0.3, 0.9, 0.1)
"""Of what is left of a shortened text, how much is its end; the first that keeps different texts different is taken."""
Basis = Literal["", "proved", "assumed", "computed", "measured", "reached", "estimated"]
"""What a figure rests on (`html_page` says what each means, and marks figures by it); empty: it is no such figure."""
_LONG = 48
"""Signs of HTML from which on a cell of a page gets a box of its own, whose height is limited."""
_AFTER_WORD = re.compile(r"(?<=\w)[._/-](?=\w)")
"""Signs of a name behind which it may be broken."""
_LEADING_NUMBER = re.compile(r"[<>≤≥≈~= ]*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)")


@dataclass(frozen=True)
class Column:
    """A column; one without a header is in CSV and JSON only."""

    key: str
    """Name in CSV and JSON."""
    header: str | None = None
    """What stands above it, with the unit."""
    align: Literal["left", "right"] = "right"
    droppable: bool = False
    """A terminal and a page leave it out where no row has anything in it."""
    elastic: bool = False
    """A terminal of too few columns cuts what all its cells begin with, and folds long ones over several lines."""
    spare: int = 0
    """A terminal of too few columns leaves out those of the largest number first, together; those of 0 stay."""
    basis: Basis = ""
    """What its figures rest on."""


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
    basis: Basis = ""
    """What it rests on, where that is not what its column says."""

    @property
    def shown(self) -> str:
        """Return the text and the mark."""
        return f"{self.text} ({self.mark})" if self.mark else self.text

    @property
    def is_empty(self) -> bool:
        """Return whether it says nothing: a dash or less, without mark or footnote."""
        return self.shown in ("", "-", "–") and not self.notes


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

    def is_shown(self, place: int) -> bool:
        """Return whether a terminal and a page show the column at this place."""
        column, cells = self.columns[place], [row[place] for row in self.rows]
        return column.header is not None and not (
            column.droppable and bool(cells) and all(cell.is_empty for cell in cells)
        )

    def starts_group(self, row: int) -> bool:
        """Return whether a rule stands above this row."""
        return bool(self.groups) and row > 0 and self.groups[row] != self.groups[row - 1]


def width_of(stream: IO[str] | None) -> int | None:
    """Return how many columns the terminal of a stream has, or the variable COLUMNS says; None: it is no terminal."""
    given = os.environ.get("COLUMNS", "")
    if re.fullmatch(r"0*[1-9][0-9]{0,5}", given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None if stream is not None else None
    except (OSError, ValueError):  # a file, a pipe, or a stream in memory
        return None


def terminal(
    table: Table, *, width: int | None = None, rule: bool = True, fold: bool = False, single: bool = False
) -> str:
    """Return lines for a terminal, columns padded to one width, without a final line feed.

    Args:
        table: of which columns that are `droppable` and empty are left out.
        width: columns of the terminal (`width_of`). Where the table has more, `elastic` columns lose what all their
            cells begin with, which is said above, and are folded, over two lines at least `_COMFORTABLE` wide; then
            `spare` columns are left out; then elastic ones are folded further, to `_NARROWEST`. Texts that would take
            more than `_MOST_LINES` lines lose their middle. Figures are never cut, nor texts made alike by it: such
            lines run over. None: whatever it takes.
        rule: whether there is one below the header.
        fold: break headers at spaces where lines would run over, and put columns that still have no room below the
            others, beside the first column once more.
        single: cut the middle of texts in place of folding them, so that a row is one line.
    """
    columns, said = _laid_out(table, width, 1 if single else _MOST_LINES)
    blocks = _folded(columns, width) if fold and width is not None else [columns]
    lines: list[str] = []
    for block in blocks:
        height = max(len(column.head) for column in block)
        rows = [[[*[""] * (height - len(column.head)), *column.head] for column in block]]
        rows += [list(row) for row in zip(*(column.lines for column in block), strict=True)]
        sides = [(column.width, column.column.align) for column in block]
        found = [line for row in rows for line in _side_by_side(row, sides)]
        if rule:
            found.insert(height, "  ".join("-" * column.width for column in block))
        lines += ["", *found] if lines else found
    # Room for the number of a footnote before it.
    room = None if width is None else width - 6
    return "\n".join(_with_texts(table, [*said, *lines], partial(wrapped, width=room)))


def columns_that_fit(table: Table, width: int | None) -> list[str]:
    """Return the keys of the columns that `terminal` shows."""
    return [column.column.key for column in _laid_out(table, width)[0]]


def _side_by_side(row: Sequence[Sequence[str]], sides: Sequence[tuple[int, str]]) -> list[str]:
    """Return the lines of a row.

    Args:
        row: the lines of each of its cells.
        sides: of each column how wide it is, and at which side its texts stand.
    """
    return [
        "  ".join(itertools.starmap(_padded, zip(texts, sides, strict=True))).rstrip()
        for texts in itertools.zip_longest(*row, fillvalue="")
    ]


def _padded(text: str, side: tuple[int, str]) -> str:
    width, align = side
    space = " " * (width - columns_of(text))
    return space + text if align == "right" else text + space


def _laid_out(table: Table, width: int | None, most: int = _MOST_LINES) -> "tuple[list[_Texts], list[str]]":
    """Return the columns that a terminal shows, as it shows them, and what is said above.

    Args:
        table: whose columns they are.
        width: columns of the terminal; None: any.
        most: lines that a text is folded over.
    """
    columns = [_Texts(place, table, most) for place in range(len(table.columns))]
    columns = [column for column in columns if column.is_shown]
    return columns, [] if width is None else _fit(columns, width)


def wrapped(text: str, width: int | None) -> str:
    """Return a text for a terminal, its lines ended at words, further ones indented; None: on one line."""
    text = one_line(text)
    if width is None or columns_of(text) <= width:
        return text
    room = max(width, _COMFORTABLE)
    return textwrap.fill(text, room, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


class _Texts:
    """What a terminal shows of one column: its header, then its cells, each folded over at most so many lines."""

    def __init__(self, place: int, table: Table, most: int) -> None:
        self.column, self._most = table.columns[place], most
        cells = [row[place] for row in table.rows]
        self.is_shown = table.is_shown(place)
        texts = [self.column.header or "", *map(_bracketed, cells)]
        self.texts = [printable(text.replace("\n", " ")) for text in texts]
        self._whole = self.texts
        self.head = self.texts[:1]
        """The header in lines."""
        self.lines = [[text] for text in self.texts[1:]]
        """Each cell in lines."""

    @property
    def width(self) -> int:
        """Return how many columns of the terminal it takes."""
        return max(map(columns_of, [*self.head, *itertools.chain.from_iterable(self.lines)]))

    def break_header(self) -> None:
        """Put a header that is wider than all cells on several lines, words whole."""
        header, *cells = self.texts
        room = max(map(columns_of, [*cells, *header.split()]), default=1)
        self.head = textwrap.wrap(header, max(room, 1), break_long_words=False, break_on_hyphens=False) or [""]

    def cut_beginning(self) -> str:
        """Take away whole words that all cells begin with, and return them; short ones stay."""
        header, *cells = self.texts
        if len(cells) < 2:
            return ""
        first, last = min(cells), max(cells)
        length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
        beginning = re.match(r".*[^\w\s]|", first[:length])[0]  # type: ignore[index]
        if len(beginning) < _SHORT:
            return ""
        self._whole = self.texts = [header, *(text[len(beginning) :] for text in cells)]
        self.lines = [[text] for text in self.texts[1:]]
        return beginning

    def comfortable(self, most: int) -> int:
        """Return the width from `_COMFORTABLE` to `most` at which cells that two lines can hold take no more."""
        if self._most == 1:
            return _COMFORTABLE
        cells = [text for text in self._whole[1:] if columns_of(text) <= 2 * most and len(folded(text, most)) < 3]
        found = bisect.bisect_left(
            range(_COMFORTABLE, most), True, key=lambda room: all(len(folded(text, room)) < 3 for text in cells)
        )
        return _COMFORTABLE + found

    def shorten(self, width: int) -> None:
        """Fold cells that are wider than this, and cut the middle of those that are too long for it.

        Different ones stay different, whatever the width.
        """
        header, *cells = self._whole
        room = max(width, columns_of(header), 1)
        short = _cut_apart(cells, room if self._most == 1 else room + (self._most - 1) * max(room - _INDENT, 1))
        self.texts = [header, *short]
        self.lines = [[text] if self._most == 1 else folded(text, room) for text in short]


def _cut_apart(texts: list[str], allowed: int) -> list[str]:
    """Return texts without the middle of those that are wider, as far as different ones stay different."""
    rulers = [_Ruler(text) for text in texts]
    widest, count = max((ruler.width for ruler in rulers), default=0), len(set(texts))
    while allowed < widest:
        for share in _SHARES:
            short = [ruler.without_middle(allowed, share) for ruler in rulers]
            if len(set(short)) == count:
                return short
        # Names can have thousands of signs: beyond what terminals are wide, steps grow.
        allowed += max(1, (allowed - 64) // 4)
    return texts


def folded(text: str, width: int) -> list[str]:
    """Return a text on lines of at most so many columns of a terminal, ended between its words where it can be.

    Further lines are indented where there is room for it.

    >>> from svdctl.utils.table import folded
    >>> folded("layer4.0.downsample.0", 16)
    ['layer4.0.', '  downsample.0']
    """
    ruler, indent = _Ruler(text), " " * (_INDENT if width > 3 * _INDENT else 0)
    lines, start, room = [], 0, width
    while (end := ruler.end(start, room)) < len(text):
        between = (at for at in range(end, start + (end - start) // 3, -1) if text[at - 1] in _BETWEEN)
        end = next(between, end)
        lines.append(text[start:end].rstrip())
        start, room = end, width - len(indent)
    lines.append(text[start:])
    return [lines[0], *(indent + line for line in lines[1:])]


class _Ruler:
    """A text, and how many columns of a terminal its beginnings take, so that it is cut without being measured anew."""

    def __init__(self, text: str) -> None:
        self.text = text
        widths = itertools.repeat(1, len(text)) if text.isascii() else map(columns_of, text)
        self._ends = [0, *itertools.accumulate(widths)]

    @property
    def width(self) -> int:
        """Return how many columns the text takes."""
        return self._ends[-1]

    def end(self, start: int, width: int) -> int:
        """Return where a part of at most so many columns ends; it has one sign in any case."""
        return max(bisect.bisect_right(self._ends, self._ends[start] + width) - 1, start + 1)

    def without_middle(self, width: int, share: float) -> str:
        """Return a text of at most so many columns: of a longer one, `share` of what stays is after the ellipsis."""
        if self.width <= width:
            return self.text
        after = round((width - 1) * share)
        last = bisect.bisect_left(self._ends, self.width - after)
        first = bisect.bisect_right(self._ends, width - 1 - (self.width - self._ends[last])) - 1
        return f"{self.text[:first]}…{self.text[last:]}"


def _fit(columns: list[_Texts], width: int) -> list[str]:
    """Fold columns and leave out some until they fit side by side; return what is to be said above them."""
    said = []
    for column in columns:
        if column.column.elastic and _excess(columns, width) > 0 and (beginning := column.cut_beginning()):
            said += [f"{column.texts[0] or 'names'}: all begin with {beginning}", ""]
    comfortable = {column.column.key: column.comfortable(width // 2) for column in columns if column.column.elastic}
    _shorten(columns, width, comfortable)
    while _excess(columns, width) > 0 and (spare := [column for column in columns if column.column.spare]):
        largest = max(column.column.spare for column in spare)
        columns[:] = [column for column in columns if column.column.spare != largest]
        _shorten(columns, width, comfortable)
    _shorten(columns, width, dict.fromkeys(comfortable, _NARROWEST))
    return said


def _folded(columns: list[_Texts], width: int) -> list[list[_Texts]]:
    """Return columns in blocks that fit, each with the first column; headers are broken if all do not fit at once."""
    if _excess(columns, width) <= 0:
        return [columns]
    for column in columns:
        column.break_header()
    label, *others = columns
    blocks = [[label]]
    for column in others:
        if len(blocks[-1]) > 1 and _excess([*blocks[-1], column], width) > 0:
            blocks.append([label])
        blocks[-1].append(column)
    return blocks


def _excess(columns: Sequence[_Texts], width: int) -> int:
    """Return by how many columns of the terminal lines are too long."""
    return sum(column.width for column in columns) + 2 * (len(columns) - 1) - width


def _shorten(columns: Sequence[_Texts], width: int, narrowest: Mapping[str, int]) -> None:
    """Fold elastic columns until all fit, or they have come to the width that `narrowest` has under their key."""
    elastic = [column for column in columns if column.column.elastic]
    for column in elastic:
        column.shorten(width)
    # The widest first, so that short names stay on one line.
    for column in sorted(elastic, key=lambda column: -column.width):
        if (excess := _excess(columns, width)) > 0:
            column.shorten(max(column.width - excess, narrowest[column.column.key]))


def markdown(table: Table) -> str:
    """Return a Markdown table with its title, caption and notes; it ends with a line feed."""
    lines = [
        f"| {' | '.join(map(escapes.markdown, table.headers))} |",
        f"|{''.join('---:|' if right else '---|' for right in table.rights)}",
    ]
    lines += [f"| {' | '.join(_bracketed(cell, escapes.markdown) for cell in row)} |" for row in table.shown_rows]
    return "\n".join(_with_texts(table, lines, markdown_line)) + "\n"


def _bracketed(cell: Cell, escaped: Callable[[str], str] = str) -> str:
    return f"{escaped(cell.shown)} [{', '.join(map(str, cell.notes))}]".lstrip() if cell.notes else escaped(cell.shown)


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
    """Return a `<table>` element with its caption, and its notes as a list; for notebooks, which have styles alone."""
    lines = ["<table>", *_html_caption(table)]
    lines.append(f"<tr>{''.join(f'<th>{html_text(text)}</th>' for text in table.headers)}</tr>")
    for number, row in enumerate(table.shown_rows):
        style = ' style="border-top: 1px solid"' if table.starts_group(number) else ""
        cells = (
            f'<td style="text-align: {"right" if right else "left"}">{_html_cell(cell)}</td>'
            for cell, right in zip(row, table.rights, strict=True)
        )
        lines.append(f"<tr{style}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>", *_html_notes(table)]) + "\n"


def sortable_html(table: Table) -> str:
    """Return the same for a page with styles and a script of its own (`html_page`), which sorts rows by a column.

    Headers are buttons. A column of figures has the class `figures`, and `data-numbers` if it is sorted by numbers:
    the `data-value` of its cells, missing where there is none. A class says what a figure rests on.
    """
    places = [place for place in range(len(table.columns)) if table.is_shown(place)]
    columns = [table.columns[place] for place in places]
    rows = [[row[place] for place in places] for row in table.rows]
    figures = ["figures" if column.align == "right" else "" for column in columns]
    values = [[_number_of(cell) if align else None for cell, align in zip(row, figures, strict=True)] for row in rows]
    numbers = [" data-numbers" * any(row[place] is not None for row in values) for place in range(len(columns))]
    head = (
        f'<th scope="col" aria-sort="none"{_class_of(align)}{kind}>'
        f'<button type="button">{html_text(column.header or ("notes" if place else "name"))}</button></th>'
        for place, (column, align, kind) in enumerate(zip(columns, figures, numbers, strict=True))
    )
    lines = ["<table>", *_html_caption(table), f"<thead><tr>{''.join(head)}</tr></thead>", "<tbody>"]
    for number, row in enumerate(rows):
        cells = []
        for place, (column, align, cell, value) in enumerate(zip(columns, figures, row, values[number], strict=True)):
            classes = _class_of(align, "" if cell.is_empty else cell.basis or column.basis)
            data = "" if value is None else f' data-value="{_javascript_number(value)}"'
            text = _html_cell(cell)
            is_long = len(text) > _LONG
            if place == 0 and not align:  # on a narrow page names end lines at their dots, not within words
                text = _AFTER_WORD.sub(r"\g<0><wbr>", text)
            cells.append(f"<td{classes}{data}>{f'<div>{text}</div>' if is_long else text}</td>")
        lines.append(f"<tr{_class_of('group' * table.starts_group(number))}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>", *_html_notes(table)]) + "\n"


def _number_of(cell: Cell) -> float | None:
    """Return the value of a figure; of one that has a text alone the number that it begins with, None if none."""
    if isinstance(cell.value, int | float) and not isinstance(cell.value, bool):
        return None if math.isnan(cell.value) else float(cell.value)
    found = _LEADING_NUMBER.match(cell.text)
    return float(found[1].replace(",", "")) if found is not None else None


def _javascript_number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f"{'-' * (value < 0)}Infinity"


def _class_of(*names: str) -> str:
    return f' class="{" ".join(filter(None, names))}"' if any(names) else ""


def _html_caption(table: Table) -> list[str]:
    head = [text for text in (table.title, table.caption) if text]
    return [f"<caption>{html_text('. '.join(head))}</caption>"] if head else []


def _html_notes(table: Table) -> list[str]:
    notes = [*table.numbered_notes, *(f"Failed: {line}." for line in table.failures)]
    return [f"<ul>{''.join(f'<li>{html_text(text)}</li>' for text in notes)}</ul>"] if notes else []


def _html_cell(cell: Cell) -> str:
    return html_text(cell.shown) + (f"<sup>{', '.join(map(str, cell.notes))}</sup>" if cell.notes else "")


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
