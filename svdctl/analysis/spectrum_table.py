"""Spectra as tables: records of full precision, and lines for a terminal of any width, one a layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.utils.escapes import one_line
from svdctl.utils.rounded_figures import at_least, at_most, number
from svdctl.utils.table import (
    Basis,
    Cell,
    Column,
    Table,
    columns_that_fit,
    csv_text,
    html,
    json_text,
    records,
    terminal,
    wrapped,
)

SCHEMA = 1
LEGEND: Mapping[str, str] = {
    "largest_circular": "circular: largest singular value with circular padding on this input, exact",
    "zero_padded_lower": "as it runs: proved to be reached with the layer's own padding on this input, rounded down",
    "bound_upper": "bound: proved for every input size (circular padding: those that the stride divides), rounded up",
    "maximum": "maximum: the run's own, or that of the layer's spectral norm; the bound is held against it exactly",
    "condition_number": "condition: largest over smallest value that is not 0",
    "stable_rank": "stable rank: sum of the squared values over the largest squared",
    "frame_error": "frames: how far from orthonormal those of a TT layer are",
}
"""What is said of columns that are shown."""


class _Shown(NamedTuple):
    """How a key of the records is shown, and its value in a row."""

    value: Callable[[LayerSpectrum], Any]
    header: str | None = None
    """None: in records only."""
    spare: int = 0
    droppable: bool = True
    align: str = "right"
    basis: Basis = ""


COLUMNS: dict[str, _Shown] = {
    "name": _Shown(lambda row: row.name, "layer", droppable=False, align="left"),
    "kind": _Shown(lambda row: row.kind, "kind", 2, align="left"),
    "shape": _Shown(lambda row: row.shape, "kernel", droppable=False, align="left"),
    "stride": _Shown(lambda row: row.stride, "stride", 6),
    "input_size": _Shown(lambda row: row.input_size, "input", 3),
    "rank": _Shown(lambda row: row.rank, "TT rank", 5),
    "count": _Shown(lambda row: None if row.values is None else len(row.values), "values", 8),
    "largest_circular": _Shown(lambda row: row.largest, "circular", basis="computed"),
    "zero_padded_lower": _Shown(lambda row: row.zero_padded and row.zero_padded.lower, "as it runs", 1, basis="proved"),
    "zero_padded_upper": _Shown(lambda row: row.zero_padded and row.zero_padded.upper),
    "bound_lower": _Shown(lambda row: row.bound and row.bound.lower),
    "bound_upper": _Shown(lambda row: row.bound and row.bound.upper, "bound", droppable=False, basis="proved"),
    "maximum": _Shown(lambda row: row.maximum, "maximum", align="left"),
    "maximum_proved": _Shown(lambda row: row.is_proved),
    "smallest_nonzero": _Shown(lambda row: row.smallest_nonzero, "smallest", 4, basis="computed"),
    "condition_number": _Shown(lambda row: row.condition_number, "condition", basis="computed"),
    "stable_rank": _Shown(lambda row: row.stable_rank, "stable rank", 7, basis="computed"),
    "frame_error": _Shown(lambda row: row.frame_error, "frames", 9, basis="computed"),
    "note": _Shown(lambda row: row.note, "", align="left"),
    "assumption": _Shown(lambda row: row.assumption),
    "by_shape": _Shown(lambda row: row.by_shape),
    "gate": _Shown(lambda row: row.gate),
}
"""Keys of the schema that is in docs/inspect-spectrum.md, in the order in which they are shown."""
_LATER = ("maximum", "maximum_proved")
"""The last columns of CSV: the others stand where they stood before there were these."""


def spectrum_table(network: NetworkSpectrum) -> Table:
    """Return a table with one row for each layer; what is to be known of rows stands in footnotes."""
    return _table_of(list(network), network.name)


def _table_of(layers: Sequence[LayerSpectrum], title: str = "") -> Table:
    columns = [
        Column(key, way.header, way.align, way.droppable, key == "name", way.spare, way.basis)  # type: ignore[arg-type]
        for key, way in COLUMNS.items()
    ]
    remarks = list(dict.fromkeys(text for layer in layers for text in _remarks(layer)))
    numbers = {text: number for number, text in enumerate(remarks, 1)}
    rows = [_cells(layer, [numbers[text] for text in _remarks(layer)]) for layer in layers]
    return Table(columns, rows, title=title, notes=remarks)


def legend_of(keys: Sequence[str]) -> list[str]:
    """Return what is said of columns."""
    return [text for key, text in LEGEND.items() if key in keys]


def notebook_html(layers: Sequence[LayerSpectrum], title: str = "", told: Sequence[str] = ()) -> str:
    """Return HTML of layers for a notebook: columns that have anything in them, `told` and what the columns are."""
    table = _table_of(layers, title)
    shown = columns_that_fit(table, None)
    kept = [place for place, column in enumerate(table.columns) if column.key in shown]
    rows = [[row[place] for place in kept] for row in table.rows]
    notes = [*table.notes, *told, *legend_of(shown)]
    return html(replace(table, columns=[table.columns[place] for place in kept], rows=rows, notes=notes))


def value_of(key: str, layer: LayerSpectrum) -> Any:
    """Return the value of a row under a key of the schema."""
    return COLUMNS[key].value(layer)


def layer_records(network: NetworkSpectrum) -> list[dict[str, Any]]:
    """Return each layer's values by key with full precision; None is what is not known."""
    return records(spectrum_table(network))


