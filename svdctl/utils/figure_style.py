"""The one style of all pictures: a colour for each meaning, sizes, and titles that name the run and its data."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar

from svdctl.utils.escapes import figure_text
from svdctl.utils.matplotlib_defaults import Axes, Figure, LogFormatter, with_defaults

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
SERIES = (VALUE, BOUND, CERTIFIED, ATTACK, "#8c7364", "#5f9ea0")
"""Networks, or groups of rows, side by side."""
_LINE = 11.5
"""Height of a line of a legend above a panel, in points."""
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

    Args:
        figure: the picture.
        what: its title.
        about: parts of the second line, those that are empty left out; names of any kind.
    """
    letters = int(12 * figure.get_figwidth())
    parts = [shortened(part, letters) for part in about if part]
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 5 <= letters:
            lines[-1] += f"  ·  {part}"
        else:
            lines.append(part)
    figure.suptitle("\n".join(map(figure_text, [what, *lines])), fontsize=10, x=0.01, ha="left")


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
    best = max(tried, key=lambda found: len(set(found)))
    counts = Counter(best)
    room = letters - len(f"{len(names)}: ")
    return [
        text if counts[text] == 1 else f"{place}: {shortened(name, max(room, 1), 0)}"
        for place, (name, text) in enumerate(zip(names, best, strict=True), start=1)
    ]


class PlainLogFormatter(LogFormatter):
    """Numbers of a logarithmic axis written out, 0.2 and not 2e-01, where there is room for them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the text at a place; empty where it would be too near to others."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(panel: Axes) -> None:
    """Make a panel's vertical axis logarithmic."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(PlainLogFormatter())
    panel.yaxis.set_minor_formatter(PlainLogFormatter(minor_thresholds=(1, 0.4)))


def legend_above(*panels: Axes) -> None:
    """Put each panel's legend between its title and its curves, an entry a line; the titles of all at one height."""
    most = max(len(panel.get_legend_handles_labels()[1]) for panel in panels)
    for panel in panels:
        panel.set_title(panel.get_title(loc="left"), pad=6 + _LINE * most)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize=7.5)


def gridded(panel: Axes, axis: Literal["x", "y", "both"] = "y") -> None:
    """Draw faint lines behind a panel: of its axis `x`, `y` or `both`."""
    panel.grid(visible=True, axis=axis)
