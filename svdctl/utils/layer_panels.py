"""Spectra in panels: one for each layer, all on one scale, the axes named."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from svdctl.utils.escapes import figure_text
from svdctl.utils.figure_style import gridded, legend_below, logarithmic, told_apart
from svdctl.utils.matplotlib_defaults import Artist, Axes, Figure, Line2D

_MOST_LINEAR = 12.0
"""Ratio of the layers' largest values above which the common scale is logarithmic."""
_DECADES = 3.0
"""Decades below the largest value that a logarithmic scale shows."""

_LIMITS = ("proved bound", "maximum")
"""Entries of a legend that stand behind the others begin so."""
ZEROS = (
    "Curves that fall to 0: the layer does not read all of its input (a 1 x 1 convolution with stride 2 reads one "
    "value in four), or its weight has a lower rank."
)
_ZERO = 1e-6
"""Share of a layer's largest value below which values are taken for 0."""


@contextmanager
def layer_panels(
    names: Sequence[str], *, top: Sequence[float], kind: type[Figure] = Figure
) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """Give a figure and a panel for each layer to draw into; then set scale, names of axes and legend.

    Args:
        names: of the layers.
        top: the largest value of each curve that is drawn.
        kind: of the figure.
    """
    columns = min(10, max(1, math.ceil((1.3 * len(names)) ** 0.5) if len(names) > 1 else 1))
    rows = -(-len(names) // columns) or 1
    small = len(names) > 40
    width, height = (1.35, 1.15) if small else (2.1, 1.7)
    height = max(height, 2.6 / rows)
    figure = kind(figsize=(max(width * columns + 0.6, 6.4), height * rows + 1.3), layout="constrained")
    # Each has axes of its own with the same limits: the time of shared ones grows with the square of their number.
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    panels = dict(zip(names, every, strict=False))
    yield figure, panels
    tops = [value for value in top if 0 < value < math.inf]
    is_logarithmic = bool(tops) and max(tops) > _MOST_LINEAR * min(tops)
    letters = (17 if small else 23) if columns > 1 else 60
    titles = told_apart([figure_text(name or "(top)") for name in panels], letters)
    for title, panel in zip(titles, panels.values(), strict=True):
        panel.set_title(title, fontsize=6 if small else 8, pad=3, loc="center")
        panel.tick_params(labelsize=6 if small else 7, length=2)
        gridded(panel)
    levels = [line for panel in panels.values() for line in panel.lines if line.get_linestyle() in ("--", ":")]
    limits = [float(line.get_ydata()[0]) for line in levels]
    highest = 1.08 * max([*tops, *(limit for limit in limits if 0 < limit < math.inf)], default=1.0)
    lowest, highest = (highest / 10**_DECADES, 1.2 * highest) if is_logarithmic else (0.0, highest)
    for place, panel in enumerate(every):
        if place >= len(names):
            panel.set_axis_off()
            continue
        if is_logarithmic:
            logarithmic(panel)
        is_lowest = place >= len(names) - columns
        panel.set(xlim=(-3, 103), ylim=(lowest, highest))
        panel.tick_params(labelleft=place % columns == 0, labelbottom=is_lowest, which="both")
        if place // columns == rows - 1:
            panel.set_xlabel("share of the layer's values,\nlargest first, %", fontsize=5.5 if small else 7.5)
    found: dict[str, Artist] = {}
    for panel in panels.values():
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.supylabel("singular value" + ", log scale" * is_logarithmic, fontsize=9, color="0.25")
    if found:
        legend = legend_below(figure, dict(sorted(found.items(), key=lambda entry: entry[0].startswith(_LIMITS))))
        if any(_reaches_zero(line) for panel in panels.values() for line in panel.lines):
            told = textwrap.wrap(ZEROS, int(13 * figure.get_figwidth()))
            figure.set_figheight(figure.get_figheight() + 0.15 * len(told))
            legend.set_title("\n".join(told))
            legend.get_title().set(fontsize=8, color="0.35")


def _reaches_zero(line: Line2D) -> bool:
    """Return whether a twentieth or more of a curve's values are 0."""
    values = np.asarray(line.get_ydata(), dtype=float)
    return len(values) > 2 and bool((values <= _ZERO * values.max()).mean() >= 0.05)
