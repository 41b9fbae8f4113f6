"""Pictures of an evaluation: reliability, corruptions, and certified accuracy against attacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svdctl.config.corruption_names import BENCHMARK
from svdctl.utils.atomic_write import write_picture
from svdctl.utils.escapes import figure_text
from svdctl.utils.matplotlib_defaults import Axes, Figure, PercentFormatter, with_defaults

ACCURACY, GAP, CLEAN, EMPIRICAL = "#3b6ea5", "#d9822b", "0.35", "#b3392f"


@with_defaults()
def plot_reliability(results: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw accuracy against confidence by bins, the gap to the diagonal in colour; below, where predictions lie."""
    bins = results["bins"]
    edges, counts = bins["edges"], bins["counts"]
    width = edges[1] - edges[0]
    centres = [edge + width / 2 for edge in edges[:-1]]
    some = [index for index, count in enumerate(counts) if count]
    figure = Figure(figsize=(4.6, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy = [bins["accuracy"][index] for index in some]
    confidence = [bins["confidence"][index] for index in some]
    at = [centres[index] for index in some]
    above.bar(at, accuracy, width * 0.92, color=ACCURACY, alpha=0.75, label="accuracy")
    above.plot([0, 1], [0, 1], color="0.4", ls="--", lw=1)
    above.vlines(at, accuracy, confidence, color=GAP, lw=3, label="gap")
    left, right = ([place + side * width * 0.46 for place in at] for side in (-1, 1))
    above.hlines(confidence, left, right, color="black", lw=1.6, label="mean confidence")
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False, loc="upper left", fontsize=8)
    scaled = ""
    temperature = results.get("temperature")
    if temperature is not None and temperature["determined"]:
        scaled = f"; {temperature['ece']:.2%} at temperature {temperature['value']:.2f}"
    above.set_title(f"ECE {results['ece']:.2%}{scaled}", fontsize=9)
    total = max(1, sum(counts))
    below.bar(centres, [count / total for count in counts], width * 0.92, color="0.6")
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.set(xlabel="confidence", ylabel="predictions")
    figure.suptitle(f"{figure_text(title)}: {sum(counts):,} test images", fontsize=10)
    write_picture(figure, path)


@with_defaults()
def plot_corruptions(results: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw bars by corruption, mean over severities first, then one panel for each severity on the same scale."""
    table: Mapping[str, Mapping[str, float]] = results["accuracy"]
    means: Mapping[str, float] = results["mean_by_corruption"]
    if not table:
        return
    names = list(table)
    severities = list(next(iter(table.values())))
    count = 1 + len(severities)
    figure = Figure(figsize=(3.6 + 1.75 * count, max(2.6, 1.5 + 0.27 * len(names))), layout="constrained")
    widths = (2.2, *(1.0 for _ in severities))
    panels = figure.subplots(1, count, sharey=True, squeeze=False, width_ratios=widths)[0]
    _bars(panels[0], names, [means[name] for name in names], results["clean"], written=True)
    shown = "\n".join(f"{name}: {share:.1%}" for name, share in results["figures"].items())
    panels[0].set_title(f"means over all panels\n{shown}", fontsize=9)
    panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    for label, name in zip(panels[0].get_yticklabels(), names, strict=True):
        if name not in BENCHMARK:
            label.set_fontstyle("italic")
    panels[0].invert_yaxis()
    for panel, severity in zip(panels[1:], severities, strict=True):
        _bars(panel, names, [table[name][severity] for name in names], results["clean"], written=False)
        panel.set_title(f"severity {severity}: {results['mean_by_severity'][severity]:.1%}", fontsize=9)
    how = "published files" if results["source"] == "published" else "corruptions drawn by svdctl"
    figure.suptitle(
        f"{figure_text(title)}: accuracy on {results['count']:,} corrupted test images ({how}); dashed: clean, "
        f"{results['clean']:.1%}; italic: not in the benchmark",
        fontsize=10,
    )
    write_picture(figure, path)


def _bars(panel: Axes, names: Sequence[str], values: Sequence[float], clean: float, *, written: bool) -> None:
    panel.barh(range(len(names)), values, color=ACCURACY, height=0.78)
    panel.axvline(clean, color=CLEAN, ls="--", lw=1)
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1] if written else [0, 0.5, 1])
    panel.set_xlabel("accuracy, %", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.margins(y=0.01)
    if written:
        for place, value in enumerate(values):
            inside = value > 0.12
            panel.text(value - 0.01 if inside else value + 0.01, place, f"{value:.1%}", va="center", fontsize=7,
                       ha="right" if inside else "left", color="white" if inside else "black")  # fmt: skip


@with_defaults()
def plot_certified(
    radii: Sequence[float],
    marks: Sequence[float],
    lipschitz: float,
    title: str,
    path: Path,
    attack: Mapping[str, Any] | None,
) -> None:
    """Draw certified accuracy against the radius, and above it what the attack left standing.

    Args:
        radii: certified radius of each test image, 0 for misclassified ones.
        marks: radii of the table, in 255ths.
        lipschitz: the network's constant.
        title: name of the checkpoint.
        path: file to write.
        attack: results of an L2 attack in pixels, to be drawn over it; None for none.
    """
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    panel = figure.subplots()
    count = len(radii)
    positive = sorted(radius for radius in radii if radius > 0)
    at = [0.0, *positive]
    # Strictly more than r is certified at r: the curve falls at each radius.
    left = [len(positive) / count, *((len(positive) - place - 1) / count for place in range(len(positive)))]
    panel.step(
        at, left, where="post", color=ACCURACY, lw=2, label=f"certified with L = {lipschitz:.3g}, {count:,} images"
    )
    panel.fill_between(at, left, step="post", color=ACCURACY, alpha=0.15)
    end = max([*(mark / 255 for mark in marks), at[-1] if at[-1] < 20 else 0.0])
    if attack is not None:
        _empirical(panel, attack)
        end = max(end, attack["eps"])
    shares = [sum(radius > mark / 255 for radius in radii) / count for mark in marks]
    above = panel.secondary_xaxis("top")
    above.set_xticks(
        [mark / 255 for mark in marks],
        [f"{mark:g}/255\n{share:.1%}" for mark, share in zip(marks, shares, strict=True)],
        fontsize=7,
        color=ACCURACY,
    )
    for mark in marks:
        panel.axvline(mark / 255, color="0.85", lw=0.8, zorder=0)
    if max(shares) == 0:
        panel.text(0.5, 0.06, "nothing is certified at these radii", transform=panel.transAxes, ha="center", fontsize=8,
                   color=ACCURACY)  # fmt: skip
    panel.set(xlabel="l2 radius, pixels in [0, 1]", ylabel="accuracy", xlim=(0, 1.06 * end), ylim=(0, 1.0))
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)
    panel.set_title(figure_text(title), fontsize=10)
    write_picture(figure, path)


def _empirical(panel: Axes, attack: Mapping[str, Any]) -> None:
    """Share of images for which no smaller perturbation was found, up to eps."""
    near = [value for value in attack["nearest"] if value <= attack["eps"]]
    count = attack["count"]
    at = [0.0, *near, attack["eps"]]
    left = [*(1 - place / count for place in range(len(near) + 1)), attack["robust_accuracy"]]
    panel.step(at, left, where="post", color=EMPIRICAL, lw=1.5, label=f"not broken by AutoAttack, {count:,} images")
    panel.plot([attack["eps"]], [attack["robust_accuracy"]], "o", color=EMPIRICAL, ms=5, clip_on=False, zorder=5)
    panel.annotate(f"{attack['robust_accuracy']:.1%} at {attack['eps']:g}", (attack["eps"], attack["robust_accuracy"]),
                   xytext=(6, 4), textcoords="offset points", fontsize=8, color=EMPIRICAL)  # fmt: skip
