"""The figure of speed as curves on double logarithmic axes."""

import math
import statistics
from collections.abc import Callable

from svdctl.reproduce.speed import Point, SpeedResults
from svdctl.utils.figure_style import START, VALUE, gridded, logarithmic, styled, titled
from svdctl.utils.matplotlib_defaults import Axes, Figure, FixedLocator, NullLocator, ScalarFormatter

AXES: dict[str, tuple[str, Callable[[Point], str]]] = {
    "width": ("channels", lambda point: f"input {point.size} x {point.size}, rank {point.rank / point.x:.0%} of width"),
    "rank": ("TT rank", lambda point: f"{point.channels} channels, input {point.size} x {point.size}"),
    "input": ("side of the input, pixels", lambda point: f"{point.channels} channels, rank {point.rank}"),
}
"""What grows along an axis, and what stays."""


@styled
def draw_speed(results: SpeedResults) -> Figure:
    """Return a picture of growth with width, rank and input size, and of the network's ratios beside the modelled."""
    figure = Figure(figsize=(13.0, 6.6), layout="constrained")
    panels = figure.subplots(2, 4)
    for row, work, is_first in zip(panels, ("all values", "control pass"), (True, False), strict=True):
        for panel, (axis, (label, fixed)) in zip(row, AXES.items(), strict=False):
            points = [point for point in results.points if point.axis == axis and point.work == work]
            if not points:
                panel.set_axis_off()
                continue
            _curves(panel, points)
            panel.set_xlabel(label)
            if is_first:
                panel.set_title(fixed(points[0]), fontsize=9)
        row[0].set_ylabel(f"{work}, seconds, log scale")
        _ratios(row[3], [point for point in results.points if point.axis == "network" and point.work == work])
        if is_first:
            row[3].set_title("the whole network", fontsize=9)
    found = {
        label: handle
        for panel in panels.flatten()
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=5)
    rounds = max((len(point.full) for point in results.points), default=0)
    shown = f"medians of {rounds} rounds, bands from the smallest to the largest" if rounds > 1 else "one round"
    titled(figure, results.title, results.machine, shown)
    return figure


def _curves(panel: Axes, points: list[Point]) -> None:
    x = [point.x for point in points]
    full, tt = [point.full for point in points], [point.tt for point in points]
    for name, color, series in (("full", START, full), ("TT", VALUE, tt)):
        panel.loglog(x, [*map(statistics.median, series)], "o-", color=color, markersize=4, label=name)
        panel.fill_between(x, [*map(min, series)], [*map(max, series)], color=color, alpha=0.25, lw=0)
    expected = [statistics.median(point.full) / (point.modelled or 1.0) for point in points]
    panel.loglog(x, expected, "--", color="0.3", lw=1, label="TT by the model of its cost, from full", zorder=1)
    logarithmic(panel)
    # The model of small ranks goes far below anything measured.
    panel.set_ylim(max(0.6 * min(expected), min(map(min, [*full, *tt])) / 30), None)
    panel.xaxis.set_major_locator(FixedLocator(_apart(x)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    gridded(panel, "both")


def _apart(places: list[int]) -> list[int]:
    """Return the places whose labels do not touch on a logarithmic axis, the last one included."""
    kept: list[int] = []
    for place in sorted(places, reverse=True):
        if not kept or math.log(kept[-1] / place) > 0.11 * math.log(max(places) / min(places)):
            kept.append(place)
    return kept[::-1]


def _ratios(panel: Axes, points: list[Point]) -> None:
    """Draw how many times faster TT is, by the clock and by the model; on the line of 1 it is as fast as full."""
    if not points:
        panel.set_axis_off()
        return
    measured, modelled = [point.measured for point in points], [point.modelled or 0.0 for point in points]
    for shift, values, color, label in (
        (-0.2, measured, VALUE, "measured"),
        (0.2, modelled, "0.8", "by the model of its cost"),
    ):
        bars = panel.bar([place + shift for place in range(len(points))], values, 0.38, color=color, label=label)
        panel.bar_label(bars, fmt="%.1f", fontsize=8)
    panel.axhline(1, color="0.3", lw=1, ls=":")
    panel.set_xticks(range(len(points)), [f"rank {point.rank}" for point in points])
    panel.set(ylabel="time of full / time of TT", ylim=(0, 1.15 * max(1.0, *measured, *modelled)))
    panel.tick_params(axis="x", length=0)
    gridded(panel)
