"""A table as bars: one panel a column, one bar a row."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from svdctl.reproduce.table_files import known_columns
from svdctl.reproduce.table_results import Results
from svdctl.utils.atomic_write import write_picture
from svdctl.utils.escapes import one_line
from svdctl.utils.matplotlib_defaults import Figure, with_defaults

COLORS = ("#4878a8", "#e08a3c", "#5a9e6f", "#b85c5c", "#8b75b0", "#8c7364")


@with_defaults({"text.parse_math": False, "font.size": 7})
def plot_bars(results: Results, path: Path) -> None:
    """Plot means with their spread, the paper's numbers as diamonds; empty cells stay empty."""
    columns, rows = results.plan.columns, results.rows
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(2.2 + 2.9 * across, down * (0.24 * len(rows) + 0.7) + 0.7), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    places = list(range(len(rows)))[::-1]
    groups = list(dict.fromkeys(row.row.group for row in rows))
    colors = [COLORS[groups.index(row.row.group) % len(COLORS)] for row in rows]
    labels = [one_line(row.shown) + (f" [{', '.join(map(str, row.notes))}]" if row.notes else "") for row in rows]
    diamonds = []
    for panel, column in zip(panels, columns, strict=False):
        look, cells = known_columns()[column], [row.figures[column] for row in rows]
        shown, spread = ([look.factor * (value or 0.0) for value in values]
                         for values in zip(*((cell.mean, cell.spread) for cell in cells), strict=True))  # fmt: skip
        panel.barh(places, shown, xerr=spread if any(spread) else None, color=colors, height=0.72)
        longest = max([*shown, *(cell.paper_shown or 0.0 for cell in cells)]) or 1.0
        panel.set_xlim(0, longest * 1.28)
        for place, row, cell, value in zip(places, rows, cells, shown, strict=True):
            if cell.mean is None:
                panel.text(0, place, " failed" if row.reasons else " -", va="center", color="0.4")
            else:
                panel.text(value, place, f" {look.shown(cell.mean)}{cell.kept and ' (kept)'}", va="center")
            if cell.paper_shown is not None:
                diamonds += panel.plot(cell.paper_shown, place, "D", color="black", markersize=4)
        arrow = {"high": " (more is better)", "low": " (less is better)", None: ""}[look.better]
        panel.set_title(look.title(results.plan.evaluate) + arrow, fontsize=8)
        panel.set_yticks(places, labels)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    if diamonds:
        figure.legend(diamonds[:1], ["paper, as given"], loc="outside lower right", frameon=False)
    width = figure.get_figwidth()
    figure.suptitle(_wrapped([results.plan.title, results.caption], 13 * width), fontsize=9)
    if results.notes:
        figure.supxlabel(_wrapped(results.table.numbered_notes, 20 * width), fontsize=5.5, x=0.01, ha="left")
    write_picture(figure, path)


def _wrapped(lines: Sequence[str], width: float) -> str:
    """Return the lines, each broken to about this many letters."""
    return "\n".join(textwrap.fill(one_line(line), int(width)) for line in lines)
