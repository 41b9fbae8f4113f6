"""What a finished table looks like in every format: marks, spreads, differences, footnotes, reasons."""

import csv
import io
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from svdctl.cli.reproduce import command_line
from svdctl.reproduce.plan import Plan, make_plan, read_paper_numbers
from svdctl.reproduce.run_store import Outcome
from svdctl.reproduce.table_files import Request
from svdctl.reproduce.table_results import Results, assemble, write_table
from svdctl.utils import table as formats
from svdctl.utils.escapes import tex
from tests.figures import faults_of


def markdown(found: Results) -> str:
    return formats.markdown(found.table)


def latex(found: Results) -> str:
    return formats.latex(found.table)


def comma_separated(found: Results) -> str:
    return formats.csv_text(formats.records(found.table))


def as_json(found: Results) -> str:
    return formats.json_text(found.contents(command_line))


OWN = "Corruptions are svdctl's own."
SEALED = "Sealed, 100 % & proved_."


def results(plan: Plan, *, paper: Path | None = None, failed: bool = True) -> Results:
    """Two rows, two seeds; the second row's second seed failed."""
    table = plan.tables[0]
    figures: dict[str, Outcome] = {}
    for position, row in enumerate(table.rows):
        for number, run in enumerate(row.jobs):
            value = 0.9 - 0.1 * position + 0.02 * number
            values = {"accuracy": value, "cifar-c": value - 0.1, "ece": 0.05, "autoattack": 0.4, "control-time": 0.031}
            if failed and position == number == 1:
                figures[run.id] = Outcome(reason="the loss was not finite")
            else:
                notes = (OWN, SEALED) if position else (OWN,)
                figures[run.id] = Outcome("", "done", values, notes, f"runs/{position}-{number}")  # type: ignore[arg-type]
    numbers = read_paper_numbers(paper, plan.tables) if paper else {}
    return assemble(table, figures, numbers)


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.toml"
    path.write_text("[tiny.none-full]\naccuracy = 90.0\nautoattack = 41\n[table9.x]\naccuracy = 3\n")
    return path


def test_markdown_holds_means_spreads_notes_and_reasons(planned: Callable[..., Plan], paper: Path) -> None:
    text = markdown(results(planned(seeds=(1, 2)), paper=paper))
    assert text.startswith("# Tiny networks\n\nMean and standard deviation over 2 seeds (1, 2).\n")
    first, second = (line for line in text.splitlines() if line.startswith(("| no control", "| divide")))
    assert "| 91.00 ± 1.41 (paper 90.00, +1.00) |" in first
    assert "| 40.00 ± 0.00 (paper 41.00, -1.00) |" in first
    assert "| 1.00x |" in first
    assert first.startswith("| no control & full_width | ")
    assert second.startswith("| divide, TT 8 (1 of 2 seeds) [1] | ")
    assert "| 80.00 |" in second  # one seed is left, and has no spread
    assert f"- [1] {SEALED}\n- {OWN}\n" in text
    assert "- divide-tt8, seed 2: the loss was not finite\n" in text


@pytest.mark.parametrize(
    ("kept", "mark"),
    [
        (("", ""), ""),
        (("kept", "kept"), "kept"),
        (("kept", ""), "kept for 1 of 2 seeds"),
        (("kept", "kept, no checksum"), "kept, no checksum"),
    ],
)
def test_a_figure_of_an_earlier_call_is_marked_in_every_format(
    planned: Callable[..., Plan], kept: tuple[str, str], mark: str
) -> None:
    table = planned(seeds=(1, 2)).tables[0]
    figures = {
        run.id: Outcome(values={"accuracy": 0.9}, kept={"accuracy": how} if how else {})
        for row in table.rows
        for run, how in zip(row.jobs, kept, strict=True)
    }
    found = assemble(table, figures, {})
    for text, value in ((markdown(found), "90.00 ± 0.00"), (latex(found), r"90.00 $\pm$ 0.00")):
        assert text.count(f"{value} ({mark})") == 2 * bool(mark)
        assert text.count("(kept") == 2 * bool(mark)
    for row in csv.DictReader(io.StringIO(comma_separated(found))):
        assert (row["accuracy_kept"], row["ece_kept"]) == (mark, "")
    for row in json.loads(as_json(found))["rows"]:
        assert row["cells"]["accuracy"]["kept"] == mark
        assert [run["kept"].get("accuracy", "") for run in row["runs"]] == list(kept)


