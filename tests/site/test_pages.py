"""What pages say of machines, presets and versions is so."""

import re
from pathlib import Path

import pytest

from svdctl.config.presets import list_presets, read_preset

ROOT = Path(__file__).parents[2]
BENCHMARKS = re.split(r"^## ", (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"), flags=re.M)[1:]
TABLES = [
    "".join(told)
    for section in BENCHMARKS
    for told in re.findall(r"((?:.+\n)+)\n((?:\|.*\n)+)", section)
    if re.search(r"\| *[\d.,]+ *[|;(]", told[1])  # figures
]
"""Each table of figures, after the paragraph before it."""


@pytest.mark.parametrize("table", TABLES, ids=lambda table: re.findall(r"^\|.*", table, re.M)[0])
def test_tables_of_benchmarks_say_machine_and_number(table: str) -> None:
    assert re.search(r"AMD EPYC|Intel Xeon|\bH\d00\b|counted on a CPU", table)
    assert re.search(r"\bn = \d|\| n \||[Mm]edians of \d|\d rounds|n not recorded", table)


def test_runs_are_rows_each_with_card_seed_and_commit() -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    head, _, *runs = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", text, re.M)]
    assert head[:3] == ["run", "card, seed, commit", "seconds"]
    assert len(runs) >= 2
    for row in runs:
        run = dict(zip(head, row, strict=True))
        assert run["run"].partition(",")[0].strip("`") in list_presets()
        assert re.fullmatch(r"\w+, \d+, [0-9a-f]{7,}", run["card, seed, commit"])
        assert all(run.values())  # what is not known says so


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
