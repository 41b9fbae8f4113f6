"""The page on files names every key and file that a training and an evaluation write, and no others."""

import csv
import json
import re
from pathlib import Path

import pytest

from svdctl.cli.evaluation_progress import result_json
from svdctl.config.configuration import configuration
from svdctl.evaluate.results import Record
from svdctl.evaluate.runner import run as evaluate
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.run_store import Outcome
from svdctl.reproduce.speed import Point, SpeedResults
from svdctl.reproduce.table_files import Request
from svdctl.reproduce.table_results import assemble
from svdctl.train import start
from svdctl.train.metrics_log import _NEEDED
from svdctl.utils import table as formats
from svdctl.utils.measurement_cache import MeasurementCache
from svdctl.utils.progress import Reporter
from tests.evaluate.small import make, write_data, write_linear
from tests.reproduce.conftest import TINY
from tests.site.test_references import hook

PAGE = (Path(__file__).parents[2] / "docs/files.md").read_text(encoding="utf-8")
SHORT = ("epochs=1", "model.width=1", "layer.rank=4", "log.every_steps=5", "control.prove_every_steps=7", "max_steps=9")


def words(text: str) -> set[str]:
    """What a text has in backticks, places of layers and epochs left open."""
    return {re.sub(r"<layer>.*", "", word) for word in re.findall(r"`([^`]+)`", text)}


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("preset", ["quickstart", "lipconv-quickstart"])
def test_what_a_training_writes_is_on_the_page(preset: str, tmp_path: Path) -> None:
    assignments = [
        text for text in SHORT if preset == "quickstart" or not text.startswith(("model", "layer", "control"))
    ]
    if preset != "quickstart":
        assignments += ["model.in_channels=4", "layer.rank=4", "max_steps=3"]
    start.run(configuration(preset, [*assignments, f"out_dir={tmp_path}"]), base="test", reporter=Reporter())
    (run,) = tmp_path.iterdir()
    files = {path.name for path in run.iterdir()} - {".lock"}
    assert files <= words(section("A run folder"))
    named = words(section("`metrics.jsonl`"))
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        keys = {re.sub(r"(?<=/).*", "", key) for key in line}
        assert keys <= named, sorted(keys - named)


def test_each_kind_of_line_is_on_the_page() -> None:
    text = section("`metrics.jsonl`")
    for kind, needed in _NEEDED.items():
        (row,) = re.findall(rf"^\| `{kind}` \| .*$", text, re.M)
        assert needed - {"epoch"} <= words(row)


def test_keys_of_checkpoints_and_results_are_on_the_page(tmp_path: Path) -> None:
    files = hook("file_reference")
    assert words(re.findall(r"made: checkpoint -->\n(.*)", PAGE)[0]) == set(files.keys_of_checkpoints())
    assert all(files.keys_of_checkpoints().values())
    assert words(section("`results.json`").partition("made: record -->")[2].partition(": the site")[0]) - {
        "networks"
    } == set(files.keys_of_records())
    assert all(files.keys_of_records().values())
    cache = MeasurementCache(tmp_path / "results.json", Record, {"weights": "0"})
    cache.write()
    assert set(json.loads(cache.path.read_text())) <= words(section("`results.json`"))


def test_tables_and_json_of_an_evaluation_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "data.npz")
    file = write_linear(tmp_path / "linear.pth", data)
    metrics = ["cifar-c", "autoattacks", "certified"]
    config = make(file, model="tests.evaluate.small:build", dataset=f"npz:{data}", metrics=metrics)
    result = evaluate(config, reporter=Reporter())
    text = section("`results.json`")
    tables = {path.name: path for path in (tmp_path / "eval-linear").glob("*.csv")}
    assert sorted(tables) == ["attacks.csv", "certified.csv", "corruptions.csv"]
    for name, path in tables.items():
        with path.open(newline="") as rows:
            header = next(csv.reader(rows))
        (row,) = re.findall(rf"^\| `{name}` \| .*$", text, re.M)
        assert [word for word in re.findall(r"`(\w+)`", row.rpartition(" | ")[2]) if word in header] == header
    printed = json.loads(result_json(result))
    assert list(printed) == re.findall(r"^\| `(checkpoints|failures|report)` \|", text, re.M)
    (listed,) = printed["checkpoints"]
    (row,) = re.findall(r"^\| `checkpoints` \| .*$", text, re.M)
    assert set(listed) <= words(row)
    assert {"kept", "other_data"} <= words(row) & set(listed["metrics"]["autoattacks"])


def test_tables_of_reproduce_are_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    request = Request.model_validate({"tables": [str(tmp_path / "tiny.toml")], "out_dir": tmp_path / "runs"})
    (plan,) = make_plan(request).tables
    outcomes = {job.id: Outcome(values={"accuracy": 0.9}) for row in plan.rows for job in row.jobs}
    found = assemble(plan, outcomes, {"tiny": {"none-full": {"accuracy": 91.0}}})
    text = section("Tables of `reproduce`")
    as_csv, as_json = text.partition("`tables/NAME.json`")[0], text
    for name in formats.records(found.table)[0]:
        place = name.removeprefix(next((figure for figure in plan.columns if name.startswith(figure)), ""))
        assert not place or place in words(as_csv), name
    contents = found.contents(lambda job: "")
    assert set(contents) | set(contents["rows"][0]) | set(contents["rows"][0]["runs"][0]) <= words(as_json)
    assert set(contents["rows"][0]["cells"]["accuracy"]) | {"header", "shown_factor"} <= words(as_json)
    point = Point("width", 16, 16, 4, 8, "all values", (2.0,), (1.0,), 2.0)
    speed = SpeedResults("speed", smoke=True, points=(point,), machine="one")
    assert {*speed.contents, *speed.contents["points"][0], *speed.records[0]} - {"figure"} <= words(as_json)


def test_parts_of_pages_are_made() -> None:
    parts = hook("file_reference").PARTS
    pages = [path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "docs").glob("*.md")]
    used = [name for page in pages for name in re.findall(r"<!-- made: (\w+) -->\n.*?<!-- end -->\n", page, re.S)]
    assert sorted(used) == sorted(parts)
    for part in parts.values():
        assert len(part()) > 200
