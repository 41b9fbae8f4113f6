"""Two spectra side by side: layers matched by name, what is larger in the second and by how much."""

from collections.abc import Sequence

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_table import COLUMNS, cell_of, held, legend_of, text_below, text_table, value_of
from svdctl.utils.escapes import one_line
from svdctl.utils.rounded_figures import number
from svdctl.utils.table import Cell, Column, Table, columns_that_fit, terminal, wrapped

_BESIDE = ("largest_circular", "bound_upper", "condition_number")
_HEADERS = {"largest_circular": "circular", "bound_upper": "bound", "condition_number": "condition"}
_SPARE = {"condition_number": 1}
_MISSING = Cell("-")

Pair = tuple[LayerSpectrum | None, LayerSpectrum | None]


def are_comparable(networks: Sequence[NetworkSpectrum]) -> bool:
    """Return whether there are two networks, and most layers of the smaller one have their like in the other."""
    if len(networks) != 2:
        return False
    first, second = ({layer.name for layer in network if layer.is_analysed} for network in networks)
    return len(first & second) > min(len(first), len(second)) / 2


def comparison_table(first: NetworkSpectrum, second: NetworkSpectrum) -> Table:
    """Return a table with one row for each name of a layer, in the order of the first network.

    Columns of the two are called a and b; `b / a` is of their largest values with circular padding, where both are
    known, else of bounds.
    """
    columns = [Column("name", "layer", "left", elastic=True), Column("shape", "kernel", "left", spare=2)]
    for key in _BESIDE:
        spare, basis = _SPARE.get(key, 0), COLUMNS[key].basis
        columns += [
            Column(f"{key}_{side}", f"{_HEADERS[key]} {side}", "right", True, spare=spare, basis=basis) for side in "ab"
        ]
        if key == "largest_circular":
            columns.append(Column("ratio", "b / a", droppable=True, basis="computed"))
    columns += [Column(f"maximum_{side}", f"maximum {side}", "left", True, spare=3) for side in "ab"]
    rows = [_row(name, pair) for name, pair in _pairs(first, second).items()]
    return Table(columns, rows)


def text_tables(
    networks: Sequence[NetworkSpectrum], *, top: int | None = None, every: bool = False, width: int | None = None
) -> str:
    """Return networks for a terminal: two that are comparable side by side, others one below the other.

    Args:
        networks: any number.
        top, every, width: as in `text_table`.
    """
    if not are_comparable(networks):
        return "\n\n".join(text_table(network, top=top, every=every, width=width) for network in networks)
    table = comparison_table(*networks)
    lines = [wrapped(f"{side}: {network.name}", width) for side, network in zip("ab", networks, strict=True)]
    lines += ["", terminal(table, width=width)]
    for side, network in zip("ab", networks, strict=True):
        lines += ["", wrapped(f"{side}: {network.name}", width)]
        lines += text_below(network, top=top, every=every, width=width)[1:]
    keys = [key.rpartition("_")[0] for key in columns_that_fit(table, width)]
    return "\n".join([*lines, "", *(wrapped(line, width) for line in legend_of(keys))])


def _pairs(first: NetworkSpectrum, second: NetworkSpectrum) -> dict[str, Pair]:
    """Return the layers of each name; those of the second network alone come last."""
    one, other = ({layer.name: layer for layer in network if layer.is_analysed} for network in (first, second))
    return {name: (one.get(name), other.get(name)) for name in (*one, *other)}


def _row(name: str, pair: Pair) -> list[Cell]:
    cells = [Cell(one_line(name) or "(top)", name), Cell(_shapes(pair))]
    for key in _BESIDE:
        cells += [_MISSING if layer is None else cell_of(key, layer) for layer in pair]
        if key == "largest_circular":
            cells.append(_ratio(pair))
    return [*cells, *(Cell("" if layer is None else held(layer)) for layer in pair)]


def _shapes(pair: Pair) -> str:
    texts = (cell_of("shape", layer).text for layer in pair if layer is not None)
    return " / ".join(dict.fromkeys(texts))


def _ratio(pair: Pair) -> Cell:
    for key in ("largest_circular", "bound_upper"):
        one, other = (None if layer is None else value_of(key, layer) for layer in pair)
        if one and other:
            return Cell(number(other / one), other / one)
    return _MISSING
