"""The page on files names every key and file that a training and an evaluation write, and no others."""

import json
import re
from pathlib import Path

import pytest

from svdctl.config.configuration import configuration
from svdctl.evaluate.results import Record
from svdctl.train import start
from svdctl.train.metrics_log import _NEEDED
from svdctl.utils.measurement_cache import MeasurementCache
from svdctl.utils.progress import Reporter
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


def test_parts_of_pages_are_made() -> None:
    parts = hook("file_reference").PARTS
    pages = [path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "docs").glob("*.md")]
    used = [name for page in pages for name in re.findall(r"<!-- made: (\w+) -->\n.*?<!-- end -->\n", page, re.S)]
    assert sorted(used) == sorted(parts)
    for make in parts.values():
        assert len(make()) > 200
