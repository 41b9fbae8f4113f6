"""The lines on which the keys of a TOML file stand, which its parser does not tell."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from svdctl.errors import FileError
from svdctl.utils.files import TOML_LIMIT, parse_toml, read_text

KeyPath = tuple[str | int, ...]
"""Names of keys, and numbers of elements in arrays of tables, from 0."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\[\s\S]|[^\\])*?"{3,5}(?!")'  # up to two quotation marks may stand before the closing three
    r"|'''[\s\S]*?'{3,5}(?!')"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
)
_LOCATED = re.compile(r"line \d+\)$")
_PLAIN = re.compile(r"[^\"'#\[\]{}\n]+")


class TomlLines:
    """Where the keys of a file stand.

    Args:
        text: TOML that a parser has read without a fault.
        name: of the file, in messages.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines = key_lines(text)
        self._by_name = {".".join(map(str, path)): line for path, line in self.lines.items()}

    @classmethod
    def of_file(cls, path: str | Path) -> "TomlLines":
        """Return those of a file; of one that can no longer be read, none."""
        try:
            return cls(read_text(os.path.expanduser(path), TOML_LIMIT, form="TOML"), str(path))
        except FileError:
            return cls("", str(path))

    def line(self, key: str) -> int | None:
        """Return the line of a dotted key, or of the innermost section above it that the file has; None without one."""
        while key not in self._by_name and key:
            key = key.rpartition(".")[0]
        return self._by_name.get(key)

    def located(self, faults: Iterable[str], *, elsewhere: Iterable[str] = ()) -> list[str]:
        """Return the faults with file and line of the key that each is about: at its start, or the first it names.

        Args:
            faults: sentences that begin with a dotted key, or have one in them.
            elsewhere: keys that something else than the file has set; of them, and of what is below, no line is told.
        """
        others = tuple(elsewhere)
        found = ((fault, self._line_of(fault, others)) for fault in faults)
        return [fault if line is None else f"{fault} ({self.name}, line {line})" for fault, line in found]

    def numbered(self, faults: Iterable[str], above: str = "") -> list[str]:
        """Return faults that name the file already with the line of the key that each is about.

        Args:
            faults: sentences that begin with a dotted key, or have one in them.
            above: the section in which their keys lie, whose line is told where they name none.
        """
        found = ((fault, self._line_of(fault, (), above) or self.line(above)) for fault in faults)
        return [fault if line is None or _LOCATED.search(fault) else f"{fault} (line {line})" for fault, line in found]

    def _line_of(self, fault: str, others: tuple[str, ...], above: str = "") -> int | None:
        for inner, is_first in _keys_in(fault):
            key = f"{above}.{inner}" if above else inner
            if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in others):
                return None
            line = self.line(key) if is_first else self._by_name.get(key)
            if line is not None:
                return line
        return None


def _keys_in(fault: str) -> Iterator[tuple[str, bool]]:
    """Yield the keys that a sentence may be about, each with whether it is what the sentence begins with."""
    key = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
    if first := re.match(rf"`?({key})`?(?=:| = | has )", fault):
        yield first[1], True
    yield from ((found, False) for found in re.findall(rf"(?<![\w.'/-]){key}(?![\w'/-])", fault) if "." in found)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of each key and each table of a TOML text; of what is in `{ }` and `[ ]`, none.

    A table that has a header stands there; one that dotted keys or headers below it make, at the first of them.
    """
    found: dict[KeyPath, int] = {}
    elements: dict[KeyPath, int] = {}
    table: KeyPath = ()
    line, counted = 1, 0
    at = _after(_BLANK, text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        if text[at] == "[":
            is_array = text.startswith("[[", at)
            names, at = _key(text, at + 1 + is_array)
            table = ()
            for name in names[:-1]:
                table = (*table, name)
                table = (*table, elements[table]) if table in elements else table  # the last one so far is meant
                found.setdefault(table, line)
            table = (*table, names[-1])
            if is_array:
                found.setdefault(table, line)
                elements[table] = elements.get(table, -1) + 1
                table = (*table, elements[table])
            found[table] = line
            at += 1 + is_array
        else:
            names, at = _key(text, at)
            for length in range(1, len(names) + 1):
                found.setdefault((*table, *names[:length]), line)
            at = _after_value(text, at)
        at = _after(_BLANK, text, at)
    return found


def _key(text: str, at: int) -> tuple[list[str], int]:
    """Return the parts of the dotted key at a position, and the position of the sign after it."""
    names = []
    while True:
        at = _after(_BLANK, text, at)
        quoted = _STRING.match(text, at)
        found = quoted or _BARE.match(text, at)
        assert found is not None
        names.append(parse_toml(f"key = {found[0]}", "a key")["key"] if quoted else found[0])
        at = _after(_BLANK, text, found.end())
        if text[at] != ".":
            return names, at
        at += 1


def _after_value(text: str, at: int) -> int:
    """Return the position of the end of the line on which the value ends that begins after the `=` at a position."""
    depth = 0
    while at < len(text) and (depth or text[at] != "\n"):
        if text[at] in "[{":
            depth += 1
        elif text[at] in "]}":
            depth -= 1
        found = _STRING.match(text, at) or _PLAIN.match(text, at)
        if text[at] == "#":
            at = _after(_BLANK, text, at) if depth else _line_end(text, at)
        else:
            at = found.end() if found else at + 1
    return at


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return the position after what a pattern matches at a position."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()
