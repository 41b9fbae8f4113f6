"""Pages in a real browser: headless Chromium through its driver, with a log of what it complains of and asks for."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """Chromium, which opens one page after another."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        """Open a file as a page; what was logged of others is forgotten."""
        self.complaints()
        self.requests()
        self.driver.get(page.absolute().as_uri())

    def run(self, script: str) -> Any:
        """Return what a script returns that is run in the page, for which its Content-Security-Policy holds."""
        return self.driver.execute_script(script)

    def all(self, selector: str) -> list[Any]:
        """Return the elements of a CSS selector."""
        return list(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements of a CSS selector, as they are in the document."""
        return [element.get_attribute("textContent") for element in self.all(selector)]

    def column(self, header: str, table: int = 0) -> list[str]:
        """Return the texts of a column of a table, from the top to the bottom."""
        place = self.texts(f"#t{table} thead button").index(header) + 1
        return self.texts(f"#t{table} tbody td:nth-child({place})")

    def header(self, text: str, table: int = 0) -> Any:
        """Return the button above a column."""
        return next(b for b in self.all(f"#t{table} thead button") if b.get_attribute("textContent") == text)

    def complaints(self) -> list[str]:
        """Return what the browser has logged: errors of scripts, and what a Content-Security-Policy has refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for, the page's own included.

        Data within the page are none; nor are parts of the page that the browser begins with, which goes on loading.
        """
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        found = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [address for address in found if not address.startswith(("data:", "chrome:", "chrome-untrusted:"))]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give a browser; the test is skipped where there is none, and fails there in CI."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        why = "chromium and chromedriver are not installed"
        # CI installs both: there a test that is skipped would hide that they are lost.
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    # Processes of the browser that outlive `quit` for a moment may still write into its profile.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        found = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield Browser(found)
        finally:
            found.quit()
