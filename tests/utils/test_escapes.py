"""One list of hostile names, and every format that they reach."""

import csv
import io
import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from svdctl.analysis.network_spectrum import spectrum
from svdctl.analysis.spectrum_table import text_table, to_csv, to_json
from svdctl.cli.messages import explain
from svdctl.errors import CheckpointError, EvaluationError, UsageError
from svdctl.utils import escapes
from svdctl.utils.matplotlib_defaults import Figure, with_defaults
from svdctl.utils.table import Cell, Column, Table, csv_text, html, json_text, latex, markdown, records, terminal

pytestmark = pytest.mark.drawn

NAMES = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "\u2066a\u2069", "two\nlines\nsvdctl: proved",
    "back\rover", "\u2028a\u2029", "bell\x07\x08\x00", "=cmd|' /C calc'!A0", "+1+1", "-2+3+cmd", "@SUM(A1)", "\t=1",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b&gt;", "a|b", "[a](javascript:alert(1))",
    "![a](http://x/y.png)", "`code`", "*bold*", "__init__", "# heading", "\\input{/etc/passwd}", "$\\frac{1}$", "$x^",
    "$$x$$", "$`x`$",
    "\\write18{id}", "a_b^c~d", "{", "50%", "\ud83d", "\U000e0041", "\ufeffa",
)  # fmt: skip
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def _table(name: str) -> Table:
    columns = [Column("name", name, "left"), Column("b", "b")]
    return Table(columns, [[Cell(name, name), Cell("1", 1, notes=(1,))]], name, name, [name], [name])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_format_obeys_a_name(name: str) -> None:
    table = _table(name)
    shown = terminal(table)
    assert not OBEYED.search(shown)
    assert len(shown.splitlines()) == len(terminal(_table("a")).splitlines())
    text = markdown(table)
    assert not OBEYED.search(text)
    assert len(text.splitlines()) == len(markdown(_table("a")).splitlines())
    assert not re.search(r"<[A-Za-z/!?]|(?<!\\)\]\(|(?<!\\)[`$]", text)
    source = latex(table)
    assert not OBEYED.search(source)
    assert source.count("\\begin") == source.count("\\end") == 3
    body = source.partition("\n")[2]  # after a comment
    assert not re.search(r"\\(input|write|frac)\b", body)
    page = html(table)
    assert not OBEYED.search(page)
    found = _Tags(page)
    assert set(found.tags) <= {"table", "caption", "tr", "th", "td", "ul", "li", "sup"}
    ((cell, *_),) = list(csv.reader(io.StringIO(csv_text(records(table)))))[1:]
    assert cell[0] not in "=+-@\t\r"
    assert not OBEYED.search(cell)
    sent = json_text({name: [name]})
    assert not OBEYED.search(sent)
    assert json.loads(sent) == {name: [name]}


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


@pytest.mark.parametrize("number", ["-1", "-0.5", "+2", "-1.5e-07", "-inf", "-", "-12%", "-1,000"])
def test_numbers_are_no_formulas(number: str) -> None:
    assert escapes.csv_cell(number) == number


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_of_a_layer_or_file_acts_on_the_terminal(name: str) -> None:
    layer = name.replace(".", "_")
    model = nn.Module()
    model._modules[layer] = nn.Linear(2, 2)
    model.forward = lambda x: model._modules[layer](x)  # type: ignore[method-assign, misc]
    found = replace(spectrum(model, (2,)), name=name)
    plain = nn.Sequential(nn.Linear(2, 2))
    lines = len(text_table(spectrum(plain, (2,))).splitlines()) + 1
    shown = text_table(found)
    assert not OBEYED.search(shown)
    assert len(shown.splitlines()) <= lines + 1  # a long name has a line of its own
    for text in (to_csv([found]), to_csv([found], every=True), to_json([found])):
        assert not OBEYED.search(text)
    rows = list(csv.reader(io.StringIO(to_csv([found]))))
    assert all(row[place][:1] not in tuple("=+-@") for row in rows[1:] for place in (0, 1))
    with torch.no_grad():
        found.plot()._repr_png_()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_messages_configurations_and_pictures(name: str) -> None:
    errors = CheckpointError(f"{name}: bad"), EvaluationError(f"{name}: bad"), UsageError([f"{name}: bad"])
    for error in (*errors, OSError(2, "gone", name)):
        (sentence,), _ = explain(error)
        assert not OBEYED.search(sentence)
        assert "\n" not in sentence
    if "\ud83d" not in name:
        written = escapes.toml_signs(f'a = "{name}"') if not set(name) & set('"\\\n\r\x00\x07\x08\x1b') else 'a = ""'
        assert not OBEYED.search(written)
        tomllib.loads(written)
    figure = Figure()
    with with_defaults():
        figure.suptitle(escapes.figure_text(name))
        figure.savefig(io.BytesIO(), format="png")
