"""Spectra as a table: records of full precision, and text 80 columns wide, two lines a layer so that nothing is cut."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.utils.escapes import one_line
from svdctl.utils.table import Basis, Cell, Column, Table, csv_text, json_text, records

SCHEMA = 1
WIDTH = 80
HEADER = (
    "layer                 kind          kernel                stride  input",
    "     count  circular    as it runs       bound  smallest  condition  stable rank",
)
LEGEND = (
    "circular: largest value with circular padding, exact",
    "as it runs: with the layer's own padding, on this input; at least this much",
    "bound: proved, any input size (circular padding: one that the stride divides)",
    "smallest: the smallest value that is not 0; condition: largest over smallest",
)
COLUMNS: dict[str, tuple[str | None, Callable[[LayerSpectrum], Any]]] = {
    "name": ("layer", lambda row: row.name),
    "kind": ("kind", lambda row: row.kind),
    "shape": ("kernel", lambda row: row.shape),
    "stride": ("stride", lambda row: row.stride),
    "input_size": ("input", lambda row: row.input_size),
    "rank": (None, lambda row: row.rank),
    "count": ("count", lambda row: None if row.values is None else len(row.values)),
    "largest_circular": ("circular", lambda row: row.largest),
    "zero_padded_lower": ("as it runs", lambda row: row.zero_padded and row.zero_padded.lower),
    "zero_padded_upper": (None, lambda row: row.zero_padded and row.zero_padded.upper),
    "bound_lower": (None, lambda row: row.bound and row.bound.lower),
    "bound_upper": ("bound", lambda row: row.bound and row.bound.upper),
    "smallest_nonzero": ("smallest", lambda row: row.smallest_nonzero),
    "condition_number": ("condition", lambda row: row.condition_number),
    "stable_rank": ("stable rank", lambda row: row.stable_rank),
    "frame_error": (None, lambda row: row.frame_error),
    "note": ("note", lambda row: row.note),
    "assumption": ("assumed", lambda row: row.assumption),
    "by_shape": (None, lambda row: row.by_shape),
    "gate": (None, lambda row: row.gate),
}
"""Keys of the schema that is in docs/inspect-spectrum.md: what stands above a column, and its value in a row."""
_BASES: dict[str, Basis] = {
    "bound_upper": "proved",
    **dict.fromkeys(
        ("largest_circular", "zero_padded_lower", "smallest_nonzero", "condition_number", "stable_rank"), "computed"
    ),
}
"""What the figures of a column rest on; one whose layer has an assumption rests on that."""
_LEFT = ("name", "kind", "shape", "stride", "input_size", "note", "assumption")


def spectrum_table(network: NetworkSpectrum) -> Table:
    """Return a table with one row for each layer."""
    columns = [
        Column(key, header, "left" if key in _LEFT else "right", basis=_BASES.get(key, ""))
        for key, (header, _) in COLUMNS.items()
    ]
    return Table(columns, [list(_cells(layer).values()) for layer in network], title=network.name)


def layer_records(network: NetworkSpectrum) -> list[dict[str, Any]]:
    """Return each layer's values by key with full precision; None is what is not known."""
    return records(spectrum_table(network))


def _cells(layer: LayerSpectrum) -> dict[str, Cell]:
    """Return the cells of a layer by their columns' keys."""
    cells = {key: _cell(key, value_of(layer)) for key, (_, value_of) in COLUMNS.items()}
    if layer.rank:
        cells["shape"] = Cell(f"{cells['shape'].text} r{layer.rank[0]},{layer.rank[1]}", cells["shape"].value)
    if layer.assumption:
        cells["bound_upper"] = replace(cells["bound_upper"], basis="assumed")
    return cells


