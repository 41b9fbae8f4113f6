"""The figure of speed as curves on double logarithmic axes."""

import math
import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from svdctl.reproduce.speed import Point, SpeedResults
from svdctl.train.plots import save

AXES = {"width": "channels", "rank": "TT rank", "input": "side of the input"}


def plot_speed(results: SpeedResults, path: Path) -> None:
    """Plot growth with width, rank and input size; the whole network's ratios, measured beside modelled."""
    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    panels = figure.subplots(2, 4)
    for row, work in enumerate(("all values", "control pass")):
        for column, axis in enumerate(AXES):
            points = [point for point in results.points if point.axis == axis and point.work == work]
            _curves(panels[row][column], points, f"{work}: {_fixed(points)}", AXES[axis])
        network = [point for point in results.points if point.axis == "network" and point.work == work]
        _ratios(panels[row][3], network)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(f"{results.title}\n{results.machine}", fontsize=9)
    save(figure, path)


def _fixed(points: list[Point]) -> str:
    """Return what stays along an axis."""
    first = points[0]
    parts = {
        "width": f"input {first.size}, rank {first.rank / (first.channels or 1):.0%} of the width",
        "rank": f"{first.channels} channels, input {first.size}",
        "input": f"{first.channels} channels, rank {first.rank}",
    }
    return parts[first.axis]


def _curves(panel: Axes, points: list[Point], title: str, label: str) -> None:
    x = [point.x for point in points]
    for name, color, series in (
        ("full", "#4878a8", [point.full for point in points]),
        ("TT", "#e08a3c", [point.tt for point in points]),
    ):
        middle = [statistics.median(times) for times in series]
        panel.loglog(x, middle, "o-", color=color, markersize=4, label=name)
        panel.fill_between(x, [min(t) for t in series], [max(t) for t in series], color=color, alpha=0.25, lw=0)
    expected = [statistics.median(point.full) / (point.modelled or 1.0) for point in points]
    panel.loglog(x, expected, "--", color="0.6", lw=1, label="TT by the model, from full", zorder=1)
    lowest = min(min(times) for point in points for times in (point.full, point.tt))
    # The model of small ranks goes far below anything measured.
    panel.set_ylim(max(0.6 * min(expected), lowest / 30), None)
    panel.set_title(title, fontsize=8)
    panel.set_xlabel(label, fontsize=8)
    panel.set_ylabel("seconds", fontsize=8)
    panel.xaxis.set_major_locator(FixedLocator(_apart(x)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.25)


def _apart(places: list[int]) -> list[int]:
    """Return the places whose labels do not touch on a logarithmic axis, the last one included."""
    kept: list[int] = []
    for place in sorted(places, reverse=True):
        if not kept or math.log(kept[-1] / place) > 0.09 * math.log(max(places) / min(places)):
            kept.append(place)
    return kept[::-1]


def _ratios(panel: Axes, points: list[Point]) -> None:
    places = range(len(points))
    measured = [point.measured for point in points]
    modelled = [point.modelled or 0.0 for point in points]
    for shift, values, color, label in (
        (-0.2, measured, "#e08a3c", "measured"),
        (0.2, modelled, "0.75", "by the model"),
    ):
        bars = panel.bar([place + shift for place in places], values, 0.38, color=color, label=label)
        panel.bar_label(bars, fmt="%.1f", fontsize=7)
    panel.set_xticks(places, [f"rank {point.rank}" for point in points], fontsize=7)
    panel.set_title(f"whole network, {points[0].work}: TT faster by", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.set_ylim(0, 1.25 * max(*measured, *modelled))
    panel.legend(frameon=False, fontsize=7)
    panel.spines[["top", "right"]].set_visible(False)
