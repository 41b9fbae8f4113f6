"""A headless Chromium, which reaches no other machine."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def open_chromium() -> Iterator[Any]:
    """Open a browser and close it; the test is skipped where there is none, but not in continuous integration."""
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if program is None or driver is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium with chromedriver; .ci/run installs them")
        pytest.skip("there is no chromium with chromedriver")
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        browser.set_window_size(1300, 900)
        yield browser
    finally:
        browser.quit()
