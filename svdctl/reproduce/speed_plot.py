"""The figure of speed as curves on double logarithmic axes."""

import math
import statistics
from collections.abc import Callable

from svdctl.reproduce.speed import Point, SpeedResults
from svdctl.utils.figure_style import START, STYLE, VALUE, titled
from svdctl.utils.matplotlib_defaults import (
    Axes,
    Figure,
    FixedLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
    with_defaults,
)

AXES: dict[str, tuple[str, Callable[[Point], str]]] = {
    "width": ("channels", lambda point: f"input {point.size}, rank {point.rank / point.x:.0%} of the width"),
    "rank": ("TT rank", lambda point: f"{point.channels} channels, input {point.size}"),
    "input": ("side of the input", lambda point: f"{point.channels} channels, rank {point.rank}"),
}
"""What grows along an axis, and what stays."""


@with_defaults({**STYLE, "font.size": 7, "axes.titlesize": 8, "axes.labelsize": 8})
def draw_speed(results: SpeedResults) -> Figure:
    """Return a picture of growth with width, rank and input size, and of the network's ratios beside the modelled."""
    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    panels = figure.subplots(2, 4)
    for row, work in zip(panels, ("all values", "control pass"), strict=True):
        for panel, (axis, (label, fixed)) in zip(row, AXES.items(), strict=False):
            points = [point for point in results.points if point.axis == axis and point.work == work]
            _curves(panel, points)
            panel.set(title=f"{work}: {fixed(points[0])}", xlabel=label, ylabel="seconds, log scale")
        _ratios(row[3], [point for point in results.points if point.axis == "network" and point.work == work])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    titled(figure, results.title, results.machine)
    return figure


def _curves(panel: Axes, points: list[Point]) -> None:
    x = [point.x for point in points]
    full, tt = [point.full for point in points], [point.tt for point in points]
    for name, color, series in (("full", START, full), ("TT", VALUE, tt)):
        panel.loglog(x, [*map(statistics.median, series)], "o-", color=color, markersize=4, label=name)
        panel.fill_between(x, [*map(min, series)], [*map(max, series)], color=color, alpha=0.25, lw=0)
    expected = [statistics.median(point.full) / (point.modelled or 1.0) for point in points]
    panel.loglog(x, expected, "--", color="0.3", lw=1, label="TT by the model, from full", zorder=1)
    # The model of small ranks goes far below anything measured.
    panel.set_ylim(max(0.6 * min(expected), min(map(min, [*full, *tt])) / 30), None)
    panel.xaxis.set_major_locator(FixedLocator(_apart(x)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25)


def _apart(places: list[int]) -> list[int]:
    """Return the places whose labels do not touch on a logarithmic axis, the last one included."""
    kept: list[int] = []
    for place in sorted(places, reverse=True):
        if not kept or math.log(kept[-1] / place) > 0.09 * math.log(max(places) / min(places)):
            kept.append(place)
    return kept[::-1]


def _ratios(panel: Axes, points: list[Point]) -> None:
    measured, modelled = [point.measured for point in points], [point.modelled or 0.0 for point in points]
    for shift, values, color, label in (
        (-0.2, measured, VALUE, "measured"),
        (0.2, modelled, "0.75", "by the model"),
    ):
        bars = panel.bar([place + shift for place in range(len(points))], values, 0.38, color=color, label=label)
        panel.bar_label(bars, fmt="%.1f")
    panel.set_xticks(range(len(points)), [f"rank {point.rank}" for point in points])
    panel.set(title=f"whole network, {points[0].work}: TT faster by", ylim=(0, 1.25 * max(*measured, *modelled)))
    panel.legend()