@pytest.mark.parametrize(
    ("corruptions", "severities", "header"),
    [
        ("", "", "corrupted, all (19), %"),
        ('corruptions = ["benchmark"]', "", "corrupted, benchmark (15), %"),
        ('corruptions = ["all"]', "", "corrupted, all (19), %"),
        ('corruptions = ["fog", "frost"]', "severities = [1, 5]", "corrupted, 2 corruptions, severity 1, 5, %"),
    ],
)
def test_the_header_says_over_which_corruptions_the_mean_is(
    tiny: Path, planned: Callable[..., Plan], corruptions: str, severities: str, header: str
) -> None:
    text = tiny.read_text().replace('corruptions = ["brightness"]', corruptions).replace("severities = [1]", severities)
    tiny.write_text(text)
    found = results(planned())
    for shown in (markdown(found), latex(found), as_json(found)):
        assert header.removesuffix(", %") in shown


def test_a_row_without_figures_is_failed_or_empty(planned: Callable[..., Plan]) -> None:
    plan = planned()
    table = plan.tables[0]
    run = table.rows[1].jobs[0]
    found = assemble(table, {run.id: Outcome(reason="no memory")}, {})
    lines = [line for line in markdown(found).splitlines() if line.startswith("| ")]
    assert lines[1].count("| - |") + lines[1].count("| - ") > 3
    assert lines[2].count("failed") == 5
    assert found.complete is False
    assert results(plan, failed=False).complete


def test_csv_has_full_precision_and_one_line_a_row(planned: Callable[..., Plan], paper: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(results(planned(seeds=(1, 2)), paper=paper)))))
    assert [row["row"] for row in rows] == ["none-full", "divide-tt8"]
    assert float(rows[0]["accuracy"]) == (0.9 + 0.92) / 2
    assert float(rows[0]["accuracy_spread"]) == pytest.approx(0.02 / 2**0.5)
    assert float(rows[0]["accuracy_difference_shown"]) == pytest.approx(1.0)
    assert (rows[0]["accuracy_count"], rows[1]["accuracy_count"], rows[1]["accuracy_spread"]) == ("2", "1", "")
    assert rows[1]["failures"] == "seed 2: the loss was not finite"
    assert rows[0]["table"] == "Tiny networks"
    assert rows[1]["accuracy_paper_shown"] == ""


def test_json_holds_every_run(planned: Callable[..., Plan], paper: Path) -> None:
    plan = planned(seeds=(1, 2))
    table = json.loads(as_json(results(plan, paper=paper)))
    assert (table["complete"], table["scale"], table["seeds"]) == (False, "full", [1, 2])
    runs = table["rows"][1]["runs"]
    assert [run["hash"] for run in runs] == [run.key for run in plan.tables[0].rows[1].jobs]
    assert runs[1]["failed"] == "the loss was not finite"
    assert runs[0]["figures"]["accuracy"] == 0.8
    assert runs[0]["command"].startswith("svdctl train --preset wrn-cifar10-divide")
    assert table["rows"][0]["cells"]["accuracy"]["values"] == [0.9, 0.92]


