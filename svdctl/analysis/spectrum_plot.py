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
from svdctl.utils.matplotlib_defaults import Figure, with_defaults

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


@with_defaults()
def plot_networks(networks: Sequence[NetworkSpectrum], *, max_sigma: float | None = None) -> Picture:
    """Draw a panel for each layer: values of all networks, their bounds as dashed lines, `max_sigma` as a red one."""
    names = list(dict.fromkeys(layer.name for network in networks for layer in network if layer.values is not None))
    columns = int(np.clip(np.ceil(np.sqrt(len(names) * 1.3)), 1, 10))
    rows = -(-len(names) // columns) or 1
    small = len(names) > 40
    size = (1.5 if small else 2.5) * columns, (1.25 if small else 1.9) * rows + 0.8
    figure = Picture(figsize=size, dpi=150)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        for number, network in enumerate(networks):
            for layer in network:
                if layer.name == name and layer.values is not None:
                    _draw(panel, layer, f"C{number}", figure_text(network.name))
        if max_sigma is not None:
            panel.axhline(max_sigma, color="tab:red", lw=1, label="allowed")
        panel.set_title(figure_text(name) or "(top)", fontsize=5 if small else 8, pad=2)
        panel.set_ylim(0, None)
        panel.tick_params(labelsize=4 if small else 6, pad=1, length=2)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    found = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    figure.suptitle("singular values (circular padding) against index, in per cent of their number", fontsize=8)
    return figure


def _draw(panel: object, layer: LayerSpectrum, color: str, title: str) -> None:
    assert layer.values is not None
    values = layer.values.double().numpy()
    index = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).round().astype(int))
    share = 100 * index / (len(values) - 1 or 1)
    plot, line = panel.plot, panel.axhline  # type: ignore[attr-defined]
    plot(share, values[index], color=color, lw=1.2, marker="." if len(index) < 12 else None, label=title or "values")
    if layer.bound is not None:
        line(layer.bound.upper, color=color, ls="--", lw=0.8, label="proved bound")
