"""The figure of speed: real measurements at a tiny scale, and what is written of them."""

import csv
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from svdctl.reproduce import speed as module
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.speed import Point, SpeedResults, control, measure_figure, write_figure
from svdctl.reproduce.table_files import Axis, Network, Request, SpeedFigure, SpeedScale
from svdctl.utils.table import csv_text, json_text, markdown

SCALE = SpeedScale(
    repeats=3,
    seconds=0.01,
    width=Axis(values=(4, 8), size=4),
    rank=Axis(values=(2, 4), channels=8, size=4),
    input=Axis(values=(4, 8), channels=8, rank=2),
    network=Network(preset="wrn-cifar10", set=("model.depth=10", "model.width=1"), ranks=(8,), batch=2),
)
FIGURE = SpeedFigure(title="Speed", full=SCALE, smoke=SCALE)


ONCE = FIGURE.model_copy(update={"smoke": SCALE.model_copy(update={"repeats": 1})})


def some_speed() -> SpeedResults:
    points = [
        Point("width", 8, 8, 2, 4, "all values", (2.0, 4.0, 3.0), (1.0, 1.0, 3.0), 64.0),
        Point("network", 192, None, 192, 32, "all values", (10.0, 12.0, 11.0), (2.0, 4.0, 2.0), 5.08),
        Point("network", 192, None, 192, 32, "training step", (2.0, 2.0, 2.0), (1.0, 1.0, 1.0), None),
    ]
    return SpeedResults("Speed & more", smoke=False, points=tuple(points), machine="a_machine")


def prepared(folder: Path) -> RunStore:
    store = RunStore(folder)
    store.prepare()
    return store


@pytest.mark.drawn
def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    said: list[str] = []
    request = Request(tables=("figure-speed",), scale="smoke", out_dir=tmp_path)
    files = write_figure(request, "figure-speed", FIGURE, prepared(tmp_path), said.append)
    assert [file.name for file in files] == [
        f"figure-speed-smoke.{kind}" for kind in ("md", "csv", "tex", "json", "png", "html")
    ]
    assert all(file.stat().st_size > 200 for file in files)
    table = json.loads(files[3].read_text())
    assert table["title"].startswith("SMOKE SCALE")
    places = [(point["axis"], point["x"], point["work"]) for point in table["points"]]
    layers = [(axis, x, work) for axis, xs in (("width", (4, 8)), ("rank", (2, 4)), ("input", (4, 8)))
              for x in xs for work in ("all values", "control pass")]  # fmt: skip
    assert places == [*layers, *(("network", 8, work) for work in ("all values", "control pass", "training step"))]
    for point in table["points"]:
        assert len(point["full"]) == len(point["tt"]) == 3
        assert min(point["full"]) > 0 < min(point["tt"])
    assert table["points"][2]["modelled"] == (8 / 2) ** 3
    assert len(said) == 8
    assert not list((tmp_path / "tables").glob(".*"))


def test_a_measurement_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    request = Request(tables=("figure-speed",), scale="smoke", out_dir=tmp_path)
    asked: list[str] = []

    def until(last: int) -> Callable[[str], None]:
        def say(text: str) -> None:
            asked.append(text)
            if len(asked) == last:
                raise KeyboardInterrupt

        return say

    with pytest.raises(KeyboardInterrupt):
        write_figure(request, "figure-speed", ONCE, prepared(tmp_path), until(5))
    (file,) = (tmp_path / "tables").iterdir()
    four = json.loads(file.read_text())["records"]
    assert len(four) == 4
    asked.clear()
    files = write_figure(request, "figure-speed", ONCE, prepared(tmp_path), until(-1))
    assert [text.endswith("(kept)") for text in asked] == [True] * 4 + [False] * 4
    points = json.loads(files[3].read_text())["points"]
    kept = [point for measured in four for point in measured["points"]]
    assert [point["full"] for point in points[: len(kept)]] == [point["full"] for point in kept]
    assert [point["kept"] for point in points] == ["kept"] * len(kept) + [""] * (len(points) - len(kept))
    assert "(kept)" in files[0].read_text()
    assert not file.exists()


def test_two_commands_do_not_measure_at_the_same_time(tmp_path: Path) -> None:
    request = Request(tables=("figure-speed",), scale="smoke", out_dir=tmp_path)
    store, said = prepared(tmp_path), list[str]()
    other = store.lock("figure-figure-speed")
    assert other.__enter__()
    # The module's own: threads that other tests left would spin without a sleep.
    clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: other.__exit__(None, None, None)})
    with patch.object(module, "time", clock):
        assert write_figure(request, "figure-speed", ONCE, store, said.append)
    assert said[0] == "another command measures figure-speed: waiting for it"


def test_the_whole_wrn_has_the_papers_modelled_ratios() -> None:
    from svdctl.reproduce.estimate import control_cost, shape_model
    from svdctl.reproduce.table_files import find_table, read_table

    figure = read_table(find_table("figure-speed"))
    assert isinstance(figure, SpeedFigure)
    from svdctl.cli.training_flags import resolve

    network = figure.full.network
    costs = [
        control_cost(shape_model(resolve({"preset": network.preset, "set": list(words)}).config), 32)
        for words in [(), *(("layer.kind=tt", f"layer.rank={rank}") for rank in network.ranks)]
    ]
    assert [round(costs[0] / cost, 1) for cost in costs[1:]] == [5.1, 3.2, 2.0]


def test_ratios_are_taken_round_by_round() -> None:
    point = some_speed().points[0]
    assert point.measured == statistics.median([2.0, 4.0, 1.0])


def test_formats() -> None:
    results = some_speed()
    text = markdown(results.table)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| whole network, rank 192 | all values | 11 (10 to 12) | 2 (2 to 4) | 5.00x | 5.1x |")
    assert lines[2].endswith("| 2.00x | - |")
    rows = list(csv.DictReader(io.StringIO(csv_text(results.records))))
    assert len(rows) == 6
    assert rows[0]["median"] == "3.0"
    assert rows[1]["layer"] == "tt"
    assert float(rows[2]["modelled_ratio"]) == 5.08
    assert rows[4]["modelled_ratio"] == ""
    assert json.loads(json_text(results.contents))["points"][0]["measured"] == 2.0


def test_a_control_pass_leaves_the_layer_as_it_was() -> None:
    import torch

    from svdctl.layers.tt import TTConv2d

    layer = TTConv2d(6, 6, 3, rank=3, bias=False)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        control(layer, max_sigma=0.1)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("smoke", [False, True])
def test_only_smoke_is_marked(smoke: bool, tmp_path: Path) -> None:
    with patch.object(module, "series", return_value=[]):
        results = measure_figure(FIGURE, smoke=smoke, file=tmp_path / "measured.json", say=lambda text: None)
    assert results.title.startswith("SMOKE SCALE") == smoke
