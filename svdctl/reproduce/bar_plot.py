"""A table as dots: one panel a column, one dot a row, with the spread over seeds and the paper's number."""

import math
import textwrap
from collections.abc import Sequence

from svdctl.reproduce.table_files import known_columns
from svdctl.reproduce.table_results import Results
from svdctl.utils.escapes import figure_text, one_line
from svdctl.utils.figure_style import FAINT, SERIES, gridded, shortened, styled, titled
from svdctl.utils.matplotlib_defaults import Axes, Figure

_LETTER = 0.065
"""Width of a letter of a row's name, in inches."""


@styled
def draw_bars(results: Results) -> Figure:
    """Return a picture of means with their spread, the paper's numbers as diamonds; empty cells stay empty."""
    columns, rows = results.plan.columns, results.rows
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    labels = [
        figure_text(shortened(one_line(row.shown), 60)) + (f" [{', '.join(map(str, row.notes))}]" if row.notes else "")
        for row in rows
    ]
    names = max(map(len, labels), default=0) * _LETTER
    size = max(2.6, 1.0 + names) + 3.0 * across, down * (0.26 * len(rows) + 0.9) + 1.1
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    groups = list(dict.fromkeys(row.row.group for row in rows))
    colors = [SERIES[groups.index(row.row.group) % len(SERIES)] for row in rows]
    for panel, column in zip(panels, columns, strict=False):
        _draw_column(panel, results, column, colors)
        panel.set_yticks(range(len(rows)), labels)
        panel.set_ylim(len(rows) - 0.5, -0.5)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    keys = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if keys:
        figure.legend(list(keys.values()), list(keys), loc="outside lower right", ncols=2)
    about = results.caption if results.plan.names_data else f"Data: {results.plan.data}. {results.caption}"
    titled(figure, shortened(results.plan.title, 400), about)
    if results.notes:
        notes = _wrapped(results.table.numbered_notes, 14 * figure.get_figwidth())
        figure.set_figheight(figure.get_figheight() + 0.15 * (notes.count("\n") + 1))
        figure.supxlabel(notes, fontsize=8, x=0.01, ha="left")
    return figure


def _draw_column(panel: Axes, results: Results, column: str, colors: Sequence[str]) -> None:
    """Draw a column: a dot and an interval for each row, its text beside the panel, on the range that they take."""
    look = known_columns()[column]
    ends: list[float] = []
    for place, (row, color) in enumerate(zip(results.rows, colors, strict=True)):
        cell = row.figures[column]
        panel.axhline(place, color=FAINT, lw=0.6, zorder=0)
        if cell.paper_shown is not None:
            ends.append(cell.paper_shown)
            panel.plot(cell.paper_shown, place, "D", color="none", mec="0.2", ms=5, label="the paper's number")
        text = "failed" if row.reasons else "-"
        known = cell.mean is not None and math.isfinite(cell.mean)
        if cell.mean is not None and known:
            value, spread = look.factor * cell.mean, look.factor * (cell.spread or 0.0)
            ends += [value - spread, value + spread]
            if spread:
                panel.plot([value - spread, value + spread], [place, place], color=color, lw=2.5, alpha=0.45)
            panel.plot(value, place, "o", color=color, ms=5.5)
            text = f"{look.shown(cell.mean)}{cell.kept and ' (kept)'}"
        panel.text(1.02, place, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8,
                   color="0.15" if known else "0.5")  # fmt: skip
    arrow = {"high": ", more is better", "low": ", less is better", None: ""}[look.better]
    panel.set_title("\n".join(textwrap.wrap(look.title(results.plan.evaluate) + arrow, 42)), fontsize=9)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    if not ends:
        panel.set_xlim(0, 1)
        panel.xaxis.set_visible(False)
        panel.spines["bottom"].set_visible(False)
        panel.text(0.5, 0.5, "no figures yet", transform=panel.transAxes, ha="center", va="center", color="0.5",
                   backgroundcolor="white")  # fmt: skip
        return
    low, high = min(ends), max(ends)
    is_share = look.factor == 100
    if high == low:
        # One figure, or all equal: next to 0, and next to all there is of a share.
        low, high = min(low, 0.0), max(high, 100.0) if is_share else max(1.5 * high, 0.0)
    margin = 0.08 * (high - low) or 1.0
    panel.set_xlim(max(low - margin, 0.0 - margin / 4) if low >= 0 else low - margin,
                   min(high + margin, 101.0) if is_share and high <= 100 else high + margin)  # fmt: skip
    gridded(panel, "x")


def _wrapped(lines: Sequence[str], width: float) -> str:
    """Return the lines, each broken to about this many letters."""
    return "\n".join(textwrap.fill(figure_text(line), int(width)) for line in lines)
