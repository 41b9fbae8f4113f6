"""One table in every format: figures, marks, footnotes, escapes."""

import csv
import io
import json
import time
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdctl.utils.escapes import tex
from svdctl.utils.printable import columns_of
from svdctl.utils.table import (
    Cell,
    Column,
    Table,
    _Ruler,
    csv_text,
    folded,
    html,
    json_text,
    latex,
    markdown,
    records,
    sortable_html,
    terminal,
    width_of,
)

ODD = "a|b\\|c <script>alert(1)</script> & 5 % _x_ \x1b[31m"


def small() -> Table:
    columns = [Column("name", "", "left"), Column("seed"), Column("accuracy", "accuracy, %")]
    rows = [
        [Cell("first", "first"), Cell("1", 1), Cell("91.00", 0.91, extra={"spread": 0.01})],
        [Cell("second", "second", notes=(1,)), Cell("2", 2), Cell("-")],
        [Cell("third", "third"), Cell("3", 3), Cell("80.0", 0.8, mark="kept", extra={"spread": float("inf")})],
    ]
    notes = ["of one row", "of all rows"]
    return Table(columns, rows, "Title", "Caption.", notes, ["second, seed 2: no memory"], ["a", "a", "b"])


def test_terminal_pads_columns_and_shows_no_hidden_one() -> None:
    assert terminal(small()).splitlines() == [
        "# Title",
        "",
        "Caption.",
        "",
        "            accuracy, %",
        "----------  -----------",
        "first             91.00",
        "second [1]            -",
        "third       80.0 (kept)",
        "",
        "- [1] of one row",
        "- of all rows",
        "",
        "Failed; tried again by the next call:",
        "",
        "- second, seed 2: no memory",
    ]


def test_markdown_has_marks_and_notes() -> None:
    lines = markdown(small()).splitlines()
    assert lines[4:9] == [
        "|  | accuracy, % |",
        "|---|---:|",
        "| first | 91.00 |",
        "| second [1] | - |",
        "| third | 80.0 (kept) |",
    ]
    assert lines[-1] == "- second, seed 2: no memory"


def test_latex_is_whole_and_has_a_rule_between_groups() -> None:
    text = latex(small())
    assert text.count(r"\begin{") == text.count(r"\end{") == 3
    assert text.count(r"\midrule") == 2
    for part in (r"\caption{Title. Caption.}", r"second\textsuperscript{1} & - \\", "{lr}"):
        assert part in text
    assert r"{[}1{]} of one row \\ of all rows \\ Failed: second, seed 2: no memory." in text


def test_csv_and_json_have_full_precision_and_hidden_columns() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(records(small())))))
    assert rows[0] == {"name": "first", "seed": "1", "accuracy": "0.91", "accuracy_spread": "0.01"}
    assert rows[1]["accuracy"] == rows[1]["accuracy_spread"] == rows[2]["accuracy_spread"] == ""
    assert json.loads(json_text({"rows": records(small())}))["rows"][2]["accuracy_spread"] is None
    assert csv_text([], ["a", "b"]) == "a,b\n"
    assert csv_text([{"a": [1, 2], "b": None}]) == "a,b\n1x2,\n"


class _Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_has_every_cell_and_note() -> None:
    found = _Cells(html(small()))
    assert found.tags.count("tr") == 4
    assert (found.tags.count("sup"), found.tags.count("li")) == (1, 3)
    assert {"Title. Caption.", "91.00", "80.0 (kept)", "[1] of one row"} <= set(found.texts)


def test_no_format_obeys_what_stands_in_a_cell() -> None:
    table = Table(
        [Column("a", ODD, "left"), Column("b", "b")], [[Cell(ODD), Cell("line\nfeed")]], ODD, ODD, [ODD], [ODD]
    )
    assert not any(sign in terminal(table) for sign in "\x1b\r")
    assert "line feed" in terminal(table).splitlines()[6]
    header, _, row = markdown(table).splitlines()[4:7]
    assert header.replace("\\\\", "").replace("\\|", "").count("|") == 3
    assert "<script" not in header + row
    assert set(_Cells(html(table)).tags) == {"table", "caption", "tr", "th", "td", "ul", "li"}
    assert r"\textbackslash{}" in latex(table)
    assert "\x1b" not in latex(table)


def test_a_number_that_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_text({"a": float("nan")})


def test_tex_escapes_what_tex_reads() -> None:
    assert tex(r"a_b & 5 % #1 {x} ~^\ ± <$>") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} $\pm$ $<$\$$>$"
    )


