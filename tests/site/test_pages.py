"""What pages say of machines, presets and versions is so."""

import re
from pathlib import Path

import pytest

from svdctl.config.presets import list_presets, read_preset

ROOT = Path(__file__).parents[2]
BENCHMARKS = re.split(r"^## ", (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"), flags=re.M)[1:]
TABLES = [part for part in BENCHMARKS if "|---" in part]


@pytest.mark.parametrize("section", TABLES, ids=lambda section: section.splitlines()[0])
def test_tables_of_benchmarks_say_machine_and_number(section: str) -> None:
    assert re.search(r"AMD EPYC|Intel Xeon|NVIDIA H\d00", section)
    assert re.search(r"\bn = \d|\| n \||[Mm]edians of \d|\d rounds", section)


def test_the_page_on_presets_has_their_maxima() -> None:
    page = (ROOT / "docs/presets.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| maxima in the paper's presets \| (.*) \| (.*) \|$", page, re.M)
    for kind, cell in zip(("clip", "divide"), row, strict=True):
        controls = [read_preset(name).get("control", {}) for name in list_presets() if "quickstart" not in name]
        wanted = {float(control["max_sigma"]) for control in controls if control.get("kind") == kind}
        told = re.sub(r"\([^)]*\)", "", cell)
        assert {float(number) for number in re.findall(r"[0-9.]+", told)} == wanted


def test_the_changes_begin_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased"
    assert "A release" in (ROOT / "docs/CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_glossary_is_in_order_and_has_the_words_of_the_first_hour() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.M)
    words = [row for row in rows if row != "word"]
    assert words == sorted(words, key=str.lower)
    assert {"TT", "frame", "SOC", "SOTT", "seal", "bound", "bracket", "control", "certificate"} <= set(words)
