"""What is reached and proved of each layer, and its maximum, as a list whose text is a table."""

from collections import Counter
from dataclasses import dataclass
from textwrap import wrap

from svdctl.utils.printable import printable
from svdctl.utils.rounded_figures import at_least, at_most
from svdctl.utils.table import Cell, Column, Table, html, terminal

_WIDTH = 80
_COLUMNS = (
    Column("name", "layer", "left"),
    Column("kind", "type", "left"),
    Column("shape", "shape", "left"),
    Column("largest", "largest"),
    Column("bound", "bound"),
    Column("maximum", "maximum"),
    Column("is_proved", "proved"),
)
_NARROWEST = 6  # of names


@dataclass(frozen=True)
class LayerReport:
    """The spectrum of one layer in a line."""

    name: str
    kind: str
    shape: str
    largest: float
    """A value that is reached."""
    bound: float
    """A proved bound at every input size."""
    maximum: float | None
    """The largest singular value that it may have, or gain of BatchNorm; None: any."""

    @property
    def is_proved(self) -> bool | None:
        """Return whether the layer is proved to be within its maximum; None: it has none."""
        return None if self.maximum is None else self.bound <= self.maximum


class Report(list[LayerReport]):
    """A row for each layer; `str` of it is a table of 80 columns, which has the ends of long names.

    Names whose ends are alike stand whole, in a line above their figures.
    """

    def table(self) -> Table:
        """Return the table with whole names."""
        return Table(_COLUMNS, [_cells(row) for row in self])

    def _repr_html_(self) -> str:
        """Return the table as HTML, which a notebook shows."""
        return html(self.table())

    def __str__(self) -> str:
        table = self.table()
        widths = [
            max(len(column.header or ""), *(len(row[place].text) for row in table.rows), 0)
            for place, column in enumerate(table.columns)
        ]
        left = max(_WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1), _NARROWEST)
        short = [_shortened(name.text, left) for name, *_ in table.rows]
        alike = {name for name, count in Counter(short).items() if count > 1}
        rows = [
            [Cell("" if name in alike else name), *rest] for name, (_, *rest) in zip(short, table.rows, strict=True)
        ]
        header, rule, *lines = terminal(Table(table.columns, rows)).splitlines()
        above = [
            wrap(printable(row[0].text), _WIDTH) if name in alike else []
            for name, row in zip(short, table.rows, strict=True)
        ]
        return "\n".join(
            [header, rule, *(line for names, own in zip(above, lines, strict=True) for line in [*names, own])]
        )


def _cells(row: LayerReport) -> list[Cell]:
    proved = {None: "-", True: "yes", False: "no"}[row.is_proved]
    return [
        Cell(row.name or "(top)", row.name),
        Cell(row.kind, row.kind),
        Cell(row.shape.replace(" x ", "x").replace(", rank ", " r"), row.shape),
        Cell(at_least(row.largest), row.largest),
        *(Cell(at_most(value), value) for value in (row.bound, row.maximum)),
        Cell(proved, row.is_proved),
    ]


def _shortened(name: str, width: int) -> str:
    """Return a name of at most so many characters: its end, which tells layers apart."""
    return name if len(name) <= width else f"…{name[len(name) - (width - 1) :]}"
