"""Spectra as plain records for JSON, CSV and data frames; the schema is in docs/inspect-spectrum.md."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum

SCHEMA = 1


def layer_record(layer: LayerSpectrum) -> dict[str, Any]:
    """One row with full precision; what is not known is None."""
    padded = layer.zero_padded
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "stride": None if layer.stride is None else list(layer.stride),
        "input_size": None if layer.input_size is None else list(layer.input_size),
        "rank": None if layer.rank is None else list(layer.rank),
        "count": None if layer.values is None else len(layer.values),
        "largest_circular": layer.largest,
        "zero_padded_lower": None if padded is None else padded.lower,
        "zero_padded_upper": None if padded is None else _finite(padded.upper),
        "bound_lower": None if layer.bound is None else _finite(layer.bound.lower),
        "bound_upper": None if layer.bound is None else _finite(layer.bound.upper),
        "smallest_nonzero": layer.smallest_nonzero,
        "condition_number": layer.condition_number,
        "stable_rank": layer.stable_rank,
        "frame_error": None if layer.frame_error is None else _finite(layer.frame_error),
        "note": layer.note,
        "assumption": layer.assumption,
        "by_shape": layer.by_shape,
        "gate": layer.gate,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def to_json(networks: Sequence[NetworkSpectrum], *, top: int | None = None, every: bool = False) -> str:
    """All networks as one JSON text; `values` holds the first `top` of each layer, or all."""
    files = []
    for network in networks:
        rows = []
        for layer in network:
            row = layer_record(layer)
            if layer.values is not None and (every or top):
                row["values"] = layer.values[: None if every else top].tolist()
            rows.append(row)
        files.append(
            {
                "name": network.name,
                "lipschitz_bound": network.lipschitz,
                "lipschitz_note": network.lipschitz_note,
                "bound_product": network.bound_product if math.isfinite(network.bound_product) else None,
                "layers": rows,
            }
        )
    return json.dumps({"schema": SCHEMA, "files": files}, indent=1, allow_nan=False)


def to_csv(networks: Sequence[NetworkSpectrum], *, top: int | None = None, every: bool = False) -> str:
    """One line a layer; with `top` or `every` one line a singular value."""
    out = io.StringIO()
    rows = [(network.name, layer) for network in networks for layer in network]
    if top or every:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["file", "name", "index", "value"])
        for name, layer in rows:
            values = [] if layer.values is None else layer.values[: None if every else top].tolist()
            writer.writerows([name, layer.name, index, repr(value)] for index, value in enumerate(values))
        return out.getvalue()
    fields = ["file", *layer_record(LayerSpectrum("", "", ()))]
    table = csv.DictWriter(out, fields, lineterminator="\n")
    table.writeheader()
    for name, layer in rows:
        record = layer_record(layer)
        flat = {key: "x".join(map(str, value)) if isinstance(value, list) else value for key, value in record.items()}
        table.writerow({"file": name, **flat})
    return out.getvalue()