def wide() -> Table:
    columns = [
        Column("name", "run", "left", elastic=True),
        Column("state", "state", "left"),
        Column("acc", "accuracy, %"),
        Column("why", "why", "left", droppable=True),
        Column("rank", "stable rank", spare=2),
        Column("count", "count", spare=1),
    ]
    names = [
        "runs/table-3/wrn16-clip-seed-0",
        "runs/table-3/wrn16-clip-seed-1",
        "runs/table-3/a network of which nobody knows any more why it was given such a name",
    ]
    return Table(
        columns, [[Cell(name), Cell("done"), Cell("91.0"), Cell("-"), Cell("1.5"), Cell("7")] for name in names]
    )


def test_without_a_width_only_empty_droppable_columns_go() -> None:
    header, _, *rows = terminal(wide()).splitlines()
    assert header.split() == ["run", "state", "accuracy,", "%", "stable", "rank", "count"]
    assert rows[2].startswith("runs/table-3/a network of which nobody knows any more why it was given such a name")


@pytest.mark.parametrize("width", [30, 50, 60, 80, 120])
def test_a_table_fits_the_terminal_and_rows_stay_different(width: int) -> None:
    said, _, header, rule, *lines = terminal(wide(), width=width).splitlines()
    assert said == "run: all begin with runs/table-3/"
    assert max(map(len, (header, rule, *lines))) <= max(width, 8 + 2 + 5 + 2 + 11)
    rows = [line for line in lines if "done" in line and "91.0" in line]
    assert len(rows) == 3
    # Names are whole but for those that take many lines: their further lines are indented and hold no figure.
    names = " ".join(line[: rule.index(" ")].strip() for line in lines).replace("- ", "-")
    assert names.startswith("wrn16-clip-seed-0 wrn16-clip-seed-1 a network of")
    assert names.endswith("which nobody knows any more why it was given such a name") is (width >= 50)
    assert all(line in rows or (line.startswith("  ") and "91.0" not in line) for line in lines)


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_row_is_one_line_where_that_is_asked_for(width: int) -> None:
    rows = terminal(wide(), width=width, single=True).splitlines()[4:]
    assert len(set(rows)) == 3
    assert all("done" in row and "91.0" in row for row in rows)
    assert "…" in rows[2]


def test_spare_columns_go_by_their_number_and_only_where_they_must() -> None:
    headers = {width: terminal(wide(), width=width).splitlines()[2] for width in (120, 66, 54, 45)}
    assert ["stable rank" in header for header in headers.values()] == [True, True, False, False]
    assert ["count" in header for header in headers.values()] == [True, True, True, False]
    assert all("state" in header for header in headers.values())


def test_texts_that_differ_in_one_sign_stay_different() -> None:
    """Whatever the place of the sign is; where every cut would make them alike, lines run over."""
    for at in range(40):
        names = ["x" * at + sign + "x" * (39 - at) for sign in "abc"]
        table = Table([Column("name", "name", "left", elastic=True)], [[Cell(name)] for name in names])
        rows = terminal(table, width=20, single=True).splitlines()[2:]
        assert len(set(rows)) == 3
        assert max(map(len, rows)) <= 39
        lines = terminal(table, width=20).splitlines()[2:]
        assert max(map(len, lines)) <= 20
        assert ["".join(line.strip() for line in lines[row : row + 3]) for row in (0, 3, 6)] == names


def test_texts_are_folded_between_words_and_those_of_too_many_lines_lose_their_middle() -> None:
    assert folded("layer4.0.downsample.0", 16) == ["layer4.0.", "  downsample.0"]
    assert folded("short", 16) == ["short"]
    assert folded("", 16) == [""]
    assert folded("犬" * 6, 5) == ["犬犬", "犬犬", "犬犬"]
    table = Table([Column("name", "name", "left", elastic=True)], [[Cell("x" * 500)], [Cell("y")]])
    lines = terminal(table, width=20).splitlines()[2:]
    assert len(lines) == 5
    assert sum("…" in line for line in lines) == 1


def test_signs_of_two_columns_and_of_none_are_counted_so() -> None:
    table = Table([Column("a", "a", "left", elastic=True), Column("b", "b")], [[Cell(text), Cell("1")] for text in
                  ("犬犬", "e\u0301e\u0301", "犬" * 30)])  # fmt: skip
    lines = terminal(table).splitlines()
    assert lines[2] == "犬犬" + " " * 56 + "  1"
    assert lines[3] == "e\u0301e\u0301" + " " * 58 + "  1"
    assert terminal(table, width=21, single=True).splitlines()[4].count("犬") == 8
    assert [line.count("犬") for line in terminal(table, width=21).splitlines()[4:]] == [9, 8, 8, 5]


