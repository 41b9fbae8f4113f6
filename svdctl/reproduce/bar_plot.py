"""A table as bars: one panel a column, one bar a row."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from svdctl.reproduce.columns import known_columns
from svdctl.reproduce.table_results import Results
from svdctl.train.plots import save

COLORS = ("#4878a8", "#e08a3c", "#5a9e6f", "#b85c5c", "#8b75b0", "#8c7364")


def plot_bars(results: Results, path: Path) -> None:
    """Plot means with their spread, the paper's numbers as diamonds; empty cells stay empty."""
    columns, rows = results.plan.columns, results.rows
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    height = 0.24 * len(rows) + 0.7
    figure = Figure(figsize=(2.2 + 2.9 * across, down * height + 0.7), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    places = list(range(len(rows)))[::-1]
    groups = list(dict.fromkeys(row.row.group for row in rows))
    colors = [COLORS[groups.index(row.row.group) % len(COLORS)] for row in rows]
    for panel, column in zip(panels, columns, strict=False):
        look = known_columns()[column]
        shown = [look.factor * (row.figures[column].mean or 0.0) for row in rows]
        spread = [look.factor * (row.figures[column].spread or 0.0) for row in rows]
        panel.barh(places, shown, xerr=spread if any(spread) else None, color=colors, height=0.72)
        longest = max([*shown, *(row.figures[column].paper or 0.0 for row in rows)], default=0.0) or 1.0
        panel.set_xlim(0, longest * 1.28)
        for place, row, value in zip(places, rows, shown, strict=True):
            cell = row.figures[column]
            if cell.mean is None:
                panel.text(0, place, " failed" if row.reasons else " -", va="center", fontsize=7, color="0.4")
            else:
                panel.text(value, place, f" {look.shown(cell.mean)}{cell.kept and ' (kept)'}", va="center", fontsize=7)
            if cell.paper is not None:
                panel.plot(cell.paper, place, "D", color="black", markersize=4, label="paper, as given")
        arrow = {"high": " (more is better)", "low": " (less is better)", None: ""}[look.better]
        panel.set_title(look.title(results.plan.evaluate) + arrow, fontsize=8)
        panel.set_yticks(places, [plain(row.marked) for row in rows], fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    for panel in panels:
        more, named = panel.get_legend_handles_labels()
        handles, labels = handles + more, labels + named
    if handles:
        figure.legend(handles[:1], labels[:1], loc="outside lower right", frameon=False, fontsize=7)
    width = figure.get_figwidth()
    figure.suptitle(wrapped([results.plan.title, results.caption], 13 * width), fontsize=9)
    if results.notes:
        figure.supxlabel(wrapped(results.table.numbered_notes, 20 * width), fontsize=5.5, x=0.01, ha="left")
    save(figure, path)


def wrapped(lines: Sequence[str], width: float) -> str:
    """Return the lines, each broken to about this many letters, and without mathematics."""
    return "\n".join(part for line in lines for part in textwrap.wrap(plain(line), int(width)))


def plain(text: str) -> str:
    """Return text in which matplotlib sees no formulas."""
    return text.replace("$", r"\$")
