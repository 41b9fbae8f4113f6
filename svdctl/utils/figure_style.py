"""The one style of all pictures: a colour for each meaning, sizes, and titles that name the run and its data."""

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np

from svdctl.utils.escapes import figure_text, one_line
from svdctl.utils.matplotlib_defaults import (
    Annotation,
    Artist,
    Axes,
    Figure,
    Legend,
    LogFormatter,
    offset_copy,
    with_defaults,
)

P = ParamSpec("P")
T = TypeVar("T")

VALUE = "#2b6ca3"
"""What is measured: singular values at the end, accuracy, losses on held-out images, TT layers."""
START = "#9aa3ab"
"""What it is compared with: before training, on training images, on clean images."""
BOUND = "#e08a2e"
"""What is proved of singular values; the gap between accuracy and confidence."""
MAXIMUM = "#c0392b"
"""The maximum that is allowed, and all that is beyond it."""
CERTIFIED = "#3a8f5c"
"""What is proved of accuracy."""
ATTACK = "#7d4fa0"
"""What an attack left."""
SERIES = (VALUE, "#c8679f", "#8c7364", "#46b1b9", "#9b9a2f", "#39346b")
"""Networks, or groups of rows, side by side; none has a colour that means something else."""
_LINE = 10.5
"""Height of a line of a legend above a panel, in points."""
_MOST_ABOUT = 4
"""Lines of each text below a title."""
_HANDLE, _LEGEND_LETTERS = 0.55, 15
"""Width of a legend's entry beside its text, and letters of an inch of it."""
_TITLE, _ABOUT = 11.5, 8.5
"""Sizes of a title and of the lines below it, in points."""
FAINT = "0.85"
"""Lines of help, and empty places."""

STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.labelcolor": "0.25",
        "axes.edgecolor": "0.6",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.color": "0.35",
        "ytick.color": "0.35",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.6,
        "grid.color": "0.9",
        "grid.linewidth": 0.8,
    }
)


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Return a function that draws in this style, whatever the process has set."""
    return with_defaults(STYLE)(plot)


def titled(figure: Figure, what: str, *about: str) -> None:
    """Write what a picture shows above it, and below that in small letters of what: the run, its data.

    The picture grows by lines that are more than one of each.

    Args:
        figure: the picture.
        what: its title.
        about: what stands below it, empty texts left out: names of any kind, cut where they are long, and sentences.
    """
    width = figure.get_figwidth()
    letters = int(13.5 * width)
    lines: list[str] = []
    for text in about:
        if not text.strip():
            continue
        pieces = textwrap.wrap(one_line(text), letters, break_long_words=False, break_on_hyphens=False)
        part, *more = (shortened(piece, letters) for piece in pieces[:_MOST_ABOUT])
        if lines and len(lines[-1]) + len(part) + 5 <= letters:
            lines[-1] += f"  ·  {part}"
        else:
            lines.append(part)
        lines += more
    heads = textwrap.wrap(one_line(what), int(9 * width)) or [""]
    figure.set_figheight(figure.get_figheight() + 1.2 * _TITLE / 72 * (len(heads) + len(lines) - 2))
    # One text has one size: the title is laid over empty lines of the other, which are as high.
    below = figure.suptitle("\n".join([*[""] * len(heads), *map(figure_text, lines)]), x=0.01, ha="left",
                            color="0.35", fontsize=_ABOUT, linespacing=1.2 * _TITLE / _ABOUT)  # fmt: skip
    title = Annotation("\n".join(map(figure_text, heads)), (0, 1), xycoords=below, ha="left", va="top",
                       fontsize=_TITLE, fontweight="bold", annotation_clip=False)  # fmt: skip
    figure.add_artist(title)


def shortened(text: str, letters: int, before: int | None = None) -> str:
    """Return the text, its middle left out where it is longer than this many letters.

    Args:
        text: of any length.
        letters: that there is room for.
        before: letters that are kept in front of what is left out, half of all if not given.

    >>> from svdctl.utils.figure_style import shortened
    >>> shortened("layer1.0.conv1", 20), shortened("backbone.stage1.block0.conv1", 13)
    ('layer1.0.conv1', 'backbo….conv1')
    """
    before = letters // 2 if before is None else before
    end = text[len(text) - (letters - before - 1) :]
    return text if len(text) <= letters else f"{text[:before]}…{end if before else end.lstrip('.')}"


def told_apart(names: Sequence[str], letters: int) -> list[str]:
    """Return names that are at most so long, cut where they are the same: no two are equal.

    >>> from svdctl.utils.figure_style import told_apart
    >>> told_apart(["model.layer2.0.downsample.0", "model.layer3.0.downsample.0", "model.conv1"], 22)
    ['…layer2.0.downsample.0', '…layer3.0.downsample.0', 'model.conv1']
    """
    cuts = (letters // 2, 0, letters // 3, letters // 6, letters - 1)
    tried = [[shortened(name, letters, before) for name in names] for before in cuts]
    tried += [[shortened(name, letters) for name in _without_common_parts(names, letters)]]
    best = max(tried, key=lambda found: len(set(found)))
    counts = Counter(best)
    room = letters - len(f"{len(names)}: ")
    return [
        text if counts[text] == 1 else f"{place}: {shortened(name, max(room, 1), 0)}"
        for place, (name, text) in enumerate(zip(names, best, strict=True), start=1)
    ]


def _without_common_parts(names: Sequence[str], letters: int) -> list[str]:
    """Return names, those that are longer without the parts between dots that all of these begin or end with.

    >>> from svdctl.utils.figure_style import _without_common_parts
    >>> _without_common_parts(["encoder.stage1.attention.values", "encoder.stage2.attention.values", "head"], 20)
    ['…stage1…', '…stage2…', 'head']
    """
    parts = [name.split(".") for name in names if len(name) > letters]
    least = min(map(len, parts), default=0)
    first = next((at for at in range(least) if len({own[at] for own in parts}) > 1), 0)
    last = next((at for at in range(least) if len({own[-1 - at] for own in parts}) > 1), 0)
    last = min(last, least - 1 - first)

    def without(name: str) -> str:
        own = name.split(".")
        return "…" * (first > 0) + ".".join(own[first : len(own) - last]) + "…" * (last > 0)

    return [without(name) if len(name) > letters else name for name in names]


class PlainLogFormatter(LogFormatter):
    """Numbers of a logarithmic axis written out, 0.2 and not 2e-01, where there is room for them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the text at a place; empty where it would be too near to others."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(panel: Axes) -> None:
    """Make a panel's vertical axis logarithmic."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(PlainLogFormatter())
    panel.yaxis.set_minor_formatter(PlainLogFormatter(minor_thresholds=(2, 0.4)))


def legend_above(*panels: Axes) -> None:
    """Put each panel's legend between its title and its curves, an entry a line; the titles of all at one height."""
    most = max(len(panel.get_legend_handles_labels()[1]) for panel in panels)
    for panel in panels:
        panel.set_title(panel.get_title(loc="left"), pad=14 + _LINE * most)
        if panel.get_legend_handles_labels()[1]:
            below_title = offset_copy(panel.transAxes, panel.get_figure(root=True), y=6 + _LINE * most, units="points")
            panel.legend(loc="upper left", bbox_to_anchor=(0, 1), bbox_transform=below_title, borderaxespad=0,
                         borderpad=0, fontsize=7.5, labelspacing=0.3, markerscale=0.7)  # fmt: skip


def legend_below(figure: Figure, entries: Mapping[str, Artist], most: int = 4) -> Legend:
    """Put a legend below all panels, as many entries side by side as there is room for.

    Args:
        figure: the picture.
        entries: what is explained, by its text.
        most: entries side by side.
    """
    width = figure.get_figwidth()
    texts = [shortened(text, int(_LEGEND_LETTERS * (width - _HANDLE))) for text in entries]

    def needed(across: int) -> float:
        columns = np.array_split([len(text) for text in texts], across)
        return sum(_HANDLE + max(column) / _LEGEND_LETTERS for column in columns)

    across = next(across for across in range(min(most, len(texts)), 0, -1) if across == 1 or needed(across) <= width)
    figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(texts) // across) - 1))
    return figure.legend(list(entries.values()), texts, loc="outside lower center", ncols=across)


def gridded(panel: Axes, axis: Literal["x", "y", "both"] = "y") -> None:
    """Draw faint lines behind a panel: of its axis `x`, `y` or `both`."""
    panel.grid(visible=True, axis=axis)
