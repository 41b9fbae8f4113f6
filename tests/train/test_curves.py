"""`curves.png` and `spectrum.png`: what they show of layers, whatever these are called and however many there are."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from svdctl.train import plots
from svdctl.train.plots import plot_curves, plot_spectra

pytestmark = pytest.mark.drawn

LIMIT = 2.0


def line(epoch: int, values: dict[str, float], limit: float | None = LIMIT) -> dict[str, Any]:
    """The line of an evaluated epoch of five steps."""
    figures: dict[str, Any] = {"loss": 1.0 / epoch, "orthogonal_loss": 0.0, "acc": 0.5, "lr": 0.1, "val_acc": 0.5}
    for name, value in values.items():
        figures |= {f"sigma/{name}": value, f"bound/{name}": max(value, limit or value)}
        figures |= {} if limit is None else {f"max/{name}": limit}
    return {"kind": "epoch", "step": 5 * epoch, "epoch": epoch, "epochs": 9, "val_loss": 1.0, **figures}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    real = plots.write_picture

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        real(figure, path)

    monkeypatch.setattr(plots, "write_picture", keep)
    return figures


def test_layers_are_drawn_over_their_maxima_and_those_above_stand_out(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [line(1, {"a": 1.0, "b": 1.5}), line(2, {"a": 1.8, "b": 2.5})]
    plot_curves(records, tmp_path / "x.png", held_out="test set", about=("some run", "data: digits"))
    curves, heat, end, *_ = drawn[0].subfigs[1].axes
    assert curves.get_title(loc="left") == "2 layers, 1 above the maximum"
    assert [list(row) for row in heat.images[0].get_array()] == [[0.5, 0.9], [0.75, 1.25]]
    assert heat.images[0].norm.vmax == 1  # what is above it has the colour of the maximum
    assert [label.get_text() for label in heat.get_yticklabels()] == ["a", "b"]
    assert end.get_title(loc="left") == "After epoch 2"
    title = drawn[0].get_suptitle()
    assert "some run" in title
    assert "data: digits" in title


def test_a_run_without_a_maximum_shows_the_values_themselves(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curves([line(1, {"a": 1.0, "b": 30.0}, None)], tmp_path / "x.png", held_out="test set")
    panels = [panel for part in drawn[0].subfigs for panel in part.axes]
    heat = next(panel for panel in panels if panel.images)
    assert [list(row) for row in heat.images[0].get_array()] == [[1.0], [30.0]]
    assert "maximum" not in " ".join(panel.get_title(loc="left") for panel in panels)


def test_where_few_layers_have_a_maximum_all_are_shown_by_their_values(tmp_path: Path, drawn: list[Figure]) -> None:
    """As of a run without control, whose normalisations alone are limited."""
    records = [{**line(epoch, {"bn": 1.0}), "sigma/a": 9.0, "sigma/b": 7.0} for epoch in (1, 2)]
    plot_curves(records, tmp_path / "x.png", held_out="test set")
    curves, heat, end, *_ = drawn[0].subfigs[1].axes
    assert curves.get_title(loc="left") == "3 layers"
    assert curves.get_ylabel().startswith("largest singular value")
    assert "maximum" not in curves.get_ylabel()
    assert [label.get_text() for label in heat.get_yticklabels()] == ["bn", "a", "b"]
    assert [list(row) for row in heat.images[0].get_array()] == [[1.0, 1.0], [9.0, 9.0], [7.0, 7.0]]
    assert "left out" not in end.get_xlabel()
    assert "maximum" in [text.get_text() for text in end.get_legend().get_texts()]


def proof(step: int, figures: dict[str, float]) -> dict[str, Any]:
    return {"kind": "proof", "step": step, "epoch": 1, "found": 1.0, **figures}


def test_beside_proofs_only_layers_with_a_maximum_are_shown_however_few_they_are(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    records = [{**line(epoch, {"a": 1.0}), "sigma/b": 9.0, "sigma/c": 7.0} for epoch in (1, 2)]
    plot_curves([*records, proof(2, {"bound/a": 1.5})], tmp_path / "x.png", held_out="test set")
    curves, heat, *_ = drawn[0].subfigs[1].axes
    assert curves.get_title(loc="left") == "1 layer, all within the maximum"
    assert [label.get_text() for label in heat.get_yticklabels()] == ["a"]


def test_the_bound_of_each_layer_is_drawn_at_proofs_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_picture", lambda figure, path: drawn.append(figure))
    fixed = [line(1, {"a": 1.0, "b": 1.5}), line(2, {"a": 1.0, "b": 1.5})]
    moved = [line(1, {"a": 1.0, "b": 1.5}, 4.0), line(2, {"a": 1.0, "b": 1.5})]
    bounds = [{"bound/a": 1.5, "bound/b": 2.0}, {"bound/a": 1.0}]
    maxima = [{"max/a": 3.0, "max/b": 4.0}, {"max/a": 2.5}]
    plain = [proof(2, bounds[0]), proof(3, bounds[1])]
    named = [proof(2, bounds[0] | maxima[0]), proof(3, bounds[1] | maxima[1])]
    none = math.nan
    for records, a, b in (
        ([*fixed, *plain], [0.75, 0.5], [1.0, none]),
        ([*moved, *named], [0.5, 0.4], [0.5, none]),
        ([*moved, *plain], [none, none], [none, none]),  # which of the maxima held is not known
    ):
        plot_curves(records, tmp_path / "x.png", held_out="test set")
        panel = drawn.pop().subfigs[1].axes[0]
        shown = [list(curve.get_ydata()) for curve in panel.lines if list(curve.get_xdata()) == [0.4, 0.6]]
        assert shown == [pytest.approx(row, nan_ok=True) for row in ([1.0, 1.0], a, b)]
        legend = [text.get_text() for text in panel.get_legend().get_texts()]
        assert legend.count("bound of each layer proved there") == 1


def test_lines_without_layers_and_infinite_bounds_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curves([line(1, {})], tmp_path / "x.png", held_out="test set")
    assert not drawn[0].subfigs
    unknown = {**line(2, {"a": 1.0}, None), "bound/a": None}
    plot_curves([line(1, {}), unknown, line(3, {"a": 0.0, "b": math.nan}, None)], tmp_path / "y.png", held_out="x")
    assert (tmp_path / "y.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [1, 60, 130])
def test_names_of_any_kind_and_number_are_drawn_to_the_same_bytes(count: int, tmp_path: Path) -> None:
    names = ["", "$x^2$ \x1b[31m", "a\nb", "n" * 300, *(f"layer{place}.conv" for place in range(count))][:count]
    records = [line(epoch, dict.fromkeys(names, 1.0)) for epoch in (1, 2)]
    for file in ("x.png", "y.png"):
        plot_curves(records, tmp_path / file, held_out="test set", about=("r" * 300, "$"))
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


@pytest.mark.parametrize(("factor", "scale"), [(2.0, "linear"), (100.0, "log")])
def test_spectra_share_a_scale(factor: float, scale: str, tmp_path: Path, drawn: list[Figure]) -> None:
    before = {"a": torch.linspace(1, 0, 9), "b": torch.linspace(1, 0.1, 500)}
    after = {"a": before["a"], "b": factor * before["b"]}
    plot_spectra(before, after, {"a": LIMIT, "b": None}, tmp_path / "x.png", about=("some run",))
    panels = drawn[0].axes[:2]
    assert {panel.get_yscale() for panel in panels} == {scale}
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].get_ylim()[1] > max(LIMIT, factor)
    [legend] = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["start of training", "end of training", "maximum"]


def test_legends_cover_no_curve_no_label_is_cut_and_an_extended_run_says_so(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    records = [{**line(1, {"a": 1.0}), "sigma/b": 1.0, "bound/b": 1.0}, line(2, {"a": 1.8})]
    extended = {"kind": "extended", "step": 5, "epoch": 1, "epochs": 2, "epochs_before": 1}
    plot_curves([*records, extended], tmp_path / "x.png", held_out="test set")
    panels = [panel for part in drawn[0].subfigs for panel in part.axes]
    legends = [(panel, legend) for panel in panels if (legend := panel.get_legend())]
    assert len(legends) == 4
    assert all(legend.get_window_extent().y0 >= panel.bbox.y1 for panel, legend in legends)
    labels = [text.get_text() for _, legend in legends for text in legend.get_texts()]
    assert "here the number of epochs was set to 2" in labels
    end = next(panel for panel in panels if panel.get_title(loc="left").startswith("After"))
    assert end.get_xlabel() == "singular value (left out:\n1 layer without a maximum)"
    assert end.xaxis.label.get_window_extent().x1 <= drawn[0].bbox.x1


def test_layers_of_long_names_are_told_apart_and_zeros_explained(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"model.layer{number}.0.downsample.0" for number in (2, 3, 4)]
    plot_spectra({}, {name: torch.ones(9) for name in names}, dict.fromkeys(names), tmp_path / "x.png")
    titles = [panel.get_title() for panel in drawn[0].axes if panel.axison]
    assert titles == [f"…layer{number}.0.downsample.0" for number in (2, 3, 4)]
    assert drawn[0].axes[-2].get_xlabel().replace("\n", " ") == "share of the layer's values, largest first, %"
    reads_a_quarter = torch.tensor([1.0, 0.9, 0.5, 0.0, 0.0, 0.0])
    plot_spectra({}, {"a": reads_a_quarter, "b": torch.ones(6)}, {"a": 1.0, "b": None}, tmp_path / "y.png")
    assert "does not read all of its input" in drawn[1].legends[0].get_title().get_text().replace("\n", " ")
    assert not drawn[0].legends[0].get_title().get_text()


def test_spectra_of_a_start_that_is_not_known_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    """As of a run that began with trained weights and was resumed."""
    plot_spectra({}, {"a": torch.linspace(1, 0, 9)}, {"a": None}, tmp_path / "x.png")
    [legend] = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["end of training"]