def _remarks(layer: LayerSpectrum) -> list[str]:
    """Return what a footnote says of a row."""
    return [text for text in (layer.note, f"assumed: {layer.assumption}" if layer.assumption else "") if text]


def _cells(layer: LayerSpectrum, notes: Sequence[int]) -> list[Cell]:
    """Return the cells of a layer by columns; its footnotes stand at its end."""
    cells = {key: cell_of(key, layer) for key in COLUMNS}
    return list((cells | {"note": Cell("", layer.note, notes=tuple(notes))}).values())


def cell_of(key: str, layer: LayerSpectrum) -> Cell:
    """Return the cell of a layer under a key of the schema."""
    value = value_of(key, layer)
    if key == "name":
        return Cell(one_line(layer.title), value)
    if key == "maximum":
        return Cell(held(layer), value, basis="proved" if layer.is_proved else "")
    if key == "bound_upper":
        text = f"gain {at_most(value)}" if layer.is_normalization else at_most(value)
        return Cell(text, value, basis="assumed" if layer.assumption else "")
    if key == "zero_padded_lower":
        return Cell(at_least(value), value)
    if key == "shape" and layer.is_normalization:
        return Cell(f"{_cell(key, value).text} channels", list(layer.shape))
    return _cell(key, value)


def _cell(key: str, value: Any) -> Cell:
    """Return a figure as it is read: four digits, sizes joined; `value` itself is for records."""
    if isinstance(value, tuple):
        return Cell("x".join(map(str, value)), list(value))
    if isinstance(value, bool | str):
        return Cell(one_line(value), value)
    return Cell(f"{value:,}" if isinstance(value, int) else number(value), value)


def held(layer: LayerSpectrum) -> str:
    """Return what is proved of a layer's maximum, in a few words; nothing where it has none."""
    if layer.maximum is None:
        return ""
    limit = at_most(layer.maximum, 6)
    if layer.is_proved:
        return f"<= {limit}, proved"
    if layer.bound is not None and layer.bound.lower > layer.maximum:
        return f"above {limit} by {at_least(layer.bound.lower - layer.maximum, 2)}"
    return f"{limit}, not proved"


def totals(network: NetworkSpectrum) -> list[str]:
    """Return what is known of all layers together, a sentence each."""
    analysed = [layer for layer in network if layer.is_analysed]
    count = sum(len(layer.values) for layer in analysed if layer.values is not None)
    values = f", {count:,} singular values" if count else ""
    lines = [f"{len(analysed)} layers{values}; product of all bounds {at_most(network.bound_product)}"]
    lines += maxima_lines(network)
    if network.lipschitz is not None:
        why = f"; {network.lipschitz_note}" if network.lipschitz_note else ""
        lines.append(
            f"Lipschitz bound of the network, proved: {at_most(network.lipschitz)} (l2, units of its input){why}"
        )
    elif network.lipschitz_note:
        lines.append(f"no Lipschitz bound of the network: {network.lipschitz_note}")
    if told := told_by_shape(network):
        lines.append(told)
    return lines


def maxima_lines(network: NetworkSpectrum) -> list[str]:
    """Return how many layers are proved to be within their maxima, and which are not."""
    limited = [layer for layer in network if layer.maximum is not None]
    if not limited:
        return [network.maxima_note] if network.maxima_note else []
    open_ = [layer for layer in limited if not layer.is_proved]
    every = "all " if not open_ else f"{len(limited) - len(open_)} of "
    lines = [f"{every}{len(limited)} layers with a maximum are proved to be within it"]
    if open_:
        named = "; ".join(f"{one_line(layer.title)} {_excess(layer)}" for layer in open_[:5])
        more = f"; and {len(open_) - 5} more" if len(open_) > 5 else ""
        lines.append(f"NOT proved: {named}{more}")
    return [*lines, network.maxima_note] if network.maxima_note else lines


