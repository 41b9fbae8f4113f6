"""Spectra as a picture: singular values against index, layer by layer, several networks over each other."""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.errors import UsageError
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.escapes import figure_text
from svdctl.utils.figure_style import BOUND, MAXIMUM, SERIES, styled, titled
from svdctl.utils.layer_panels import layer_panels
from svdctl.utils.matplotlib_defaults import Axes, Figure, with_defaults

_POINTS = 300


class Picture(Figure):
    """A figure that notebooks show, whatever their backend."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        with with_defaults():
            self.savefig(out, format="png")
        return out.getvalue()

    def write(self, path: Path) -> None:
        """Write it whole or not at all, in the format that the ending of `path` tells.

        Raises:
            OSError: it cannot be written; it names `path`.
            UsageError: matplotlib knows no such format.
        """
        form = path.suffix.removeprefix(".").lower()
        if form not in self.canvas.get_supported_filetypes():
            raise UsageError(f"`plot = {path}`: no picture format has this ending; name a .png, .pdf or .svg")
        with with_defaults():
            write_atomically(path, partial(self.savefig, format=form))


@styled
def plot_networks(networks: Sequence[NetworkSpectrum], *, max_sigma: float | None = None) -> Picture:
    """Draw a panel for each layer: values of all networks, their bounds as dotted lines, its maximum as a red one.

    Args:
        networks: of the layers.
        max_sigma: the maximum of all; None: each layer's own, where it is known.
    """
    names = list(dict.fromkeys(layer.name for network in networks for layer in network if layer.values is not None))
    found = [layer.values for network in networks for layer in network if layer.values is not None]
    top = [float(values.max()) for values in found if len(values)]
    with layer_panels(names, top=top, kind=Picture) as (figure, panels):
        for network, color in zip(networks, SERIES * len(networks), strict=False):
            for layer in network:
                if layer.values is not None:
                    name = figure_text(network.name) if len(networks) > 1 else ""
                    _draw(panels[layer.name], layer, color, name, alone=len(networks) == 1)
        maxima = _maxima(networks) if max_sigma is None else {name: {max_sigma} for name in panels}
        told = set[float]().union(*maxima.values())
        label = f"maximum {next(iter(told)):g}" if len(told) == 1 else "maximum of the layer"
        for name, values in maxima.items():
            for value in values:
                panels[name].axhline(value, color=MAXIMUM, lw=1, ls="--", label=label)
    # The names of several stand in the legend.
    about = [network.name for network in networks] if len(networks) == 1 else [f"{len(networks)} networks"]
    titled(figure, "Singular values of each layer, circular padding", *about)
    figure.dpi = 150
    assert isinstance(figure, Picture)
    return figure


def _maxima(networks: Sequence[NetworkSpectrum]) -> dict[str, set[float]]:
    """Return the maxima of the layers that are drawn, by name: several where networks differ in them."""
    found: dict[str, set[float]] = {}
    for layer in (layer for network in networks for layer in network):
        if layer.values is not None and layer.maximum is not None:
            found.setdefault(layer.name, set()).add(layer.maximum)
    return found


def _draw(panel: Axes, layer: LayerSpectrum, color: str, title: str, *, alone: bool) -> None:
    assert layer.values is not None
    values = layer.values.double().numpy()
    index = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).round().astype(int))
    share = 100 * index / (len(values) - 1 or 1)
    panel.plot(
        share, values[index], color=color, marker="." if len(index) < 12 else None, label=title or "singular values"
    )
    if layer.bound is not None:
        told = "proved bound" if alone else "proved bound of the network of this colour"
        panel.axhline(layer.bound.upper, color=BOUND if alone else color, ls=":", lw=1.2, label=told)
