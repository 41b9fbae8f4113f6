"""Spectra as a table of text, 80 columns wide: two lines a layer, so that nothing is cut off."""

import math

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum

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


def text_table(network: NetworkSpectrum, *, top: int | None = None, every: bool = False) -> str:
    """The whole network: layers, what could not be analysed, totals."""
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
        lines += ["", "not proved, and excepted by --except"]
        lines += [f"  {layer.name or '(top)'}: {why_not_proved(layer)}" for layer in excepted]
    return "\n".join([*lines, "", *_totals(network, analysed), *LEGEND])


def _rows(layer: LayerSpectrum) -> list[str]:
    kernel = _times(layer.shape) + (f" r{layer.rank[0]},{layer.rank[1]}" if layer.rank else "")
    stride = "-" if layer.stride is None else _times(layer.stride, "x")
    size = "-" if layer.input_size is None else _times(layer.input_size, "x")
    assert layer.bound is not None
    if layer.is_normalization:
        gain = f"{layer.name or '(top)':<21} {layer.kind:<13} {kernel:<21} gain {number(layer.bound.upper)}"
        return [f"{gain}{f', if {layer.assumption}' if layer.assumption else ''}"]
    padded = "-" if layer.zero_padded is None else number(layer.zero_padded.lower)
    count = "-" if layer.values is None else f"{len(layer.values):,}"
    rest = f"{layer.kind:<13} {kernel:<21} {stride:<7} {size}".rstrip()
    name = layer.name or "(top)"
    first = f"{name:<21} {rest}" if len(name) <= 21 else f"{name}\n{'':21} {rest}"
    second = (
        f"{count:>10}  {number(layer.largest):>8}  {padded:>12}  {number(layer.bound.upper):>10}  "
        f"{number(layer.smallest_nonzero):>8}  {number(layer.condition_number):>9}  {number(layer.stable_rank):>11}"
    )
    rows = [first, second]
    if layer.frame_error is not None:
        rows.append(f"{'':10}  frames are off orthonormal by {layer.frame_error:.1e}")
    if layer.note:
        rows.append(f"{'':10}  {layer.note}")
    if layer.assumption:
        rows.append(f"{'':10}  assumed: {layer.assumption}")
    return rows


def why_not_proved(layer: LayerSpectrum) -> str:
    """The reason in words: what it rests on, or why it was not analysed."""
    return f"it is assumed that {layer.assumption}" if layer.assumption else layer.note


def told_by_shape(network: NetworkSpectrum) -> str:
    """Say which layers are taken for matrices and kernels by name and shape alone; empty when none is."""
    names = [layer.name or "(top)" for layer in network if layer.by_shape]
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"taken for matrices and convolutions by name and shape alone, as they have no bias: {listed}; LayerNorm, "
        "RMSNorm and embeddings may look the same, and only --model tells them apart"
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
    """Four figures, or a dash."""
    if value is None:
        return "-"
    return "inf" if math.isinf(value) else f"{value:.4g}"


def _times(shape: tuple[int, ...], sign: str = " x ") -> str:
    return sign.join(map(str, shape))
