"""The lines of keys in TOML files, against documents whose lines are known since they were written one by one."""

import time
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdctl.utils.toml_lines import TomlLines, key_lines

NAMES = st.sampled_from(["a", "b", "c-d", "e_1", "9", "é f", 'q"q', "x.y", "#", "[t]", "=", "'", "", "tab\t"])
SCALARS = st.sampled_from(
    [
        "1",
        "-0.5",
        "true",
        "1979-05-27T07:32:00Z",
        '"a # b"',
        r'"\"[x]\" = 3"',
        "'c:\\[d]'",
        "inf",
        '"""x"""',
        '""',
        "''",
    ]
)
# Values of several lines hide what looks like keys and tables.
LONG = st.sampled_from(
    [
        '"""x"""',
        '"""\na = 1\n[b]\n"""',
        '"""a""""',
        '"""\\\n  a \\""" = 2\n"""""',
        "'''\n[[a]]\nb = '' \n'''''",
        "[\n  1, # ] a = 3\n  2,\n]",
        '[ "]", [ "[b]", "x = 1" ],\n # "unclosed\n [] ]',
        "{ a = 1, 'b.c' = { d = '}' }, e = [{ f = 1 }] }",
        "[{ a = 1 }, # {\n { a = 2 }]",
    ]
)
SPACE = st.sampled_from(["", " ", "\t", "  "])
BETWEEN = st.sampled_from(["", "\n", "# a = 1\n", "  # [a]\n\n", "\t\n"])
END = st.sampled_from(["", " # a = 1", "  ", "\t# [[x]] '"])


def spelled(draw: Any, name: str) -> str:
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    forms = ["basic"] + ["bare"] * plain + ["literal"] * ("'" not in name)
    form = draw(st.sampled_from(forms))
    if form == "bare":
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return f"'{name}'" if form == "literal" else f'"{escaped}"'


@st.composite
def documents(draw: Any) -> tuple[str, dict[tuple[Any, ...], int]]:
    """A text of TOML, and the line of each key and table that was written."""
    text, lines = "", {}
    elements: dict[tuple[Any, ...], int] = {}

    def written(piece: str) -> int | None:
        """Add a piece, unless TOML forbids it there, as a key that there is; return its line."""
        nonlocal text
        longer = text + draw(BETWEEN)
        line = longer.count("\n") + 1
        longer += f"{draw(SPACE)}{piece}{draw(END)}\n"
        try:
            tomllib.loads(longer)
        except tomllib.TOMLDecodeError:
            return None
        text = longer
        return line

    def dotted(names: list[str]) -> str:
        gap = draw(SPACE)
        return f"{gap}.{gap}".join(spelled(draw, name) for name in names)

    table: tuple[Any, ...] = ()
    for what in draw(st.lists(st.sampled_from(["key", "key", "table", "array"]), max_size=9)):
        names = draw(st.lists(NAMES, min_size=1, max_size=3))
        if what == "key":
            line = written(f"{dotted(names)}{draw(SPACE)}={draw(SPACE)}{draw(SCALARS | LONG)}")
            for length in range(len(names)) if line else ():
                lines.setdefault((*table, *names[: length + 1]), line)
            continue
        first, last = ("[[", "]]") if what == "array" else ("[", "]")
        line = written(f"{first}{draw(SPACE)}{dotted(names)}{draw(SPACE)}{last}")
        if line is None:
            continue
        table = ()
        for name in names[:-1]:
            table = (*table, name)
            if table in elements:
                table = (*table, elements[table])
            lines.setdefault(table, line)
        table = (*table, names[-1])
        if what == "array":
            lines.setdefault(table, line)
            elements[table] = elements.get(table, -1) + 1
            table = (*table, elements[table])
        lines[table] = line
    return text, lines


@settings(max_examples=300, deadline=None)
@given(documents())
def test_each_key_has_the_line_on_which_it_was_written(document: tuple[str, dict[tuple[Any, ...], int]]) -> None:
    text, lines = document
    tomllib.loads(text)
    assert key_lines(text) == lines


