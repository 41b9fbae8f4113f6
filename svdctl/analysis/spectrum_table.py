"""Spectra as a table: records of full precision, and text 80 columns wide, two lines a layer so that nothing is cut."""

import math
from collections.abc import Sequence
from typing import Any

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.utils.table import Cell, Column, Table, csv_text, json_text, records

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
COLUMNS = (
    Column("name", "layer", "left"),
    Column("kind", "kind", "left"),
    Column("shape", "kernel", "left"),
    Column("stride", "stride", "left"),
    Column("input_size", "input", "left"),
    Column("rank"),
    Column("count", "count"),
    Column("largest_circular", "circular"),
    Column("zero_padded_lower", "as it runs"),
    Column("zero_padded_upper"),
    Column("bound_lower"),
    Column("bound_upper", "bound"),
    Column("smallest_nonzero", "smallest"),
    Column("condition_number", "condition"),
    Column("stable_rank", "stable rank"),
    Column("frame_error"),
    Column("note", "note", "left"),
    Column("assumption", "assumed", "left"),
    Column("by_shape"),
    Column("gate"),
)
"""Keys of the schema that is in docs/inspect-spectrum.md."""


def spectrum_table(network: NetworkSpectrum) -> Table:
    """Return a table with one row for each layer."""
    cells = [_cells(layer) for layer in network]
    return Table(COLUMNS, [[row[column.key] for column in COLUMNS] for row in cells], title=network.name)


def layer_records(network: NetworkSpectrum) -> list[dict[str, Any]]:
    """Return each layer's values by key with full precision; None is what is not known."""
    return records(spectrum_table(network))


def _cells(layer: LayerSpectrum) -> dict[str, Cell]:
    padded, bound = layer.zero_padded, layer.bound
    count = None if layer.values is None else len(layer.values)
    rank = f" r{layer.rank[0]},{layer.rank[1]}" if layer.rank else ""
    numbers = {
        "largest_circular": layer.largest,
        "zero_padded_lower": None if padded is None else padded.lower,
        "zero_padded_upper": None if padded is None else padded.upper,
        "bound_lower": None if bound is None else bound.lower,
        "bound_upper": None if bound is None else bound.upper,
        "smallest_nonzero": layer.smallest_nonzero,
        "condition_number": layer.condition_number,
        "stable_rank": layer.stable_rank,
        "frame_error": layer.frame_error,
    }
    texts = {"kind": layer.kind, "note": layer.note, "assumption": layer.assumption, "gate": layer.gate}
    return {
        "name": Cell(layer.name or "(top)", layer.name),
        "shape": Cell(_times(layer.shape) + rank, list(layer.shape)),
        "stride": _sizes(layer.stride),
        "input_size": _sizes(layer.input_size),
        "rank": _sizes(layer.rank),
        "count": Cell("-" if count is None else f"{count:,}", count),
        "by_shape": Cell(str(layer.by_shape), layer.by_shape),
        **{key: Cell(number(value), value) for key, value in numbers.items()},
        **{key: Cell(text or "", text) for key, text in texts.items()},
    }


def _sizes(sizes: tuple[int, ...] | None) -> Cell:
    return Cell("-") if sizes is None else Cell(_times(sizes, "x"), list(sizes))


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
    return csv_text(rows, ["file", *(column.key for column in COLUMNS)])


def text_table(network: NetworkSpectrum, *, top: int | None = None, every: bool = False) -> str:
    """Return the whole network for a terminal: layers, what could not be analysed, totals."""
    analysed = [layer for layer in network if layer.is_analysed]
    lines = [network.name] if network.name else []
    lines += [*HEADER, "-" * WIDTH]
    for layer in analysed:
        lines += _rows(layer)
        if layer.values is not None and (top or every):
            lines += _values(layer.values[: None if every else top].tolist())
    left = [layer for layer in network if not layer.is_analysed]
    if left:
        lines += ["", "not analysed"]
        lines += [
            f"  {layer.name or '(top)'}, {f'{layer.kind} {_times(layer.shape)}'.rstrip()}: {layer.note}"
            for layer in left
        ]
    excepted = [layer for layer in network if layer.gate == "excepted"]
    if excepted:
        lines += ["", "not proved, and excepted by `excepted`"]
        lines += [f"  {layer.name or '(top)'}: {why_not_proved(layer)}" for layer in excepted]
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


def why_not_proved(layer: LayerSpectrum) -> str:
    """Return why a layer has no proved bound: what it rests on, or why it was not analysed."""
    return f"it is assumed that {layer.assumption}" if layer.assumption else layer.note


def told_by_shape(network: NetworkSpectrum) -> str:
    """Return a sentence that names the layers taken for matrices and kernels by name and shape; empty when none is."""
    names = [layer.name or "(top)" for layer in network if layer.by_shape]
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


def _times(shape: tuple[int, ...], sign: str = " x ") -> str:
    return sign.join(map(str, shape))
