"""The README is short, begins with why, and shows what it says."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from svdctl.config.configuration import configuration

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_900_words_at_most() -> None:
    assert len(README.split()) <= 900


def test_the_first_screen_has_a_sentence_a_picture_a_figure_and_the_first_command() -> None:
    screen = "\n".join(README.splitlines()[:20])
    assert "![" in screen
    assert re.search(r"\d seconds on 2 cores", screen)
    assert "svdctl train" in screen


def test_the_commands_that_set_everything_up_begin_their_lines() -> None:
    lines = README.splitlines()
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/svdctl train" in lines
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n 2" in lines


def test_the_picture_is_small_and_asks_for_nothing() -> None:
    (path,) = re.findall(r"!\[[^\]]*\]\(([^)]+\.svg)\)", README)
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.encode()) < 200_000
    for element in ET.fromstring(text).iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith("#") or "purl.org" in value
            assert "url(http" not in value
    assert (ROOT / "benchmarks/control_picture.py").exists()


def test_the_maximum_of_the_quick_start_is_the_one_that_is_named() -> None:
    assert configuration("quickstart").control.max_sigma == 4
    assert "maximum of 4" in README


def test_the_paper_is_named_by_its_number() -> None:
    assert "(https://arxiv.org/abs/2211.13771)" in README
    assert "@inproceedings{" in README


def test_there_are_no_tables_of_measurements() -> None:
    for row in re.findall(r"^\|.*\|$", README, re.M):
        assert not re.search(r"\|\s*[\d.]+\s*\|", row), row


def test_its_figures_of_a_card_are_those_of_the_benchmarks() -> None:
    text = README.replace("\n", " ")
    told = re.search(r"On one H200, .* takes ([\d.]+) ms, .* step ([\d.]+) \(commit (\w+)\), .* code ([\d.]+) ", text)
    assert told is not None
    loop, bare, commit, paper = told.groups()
    figures = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").partition("### Figures")[2]
    assert "One NVIDIA H200" in figures.partition("|")[0]
    rows = figures[figures.index("| `steps` | TT 192, penalty, division") :].splitlines()[:5]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    shown = {(row[3], row[4]): row[6].split()[0] for row in cells}
    assert shown["svdctl's loop", commit] == loop
    assert shown["bare captured", commit] == bare
    assert shown["the paper's code, float32", ""] == paper


@pytest.mark.parametrize(
    "page",
    ["README.md", "CHANGELOG.md", *(f"docs/{name}.md" for name in ("own-network", "networks", "library", "training"))],
)
def test_equal_bits_after_a_stop_are_promised_on_a_gpu_in_deterministic_mode_alone(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    promises = re.findall(r"[^.|]*(?:resum|undisturbed)[^.|]*\b(?:bits?)\b[^|]{0,60}", text)
    assert promises
    assert [told for told in promises if "on a GPU with" not in told] == []
