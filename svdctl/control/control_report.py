"""What is reached and proved of each layer, and its maximum, as a list whose text is a table."""

from dataclasses import dataclass

from svdctl.utils.rounded_figures import at_least, at_most
from svdctl.utils.table import Cell, Column, Table, html, terminal

_WIDTH = 80
_COLUMNS = (
    Column("name", "layer", "left", elastic=True),
    Column("kind", "type", "left", spare=2),
    Column("shape", "shape", "left", spare=1),
    Column("largest", "reached"),
    Column("bound", "bound"),
    Column("maximum", "maximum"),
    Column("is_proved", "proved"),
)


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
    """A row for each layer; `str` of it is a table of 80 columns, in which long names are folded.

    Types and shapes are left out where there is no room for them; `table` has them.
    """

    def table(self) -> Table:
        """Return the table with whole names."""
        return Table(_COLUMNS, [_cells(row) for row in self])

    def _repr_html_(self) -> str:
        """Return the table as HTML, which a notebook shows."""
        return html(self.table())

    def __str__(self) -> str:
        return terminal(self.table(), width=_WIDTH)


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