def _excess(layer: LayerSpectrum) -> str:
    """Return by how much a layer is above its maximum, or may be."""
    assert layer.maximum is not None
    if layer.bound is None or layer.assumption:
        return f"(maximum {layer.maximum:g}: {layer.why_not_proved})"
    if layer.bound.lower > layer.maximum:
        share = layer.bound.lower / layer.maximum - 1
        above = f"{at_least(100 * share, 3)} % above" if share < 1 else f"{at_least(share + 1, 3)} times"
        return f"reaches {at_least(layer.bound.lower)}, {above} {layer.maximum:g}"
    return f"may reach {at_most(layer.bound.upper)}, above {layer.maximum:g}"


def told_by_shape(network: NetworkSpectrum) -> str:
    """Return a sentence that names the layers taken for matrices and kernels by name and shape; empty when none is."""
    names = [one_line(layer.title) for layer in network if layer.by_shape]
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"taken for matrices and convolutions by name and shape alone, as they have no bias: {listed}; LayerNorm, "
        "RMSNorm and embeddings may look the same, and only `model` tells them apart"
    )


def to_json(networks: Sequence[NetworkSpectrum], *, top: int | None = None, every: bool = False) -> str:
    """Return all networks as one JSON text; `values` holds the first `top` of each layer, or all."""
    files = []
    for network in networks:
        rows = layer_records(network)
        for row, layer in zip(rows, network, strict=True):
            if layer.values is not None and (every or top):
                row["values"] = layer.values[: None if every else top].tolist()
        product = network.bound_product
        files.append(
            {
                "name": network.name,
                "lipschitz_bound": network.lipschitz,
                "lipschitz_note": network.lipschitz_note,
                "bound_product": product if math.isfinite(product) else None,
                "maxima_note": network.maxima_note,
                "layers": rows,
            }
        )
    return json_text({"schema": SCHEMA, "files": files})


def to_csv(networks: Sequence[NetworkSpectrum], *, top: int | None = None, every: bool = False) -> str:
    """Return one line for each layer; with `top` or `every` one for each singular value."""
    if top or every:
        values = [
            {"file": network.name, "name": layer.name, "index": index, "value": repr(value)}
            for network in networks
            for layer in network
            if layer.values is not None
            for index, value in enumerate(layer.values[: None if every else top].tolist())
        ]
        return csv_text(values, ["file", "name", "index", "value"])
    rows = [{"file": network.name, **row} for network in networks for row in layer_records(network)]
    return csv_text(rows, ["file", *(key for key in COLUMNS if key not in _LATER), *_LATER])


def text_table(
    network: NetworkSpectrum, *, top: int | None = None, every: bool = False, width: int | None = None
) -> str:
    """Return one network for a terminal: layers, what could not be analysed, values, totals.

    Args:
        network: whose layers are shown.
        top, every: show the first values of each layer, or all.
        width: columns of the terminal; None: whatever it takes.
    """
    analysed = [layer for layer in network if layer.is_analysed]
    table = _table_of(analysed)
    name = [wrapped(network.name, width)] if network.name else []
    legend = legend_of(columns_that_fit(table, width))
    below = text_below(network, top=top, every=every, width=width)
    return "\n".join([*name, terminal(table, width=width), *below, "", *(wrapped(line, width) for line in legend)])


def text_below(
    network: NetworkSpectrum, *, top: int | None = None, every: bool = False, width: int | None = None
) -> list[str]:
    """Return the lines below the table of a network: layers that are not analysed or excepted, values, totals."""
    lines = []
    if left := [layer for layer in network if not layer.is_analysed]:
        lines += ["", "not analysed"]
        for layer in left:
            kernel = f"{layer.kind} {_cell('shape', layer.shape).text}".rstrip()
            lines.append(wrapped(f"  {layer.title}, {kernel}: {layer.note}", width))
    if excepted := [layer for layer in network if layer.gate == "excepted"]:
        lines += ["", "not proved, and excepted by `excepted`"]
        lines += [wrapped(f"  {layer.title}: {layer.why_not_proved}", width) for layer in excepted]
    for layer in network if top or every else ():
        if layer.values is not None:
            lines += ["", wrapped(f"values of {layer.title}", width)]
            lines += _values(layer.values[: None if every else top].tolist(), width or 80)
    return [*lines, "", *(wrapped(line, width) for line in totals(network))]


def _values(values: Sequence[float], width: int) -> list[str]:
    count = max(1, (width - 2) // 12)
    cells = [f"{value:>10.6g}" for value in values]
    return ["  " + "  ".join(cells[at : at + count]) for at in range(0, len(cells), count)]
