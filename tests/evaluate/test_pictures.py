"""Pictures hold what they say, and survive what data may be like."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from svdctl.config.corruption_names import CORRUPTIONS
from svdctl.evaluate.corruptions.corruption_metric import summary
from svdctl.evaluate.evaluation_plots import plot_certified, plot_corruptions, plot_reliability
from svdctl.utils.inline_svg import svg_text

pytestmark = pytest.mark.drawn


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    real = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **named: Any) -> None:
        figures.append(figure)
        real(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def is_a_picture(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("L"))
    return min(pixels.shape) > 300 and float(pixels.std()) > 5


def reliability_results(counts: list[int], temperature: dict[str, Any] | None = None) -> dict[str, Any]:
    bins = len(counts)
    return {
        "ece": 0.1,
        "temperature": temperature,
        "bins": {
            "edges": [index / bins for index in range(bins + 1)],
            "counts": counts,
            "confidence": [(index + 0.5) / bins if count else 0.0 for index, count in enumerate(counts)],
            "accuracy": [(index + 0.2) / bins if count else 0.0 for index, count in enumerate(counts)],
        },
    }


@pytest.mark.parametrize("counts", [[1] * 15, [0] * 14 + [40], [5, 0, 0, 7, 9]])
def test_reliability_shows_the_bins_that_hold_something(counts: list[int], tmp_path: Path, drawn: list[Figure]) -> None:
    temperature = {"determined": True, "value": 1.5, "ece": 0.05}
    plot_reliability(reliability_results(counts, temperature), "a/last", tmp_path / "x.png")
    assert is_a_picture(tmp_path / "x.png")
    above, below = drawn[0].axes
    assert len(above.patches) == sum(count > 0 for count in counts)
    assert [patch.get_height() for patch in below.patches] == counts
    faint = [count for count, patch in zip(counts, below.patches, strict=True) if (patch.get_alpha() or 1) < 1]
    assert faint == [count for count in counts if count == 1]
    assert len(above.collections) == 2 * len(above.patches)  # the gap and the mean confidence of each
    assert "10.00%" in above.get_title(loc="left")
    assert "5.00% at temperature 1.50" in above.get_title(loc="left")


def test_the_top_of_a_bar_is_the_accuracy_whether_confidence_is_above_or_below(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    results = reliability_results([9, 9])
    results["bins"] |= {"accuracy": [1.0, 0.3], "confidence": [0.4, 0.8]}
    figure = plot_reliability(results, "a/last", tmp_path / "x.png")
    above = drawn[0].axes[0]
    page = svg_text(figure, "r", "reliability")
    [hatch] = set(re.findall(r'<pattern id="([^"]+)"', page))
    assert f"url(#{hatch})" in page
    assert [bar.get_height() for bar in above.patches] == [1.0, 0.3]
    gaps, _ = above.collections[::2], above.collections[1::2]
    assert all(gap.get_hatch() and not len(gap.get_facecolor()) for gap in gaps)  # the bar is seen through them
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert "gap from accuracy to mean confidence" in labels
    assert "accuracy: the top of the bar" in labels


@pytest.mark.parametrize(
    ("names", "severities"), [(list(CORRUPTIONS), (1, 2, 3, 4, 5)), (["fog"], (3,)), (["saturate"], (1, 5))]
)
def test_corruptions_are_a_map_by_severity_sorted_by_drop(
    names: list[str], severities: tuple[int, ...], tmp_path: Path, drawn: list[Figure]
) -> None:
    correct = {f"{name} {s}": 10 * s + place for place, name in enumerate(names) for s in severities}
    results = {**summary({**correct, "natural": 90}, names, severities, 100), "source": "drawn"}
    plot_corruptions(results, "a/last", tmp_path / "x.png")
    assert is_a_picture(tmp_path / "x.png")
    panel = drawn[0].axes[0]
    drops = np.asarray(panel.images[0].get_array())
    assert drops.shape == (len(names), len(severities) + 1)
    # Those that cost most first: here in the order of their names, as each has more right answers than the one before.
    expected = [[max(0.9 - correct[f"{name} {severity}"] / 100, 0) for severity in severities] for name in names]
    assert drops[:, :-1] == pytest.approx(np.array(expected))
    assert sorted(drops[:, -1], reverse=True) == pytest.approx(list(drops[:, -1]))
    assert [label.get_text() for label in panel.get_yticklabels()] == [name.replace("_", " ") for name in names]
    assert f"{correct[f'{names[0]} {severities[0]}']:.1f}" in [text.get_text() for text in panel.texts]


def test_nothing_is_drawn_of_no_corruption(tmp_path: Path) -> None:
    plot_corruptions({**summary({"natural": 9}, [], (1,), 10), "source": "drawn"}, "a", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_the_certified_curve_lies_below_the_empirical_one(tmp_path: Path, drawn: list[Figure]) -> None:
    radii = [0.0, 0.0, 0.1, 0.2, 0.3, 0.6]
    attack = {"nearest": [0.0, 0.25, 0.45], "eps": 0.5, "count": 6, "clean_accuracy": 5 / 6, "robust_accuracy": 0.5}
    plot_certified(radii, (36, 108), 2.0, "a/last", tmp_path / "x.png", attack)
    assert is_a_picture(tmp_path / "x.png")
    panel = drawn[0].axes[0]
    assert panel.get_xlim()[1] > 1.05 * 0.6
    certified, empirical = (dict(zip(*line.get_data(), strict=True)) for line in panel.get_lines()[:2])
    assert certified == pytest.approx({0.0: 4 / 6, 0.1: 3 / 6, 0.2: 2 / 6, 0.3: 1 / 6, 0.6: 0.0})
    assert max(empirical.values()) == pytest.approx(5 / 6)  # one was wrong before it was attacked
    assert empirical[0.25] == pytest.approx(4 / 6)
    assert empirical[0.45] == pytest.approx(3 / 6)
    assert empirical[0.5] == 0.5


@pytest.mark.parametrize("radii", [[0.0, 0.0], [1e-9, 0.0], [50.0, 50.0]])
def test_vacuous_and_perfect_certificates_are_drawn(radii: list[float], tmp_path: Path, drawn: list[Figure]) -> None:
    plot_certified(radii, (36, 255), 1e9, "a/last", tmp_path / "x.png", None)
    assert is_a_picture(tmp_path / "x.png")
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert ("nothing is certified at these radii" in texts) == (max(radii) < 1)


def test_the_curve_of_an_attack_begins_at_the_clean_accuracy(tmp_path: Path, drawn: list[Figure]) -> None:
    attack = {
        "count": 8, "clean_accuracy": 0.75, "robust_accuracy": 0.25, "eps": 0.5, "title": "apgd-ce",
        "nearest": [0.0, 0.0, 0.1, 0.2, 0.3, 0.4],
    }  # fmt: skip
    figure = plot_certified([0.0, 0.1, 0.2], (36,), 2.0, "a/last", tmp_path / "x.png", attack)
    (curve,) = [line for line in figure.axes[0].lines if "not broken by apgd-ce (8" in str(line.get_label())]
    assert (curve.get_xdata()[0], curve.get_ydata()[0]) == (0.0, 0.75)
    assert list(curve.get_ydata()) == [0.75, 0.625, 0.5, 0.375, 0.25, 0.25]
