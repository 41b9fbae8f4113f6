"""The page of an evaluation: the figures of report.md, sorted; pictures, hashes; names of any kind are text."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svdctl.evaluate import report_files, report_page
from svdctl.evaluate.measure_checkpoint import Failure
from svdctl.evaluate.report import EvaluationReport
from svdctl.evaluate.report_page import evaluation_page
from svdctl.evaluate.runner import run as evaluate
from svdctl.utils.html_page import render
from tests.browser import Browser, chromium
from tests.evaluate.small import Recorder, make

pytestmark = pytest.mark.drawn

ODD = "</script><img src=x onerror='window.hit=1'>\" $x$ " + "y" * 5000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationReport, Path]:
    """The report of three networks, and its page."""
    folder = tmp_path_factory.mktemp("nets")
    shutil.copy(shared / "linear.pth", folder / "a.pth")
    weights = torch.load(folder / "a.pth", weights_only=True)
    for name, factor in (("b", 0.5), ("c", -1.0)):
        torch.save({key: value * factor for key, value in weights.items()}, folder / f"{name}.pth")
    reports: list[EvaluationReport] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            report_files, "evaluation_page", lambda *given: reports.append(given[0]) or evaluation_page(*given)
        )
        config = make(
            folder,
            metrics=["accuracy", "ece", "certified", "autoattacks"],
            model="tests.evaluate.small:build",
            dataset=f"npz:{shared / 'data.npz'}",
            radii=["1", "36"],
            attacks=["apgd-ce"],
            examples="4",
        )
        assert not evaluate(config, reporter=Recorder()).failures
    return reports[0], folder / "report.html"


def test_the_page_has_the_figures_of_the_report_and_sorts_them(
    browser: Browser, made: tuple[EvaluationReport, Path]
) -> None:
    report, page = made
    browser.open(page)
    (table,) = report.tables()
    for place, header in enumerate(table.headers):
        assert browser.column(header) == [row[place].shown for row in table.shown_rows]
    assert browser.column("checkpoint") == ["a", "b", "c"]
    browser.header("ECE").click()
    calibration = {row[0].text: row[table.headers.index("ECE")].text for row in table.shown_rows}
    falling = sorted(calibration.values(), key=lambda text: -float(text.removesuffix("%")))
    assert browser.column("ECE") == falling
    assert calibration[browser.column("checkpoint")[0]] == falling[0]
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_what_is_proved_is_told_from_what_is_measured(browser: Browser, made: tuple[EvaluationReport, Path]) -> None:
    browser.open(made[1])
    headers = browser.texts("#t0 thead button")
    cells = browser.all("#t0 tbody tr:first-child td")
    bases = {
        text: cell.get_attribute("class").split()[-1]
        for text, cell in zip(headers, cells, strict=True)
        if text != "checkpoint"
    }
    assert bases == {
        "accuracy": "measured",
        "ECE": "measured",
        "ECE at T": "measured",
        "certified 1/255": "proved",
        "certified 36/255": "proved",
        next(text for text in headers if text.startswith("apgd-ce L")): "reached",
    }
    assert "an upper bound: a stronger attack may break more images" in browser.column("rests on", 1)


def test_each_checkpoint_has_pictures_and_hashes(browser: Browser, made: tuple[EvaluationReport, Path]) -> None:
    report, page = made
    browser.open(page)
    assert browser.texts("h2")[1:4] == ["a", "b", "c"]
    pictures = [len(section.find_elements("css selector", "figure svg")) for section in browser.all("section")]
    assert pictures == [1, 2, 2, 2, 0, 0]  # the first one compares them
    ids = [element.get_attribute("id") for element in browser.all("svg [id]")]
    assert len(set(ids)) == len(ids) > 10
    hashes = [text for text in browser.texts("dd") if re.fullmatch(r"[0-9a-f]{64}", text)]
    assert hashes == [checkpoint.weights for checkpoint in report.checkpoints]
    records = report.checkpoints[0].records
    assert browser.column("data, SHA-256", 1) == [reported.data_key[:12] for reported in records]
    assert browser.column("protocol, SHA-256", 1) == [reported.record.key.split()[-1] for reported in records]


def test_names_failures_and_states_of_any_kind_are_text(
    browser: Browser, made: tuple[EvaluationReport, Path], tmp_path: Path
) -> None:
    report, _ = made
    first = replace(report.checkpoints[0], name=ODD, state="removed", why=ODD, left_out={"cifar-c": ODD}, order=ODD)
    odd = replace(
        report,
        checkpoints=(first, *report.checkpoints[1:]),
        data=dict.fromkeys(report.data, ODD),
        failures=(Failure(ODD, None, ValueError(ODD)),),
        lost=(ODD,),
    )
    file = tmp_path / "page.html"
    file.write_text(render(evaluation_page(odd)), encoding="utf-8")
    browser.open(file)
    assert browser.run("return window.hit ?? null") is None
    assert browser.column("checkpoint")[0] == f"{ODD} (removed)"
    assert f"{ODD}: {ODD}" in browser.texts("details li")
    assert any("its figures are those of before" in text for text in browser.texts("details li"))
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []
    assert browser.requests() == [file.as_uri()]


def test_pictures_of_many_checkpoints_are_named_and_not_drawn(
    made: tuple[EvaluationReport, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = made
    monkeypatch.setattr(report_page, "DRAWN", 1)
    page = render(evaluation_page(replace(report, checkpoints=report.checkpoints[:1] * 3)))
    assert page.count("<figure>") == 2
    assert page.count("Its pictures: ") == 2


def test_rows_of_images_are_read_beside_the_figures_that_they_belong_to(made: tuple[EvaluationReport, Path]) -> None:
    report, folder = made
    checkpoint = replace(report.checkpoints[0], results=folder.parent / "of another network")
    page = render(evaluation_page(replace(report, checkpoints=(checkpoint,))))
    assert page.count("<figure>") == 2
    assert "cannot be drawn" not in page


def test_rows_of_images_that_are_not_those_measured_are_not_drawn(made: tuple[EvaluationReport, Path]) -> None:
    report, _ = made
    checkpoint = report.checkpoints[2]
    (rows,) = (checkpoint.results / "details").glob("certified-*.csv")
    whole = rows.read_text(encoding="utf-8")
    for spoil in (lambda: rows.write_text(whole + "1,1,1,1,1\n", encoding="utf-8"), rows.unlink):
        spoil()
        page = render(evaluation_page(replace(report, checkpoints=(checkpoint,))))
        assert page.count("<figure>") == 1
        assert "Certificates: its picture cannot be drawn (" in page
