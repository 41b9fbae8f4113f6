"""Certified accuracy against the radius, the same picture for a training and for an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from svdctl.utils.atomic_write import write_picture
from svdctl.utils.escapes import figure_text
from svdctl.utils.figure_style import ATTACK, CERTIFIED, FAINT, MAXIMUM, START, gridded, legend_below, styled, titled
from svdctl.utils.matplotlib_defaults import Figure, PercentFormatter
from svdctl.utils.rounded_figures import exact

_ACROSS = 5.7
"""Width of the panel, in inches, at least."""
_LETTER = 0.065
"""Width of a letter above it."""


@dataclass(frozen=True)
class AccuracyCurve:
    """Shares of images that hold from each radius to the next."""

    radii: Sequence[float]
    """In pixels of [0, 1], ascending from 0."""
    shares: Sequence[float]

    def at(self, radius: float) -> float:
        """Return the share that holds at a radius."""
        return next((s for r, s in zip(reversed(self.radii), reversed(self.shares), strict=True) if r <= radius), 0.0)


@styled
def draw_certified(
    curves: Mapping[str, AccuracyCurve],
    marks: Sequence[float],
    about: Sequence[str],
    path: Path | None,
    *,
    attacked: Mapping[str, AccuracyCurve],
) -> Figure:
    """Draw certified accuracy, a curve for each network, and above it what attacks left standing; return the picture.

    Args:
        curves: by what stands in the legend; the first one is filled.
        marks: radii in 255ths at which the first one is read.
        about: of which run and data it is, for the title.
        path: the picture's file; None: none is written.
        attacked: by what stands in the legend; each ends at the radius of its attack.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    panel = figure.subplots()
    first = next(iter(curves.values()))
    for (name, curve), (style, color) in zip(
        curves.items(), [("-", CERTIFIED), ("--", START)] * len(curves), strict=False
    ):
        panel.step(curve.radii, curve.shares, where="post", color=color, ls=style, lw=2, label=figure_text(name))
    panel.fill_between(first.radii, first.shares, step="post", color=CERTIFIED, alpha=0.12, lw=0)
    ends = [curve.radii[-1] for curve in curves.values()]
    end = max([mark / 255 for mark in marks] + [last for last in ends if last < 20])
    for name, curve in attacked.items():
        panel.step(curve.radii, curve.shares, where="post", color=ATTACK, label=figure_text(name))
        last = curve.radii[-1], curve.shares[-1]
        panel.plot(*last, "o", color=ATTACK, ms=5, clip_on=False, zorder=5)
        panel.annotate(f"{last[1]:.1%}", last, xytext=(5, 4), textcoords="offset points", fontsize=8, color=ATTACK)
        end = max(end, last[0])
    shares = [first.at(mark / 255) for mark in marks]
    for mark, share in zip(marks, shares, strict=True):
        panel.axvline(mark / 255, color=FAINT, lw=0.8, zorder=0)
        panel.plot(mark / 255, share, "o", color=CERTIFIED, ms=4, clip_on=False)
    above = panel.secondary_xaxis("top")
    texts = [f"{exact(mark)}\n{100 * share:.1f}" for mark, share in zip(marks, shares, strict=True)]
    kept = _apart([mark / 255 for mark in marks], texts, 1.1 * end)
    above.set_xticks([marks[place] / 255 for place in kept], [texts[place] for place in kept])
    above.tick_params(colors=CERTIFIED, labelsize=8)
    above.set_xlabel("radius in 255ths, and % of images certified there", fontsize=8, color=CERTIFIED)
    if max(shares, default=0.0) == 0:
        panel.text(
            0.97, 0.93, "nothing is certified at these radii", transform=panel.transAxes, ha="right", color=MAXIMUM
        )
    panel.set(
        xlabel="l2 radius of the change, pixels in [0, 1]",
        ylabel=f"certified{' or not broken' * bool(attacked)}, % of images",
    )
    panel.set(xlim=(0, 1.1 * end), ylim=(0, 1))
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    gridded(panel)
    handles, labels = panel.get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles, strict=True)), 2)
    titled(figure, "Certified accuracy", *about)
    if path is not None:
        write_picture(figure, path)
    return figure


def _apart(places: Sequence[float], texts: Sequence[str], end: float) -> list[int]:
    """Return which texts above a panel have room, from the left on, given where they stand on its axis up to `end`."""
    kept: list[int] = []
    free = 0.0
    for number in sorted(range(len(places)), key=places.__getitem__):
        half = (0.5 + max(map(len, texts[number].split("\n")))) * _LETTER / 2
        at = _ACROSS * places[number] / end
        if at - half >= free or not kept:
            kept.append(number)
            free = at + half
    return kept
