"""No text of a picture collides with another or is cut, whatever names, numbers and gaps there are."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_plot import plot_networks
from svdctl.config.corruption_names import CORRUPTIONS
from svdctl.evaluate.corruptions.corruption_metric import summary
from svdctl.evaluate.evaluation_plots import plot_certified, plot_corruptions, plot_reliability
from svdctl.evaluate.figures import wilson_interval
from svdctl.evaluate.report import EvaluationReport, ReportedCheckpoint, ReportedRecord
from svdctl.evaluate.results import Record
from svdctl.reproduce.speed import Point, SpeedResults
from svdctl.reproduce.speed_plot import draw_speed
from svdctl.spectral.bounds import Bracket
from svdctl.train import plots
from svdctl.train.plots import plot_curves, plot_spectra
from svdctl.utils.certified_plot import AccuracyCurve, draw_certified
from svdctl.utils.figure_style import MAXIMUM, told_apart
from tests.figures import faults_of

RUN = "wrn_16_10_cifar100_divide_clip_to_4_every_50_steps_seed_3407-0123abcd"
"""Of sixty letters and more, as a run is called by default."""
ABOUT = (RUN, "data: cifar100", "control: divide-each")
BLOCK = "backbone_of_the_encoder.stage_{}.block_{}.attention.projection_of_values"


def layer_names(count: int, kind: str) -> list[str]:
    """Names of layers: long ones, or those of a network of torchvision."""
    if kind == "long":
        return [BLOCK.format(number // 6, number % 6) for number in range(count)]
    return [f"layer{number // 6}.{number % 6}.conv{number % 3}" for number in range(count)]


def of_training(draw: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The picture that a training would write."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_picture", lambda figure, path: drawn.append(figure))
    draw(Path("x.png"))
    return drawn[0]


def lines_of(names: Sequence[str], epochs: int, limit: float | None, **more: float) -> list[dict[str, Any]]:
    """The log of a training whose values grow to the limit."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        line = {"kind": "epoch", "step": 50 * epoch, "epoch": epoch, "epochs": epochs, "loss": 2.0 / epoch,
                "val_loss": 2.1 / epoch, "acc": 1 - 0.6 / epoch, "val_acc": 1 - 0.7 / epoch, "orthogonal_loss": 0.0,
                **more}  # fmt: skip
        for place, name in enumerate(names):
            value = (limit or 9.0) * (1 - 0.8 / (epoch + place / 9))
            line |= {f"sigma/{name}": value, f"bound/{name}": 1.004 * value}
            line |= {} if limit is None else {f"max/{name}": limit}
        lines.append(line)
    return lines


def test_texts_that_collide_or_are_cut_are_found() -> None:
    figure = Figure(figsize=(4, 3))
    figure.text(0.1, 0.5, "one line\nand another")
    figure.text(0.1, 0.8, "upright", rotation=90)
    assert not faults_of(figure)
    over = figure.text(0.15, 0.5, "over it")
    assert len(faults_of(figure)) == 1
    over.set_position((0.95, 0.2))
    assert faults_of(figure)[0].startswith("'over it' is cut")
    over.set_position((0.08, 0.83))
    assert faults_of(figure)[0].startswith("'upright' and 'over it' overlap")
    over.set_visible(False)
    assert not faults_of(figure)


def test_names_that_begin_and_end_alike_are_shown_by_what_tells_them_apart() -> None:
    names = [*layer_names(9, "long"), "head"]
    found = told_apart(names, 23)
    assert found[:2] == ["…stage_0.block_0…", "…stage_0.block_1…"]
    assert found[-1] == "head"
    assert len(set(found)) == len(names)


