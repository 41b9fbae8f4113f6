"""What is reached, proved and allowed of each layer, as a list whose text is a table."""

from dataclasses import dataclass

from svdctl.utils.table import Cell, Column, Table, terminal

_WIDTH = 80
_COLUMNS = (
    Column("name", "layer", "left"),
    Column("kind", "type", "left"),
    Column("shape", "shape", "left"),
    Column("largest", "largest"),
    Column("bound", "bound"),
    Column("allowed", "allowed"),
    Column("is_proved", "proved"),
)
_NARROWEST = 8  # of names


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
    allowed: float | None

    @property
    def is_proved(self) -> bool | None:
        """Return whether the layer is proved to be within its maximum; None: it has none."""
        return None if self.allowed is None else self.bound <= self.allowed


class Report(list[LayerReport]):
    """A row for each layer; `str` of it is a table of 80 columns, long names shortened."""

    def table(self) -> Table:
        """Return the table with whole names."""
        return Table(_COLUMNS, [_cells(row) for row in self])

    def __str__(self) -> str:
        table = self.table()
        widths = [
            max(len(column.header or ""), *(len(row[place].text) for row in table.rows), 0)
            for place, column in enumerate(table.columns)
        ]
        left = max(_WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1), _NARROWEST)
        rows = [[Cell(_shortened(name.text, left)), *rest] for name, *rest in table.rows]
        return terminal(Table(table.columns, rows))


def _cells(row: LayerReport) -> list[Cell]:
    proved = {None: "-", True: "yes", False: "no"}[row.is_proved]
    return [
        Cell(row.name or "(top)", row.name),
        Cell(row.kind, row.kind),
        Cell(row.shape.replace(" x ", "x").replace(", rank ", " r"), row.shape),
        *(Cell("-" if value is None else f"{value:.4g}", value) for value in (row.largest, row.bound, row.allowed)),
        Cell(proved, row.is_proved),
    ]


def _shortened(name: str, width: int) -> str:
    """Return a name of at most so many characters: its start and its end, which tell layers apart."""
    if len(name) <= width:
        return name
    start = (width - 1) // 3
    return f"{name[:start]}…{name[len(name) - (width - 1 - start) :]}"
