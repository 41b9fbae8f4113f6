"""Pages of tables and of the figure of speed: the figures of Markdown and JSON, sorted; names of any kind are text."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from svdctl.cli.reproduce import command_line
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.table_page import speed_page
from svdctl.reproduce.table_results import assemble, write_table
from svdctl.utils.content_hash import file_digest
from svdctl.utils.html_page import render
from tests.browser import Browser, chromium
from tests.reproduce.test_layout import results
from tests.reproduce.test_speed import some_speed

pytestmark = pytest.mark.drawn

ODD = "</script><img src=x onerror='window.hit=1'>\" $x$ " + "y" * 5000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def cells_of_markdown(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_the_cells_of_markdown_and_sorts_them_by_value(
    browser: Browser, planned: Callable[..., Plan], tmp_path: Path
) -> None:
    files = write_table(tmp_path, results(planned(seeds=(1, 2))), command_line, picture=True)
    header, *rows = cells_of_markdown(files[0])
    browser.open(files[-1])
    assert browser.texts("h1") == ["Tiny networks"]
    for place, title in enumerate(header):
        shown = [row[place].removesuffix(" [1]") for row in rows]
        assert [text.removesuffix("1") if place == 0 else text for text in browser.column(title or "name")] == shown
    accuracy = next(title for title in header if title.startswith("accuracy"))
    assert [text[:5] for text in browser.column(accuracy)] == ["91.00", "80.00"]
    browser.header(accuracy).click()
    browser.header(accuracy).click()
    assert [text[:5] for text in browser.column(accuracy)] == ["80.00", "91.00"]
    assert [text[:5] for text in browser.column("name")] == ["divid", "no co"]
    assert "failed: the loss was not finite" in browser.column("state", 1)
    assert len(browser.all("figure svg")) == 1
    assert browser.complaints() == []
    assert browser.requests() == [files[-1].as_uri()]


def test_the_page_names_table_file_runs_and_hashes(
    browser: Browser, planned: Callable[..., Plan], tiny: Path, tmp_path: Path
) -> None:
    plan = planned()
    (table,) = plan.tables
    found = results(plan)
    hashes = {"weights": "a" * 64, "data": "b" * 64, "accuracy": "c" * 12}
    known = {
        job.id: replace(outcome, hashes=hashes)
        for row in found.rows
        for job, outcome in zip(row.jobs, row.outcomes, strict=True)
    }
    files = write_table(tmp_path, assemble(table, known, {}), command_line, picture=False)
    browser.open(files[-1])
    facts = dict(zip(browser.texts("dt"), browser.texts("dd"), strict=True))
    assert facts["SHA-256 of it"] == file_digest(tiny)
    assert (facts["attacks"], facts["eps"]) == ("apgd-ce", "0.5")
    assert browser.column("weights, SHA-256", 1) == ["a" * 12] * 2
    assert browser.column("protocols, SHA-256", 1) == [f"accuracy {'c' * 12}"] * 2
    assert browser.column("run, SHA-256", 1) == [row.jobs[0].key[:12] for row in table.rows]
    assert browser.texts("details li")[0].startswith("no control & full_width, seed 3407: svdctl train --preset")
    assert browser.all("figure") == []
    runs = json.loads(files[3].read_text(encoding="utf-8"))["rows"][0]["runs"]
    assert runs[0]["hashes"] == hashes


def test_what_an_attack_left_is_told_from_what_is_measured(
    browser: Browser, planned: Callable[..., Plan], tmp_path
) -> None:
    files = write_table(tmp_path, results(planned()), command_line, picture=False)
    browser.open(files[-1])
    bases = [cell.get_attribute("class").split()[1:] for cell in browser.all("#t0 tbody tr:first-child td.figures")]
    assert bases == [[], ["measured"], ["measured"], ["measured"], ["reached"], ["measured"]]


def test_labels_and_titles_of_any_kind_are_text(browser: Browser, planned: Callable[..., Plan], tmp_path: Path) -> None:
    plan = planned()
    (table,) = plan.tables
    row = table.rows[0]
    odd = replace(row, row=row.row.model_copy(update={"label": ODD}))
    odd_table = replace(table, rows=(odd, *table.rows[1:]), table=table.table.model_copy(update={"title": ODD}))
    files = write_table(tmp_path, results(replace(plan, tables=(odd_table,))), command_line, picture=True)
    browser.open(files[-1])
    assert browser.run("return window.hit ?? null") is None
    assert browser.texts("h1") == [ODD]
    assert browser.column("name")[0] == ODD
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []
    assert browser.requests() == [files[-1].as_uri()]


def test_the_figure_of_speed_is_sorted_by_its_medians(browser: Browser, tmp_path: Path) -> None:
    found = some_speed()
    file = tmp_path / "speed.html"
    file.write_text(render(speed_page(found, None)), encoding="utf-8")
    browser.open(file)
    assert browser.texts("h1") == ["Speed & more"]
    browser.header("full, s").click()
    assert browser.column("full, s") == ["11 (10 to 12)", "3 (2 to 4)", "2 (2 to 2)"]
    browser.header("by the model").click()
    assert browser.column("by the model") == ["64.0x", "5.1x", "-"]
    facts = dict(zip(browser.texts("dt"), browser.texts("dd"), strict=True))
    assert facts["measured on"] == "a_machine"
    assert browser.complaints() == []
