"""The layers of a training: largest singular value, proved bound and maximum of each, over the epochs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from svdctl.utils.escapes import figure_text
from svdctl.utils.figure_style import (
    BOUND,
    FAINT,
    MAXIMUM,
    VALUE,
    gridded,
    legend_above,
    logarithmic,
    shortened,
    told_apart,
)
from svdctl.utils.matplotlib_defaults import Axes, Figure, LogNorm, MaxNLocator, SubFigure, colormaps

_MOST_NAMES = 64
"""Layers above which not every one is named."""
_MOST_LINEAR = 4.0
"""Ratio to the maximum above which the scale is logarithmic."""

Table = list[list[float]]
"""A row for each layer, a column for each evaluation; NaN where nothing is known."""


@dataclass(frozen=True)
class LayerCurves:
    """What the log says of layers: of those with a maximum where these are half of all or more, else of all.

    Beside proofs between steps it is of those with a maximum in any case.
    """

    names: list[str]
    epochs: list[float]
    """Of the evaluations."""
    values: Table
    bounds: Table
    maxima: Table
    left_out: int
    """Layers without a maximum, beside others that have one."""
    proofs: list[tuple[float, float]]
    """Epoch of each proof between steps, and the largest bound over its maximum that it found before it scaled."""
    between: Table
    """Bound over the maximum that each of these proofs left: a column for each proof."""

    @classmethod
    def of(cls, evaluated: Sequence[Mapping[str, Any]], proofs: Sequence[Mapping[str, Any]], per_epoch: float) -> Self:
        """Return the curves of lines about evaluated epochs and about proofs."""
        known = [line for line in evaluated if any(key.startswith("sigma/") for key in line)]
        every = list(dict.fromkeys(key[6:] for line in known for key in line if key.startswith("sigma/")))
        limited = [name for name in every if any(f"max/{name}" in line for line in known)]
        # Proofs between steps are drawn over maxima, which all curves beside them then need.
        names = limited if limited and (proofs or 2 * len(limited) >= len(every)) else every

        def table(kind: str) -> Table:
            return [[line.get(f"{kind}/{name}", math.nan) for line in known] for name in names]

        def left(name: str) -> list[float]:
            # Lines about proofs name the maxima where they move; else there is one for all.
            every = {line[f"max/{name}"] for line in known if f"max/{name}" in line}
            one = every.pop() if len(every) == 1 else math.nan
            return [line.get(f"bound/{name}", math.nan) / line.get(f"max/{name}", one) for line in proofs]

        return cls(
            names,
            [line["step"] / per_epoch for line in known],
            table("sigma"),
            table("bound"),
            table("max"),
            len(every) - len(names),
            [(line["step"] / per_epoch, line["found"]) for line in proofs],
            [left(name) for name in names],
        )

    @property
    def has_maxima(self) -> bool:
        """Return whether values are drawn over their maxima: each has one."""
        every = [any(not math.isnan(value) for value in row) for row in self.maxima]
        return bool(self.proofs) or (bool(every) and all(every))

    @property
    def height(self) -> float:
        """Return the height of their panels, in inches."""
        return min(8.6, max(4.0, 1.9 + 0.17 * len(self.names)))

    def over_maxima(self, table: Table) -> Table:
        """Return a table of values over the maxima; as it is where there are none."""
        if not self.has_maxima:
            return table
        pairs = [zip(*rows, strict=True) for rows in zip(table, self.maxima, strict=True)]
        return [[value / most if most else math.nan for value, most in row] for row in pairs]


def marker_of(places: Sequence[object]) -> str | None:
    """Return the marker of a curve: dots while they stand apart."""
    return "." if len(places) <= 40 else None


def draw_layers(figure: Figure | SubFigure, layers: LayerCurves) -> None:
    """Draw curves of all layers, a map of them by epoch, and what holds after the last evaluation."""
    if not layers.names:
        panel = figure.subplots()
        _draw_curves(panel, layers)
        legend_above(panel)
        return
    curves, heat, end = figure.subplots(1, 3, width_ratios=(1.1, 1.0, 0.9))
    _draw_curves(curves, layers)
    _draw_map(figure, heat, layers)
    _draw_end(end, layers)
    legend_above(curves, heat, end)


def _draw_curves(panel: Axes, layers: LayerCurves) -> None:
    values, bounds = layers.over_maxima(layers.values), layers.over_maxima(layers.bounds)
    if layers.proofs:
        proved = [at for at, _ in layers.proofs]
        panel.plot(proved, [found for _, found in layers.proofs], ".", color=BOUND,
                   label="bound found between steps, before it was scaled")  # fmt: skip
        label = "bound of each layer proved there"
        for row in layers.between:
            panel.plot(proved, row, color=BOUND, lw=0.8, alpha=0.5, marker=marker_of(proved), ms=2, label=label)
            label = "_"
    marker = marker_of(layers.epochs)
    order = sorted(range(len(values)), key=lambda place: _last(values[place]))
    for place in order[:-1]:
        dot = "." if len(layers.epochs) == 1 else None
        panel.plot(layers.epochs, values[place], color=VALUE, lw=0.8, alpha=0.35, marker=dot)
    if order:
        name = shortened(layers.names[order[-1]] or "(top)", 28)
        label = figure_text(f"largest value: {name}")
        panel.plot(layers.epochs, values[order[-1]], color=VALUE, marker=marker, label=label)
        highest = [max((b for b in column if b < math.inf), default=math.nan) for column in zip(*bounds, strict=True)]
        panel.plot(layers.epochs, highest, color=BOUND, lw=2.6, alpha=0.6, label="largest proved bound", zorder=1.5)
    found = [found for _, found in layers.proofs]
    seen = [v for row in [*values, *bounds, *layers.between, found] for v in row if 0 < v < math.inf]
    top, low = max(seen, default=1.0), min(seen, default=1.0)
    if layers.has_maxima:
        panel.axhline(1, color=MAXIMUM, ls="--", lw=1, label="maximum")
        top = 1.15 * max(top, 1.0)
        panel.axhspan(1, max(top, 1.15), color=MAXIMUM, alpha=0.07, lw=0)
        panel.set(ylim=(0, top), ylabel="largest singular value / maximum")
    else:
        panel.set(ylim=(low / 1.3, top * 1.3), ylabel="largest singular value")
    if top > _MOST_LINEAR * (1 if layers.has_maxima else low):
        logarithmic(panel)
        panel.set_ylim(low / 1.5, top * 1.5)
        panel.set_ylabel(f"{panel.get_ylabel()}, log scale")
    count = len(layers.names)
    some = f", {_told_of_maxima(values, bounds)}" if layers.has_maxima else ""
    panel.set(title=f"{count} layer{'s' * (count != 1)}{some}" if count else "Proofs between steps", xlabel="epoch")
    panel.set_xlim(0, None)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    gridded(panel)


def _told_of_maxima(values: Table, bounds: Table) -> str:
    """Return what is known of layers, given values and bounds over their maxima."""
    if above := sum(any(value > 1 for value in row) for row in values):
        return f"{above} above the maximum"
    is_proved = all(bound <= 1 for row in bounds for bound in row if not math.isnan(bound))
    return "all within the maximum" if is_proved else "none seen above the maximum"


def _last(row: Sequence[float]) -> float:
    """Return the last value that is known, to sort by."""
    return next((value for value in reversed(row) if not math.isnan(value)), -math.inf)


def _draw_map(figure: Figure | SubFigure, panel: Axes, layers: LayerCurves) -> None:
    values = layers.over_maxima(layers.values)
    seen = [v for row in values for v in row if 0 < v < math.inf]
    if layers.has_maxima:
        colors = colormaps["Blues"].with_extremes(over=MAXIMUM, bad=FAINT)
        image = panel.imshow(values, aspect="auto", cmap=colors, vmin=0, vmax=1, interpolation="nearest")
        label = "value / maximum; red: above it"
    else:
        colors = colormaps["Blues"].with_extremes(bad=FAINT)
        norm = LogNorm(min(seen, default=1.0), max(seen, default=1.0) * 1.0001)
        image = panel.imshow(values, aspect="auto", cmap=colors, norm=norm, interpolation="nearest")
        label = "largest singular value, log scale"
    bar = figure.colorbar(image, ax=panel, extend="max" if layers.has_maxima else "neither", extendfrac=0.03,
                          label=label, pad=0.02)  # fmt: skip
    if not layers.has_maxima:
        logarithmic(bar.ax)
    places = _round_epochs(layers.epochs)
    panel.set_xticks(places, [f"{layers.epochs[place]:.4g}" for place in places])
    panel.set(xlabel="epoch of the evaluation", title="Each layer over training")
    _name_rows(panel, layers)
    panel.spines[:].set_visible(False)


def _round_epochs(epochs: Sequence[float]) -> list[int]:
    """Return the places of at most eight evaluations: those of round epochs where there are two, else evenly spread."""
    ticks = MaxNLocator(7, integer=True).tick_values(0, max(epochs))
    found = [place for place, epoch in enumerate(epochs) if any(abs(epoch - tick) < 1e-6 for tick in ticks)]
    every = max(1, -(-len(epochs) // 7))
    return found if len(found) > 1 else list(range(len(epochs) - 1, -1, -every))[::-1]


def _name_rows(panel: Axes, layers: LayerCurves) -> None:
    count = len(layers.names)
    every = -(-count // _MOST_NAMES)
    places = list(range(0, count, every))
    names = told_apart([figure_text(layers.names[place] or "(top)") for place in places], 26)
    panel.set_yticks(places, names, fontsize=8 if count <= 20 else 6.5 if count <= 40 else 5.5)
    panel.set_ylim(count - 0.5, -0.5)
    panel.tick_params(length=0)


def _draw_end(panel: Axes, layers: LayerCurves) -> None:
    places = list(range(len(layers.names)))
    value, bound, most = ([row[-1] for row in table] for table in (layers.values, layers.bounds, layers.maxima))
    panel.hlines(places, value, [b if b < math.inf else math.nan for b in bound], color=BOUND, lw=1.2, alpha=0.6)
    size = 9 if len(places) <= 40 else 5
    if any(not math.isnan(one) for one in most):
        panel.plot(most, places, "|", color=MAXIMUM, ms=1.5 * size, mew=1.6, label="maximum")
    panel.plot(bound, places, "|", color=BOUND, ms=size, mew=2.2, label="proved bound")
    panel.plot(value, places, "o", color=VALUE, ms=0.5 * size, label="largest value")
    seen = [v for row in (value, bound, most) for v in row if 0 < v < math.inf]
    if seen and max(seen) > 20 * min(seen):
        panel.set_xscale("log")
    else:
        panel.set_xlim(0, 1.08 * max(seen, default=1.0))
    _name_rows(panel, layers)
    panel.set_yticklabels([])
    gridded(panel, "both" if len(places) <= 40 else "x")
    panel.set(xlabel="singular value", title=f"After epoch {layers.epochs[-1]:.3g}")
    if count := layers.left_out:
        panel.set_xlabel(f"singular value (left out:\n{count} layer{'s' * (count != 1)} without a maximum)")
