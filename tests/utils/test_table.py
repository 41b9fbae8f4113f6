"""One table in every format: figures, marks, footnotes, escapes."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest

from svdctl.utils.escapes import tex
from svdctl.utils.table import Cell, Column, Table, csv_text, html, json_text, latex, markdown, records, terminal

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
