"""Several checkpoints in one picture: each figure as dots with intervals, curves of certificates and corruptions."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from svdctl.evaluate.report import EvaluationReport, ReportedCheckpoint, ReportedRecord
from svdctl.evaluate.results import fault_of_details, rows_of
from svdctl.registry import METRICS
from svdctl.utils.atomic_write import write_picture
from svdctl.utils.escapes import figure_text
from svdctl.utils.figure_style import FAINT, SERIES, gridded, shortened, styled, titled
from svdctl.utils.matplotlib_defaults import Axes, Figure, MaxNLocator, PercentFormatter

_ACROSS = 4
_LETTERS = 34
"""Of a checkpoint's name beside the dots."""
_MOST = 100
"""Checkpoints that are drawn: a picture of more is metres high, and takes minutes."""
_TITLE = 32
"""Letters of a line above a panel."""
_LINES = ("-", "--", ":")
_TINY = 1 / 255
"""Radius in pixels of [0, 1] below which a curve says no more than that nothing is certified."""


@dataclass(frozen=True)
class _Line:
    """One checkpoint in the picture."""

    name: str
    color: str
    style: str
    records: Sequence[ReportedRecord]


@dataclass(frozen=True)
class _Dot:
    """A figure and its interval at 95 %, in the unit in which it is shown; both ends equal it where there is none."""

    value: float
    low: float
    high: float
    text: str