@settings(max_examples=100, deadline=None)
@given(documents())
def test_each_key_that_the_parser_finds_has_a_line(document: tuple[str, dict[tuple[Any, ...], int]]) -> None:
    text, _ = document
    lines = key_lines(text)

    def check(value: Any, path: tuple[Any, ...]) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if (*path, name) in lines:
                    check(inner, (*path, name))
                else:  # in { }: its line is that of the key
                    assert path in lines
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                if (*path, number) in lines:
                    check(inner, (*path, number))
        if path:
            assert path in lines

    check(tomllib.loads(text), ())


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a = 1\nb = 2\n", "b", 2),
        ("[control]\nkind = 'clip'\nmax_sigm = 3\n", "control.max_sigm", 3),
        ("[layer]\nkind = 'tt'\n\nframes = { kind = 'retract', metod = 'qr' }\n", "layer.frames.metod", 4),
        ("layer.frames.metod = 'qr'\n", "layer.frames.metod", 1),
        ("[settings.'cifar-c']\n\nroot = 1", "settings.cifar-c.root", 3),
        ("[[rows]]\nname = 'a'\n[[rows]]\nname = 'b'\n[rows.set]\nx = 1\n", "rows.1.set.x", 6),
        ("[[rows]]\nname = 'a'\n[[rows]]\nname = 'b'\n", "rows.1", 3),
        ("a = '''\nb = 1\n'''\r\nb = 2\r\n", "b", 4),
        ("[a]\nx = 1\n", "a.y", 1),
        ("[a]\nx = 1\n", "b", None),
    ],
)
def test_lines_of_keys(text: str, key: str, line: int | None) -> None:
    assert TomlLines(text, "own.toml").line(key) == line


def test_a_fault_gets_the_line_of_the_key_that_it_is_about() -> None:
    lines = TomlLines("epochs = 0\n[schedule]\nlr_min = 0.2\n[optimizer]\nlr = 0.1\n", "own.toml")
    faults = [
        "epochs: 0 is not valid",
        "`schedule.lr_min = 0.2` must be below `optimizer.lr = 0.1`",
        "optimizer.momentm: there is no such key",
        "a batch of 3 is too small; raise `batch_size`",
        "see torchvision.models and 'optimizer.lr'",
    ]
    assert [fault.rpartition(" (")[2] for fault in lines.located(faults[:3])] == [
        "own.toml, line 1)",
        "own.toml, line 3)",
        "own.toml, line 4)",
    ]
    assert lines.located(faults[3:]) == faults[3:]
    assert lines.numbered(faults[:1]) == ["epochs: 0 is not valid (line 1)"]
    assert lines.numbered(["momentum: no", "x (a.toml, line 7)"], above="optimizer") == [
        "momentum: no (line 4)",
        "x (a.toml, line 7)",
    ]
    # What a flag has set is not the file's.
    assert lines.located(faults[:1], elsewhere=["epochs"]) == faults[:1]
    assert lines.located(faults[2:3], elsewhere=["optimizer"]) == faults[2:3]


def test_a_mebibyte_of_headers_of_many_parts_takes_no_minutes() -> None:
    parts = ".".join("b" * 85)
    text = "\n".join(f"[a{number}.{parts}]" for number in range(1000))
    before = time.process_time()
    lines = key_lines(text)
    assert time.process_time() - before < 5
    assert len(lines) == 86_000
    assert lines["a7", *"b" * 85] == 8


def test_paths_through_arrays_of_tables_mean_the_last_element() -> None:
    lines = key_lines("[[a]]\n[[a]]\n[[a.b]]\n[a.b.c]\nd = 1\n")
    assert lines == {
        ("a",): 1, ("a", 0): 1, ("a", 1): 2, ("a", 1, "b"): 3, ("a", 1, "b", 0): 3, ("a", 1, "b", 0, "c"): 4,
        ("a", 1, "b", 0, "c", "d"): 5,
    }  # fmt: skip
