"""Pictures of an evaluation: reliability, corruptions, and certified accuracy against attacks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from svdctl.config.corruption_names import BENCHMARK
from svdctl.utils.atomic_write import write_picture
from svdctl.utils.certified_plot import AccuracyCurve, draw_certified
from svdctl.utils.figure_style import BOUND, START, VALUE, gridded, legend_below, styled, titled
from svdctl.utils.matplotlib_defaults import Figure, PercentFormatter, colormaps
from svdctl.utils.rounded_figures import at_most

_SMALLEST_DROP = 0.25
"""Below clean accuracy that has the darkest colour of a map: small drops look small."""
NO_DATA: Mapping[str, Any] = MappingProxyType({})


def _data_text(identity: Mapping[str, Any]) -> str:
    """Return the kind of the images that were measured on, for a title; empty if it is not known."""
    return f"data: {identity['kind']}" if "kind" in identity else ""


def _written(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        write_picture(figure, path)
    return figure


@styled
def plot_reliability(
    results: Mapping[str, Any], title: str, path: Path | None, data: Mapping[str, Any] = NO_DATA
) -> Figure:
    """Draw accuracy against confidence by bins, the gap hatched; below, how many images lie in each bin.

    The top of a bar is the accuracy, whether the mean confidence lies above or below it. With a path the picture is
    written there; it is returned.

    Bins of one image, whose accuracy is 0 or 1 whatever the network, are faint.
    """
    bins = results["bins"]
    edges, counts = bins["edges"], bins["counts"]
    width = 0.92 * (edges[1] - edges[0])
    centres = [(left + right) / 2 for left, right in pairwise(edges)]
    figure = Figure(figsize=(5.0, 5.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    fullest = counts.index(max(counts))
    for place, (at, count) in enumerate(zip(centres, counts, strict=True)):
        if not count:
            continue
        accuracy, confidence = bins["accuracy"][place], bins["confidence"][place]
        names = ("accuracy: the top of the bar", "gap from accuracy to mean confidence", "mean confidence")
        labels = names if place == fullest else (None, None, None)
        seen = 0.3 if count == 1 else 1.0
        sides = (at - width / 2, at + width / 2)
        above.bar(at, accuracy, width, color=(VALUE, 0.6 * seen), ec=(VALUE, seen), lw=1, label=labels[0])
        hatched = {"facecolor": "none", "edgecolor": BOUND, "hatch": "/////", "alpha": seen, "lw": 0}
        above.fill_between(sides, accuracy, confidence, label=labels[1], **hatched)
        above.hlines(confidence, *sides, color="0.15", lw=1.6, alpha=seen, label=labels[2])
    above.plot([0, 1], [0, 1], color=START, ls="--", lw=1, label="perfectly calibrated")
    above.set(ylabel="accuracy, % of the bin's images", xlim=(0, 1), ylim=(0, 1))
    handles, texts = above.get_legend_handles_labels()
    order = sorted(range(len(texts)), key=lambda place: not texts[place].startswith("accuracy"))
    legend_below(figure, {texts[place]: handles[place] for place in order}, 2)
    scaled = ""
    temperature = results.get("temperature")
    if temperature is not None and temperature["determined"]:
        scaled = f"; {temperature['ece']:.2%} at temperature {temperature['value']:.2f}"
    above.set_title(f"expected calibration error {results['ece']:.2%}{scaled}", fontsize=9)
    for at, count in zip(centres, counts, strict=True):
        below.bar(at, count, width, color=START, alpha=0.4 if count == 1 else 1.0)
        if count:
            below.text(at, count, f"{count:,}", ha="center", va="bottom", fontsize=6, color="0.35")
    below.set(xlabel="confidence, %", ylabel="images", ylim=(0, 1.2 * max([*counts, 1])))
    for axis in (above.yaxis, above.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    gridded(above)
    faint = "; faint: bins of one image" * (1 in counts)
    titled(figure, "Reliability diagram", title, _data_text(data), f"{sum(counts):,} test images{faint}")
    return _written(figure, path)


@styled
def plot_corruptions(
    results: Mapping[str, Any], title: str, path: Path | None, data: Mapping[str, Any] = NO_DATA
) -> Figure | None:
    """Draw a map of accuracy by corruption and severity, those that cost most first; the last column has the means.

    With a path it is written there; the picture is returned, None where there is no corruption.
    """
    table: Mapping[str, Mapping[str, float]] = results["accuracy"]
    means: Mapping[str, float] = results["mean_by_corruption"]
    if not table:
        return None
    clean = results["clean"]
    names = sorted(table, key=lambda name: means[name])
    severities = list(next(iter(table.values())))
    columns = [*(f"{severity}" for severity in severities), "mean"]
    shares = [[*(table[name][severity] for severity in severities), means[name]] for name in names]
    figure = Figure(figsize=(3.6 + 0.62 * len(columns), max(2.8, 2.0 + 0.26 * len(names))), layout="constrained")
    panel = figure.subplots()
    drops = [[max(clean - share, 0.0) for share in row] for row in shares]
    largest = max(_SMALLEST_DROP, *(drop for row in drops for drop in row))
    image = panel.imshow(drops, aspect="auto", cmap=colormaps["Reds"], vmin=0, vmax=largest, interpolation="nearest")
    for place, (row, lost) in enumerate(zip(shares, drops, strict=True)):
        for column, (share, drop) in enumerate(zip(row, lost, strict=True)):
            color = "white" if drop > 0.5 * largest else "0.15"
            weight = "bold" if column == len(columns) - 1 else "normal"
            text = panel.text(column, place, f"{100 * share:.1f}", ha="center", va="center", fontsize=7.5)
            text.set(color=color, weight=weight)
    panel.axvline(len(severities) - 0.5, color="white", lw=4)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    for label, name in zip(panel.get_yticklabels(), names, strict=True):
        if name not in BENCHMARK:
            label.set_fontstyle("italic")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_xlabel("severity")
    bar = figure.colorbar(image, ax=panel, pad=0.02, label=f"points below\nclean images ({clean:.1%})")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    shown = ", ".join(f"{name}: {share:.1%}" for name, share in results["figures"].items())
    how = "published files" if results["source"] == "published" else "corruptions drawn by svdctl"
    italic = "italic: not in the benchmark" * (not set(names) <= set(BENCHMARK))
    titled(
        figure,
        "Accuracy on corrupted images, %",
        title,
        _data_text(data),
        f"{results['count']:,} test images, {how}",
        shown,
        italic,
    )
    return _written(figure, path)


def plot_certified(
    radii: Sequence[float],
    marks: Sequence[float],
    lipschitz: float,
    title: str,
    path: Path | None,
    attack: Mapping[str, Any] | None,
    data: Mapping[str, Any] = NO_DATA,
) -> Figure:
    """Draw certified accuracy against the radius, and above it what the attack left standing.

    Args:
        radii: certified radius of each test image, 0 for misclassified ones.
        marks: radii of the table, in 255ths.
        lipschitz: the network's constant.
        title: name of the checkpoint.
        path: file to write; None: none.
        attack: results of an L2 attack in pixels and its `title`, to be drawn over it; None for none.
        data: identity of the images.
    """
    count = len(radii)
    positive = sorted(radius for radius in radii if radius > 0)
    # Strictly more than r is certified at r: the curve falls at each radius.
    left = [(len(positive) - place) / count for place in range(len(positive) + 1)]
    curve = AccuracyCurve([0.0, *positive], left)
    attacked = {}
    if attack is not None:
        # The first ones, of radius 0, are misclassified without an attack: the curve begins at the clean accuracy.
        wrong = attack["count"] - round(attack["clean_accuracy"] * attack["count"])
        near = [value for value in attack["nearest"][wrong:] if value <= attack["eps"]]
        right = attack["count"] - wrong
        standing = [(right - place) / attack["count"] for place in range(len(near) + 1)]
        standing.append(attack["robust_accuracy"])
        name = f"not broken by {attack.get('title', 'AutoAttack')} ({attack['count']:,} images)"
        attacked[name] = AccuracyCurve([0.0, *near, attack["eps"]], standing)
    about = title, _data_text(data), f"{count:,} test images", f"Lipschitz constant at most {at_most(lipschitz)}"
    return draw_certified({f"certified ({count:,} images)": curve}, marks, about, path, attacked=attacked)
