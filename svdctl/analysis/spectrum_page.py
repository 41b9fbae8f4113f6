"""Spectra as one page: what came out, a picture, the tables of layers, and where the weights come from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.inspect_files import faults
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_comparison import are_comparable, comparison_table
from svdctl.analysis.spectrum_plot import plot_networks
from svdctl.analysis.spectrum_table import legend_of, maxima_lines, spectrum_table, told_by_shape
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.html_page import FactList, FoldedList, Page, PagePicture, PageSection, render, written_by
from svdctl.utils.inline_svg import svg_text
from svdctl.utils.rounded_figures import at_most
from svdctl.utils.table import Cell, Column, Table, columns_that_fit


def write_page(networks: Sequence[NetworkSpectrum], config: InspectConfig, path: Path) -> None:
    """Write the page of spectra, whole or not at all.

    Raises:
        OSError: it cannot be written; it names `path`.
    """
    write_atomically(path, render(spectrum_page(networks, config)))


def spectrum_page(networks: Sequence[NetworkSpectrum], config: InspectConfig) -> Page:
    """Return the page of `svdctl inspect-spectrum --html`.

    Args:
        networks: of the files of `config`, in their order.
        config: what was asked for.
    """
    names = [_short(path) for path in config.files]
    lead = "Singular values and proved bounds of every layer."
    sections = [PageSection("Gate", [*_verdicts(networks, config)])] if config.has_gate else []
    sections.append(PageSection("Networks", [_networks(networks, names), *_told(networks)]))
    sections += _pictures(networks, config)
    if are_comparable(networks):
        said = [f"{side}: {name}" for side, name in zip("ab", names, strict=True)]
        sections.append(PageSection("Side by side", [*said, comparison_table(*networks)]))
    for network, path, name in zip(networks, config.files, names, strict=True):
        heading = f"Layers of {name}" if len(networks) > 1 else "Layers"
        # Behind the path stands what was taken for granted when the file was read.
        title = network.name if network.name != str(path) else ""
        table = replace(spectrum_table(network), title=title)
        columns = FoldedList("What the columns are", legend_of(columns_that_fit(table, None)))
        sections.append(PageSection(heading, [table, columns]))
    sections.append(PageSection("Where this comes from", [*_facts(networks, config)]))
    return Page(f"Singular values: {', '.join(names)}", lead, sections)


def _short(path: Path) -> str:
    """Return the end of a path: its folder too, as every run folder has a `last.pt`."""
    return "/".join(path.parts[-2:])


def _networks(networks: Sequence[NetworkSpectrum], names: Sequence[str]) -> Table:
    """Return a table with one row for each network."""
    columns = [
        Column("network", "network", "left"),
        Column("layers", "layers"),
        Column("count", "singular values"),
        Column("bound", "largest bound of a layer", basis="proved"),
        Column("product", "product of all bounds", basis="computed"),
        Column("lipschitz", "Lipschitz constant, at most", basis="proved"),
    ]
    rows = []
    for network, name in zip(networks, names, strict=True):
        analysed = [layer for layer in network if layer.is_analysed]
        count = sum(len(layer.values) for layer in analysed if layer.values is not None)
        bounded = [layer for layer in analysed if not layer.is_normalization]
        largest = max(bounded, key=lambda layer: layer.bound.upper if layer.bound else -math.inf, default=None)
        upper = largest.bound.upper if largest is not None and largest.bound is not None else None
        is_assumed = largest is not None and bool(largest.assumption)
        rows.append(
            [
                Cell(name, network.name),
                Cell(f"{len(analysed)}", len(analysed)),
                Cell(f"{count:,}" if count else "-", count or None),
                Cell(at_most(upper), upper, basis="assumed" if is_assumed else ""),
                Cell(at_most(network.bound_product), network.bound_product),
                Cell(at_most(network.lipschitz), network.lipschitz),
            ]
        )
    return Table(columns, rows)


def _told(networks: Sequence[NetworkSpectrum]) -> Iterator[str]:
    """Yield what is to be known of the networks."""
    if any(network.lipschitz is not None for network in networks):
        yield "The Lipschitz constant is that of the whole network in l2, in units of its input."
    for network in networks:
        if network.lipschitz_note:
            what = "no Lipschitz constant, " if network.lipschitz is None else ""
            yield f"{network.name}: {what}{network.lipschitz_note}."
        if told := told_by_shape(network):
            yield f"{network.name}: {told}."
        yield from (f"{network.name}, the maximum of its training: {line}." for line in maxima_lines(network))


def _verdicts(networks: Sequence[NetworkSpectrum], config: InspectConfig) -> Iterator[str | FoldedList]:
    rows = [(network.name, layer) for network in networks for layer in network if layer.gate]
    limits = {"layers with weights": config.max_sigma, "normalisations": config.batchnorm_max}
    held = ", ".join(f"{what} {at_most(limit, 6)}" for what, limit in limits.items() if limit is not None)
    found = faults([*networks], config)
    verdict = f"FAIL: {len(found)} of {len(rows)} layers do not pass" if found else "Passed: every layer is within"
    yield f"{verdict} the maximum that the gate was given ({held})."
    proved = sum(layer.gate == "proved" for _, layer in rows)
    yield f"{proved} of {len(rows)} layers are proved to be at most the maximum ({held})."
    if found:
        yield FoldedList(f"{len(found)} are above it, or not proved to be within it", found, is_open=True)
    if excepted := [f"{name}: {row.title}, {row.why_not_proved}" for name, row in rows if row.gate == "excepted"]:
        yield FoldedList(f"{len(excepted)} are not proved, and excepted", excepted)


def _pictures(networks: Sequence[NetworkSpectrum], config: InspectConfig) -> Iterator[PageSection]:
    if any(layer.values is not None for network in networks for layer in network):
        figure = plot_networks(networks, max_sigma=config.max_sigma)
        svg = svg_text(figure, "spectrum", "Singular values of each layer; the table below has the figures.")
        caption = "A panel for each layer: its singular values, the largest first, its proved bound and its maximum."
        yield PageSection("Picture", [PagePicture(svg, caption)])


def _facts(networks: Sequence[NetworkSpectrum], config: InspectConfig) -> Iterator[FactList]:
    """Yield the origin of each file, and how the figures were computed."""
    for network in networks:
        yield FactList(network.origin)
    slack = (
        "2 %, 0.5 % or less in checkpoints of svdctl" if config.tolerance is None else f"{100 * config.tolerance:.2g} %"
    )
    accuracy = "exact but for rounding" if config.accuracy == "full" else "to 1e-3 of the largest"
    own = [
        ("network", config.model),
        ("input", config.input_size and "x".join(map(str, config.input_size))),
        ("layers", None if config.layers == ("*",) else ", ".join(config.layers)),
        ("tolerance", f"a bound may lie above the norm by {slack}"),
        ("singular values", accuracy if any(one.values is not None for found in networks for one in found) else None),
    ]
    yield FactList([*((name, text) for name, text in own if text), *written_by()])
