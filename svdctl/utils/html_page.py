"""One self-contained page of HTML: tables that can be sorted, pictures, and where its figures come from.

A page loads nothing, and its Content-Security-Policy lets no request leave it. Every text is escaped.
"""

import base64
import hashlib
import itertools
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType

from svdctl.utils.escapes import html_text
from svdctl.utils.machine import machine
from svdctl.utils.table import Basis, Table, sortable_html

BASES: Mapping[Basis, tuple[str, str]] = MappingProxyType(
    {
        "proved": ("■", "proved: it holds with certainty, rounding of floating-point numbers included"),
        "assumed": ("◪", "proved, if what its row says is assumed holds"),
        "computed": ("□", "computed from the weights in floating-point numbers: exact but for rounding, not proved"),
        "measured": ("○", "measured, as on test images: an estimate of what others would give"),
        "estimated": ("◌", "estimated, not measured: by a model, or to a tolerance"),
    }
)
"""The sign that stands behind figures, and what it means."""


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
    """Return facts about this process: versions, machine and time."""
    return [
        ("written", time.strftime("%Y-%m-%d %H:%M %Z").strip()),
        ("svdctl", version("svdctl")),
        ("Python", platform.python_version()),
        ("machine", machine()),
    ]


def render(page: Page) -> str:
    """Return a page as one HTML document, which ends with a line feed."""
    policy = (
        f"default-src 'none'; style-src '{_digest(_STYLE)}'; script-src '{_digest(_SCRIPT)}'; img-src data:; "
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
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
        f'<p class="lead">{html_text(page.lead)}</p>',
        *_legend(page),
        *(line for section in page.sections for line in _section(section, tables)),
        "</main>",
        f"<script>{_SCRIPT}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


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
                yield f"<details><summary>{html_text(part.summary)}</summary><ul>{items}</ul></details>"
    yield "</section>"


_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #5b6670; --line: #d5dade; --paper: #ffffff; --band: #f3f5f7;
  --accent: #22588a; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ea; --faint: #9aa5ae; --line: #3a424a; --paper: #15191d; --band: #1f252b; --accent: #8cbbe6; }
  figure svg { filter: invert(1) hue-rotate(180deg) brightness(1.25); }
}
@media print { :root { color-scheme: light; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
main { max-width: 1480px; margin: 0 auto; padding: 20px 24px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 6px; max-height: 6.3rem; overflow: auto; }
h2 { font-size: 1.12rem; margin: 34px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); max-height: 6rem;
  overflow: auto; }
p, li, figcaption, caption { max-width: 84ch; }
p { margin: 6px 0; }
.lead { color: var(--faint); }
.wide { overflow-x: auto; margin: 10px 0; }
.wide:focus-visible, button:focus-visible, summary:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 1px; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding: 2px 0 8px; color: var(--faint); }
th, td { padding: 4px 10px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  background: var(--paper); white-space: nowrap; }
tbody tr:hover > td { background: var(--band); }
th { padding: 0; vertical-align: bottom; border-bottom: 2px solid var(--faint); background: var(--band); }
.figures { text-align: right; }
td > div { max-height: 6.2em; min-width: 26ch; max-width: 46ch; overflow: auto; overflow-wrap: anywhere;
  white-space: normal; }
th:first-child, td:first-child { position: sticky; left: 0; z-index: 1; }
th button { all: unset; box-sizing: border-box; display: block; width: 100%; padding: 6px 10px; cursor: pointer;
  font-weight: 600; color: var(--ink); }
th button:hover { color: var(--accent); }
th button::after { content: "\\2195"; content: "\\2195" / ""; display: inline-block; width: 1.1em; text-align: right;
  color: var(--faint); opacity: 0.55; }
th[aria-sort="ascending"] button::after { content: "\\2191"; content: "\\2191" / ""; }
th[aria-sort="descending"] button::after { content: "\\2193"; content: "\\2193" / ""; }
th:not([aria-sort="none"]) button::after { color: var(--accent); opacity: 1; }
tbody:not(.sorted) tr.group td { border-top: 2px solid var(--faint); }
.legend { list-style: none; margin: 14px 0 0; padding: 8px 12px; background: var(--band); border-radius: 6px;
  font-size: 0.87rem; width: fit-content; max-width: 100%; }
.legend span { display: inline-block; width: 1.6em; }
"""
    + "".join(
        f'.{basis}::after {{ content: "{sign}"; content: "{sign}" / "{basis}"; }}\n'
        for basis, (sign, _) in BASES.items()
    )
    + """td[class]::after { color: var(--accent); margin-left: 5px; font-size: 0.86em; }
.legend span::after { color: var(--accent); }
td > div::after { content: none; }
figure { margin: 10px 0; }
figure svg { display: block; max-width: 100%; height: auto; font-family: "DejaVu Sans", Verdana, sans-serif; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { color: var(--faint); font-size: 0.87rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0; font-size: 0.9rem; }
dt { color: var(--faint); }
dd { margin: 0; min-width: 0; max-height: 9em; overflow: auto; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--accent); }
ul { padding-left: 22px; margin: 6px 0; font-size: 0.92rem; }
@media (max-width: 640px) {
  main { padding: 14px 12px 36px; }
  h1 { font-size: 1.25rem; }
  figure svg[width] { max-width: none; width: max(100%, 600px); }
  td:first-child { min-width: 26vw; max-width: 38vw; white-space: normal; overflow-wrap: anywhere; }
  td:first-child > div { min-width: 0; }
  td { padding: 4px 7px; }
  th button { padding: 5px 7px; }
  dl { display: block; }
  dd { margin: 0 0 6px; }
}
@page { size: landscape; margin: 11mm; }
@media print {
  body { font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  table { font-size: 7pt; }
  td { padding: 2px 5px; }
  th, td { position: static !important; }
  th button { padding: 2px 5px; }
  th[aria-sort="none"] button::after { content: none; }
  th, td:not(.figures) { white-space: normal; overflow-wrap: anywhere; }
  td > div { min-width: 0; }
  h1, h2, dd, td > div { max-height: none; overflow: visible; }
  tr, figure, dl, .legend { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
)
_SCRIPT = """
"use strict";
const collator = new Intl.Collator("en", { numeric: true });
const valueOf = (cell, numbers) => {
  if (numbers) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "-" ? null : text;
};
const compare = (one, other, sign) => {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "string") return sign * collator.compare(one, other);
  return sign * ((one > other) - (one < other));
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const numbers = "numbers" in head.dataset;
    const orders = numbers ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
    const values = new Map(rows.map((row) => [row, valueOf(row.cells[column], numbers)]));
    const sign = order === "ascending" ? 1 : -1;
    const sorted = [...rows];
    if (order !== "none") sorted.sort((one, other) => compare(values.get(one), values.get(other), sign));
    body.classList.toggle("sorted", order !== "none");
    body.append(...sorted);
  }));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
"""
