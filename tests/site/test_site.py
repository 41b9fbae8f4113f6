"""The documentation site is built without a warning and asks no server; its links work in the repository too."""

import logging
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import chromium

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<=\]\()(?!https?:)([^)#\s]*)#?([^)\s]*)(?=\))")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `.ci/run` builds it."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict
    config.extra["execute_notebook"] = False  # it is run by a test of its own
    with CaughtLogs("mkdocs") as said:
        config.plugins.on_startup(command="build", dirty=False)
        try:
            build(config)  # any warning is an error
        except BaseException as error:
            raise AssertionError("\n".join(said)) from error
        finally:
            config.plugins.on_shutdown()
    return folder


class CaughtLogs(logging.Handler):
    """What a logger says at the level of a warning or above."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self.logger, self.said = logging.getLogger(name), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def __enter__(self) -> list[str]:
        self.logger.addHandler(self)
        return self.said

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)


class _Requests(HTMLParser):
    """Addresses that a browser asks for when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get("href") or "")
        elif tag in ("script", "img", "iframe", "source", "video", "object"):
            self.found.append(values.get("src") or values.get("srcset") or values.get("data") or "")


def test_no_request_leaves_the_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        requests = _Requests()
        requests.feed(page.read_text(encoding="utf-8"))
        assert [address for address in requests.found if re.match(r"(https?:)?//", address)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_no_fence_of_code_is_shown_as_text(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        assert "```" not in page.read_text(encoding="utf-8"), page.name


@pytest.mark.slow
def test_no_table_is_wider_than_a_screen(site: Path) -> None:
    wider = """return [...document.querySelectorAll(".md-typeset__scrollwrap")]
        .filter(box => box.scrollWidth > box.clientWidth + 2).map(box => box.innerText.slice(0, 60))"""
    with chromium() as browser:
        browser.driver.set_window_size(1300, 900)
        pages = [page for page in sorted(site.rglob("*.html")) if "<table" in page.read_text(encoding="utf-8")]
        assert len(pages) > 10
        for page in pages:
            browser.open(page)
            assert browser.run(wider) == [], page.name


def test_search_finds_a_page_that_is_opened_as_a_file(site: Path) -> None:
    with chromium() as browser:
        from selenium.webdriver.support.wait import WebDriverWait

        browser.driver.set_window_size(1300, 900)  # small windows hide the search behind a button
        browser.open(site / "index.html")
        (box,) = browser.all("input.md-search__input")
        browser.driver.execute_script("arguments[0].focus()", box)
        box.send_keys("Dykstra")
        found = WebDriverWait(browser.driver, 30).until(lambda _: browser.all(".md-search-result__item a"))
        assert any("theory.html" in link.get_attribute("href") for link in found)
        addresses = browser.requests()
        assert addresses
        assert {address.partition(":")[0] for address in addresses} <= {"file", "about", "blob"}
        assert browser.complaints() == []


def slugs(page: Path) -> set[str]:
    """The anchors of a page on the repository's web view."""
    headings = re.findall(r"^#{1,6} (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str, str]]:
    for page in PAGES:
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            yield page, match[1], match[2]


def test_links_lead_somewhere_in_the_repository() -> None:
    found = list(links())
    assert len(found) > 50
    for page, target, anchor in found:
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in slugs(there), f"{page.name}: {target}#{anchor}"