@pytest.mark.parametrize(
    ("count", "kind", "epochs"),
    [(0, "short", 12), (1, "short", 1), (2, "long", 12), (12, "short", 300), (100, "long", 12)],
)
def test_curves_of_a_training(count: int, kind: str, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    records = lines_of(layer_names(count, kind), epochs, 4.0)
    figure = of_training(lambda path: plot_curves(records, path, held_out="validation part", about=ABOUT), monkeypatch)
    assert not faults_of(figure)


@pytest.mark.parametrize("limit", [None, 4.0])
def test_curves_of_all_that_a_training_can_have(limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*layer_names(13, "long"), "", "$x^2$"]
    records = lines_of(names, 40, limit, orthogonal_loss=0.1, val_certified_acc=0.4, epsilon=36.0)
    records[3] |= {"loss": math.nan, f"sigma/{names[0]}": 1e9, f"bound/{names[1]}": math.inf}
    for line in records:
        line[f"sigma/{BLOCK}"] = 100.0  # without a maximum
    records += [{"kind": "proof", "step": 25 * step, "found": 1.2} for step in range(40)]
    records += [{"kind": "step", "step": step, "loss": 0.01} for step in range(0, 2000, 7)]
    records += [{"kind": "extended", "step": 50 * epoch, "epochs": 2 * epoch} for epoch in (5, 10, 20)]
    figure = of_training(
        lambda path: plot_curves(records, path, held_out="test set", loss_name="hinge", about=ABOUT), monkeypatch
    )
    assert not faults_of(figure)


@pytest.mark.parametrize(
    ("count", "kind", "factor"),
    [
        (1, "short", 1.0),
        (2, "long", 100.0),
        (5, "long", 1.0),
        pytest.param(16, "short", 100.0, marks=pytest.mark.slow),
        (54, "long", 1.0),
    ],
)
def test_spectra_of_a_training(count: int, kind: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    names = layer_names(count, kind)
    before = {name: torch.linspace(1, 0, 9 + place) for place, name in enumerate(names)}
    after = {name: (factor if place else 1.0) * values for place, (name, values) in enumerate(before.items())}
    limits = dict.fromkeys(names, 1.5)
    figure = of_training(
        lambda path: plot_spectra(before, after, limits, path, skew=names[:1], about=ABOUT), monkeypatch
    )
    assert not faults_of(figure)


@pytest.mark.parametrize(("count", "networks"), [(1, 1), (1, 5), (7, 2), pytest.param(100, 1, marks=pytest.mark.slow)])
def test_spectra_of_files(count: int, networks: int) -> None:
    found = [
        NetworkSpectrum(
            f"{RUN}/last_{number}.pt",
            tuple(
                LayerSpectrum(name, "conv2d", (8, 8, 3, 3), Bracket(2.0, 2.01), torch.linspace(2, 0.1, 72))
                for name in layer_names(count, "long")
            ),
        )
        for number in range(networks)
    ]
    assert not faults_of(plot_networks(found, max_sigma=4.0))


def test_the_picture_of_a_spectrum_has_the_maximum_of_each_layer() -> None:
    values = torch.linspace(2, 0.1, 72)

    def limits(maxima: Sequence[float | None], max_sigma: float | None = None) -> list[list[float]]:
        layers = (
            LayerSpectrum(name, "conv2d", (8, 8, 3, 3), Bracket(2.0, 2.01), values, maximum=maximum)
            for name, maximum in zip("abc", maxima, strict=True)
        )
        figure = plot_networks([NetworkSpectrum("last.pt", tuple(layers))], max_sigma=max_sigma)
        lines = ([line for line in panel.lines if line.get_color() == MAXIMUM] for panel in figure.axes[:3])
        return [[float(line.get_ydata()[0]) for line in drawn] for drawn in lines]

    assert limits([4.0, None, 3.0]) == [[4.0], [], [3.0]]
    assert limits([4.0, None, 3.0], 5.0) == [[5.0], [5.0], [5.0]]
    assert limits([None, None, None]) == [[], [], []]


def reliability(counts: Sequence[int]) -> dict[str, Any]:
    bins = len(counts)
    return {
        "ece": 0.0312,
        "temperature": {"determined": True, "value": 1.5, "ece": 0.05},
        "bins": {
            "edges": [index / bins for index in range(bins + 1)],
            "counts": list(counts),
            "confidence": [(index + 0.5) / bins if count else 0.0 for index, count in enumerate(counts)],
            "accuracy": [(index + 0.2) / bins if count else 0.0 for index, count in enumerate(counts)],
        },
    }


@pytest.mark.parametrize("counts", [[1] * 15, [0] * 14 + [10000], [3, 40, 1, 0, 2]])
def test_reliability(counts: list[int]) -> None:
    assert not faults_of(plot_reliability(reliability(counts), f"{RUN}/last", None, {"kind": "cifar100"}))


@pytest.mark.parametrize(
    ("names", "severities"), [(list(CORRUPTIONS), (1, 2, 3, 4, 5)), (["fog"], (3,)), (["saturate"], (1, 5))]
)
def test_corruptions(names: list[str], severities: tuple[int, ...]) -> None:
    correct = {f"{name} {severity}": 90 - 9 * severity for name in names for severity in severities}
    results = {**summary({**correct, "natural": 95}, names, severities, 100), "source": "drawn"}
    figure = plot_corruptions(results, f"{RUN}/last", None, {"kind": "cifar100"})
    assert figure is not None
    assert not faults_of(figure)


@pytest.mark.parametrize(
    ("radii", "largest", "attacked"),
    [
        ((36,), 0.0, False), ((36, 72, 108, 255), 2.0, True), ((1, 2, 3, 4), 0.3, True), ((1, 2), 1e-6, False),
        (tuple(range(10, 260, 10)), 1.0, True), ((0.5, 3000), 50.0, False),
    ],
)  # fmt: skip
def test_certificates(radii: tuple[float, ...], largest: float, attacked: bool) -> None:
    attack = {"nearest": [0.0, 0.25, 0.45], "eps": 0.5, "count": 6, "clean_accuracy": 5 / 6, "robust_accuracy": 0.5}
    own = [largest * place / 50 for place in range(51)]
    title = f"{RUN}/last"
    figure = plot_certified(own, radii, 2.0, title, None, attack if attacked else None, {"kind": "cifar100"})
    assert not faults_of(figure)


def test_two_certified_networks() -> None:
    curve = AccuracyCurve([place / 200 for place in range(300)], [0.9 - 0.003 * place for place in range(300)])
    curves = {"last epoch": curve, "best epoch": curve}
    assert not faults_of(draw_certified(curves, (36, 72, 108, 255), ABOUT, None, attacked={}))


def accuracy_record(correct: int) -> Record:
    results = {"count": 100, "correct": correct, "accuracy": correct / 100, "interval": wilson_interval(correct, 100)}
    return Record(metric="accuracy", protocol={"precision": "32"}, results=results, seconds=1.0, environment={})


@pytest.mark.parametrize(
    ("count", "missing", "values"),
    [
        (2, 0, "equal"),
        (2, 1, "all right"),
        (3, 0, "spread"),
        pytest.param(30, 1, "spread", marks=pytest.mark.slow),
    ],
)
def test_comparison(count: int, missing: int, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdctl.evaluate import comparison_plot

    here = Path()
    correct = {"spread": lambda n: (37 * n) % 101, "equal": lambda n: 90, "all right": lambda n: 100}[values]
    checkpoints = tuple(
        ReportedCheckpoint(
            f"{RUN}_{number}/last", here, "", here,
            () if number < missing else (ReportedRecord(accuracy_record(correct(number)), "key", here),),
        )
        for number in range(count)
    )  # fmt: skip
    # A checkpoint counts for the data even where it has no figure.
    monkeypatch.setattr(ReportedCheckpoint, "on", lambda one, key: [1])
    real = comparison_plot._columns
    headers = (
        "expected calibration error", "AutoAttack Linf 8/255, standard, 1,000 images",
        "mean over 15 corruptions, severities 1 to 5", "ECE at temperature", "cert. 36", "cert. 72",
    )  # fmt: skip

    def many(lines: Any) -> dict[str, Any]:
        (dots,) = real(lines).values()
        return {header: list(dots) for header in headers}

    monkeypatch.setattr(comparison_plot, "_columns", many)
    report = EvaluationReport(here, checkpoints, {"key": "cifar100, 10,000 test images"}, (), (), "1", "now")
    figure = comparison_plot.plot_comparison(report, None)
    assert figure is not None
    assert not faults_of(figure)


@pytest.mark.parametrize("places", [(16, 32, 64), (32, 64, 128, 192, 256, 320, 512), (8,)])
def test_speed(places: tuple[int, ...]) -> None:
    points = [
        Point(
            axis, place, 64, max(place // 2, 1), 16, work, (place / 1e3, place / 900), (place / 2e3, place / 1e3), 5.0
        )
        for axis in ("width", "rank", "input")
        for work in ("all values", "control pass")
        for place in places
    ]
    points += [
        Point("network", rank, None, rank, 32, work, (200.0, 201.0), (2.0, 2.1), modelled)
        for rank in (192, 256, 320)
        for work, modelled in (("all values", 5.0), ("control pass", 5.0), ("training step", None))
    ]
    title = "Smoke scale: Time of the spectrum and of one control pass, full against TT"
    results = SpeedResults(
        title, smoke=True, points=tuple(points), machine="AMD EPYC 7B13, 2 of 64 cores, torch 2.15.1"
    )
    assert not faults_of(draw_speed(results))