def test_smoke_is_marked_in_the_title_of_every_format(planned: Callable[..., Plan]) -> None:
    plan = planned(scale="smoke")
    found = results(plan)
    mark = "SMOKE SCALE"
    assert markdown(found).splitlines()[0].startswith(f"# {mark}")
    assert f"\\caption{{{mark}" in latex(found)
    assert json.loads(as_json(found))["title"].startswith(mark)
    assert all(row["table"].startswith(mark) for row in csv.DictReader(io.StringIO(comma_separated(found))))
    assert "not the paper's experiment (max_steps=3" in markdown(found)
    assert mark not in markdown(results(planned()))


def test_every_format_names_the_data(planned: Callable[..., Plan]) -> None:
    found = results(planned(set=("data.kind=cifar100",)))
    assert markdown(found).startswith("# Tiny networks (data: CIFAR-100)\n\nData: CIFAR-100. One seed (3407).\n")
    assert r"\caption{Tiny networks (data: CIFAR-100). Data: CIFAR-100." in latex(found)
    assert "- Data: embedded digits.\n" in markdown(results(planned()))


@pytest.mark.parametrize(
    ("scale", "label"), [("full", "CIFAR-10, clip, full"), ("smoke", "embedded digits, clip, full")]
)
def test_labels_name_the_data(scale: str, label: str) -> None:
    plan = make_plan(Request.model_validate({"tables": ["table-vgg"], "scale": scale, "rows": ["*clip-full"]}))
    assert f"| {label} | 1.00x |" in markdown(assemble(plan.tables[0], {}, {}))


def test_tex_escapes_what_tex_reads() -> None:
    assert tex(r"a_b & 5 % #1 {x} ~^\ ± <$>") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} $\pm$ $<$\$$>$"
    )


def test_tex_has_no_sign_that_its_fonts_lack() -> None:
    assert tex("[b] σ ≤ Δ é 层") == r"{[}b{]} $\sigma$ $\le$ $\Delta$ é \texttt{U+5C42}"
    assert tex("λ Λ Α ο") == r"$\lambda$ $\Lambda$ \texttt{U+0391} o"


def test_every_line_of_the_csv_has_all_of_its_notes(planned: Callable[..., Plan]) -> None:
    for row in csv.DictReader(io.StringIO(comma_separated(results(planned(scale="smoke"))))):
        assert "not the paper's experiment" in row["notes"]


@pytest.mark.drawn
def test_labels_and_notes_of_any_kind_are_laid_out(planned: Callable[..., Plan], tmp_path: Path) -> None:
    plan = planned()
    (table,) = plan.tables
    row = table.rows[0]
    odd = replace(row, row=row.row.model_copy(update={"label": "cost $\\bad$ a --- b | [c]"}))
    found = results(replace(plan, tables=(replace(table, rows=(odd, *table.rows[1:])),)))
    files = write_table(tmp_path, found, command_line, picture=True)
    assert all(file.stat().st_size > 1000 for file in files[-2:])
    assert "a --- b" in formats.terminal(found.table)
    assert r"\textbackslash{}bad" in latex(found)


def test_latex_is_whole(planned: Callable[..., Plan], paper: Path) -> None:
    text = latex(results(planned(seeds=(1, 2)), paper=paper))
    assert text.count(r"\begin{") == text.count(r"\end{")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"91.00 $\pm$ 1.41", r"full\_width", r"100 \% \& proved\_"):
        assert part in text
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {6}


COMPILERS = [name for name in ("tectonic", "pdflatex", "lualatex", "xelatex") if shutil.which(name)]


@pytest.mark.skipif(not COMPILERS, reason="no LaTeX compiler")
@pytest.mark.parametrize("kind", ["table", "speed"])
def test_latex_compiles(planned: Callable[..., Plan], paper: Path, tmp_path: Path, kind: str) -> None:
    from tests.reproduce.test_speed import some_speed

    table = results(planned(seeds=(1, 2), scale="smoke"), paper=paper)
    (tmp_path / "t.tex").write_text(latex(table) if kind == "table" else formats.latex(some_speed().table))
    options = [] if COMPILERS[0] == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [COMPILERS[0], *options, "t.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").stat().st_size > 1000