def test_notes_are_wrapped_at_words() -> None:
    table = Table([Column("a", "a")], [[Cell("1")]], notes=["a sentence of several words " * 5])
    lines = terminal(table, width=60).splitlines()[4:]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 60


def test_a_file_has_no_width_unless_columns_says_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width_of(io.StringIO()) is None
    assert width_of(None) is None
    monkeypatch.setenv("COLUMNS", "97")
    assert width_of(io.StringIO()) == 97


def test_a_folded_table_breaks_headers_then_puts_columns_below() -> None:
    columns = [
        Column("a", "", "left"),
        Column("b", "share of images, %"),
        Column("c", "AutoAttack, %"),
        Column("d", "d"),
    ]
    table = Table(columns, [[Cell("one"), Cell("1.25"), Cell("33.5"), Cell("4")], [Cell("two")] + [Cell("-")] * 3])
    assert terminal(table, width=80, fold=True) == terminal(table, width=80) == terminal(table)
    assert terminal(table, width=33, fold=True).splitlines() == [
        "       share",
        "          of",
        "     images,  AutoAttack,",
        "           %            %  d",
        "---  -------  -----------  -",
        "one     1.25         33.5  4",
        "two        -            -  -",
    ]
    assert terminal(table, width=20, fold=True).splitlines() == [
        "       share",
        "          of",
        "     images,",
        "           %",
        "---  -------",
        "one     1.25",
        "two        -",
        "",
        "     AutoAttack,",
        "               %  d",
        "---  -----------  -",
        "one         33.5  4",
        "two            -  -",
    ]
    assert all(column.header in terminal(table, width=20) for column in columns)


@pytest.mark.parametrize("given", ["0", "-1", "²", "1e9", "9" * 5000, "1000000000"])
def test_what_is_no_width_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python refuses to read numbers of thousands of digits."""
    monkeypatch.setenv("COLUMNS", given)
    assert width_of(io.StringIO()) is None


def _named(names: list[str], width: int) -> list[str]:
    columns = [Column("name", "name", "left", elastic=True), Column("v", "value", spare=1)]
    return terminal(Table(columns, [[Cell(name), Cell("1")] for name in names]), width=width, fold=True).splitlines()


def test_a_table_without_rows_fits_any_width() -> None:
    assert _named([], 3) == ["name", "----"]


@pytest.mark.parametrize("sign", ["a", "\u4e00", "\u0301"])
def test_names_of_thousands_of_signs_that_differ_in_the_middle_take_no_minutes(sign: str) -> None:
    names = [sign * 2500 + middle + sign * 2500 for middle in "xyz"]
    before = time.process_time()
    lines = _named(names, 80)[2:]
    assert time.process_time() - before < 10
    first = [at for at, line in enumerate(lines) if not line.startswith("  ")]
    shown = [tuple(lines[at:end]) for at, end in pairwise([*first, len(lines)])]
    assert len(set(shown)) == 3  # they still differ


@given(
    st.text(st.sampled_from("ab\u0301\u4e00"), max_size=30),
    st.integers(1, 30),
    st.sampled_from((0.5, 0.7, 0.3, 0.9, 0.1)),
)
def test_a_text_is_cut_to_at_most_the_columns_allowed(text: str, width: int, share: float) -> None:
    short = _Ruler(text).without_middle(width, share)
    assert columns_of(short) <= width
    assert (short == text) == (columns_of(text) <= width)
    if short != text:
        first, _, last = short.partition("…")
        assert text.startswith(first)
        assert text.endswith(last)
        # A sign more, and its combining ones, would be too much.
        assert columns_of(last) <= round((width - 1) * share)
        assert columns_of(text[: len(first) + 1]) + 1 + columns_of(last) > width


def test_names_of_a_page_may_be_broken_at_their_dots_and_notes_have_a_header() -> None:
    table = Table(
        [Column("name", "layer", "left"), Column("note", "", "left")],
        [[Cell("layer4.0.down_sample & 0.5"), Cell("a.b", notes=(1,))]],
        notes=["said"],
    )
    page = sortable_html(table)
    assert "<td>layer4.<wbr>0.<wbr>down_<wbr>sample &amp; 0.<wbr>5</td>" in page
    assert "<td>a.b<sup>1</sup></td>" in page
    assert [button.partition("<")[0] for button in page.split('<button type="button">')[1:]] == ["layer", "notes"]