@styled
def plot_comparison(report: EvaluationReport, path: Path | None) -> Figure | None:
    """Draw the first data set of a report on which there are several checkpoints; None where there is none.

    Args:
        report: what is known.
        path: the picture's file; None: none is written.
    """
    by_data = {key: [one for one in report.checkpoints if one.on(key)] for key in report.data}
    key = next((key for key, found in by_data.items() if len(found) > 1), None)
    if key is None:
        return None
    lines = [_line(number, checkpoint, key) for number, checkpoint in enumerate(by_data[key][:_MOST])]
    columns = _columns(lines)
    nothing = [title for title, dots in columns.items() if all(dot is None or dot.value == 0 for dot in dots)]
    columns = {title: dots for title, dots in columns.items() if title not in nothing}
    lone = [title for title, dots in columns.items() if sum(dot is not None for dot in dots) == 1]
    if len(lone) < len(columns):
        columns = {title: dots for title, dots in columns.items() if title not in lone}
    else:
        lone = []
    curves: list[Callable[[Axes], None]] = []
    if radii := _certified(lines):
        curves.append(partial(_draw_certified, lines=lines, radii=radii))
    if shares := _corruptions(lines):
        curves.append(partial(_draw_corruptions, lines=lines, shares=shares))
    across = min(_ACROSS, max(len(columns), 1))
    down = max(-(-len(columns) // across), 1)
    heights = [down * (0.26 * len(lines) + 0.75) + 0.2, *([3.6] if curves else [])]
    figure = Figure(figsize=(max(3.0 + 2.1 * across, 6.4), sum(heights) + 0.9), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = parts[0].subplots(down, across, squeeze=False, sharey=True).flatten()
    for panel, (title, dots) in zip(panels, columns.items(), strict=False):
        _draw_dots(panel, title, dots, lines)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    if curves:
        left, right = parts[1].subplots(1, 2)
        for panel, draw in zip((left, right), curves, strict=False):
            draw(panel)
        # The legend stands where no curve is: beside a lone panel, or where certified accuracy has fallen to nothing.
        if len(curves) == 1:
            right.set_axis_off()
        legend = (right, "center left") if len(curves) == 1 else (left, "upper right")
        legend[0].legend(*left.get_legend_handles_labels(), loc=legend[1])
    about = [f"data: {report.data[key]}", "bars: 95 % intervals (Wilson)"]
    about += [f"0 for every checkpoint: {', '.join(nothing)}"] if nothing else []
    about += [f"of one checkpoint alone, in the table only: {', '.join(lone)}"] if lone else []
    about += [f"the first {_MOST} of {len(by_data[key]):,} in the report's table"] if len(by_data[key]) > _MOST else []
    titled(figure, f"{len(lines)} checkpoints compared", *about)
    if path is not None:
        write_picture(figure, path)
    return figure


def _line(number: int, checkpoint: ReportedCheckpoint, key: str) -> _Line:
    records = [reported for reported in checkpoint.records if reported.data_key == key]
    name = shortened(checkpoint.name, _LETTERS) + (f" ({checkpoint.state})" if checkpoint.state else "")
    style = _LINES[number // len(SERIES) % len(_LINES)]
    return _Line(figure_text(name), SERIES[number % len(SERIES)], style, records)


def _columns(lines: Sequence[_Line]) -> dict[str, list[_Dot | None]]:
    """Return by header of the table the figure of each checkpoint, None where it is missing or no number."""
    columns: dict[str, list[_Dot | None]] = {}
    for metric in METRICS.variants():
        for number, line in enumerate(lines):
            for record in (reported.record for reported in line.records if reported.record.metric == metric.kind):
                intervals = metric.intervals(record)
                for header, text in metric.cells(record).items():
                    dots = columns.setdefault(header, [None] * len(lines))
                    try:
                        value = float(text.removesuffix("%").replace(",", ""))
                    except ValueError:
                        continue
                    if not math.isfinite(value):
                        continue
                    low, high = (100 * end for end in intervals[header]) if header in intervals else (value, value)
                    dots[number] = dots[number] or _Dot(value, low, high, text)
    return {header: dots for header, dots in columns.items() if any(dots)}


def _draw_dots(panel: Axes, title: str, dots: Sequence[_Dot | None], lines: Sequence[_Line]) -> None:
    """Draw one figure of all checkpoints on the range that it takes, its text beside it."""
    for place, (dot, line) in enumerate(zip(dots, lines, strict=True)):
        panel.axhline(place, color=FAINT, lw=0.6, zorder=0)
        if dot is not None:
            panel.plot([dot.low, dot.high], [place, place], color=line.color, lw=3, alpha=0.4, solid_capstyle="butt")
            panel.plot(dot.value, place, "o", color=line.color, ms=5.5)
        text = "-" if dot is None else dot.text
        panel.text(1.02, place, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8, color="0.2")
    known = [dot for dot in dots if dot is not None]
    low, high = min(dot.low for dot in known), max(dot.high for dot in known)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    is_share = all(dot.text.endswith("%") for dot in known)
    panel.set_xlim(low - margin, min(high + margin, 102.0) if is_share else high + margin)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    wrapped = textwrap.wrap(figure_text(title) + ", %" * is_share, _TITLE)
    panel.set_title("\n".join(wrapped), fontsize=9)
    panel.set_yticks(range(len(lines)), [line.name for line in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    gridded(panel, "x")


def _certified(lines: Sequence[_Line]) -> dict[int, list[float]]:
    """Return by place of a checkpoint the certified radii of its test images, ascending; none where all are tiny."""
    found: dict[int, list[float]] = {}
    for place, line in enumerate(lines):
        for reported in line.records:
            record = reported.record
            if record.metric == "certified" and place not in found and not fault_of_details(reported.results, record):
                found[place] = sorted(float(row["radius"]) for row in rows_of(reported.results, record))
    return found if any(own[-1] > _TINY for own in found.values()) else {}


def _draw_certified(panel: Axes, lines: Sequence[_Line], radii: Mapping[int, Sequence[float]]) -> None:
    """Draw certified accuracy against the radius, a curve for each checkpoint."""
    end = max((own[-1] for own in radii.values()), default=0.0)
    for place, own in radii.items():
        positive = [radius for radius in own if radius > 0]
        left = [(len(positive) - rank) / len(own) for rank in range(len(positive) + 1)]
        at = [0.0, *positive]
        if positive and positive[-1] < end:
            at, left = [*at, end], [*left, 0.0]
        line = lines[place]
        panel.step(at, left, where="post", color=line.color, ls=line.style, label=line.name)
    panel.set(xlabel="l2 radius, pixels in [0, 1]", ylabel="certified, % of images", ylim=(0, 1), xlim=(0, None))
    panel.set_title("Certified accuracy", fontsize=9)
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    gridded(panel)


def _corruptions(lines: Sequence[_Line]) -> dict[int, dict[int, float]]:
    """Return by place of a checkpoint its mean accuracy by severity (0: clean), over corruptions that all have."""
    metric = METRICS.get("cifar-c")
    records = {
        place: [reported.record for reported in line.records if reported.record.metric == metric.kind]
        for place, line in enumerate(lines)
    }
    conditions = Counter(metric.conditions(record) for own in records.values() for record in own)
    most = conditions.most_common(1)[0][0] if conditions else ""
    tables = {}
    for place, own in records.items():
        same = [record.results for record in own if metric.conditions(record) == most and record.results["accuracy"]]
        if same:
            tables[place] = max(same, key=lambda results: len(results["accuracy"]))
    names = set.intersection(*(set(results["accuracy"]) for results in tables.values())) if tables else set()
    found = {}
    for place, results in tables.items() if names else ():
        rows = [results["accuracy"][name] for name in names]
        means = {int(severity): sum(row[severity] for row in rows) / len(rows) for severity in rows[0]}
        found[place] = {0: results["clean"], **means}
    return found


def _draw_corruptions(panel: Axes, lines: Sequence[_Line], shares: Mapping[int, Mapping[int, float]]) -> None:
    """Draw accuracy on corrupted images against the severity, a curve for each checkpoint."""
    for place, own in shares.items():
        line = lines[place]
        panel.plot([*own], [*own.values()], "o", ls=line.style, color=line.color, ms=4, label=line.name, clip_on=False)
    panel.set(xlabel="severity (0: clean images)", ylabel="accuracy, % of images", ylim=(0, 1))
    panel.set_xticks(sorted({severity for own in shares.values() for severity in own}))
    panel.set_title("Corrupted images, mean over the corruptions that all have", fontsize=9)
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    gridded(panel)