@pytest.mark.drawn
def test_all_files_are_written(planned: Callable[..., Plan], tmp_path: Path, paper: Path) -> None:
    for plan in (planned(seeds=(1, 2)), planned(scale="smoke", rows=("none*",))):
        files = write_table(tmp_path / "out", results(plan, paper=paper), command_line, picture=True)
        assert [file.suffix for file in files] == [".md", ".csv", ".tex", ".json", ".png", ".html"]
        assert all(file.stat().st_size > 100 for file in files)
    assert {file.stem for file in (tmp_path / "out" / "tables").iterdir()} == {"tiny", "tiny-smoke-part"}


def test_notes_of_the_file_stand_in_trained_tables_alone(tiny: Path) -> None:
    from svdctl.reproduce.plan import make_plan

    tiny.write_text(tiny.read_text().replace("columns =", 'notes = ["mine"]\ncolumns =', 1))
    for columns, present in (("all", True), ("static", False)):
        table = make_plan(Request(tables=(str(tiny),), columns=columns, set=("epochs=9",))).tables[0]  # type: ignore[arg-type]
        text = markdown(assemble(table, {}, {}))
        assert ("- mine" in text) == present
        assert "Changed on the command line: epochs=9." in text


@pytest.mark.parametrize(("rows", "marked"), [(("clip*",), 4), (("divide*",), 0), (("*",), 4)])
def test_notes_of_a_row_stand_where_the_row_does(rows: tuple[str, ...], marked: int, tmp_path: Path) -> None:
    (table,) = make_plan(Request(tables=("table2",), rows=rows, scale="smoke", out_dir=tmp_path)).tables
    outcomes = {job.id: Outcome(values={"accuracy": 0.5}) for row in table.rows for job in row.jobs}
    text = markdown(assemble(table, outcomes, {}))
    assert text.count("Clip to 2 is the value published") == (marked > 0)
    assert sum(line.startswith("| ") and "[1]" in line for line in text.splitlines()) == marked


def test_the_picture_has_readable_footnotes_and_an_axis_around_equal_dots(planned: Callable[..., Plan]) -> None:
    from svdctl.reproduce.bar_plot import draw_bars

    found = results(planned(seeds=(1, 2)))
    figure = draw_bars(found)
    assert OWN in figure.get_supxlabel().replace("\n", " ")
    notes = next(text for text in figure.texts if text.get_text() == figure.get_supxlabel())
    assert notes.get_fontsize() >= 8
    limits = {panel.get_title(loc="left").split(",")[0]: panel.get_xlim() for panel in figure.axes if panel.axison}
    low, high = next(ends for name, ends in limits.items() if "ECE" in name or "calibration" in name.lower())
    assert low <= 0
    assert high >= 100  # every row has the same error: shown on the whole scale


@pytest.mark.parametrize("rows", [1, 2])
def test_no_texts_of_the_picture_collide_and_a_column_without_figures_says_so(
    rows: int, planned: Callable[..., Plan], tiny: Path, paper: Path
) -> None:
    from svdctl.reproduce.bar_plot import draw_bars

    parts = tiny.read_text().replace("no control & full_width", f"{'a_name_' * 10} $x$").split("[[rows]]")
    tiny.write_text("[[rows]]".join(parts[: rows + 1]))
    found = results(planned(seeds=(1, 2)), paper=paper)
    assert not faults_of(draw_bars(found))
    table = planned(scale="smoke").tables[0]
    nothing = {job.id: Outcome("", "done", {"ece": math.nan}, (), "runs/x") for row in table.rows for job in row.jobs}
    for outcomes in ({}, nothing):
        empty = draw_bars(assemble(table, outcomes, {}))
        assert not faults_of(empty)
        shown = {panel.get_title(loc="left"): [text.get_text() for text in panel.texts] for panel in empty.axes}
        assert all(("no figures yet" in texts) is not title.startswith("compression") for title, texts in shown.items())
