"""Pages in a browser: sorted tables, no request, no complaint; names of any kind are text."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from svdctl.utils.escapes import figure_text
from svdctl.utils.html_page import BASES, FactList, FoldedList, Page, PagePicture, PageSection, render, written_by
from svdctl.utils.inline_svg import svg_text
from svdctl.utils.matplotlib_defaults import Figure
from svdctl.utils.printable import printable
from svdctl.utils.table import Cell, Column, Table
from tests.browser import Browser, chromium

pytestmark = pytest.mark.drawn

HOSTILE = {
    "script": "</script><script>window.hit = 1</script>",
    "image": "\"><img src=x onerror='window.hit = 1'>",
    "style": "</style><style>* { display: none }</style>",
    "svg": "</svg><svg onload=window.hit=1>]]>--><!--",
    "entity": "&lt;b&gt; &amp;copy; $x^2$ \\$",
    "bidi": "abc\u202egnp.exe\u2066\u200f",
    "codes": "\x1b[31m\x00\r\n\ttab",
    "surrogate": "\udcff",
    "long": "x" * 5000,
    "letters": "סוד العربية 犬 é",
}


def table() -> Table:
    columns = [
        Column("name", "name", "left"),
        Column("value", "value", basis="proved"),
        Column("text", "text only"),
        Column("hidden"),
        Column("note", "note", "left"),
    ]
    figures = [(9.5, "9.5 %"), (10.25, "10.2 %"), (1e-7, "<= 1,000.5"), (float("inf"), "-2e3"), (None, "-")]
    rows = [
        [
            Cell(f"layer{10 - place}", f"layer{10 - place}"),
            Cell("-" if value is None else f"{value:.3g}", value, basis="assumed" if place == 1 else ""),
            Cell(text),
            Cell("", "not shown"),
            Cell("" if place else "a note", notes=(1,) if not place else ()),
        ]
        for place, (value, text) in enumerate(figures)
    ]
    return Table(columns, rows, "Title", "Caption.", ["a footnote"], ["a failure"], ["a", "a", "b", "b", "c"])


def picture(title: str = "a < b") -> str:
    figure = Figure(figsize=(3, 2))
    panel = figure.subplots()
    panel.plot([1, 2], [1, 2], "o-", label=figure_text(title)[:80])
    panel.imshow([[1, 2], [3, 4]])
    panel.legend()
    return svg_text(figure, "p1", title)


def page(text: str = "plain") -> Page:
    facts = FactList([("file", text), *written_by()])
    parts = [text, table(), PagePicture(picture(text), text), facts, FoldedList(text, [text])]
    return Page(text, text, [PageSection(text, parts), PageSection("Again", [table()])])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def test_a_column_is_sorted_by_value_with_clicks_and_keys(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(page()), encoding="utf-8")
    browser.open(file)
    assert browser.column("value") == ["9.5", "10.2", "1e-07", "inf", "-"]
    head = browser.header("value")
    states = []
    for _ in range(4):
        head.click()
        states.append((browser.all("#t0 th")[1].get_attribute("aria-sort"), browser.column("value")))
    down, up = ["inf", "10.2", "9.5", "1e-07", "-"], ["1e-07", "9.5", "10.2", "inf", "-"]
    as_it_was = ["9.5", "10.2", "1e-07", "inf", "-"]
    assert states == [("descending", down), ("ascending", up), ("none", as_it_was), ("descending", down)]
    assert browser.column("name")[0] == "layer7"
    browser.header("text only").send_keys(" ")
    assert browser.column("text only") == ["<= 1,000.5", "10.2 %", "9.5 %", "-2e3", "-"]
    assert [th.get_attribute("aria-sort") for th in browser.all("#t0 th")] == ["none", "none", "descending", "none"]
    browser.header("name").send_keys("\n")
    assert browser.column("name") == [f"layer{number}" for number in (6, 7, 8, 9, 10)]
    # The other table stays as it was.
    assert browser.column("name", 1) == [f"layer{number}" for number in (10, 9, 8, 7, 6)]
    assert browser.complaints() == []
    assert browser.requests() == [file.as_uri()]


def test_what_figures_rest_on_stands_behind_them(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(page()), encoding="utf-8")
    browser.open(file)
    seen = browser.run(
        "return [...document.querySelectorAll('#t0 td:nth-child(2)')].map(c => getComputedStyle(c, '::after').content)"
    )
    signs = [re.search(r'"(.)"', text) for text in seen]
    assert [sign and sign[1] for sign in signs] == ["■", "◪", "■", "■", None]
    assert browser.texts(".legend li") == [BASES["proved"][1], BASES["assumed"][1]]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_text(browser: Browser, tmp_path: Path, name: str) -> None:
    text = HOSTILE[name]
    file = tmp_path / "page.html"
    file.write_text(render(page(text)), encoding="utf-8")
    browser.open(file)
    assert browser.run("return window.hit ?? null") is None
    shown = printable(text).replace("\n", " ")
    for place in ("h1", "h2", "p.lead", "section > p", "figcaption", "dd", "summary", "details li"):
        assert browser.texts(place)[0].replace("\n", " ") == shown, place
    assert browser.texts("section:last-of-type h2") == ["Again"]
    assert len(browser.all("script")) == len(browser.all("style")) == 1
    assert browser.all("img") == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []
    assert browser.requests() == [file.as_uri()]


@pytest.mark.parametrize(("width", "scrolls"), [(500, True), (2000, False)])
def test_what_scrolls_says_so_and_nothing_is_cut(browser: Browser, tmp_path: Path, width: int, scrolls: bool) -> None:
    """Windows of Chromium are at least 500 wide."""
    columns = [Column("name", "name", "left"), *(Column(f"c{n}", f"a column {n}", "left") for n in range(8))]
    protocol = " ".join(f"word{n}" for n in range(60))
    rows = [[Cell("first"), Cell(protocol), *(Cell("value 12345") for _ in range(7))]]
    figure = Figure(figsize=(14, 2))
    figure.subplots().plot([1, 2])
    parts = [Table(columns, rows), PagePicture(svg_text(figure, "p2", "broad"), "broad")]
    file = tmp_path / "page.html"
    file.write_text(render(Page("page", "", [PageSection("section", parts)])), encoding="utf-8")
    browser.driver.set_window_size(width, 900)
    browser.open(file)
    browser.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    table = "document.querySelector('#t0')"
    hint = browser.run(f"return getComputedStyle({table}, '::before').content")
    assert ("scroll" in hint) is scrolls
    box = "document.querySelector('td > div')"
    assert browser.run(f"return {box}.scrollHeight <= {box}.clientHeight + 1")  # the protocol is whole
    first = "document.querySelector('td').getBoundingClientRect().left"
    before = browser.run(f"return {first}")
    browser.run(f"{table}.scrollLeft = 300")
    assert browser.run(f"return {first}") == pytest.approx(before, abs=1)
    svg = "document.querySelector('figure svg').getBoundingClientRect()"
    assert browser.run(f"return {svg}.right <= innerWidth")
    assert browser.complaints() == []


@pytest.fixture
def visits() -> Iterator[tuple[str, list[str]]]:
    """The address of a server of this machine, and what was asked of it."""
    found: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            found.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    thread.join()
    server.server_close()


LEAKS = """
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const at = arguments[0], done = arguments[arguments.length - 1];
const add = (name, attributes) => document.body.append(Object.assign(document.createElement(name), attributes));
new Image().src = at + "/image";
fetch(at + "/fetch").catch(() => null);
navigator.sendBeacon(at + "/beacon", "x");
try { new WebSocket(at.replace("http", "ws") + "/socket"); } catch { }
try { new EventSource(at + "/events"); } catch { }
add("script", { src: at + "/script" });
add("link", { rel: "stylesheet", href: at + "/style" });
add("iframe", { src: at + "/frame" });
add("object", { data: at + "/object" });
add("video", { src: at + "/video" });
add("style", { textContent: `body { background: url(${at}/background) }` });
add("div", { innerHTML: `<p style="background: url(${at}/attribute)">x</p>` });
add("form", { action: at + "/form", method: "post", target: "_self", id: "leak" });
document.getElementById("leak").submit();
wait(500).then(done);
"""


def test_no_request_can_leave_a_page(browser: Browser, tmp_path: Path, visits: tuple[str, list[str]]) -> None:
    """Even where a script is run in it; the same script reaches the server from a page without the policy."""
    address, found = visits
    file, bare = tmp_path / "page.html", tmp_path / "bare.html"
    text = render(page())
    file.write_text(text, encoding="utf-8")
    bare.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text), encoding="utf-8")
    browser.open(file)
    browser.driver.execute_async_script(LEAKS, address)
    assert found == []
    assert len(browser.complaints()) >= 10
    browser.open(bare)
    browser.driver.execute_async_script(LEAKS.replace('leak").submit()', 'leak")'), address)
    assert {"/image", "/fetch", "/script", "/style", "/frame"} <= set(found)


def test_pictures_have_their_own_ids_and_nothing_from_outside() -> None:
    root = ET.fromstring(picture())
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert ids
    assert all(name.startswith("p1-") for name in ids)
    assert len(set(ids)) == len(ids)
    attributes = [(key, value) for element in root.iter() for key, value in element.attrib.items()]
    assert not [key for key, _ in attributes if key in ("style", "class") or key.startswith("on")]
    links = [value for key, value in attributes if key == "href"]
    assert {link[:15] for link in links if link[0] != "#"} == {"data:image/png;"}
    assert {link[1:] for link in links if link[0] == "#"} <= set(ids)
    assert root.attrib["aria-label"] == "a < b"
    assert "a < b" in [element.text for element in root.iter("text")]
    assert picture() == picture()