def _cell(key: str, value: Any) -> Cell:
    """Return a figure as it is read: four digits, sizes joined; `value` itself is for records."""
    if isinstance(value, tuple):
        return Cell((" x " if key == "shape" else "x").join(map(str, value)), list(value))
    if isinstance(value, str):
        return Cell(one_line(value) or ("(top)" if key == "name" else ""), value)
    if isinstance(value, bool):
        return Cell(str(value), value)
    return Cell(f"{value:,}" if isinstance(value, int) else number(value), value)


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
    return csv_text(rows, ["file", *COLUMNS])


def text_table(network: NetworkSpectrum, *, top: int | None = None, every: bool = False) -> str:
    """Return the whole network for a terminal: layers, what could not be analysed, totals."""
    analysed = [layer for layer in network if layer.is_analysed]
    lines = [one_line(network.name)] if network.name else []
    lines += [*HEADER, "-" * WIDTH]
    for layer in analysed:
        lines += _rows(layer)
        if layer.values is not None and (top or every):
            lines += _values(layer.values[: None if every else top].tolist())
    left = [layer for layer in network if not layer.is_analysed]
    if left:
        lines += ["", "not analysed"]
        for layer in left:
            kernel = f"{layer.kind} {_cells(layer)['shape'].text}".rstrip()
            lines.append(f"  {one_line(layer.title)}, {kernel}: {layer.note}")
    excepted = [layer for layer in network if layer.gate == "excepted"]
    if excepted:
        lines += ["", "not proved, and excepted by `excepted`"]
        lines += [f"  {one_line(layer.title)}: {layer.why_not_proved}" for layer in excepted]
    return "\n".join([*lines, "", *_totals(network, analysed), *LEGEND])


def _rows(layer: LayerSpectrum) -> list[str]:
    cells = {key: cell.text for key, cell in _cells(layer).items()}
    name = cells["name"]
    if layer.is_normalization:
        gain = f"{name:<21} {layer.kind:<13} {cells['shape']:<21} gain {cells['bound_upper']}"
        return [f"{gain}{f', if {layer.assumption}' if layer.assumption else ''}"]
    rest = f"{layer.kind:<13} {cells['shape']:<21} {cells['stride']:<7} {cells['input_size']}".rstrip()
    rows = [f"{name:<21} {rest}" if len(name) <= 21 else f"{name}\n{'':21} {rest}"]
    rows.append(
        f"{cells['count']:>10}  {cells['largest_circular']:>8}  {cells['zero_padded_lower']:>12}  "
        f"{cells['bound_upper']:>10}  {cells['smallest_nonzero']:>8}  {cells['condition_number']:>9}  "
        f"{cells['stable_rank']:>11}"
    )
    if layer.frame_error is not None:
        rows.append(f"{'':10}  frames are off orthonormal by {layer.frame_error:.1e}")
    if layer.note:
        rows.append(f"{'':10}  {layer.note}")
    if layer.assumption:
        rows.append(f"{'':10}  assumed: {layer.assumption}")
    return rows


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


def _values(values: list[float]) -> list[str]:
    cells = [f"{value:.6g}" for value in values]
    return ["            " + "  ".join(f"{cell:>10}" for cell in cells[at : at + 5]) for at in range(0, len(cells), 5)]


def _totals(network: NetworkSpectrum, analysed: list[LayerSpectrum]) -> list[str]:
    count = sum(len(layer.values) for layer in analysed if layer.values is not None)
    product = network.bound_product
    lines = [f"{len(analysed)} layers, {count:,} singular values; product of all bounds {number(product)}"]
    if network.lipschitz is not None:
        lines.append(f"Lipschitz bound of the network, proved: {number(network.lipschitz)} (l2, units of its input)")
    elif network.lipschitz_note:
        lines.append(f"no Lipschitz bound of the network: {network.lipschitz_note}")
    if told := told_by_shape(network):
        lines.append(told)
    return [*lines, ""]


def number(value: float | None) -> str:
    """Return four figures, or a dash."""
    if value is None:
        return "-"
    return "inf" if math.isinf(value) else f"{value:.4g}"
