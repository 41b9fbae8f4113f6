"""One self-contained page of HTML: tables that can be sorted, pictures, and where its figures come from.

A page loads nothing, and its Content-Security-Policy lets no request leave it. Every text is escaped.
"""

import base64
import hashlib
import itertools
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from svdctl.utils.escapes import html_text
from svdctl.utils.files import read_text
from svdctl.utils.machine import machine
from svdctl.utils.table import Basis, Table, sortable_html

BASES: Mapping[Basis, tuple[str, str]] = MappingProxyType(
    {
        "proved": ("■", "proved: it holds with certainty, rounding of floating-point numbers included"),
        "assumed": ("◪", "proved, if what its row says is assumed holds"),
        "computed": ("□", "computed from the weights in floating-point numbers: exact but for rounding, not proved"),
        "measured": ("○", "measured, on test images or by a clock: another measurement may differ"),
        "reached": ("△", "reached by a search: what is true may lie beyond it, as under a stronger attack"),
        "estimated": ("◌", "estimated by a model, not measured"),
    }
)
"""The sign that stands behind figures, and what it means."""
_SIGNS = "".join(
    f'.{basis}::after {{ content: "{sign}"; content: "{sign}" / "{basis}"; }}\n' for basis, (sign, _) in BASES.items()
)
"""Rules that put them there: what is copied from a table has none."""


@dataclass(frozen=True)
class PagePicture:
    """A picture and what stands below it."""

    svg: str
    """An `<svg>` element, as `inline_svg.svg_text` returns it: the one part of a page that is markup already."""
    caption: str = ""


@dataclass(frozen=True)
class FactList:
    """Names and what is known of each, as where a page comes from."""

    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class FoldedList:
    """Lines below a sentence, shown when a reader opens it, and in print."""

    summary: str
    lines: Sequence[str]
    is_open: bool = False
    """Whether they are shown at once, and a reader may close them."""


@dataclass(frozen=True)
class PageSection:
    """A part of a page below a heading; texts are paragraphs."""

    heading: str
    parts: Sequence[str | Table | PagePicture | FactList | FoldedList]


@dataclass(frozen=True)
class Page:
    """What a page shows."""

    title: str
    lead: str
    """A sentence below the title: what it is of, and what came out."""
    sections: Sequence[PageSection]


def written_by() -> list[tuple[str, str]]:
    """Return facts about this process: command, time, versions and machine."""
    program = Path(sys.argv[0]).name
    return [
        ("command", shlex.join(["svdctl" if program == "__main__.py" else program, *sys.argv[1:]])),
        ("written", time.strftime("%Y-%m-%d %H:%M %Z").strip()),
        ("svdctl", version("svdctl")),
        ("Python", platform.python_version()),
        ("machine", machine()),
    ]


def render(page: Page) -> str:
    """Return a page as one HTML document, which ends with a line feed."""
    style, script = _own_file("page.css") + _SIGNS, _own_file("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title, tables = html_text(page.title), itertools.count()
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        '<link rel="icon" href="data:,">',
        f"<title>{title}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
        f'<p class="lead">{html_text(page.lead)}</p>',
        *_legend(page),
        *(line for section in page.sections for line in _section(section, tables)),
        "</main>",
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _own_file(name: str) -> str:
    return read_text(Path(__file__).with_name(name))


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _legend(page: Page) -> Iterator[str]:
    """Yield what the signs behind the page's figures mean."""
    tables = [part for section in page.sections for part in section.parts if isinstance(part, Table)]
    found = {
        cell.basis or column.basis
        for table in tables
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if column.header is not None and not cell.is_empty
    }
    items = [f'<li><span class="{basis}"></span>{html_text(BASES[basis][1])}</li>' for basis in BASES if basis in found]
    if items:
        yield f'<ul class="legend" aria-label="What the signs behind figures mean">{"".join(items)}</ul>'


def _section(section: PageSection, tables: Iterator[int]) -> Iterator[str]:
    """Yield a section; the tables of a page are called `t0`, `t1` and so on."""
    yield f"<section>\n<h2>{html_text(section.heading)}</h2>"
    for part in section.parts:
        match part:
            case str():
                yield f"<p>{html_text(part)}</p>"
            case Table():
                named = f'id="t{next(tables)}" aria-label="{html_text(part.title or section.heading)}"'
                yield f'<div class="wide" role="region" {named} tabindex="0">{sortable_html(part)}</div>'
            case PagePicture():
                caption = f"<figcaption>{html_text(part.caption)}</figcaption>" if part.caption else ""
                yield f'<figure><div class="wide" tabindex="0">{part.svg}</div>{caption}</figure>'
            case FactList():
                facts = (f"<dt>{html_text(name)}</dt><dd>{html_text(text)}</dd>" for name, text in part.facts)
                yield f"<dl>{''.join(facts)}</dl>"
            case FoldedList():
                items = "".join(f"<li>{html_text(line)}</li>" for line in part.lines)
                summary = f"<summary>{html_text(part.summary)}</summary>"
                yield f"<details{' open' * part.is_open}>{summary}<ul>{items}</ul></details>"
    yield "</section>"
