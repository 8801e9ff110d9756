"""The browser of the tests of the page: the system's Chromium, without a window, through Playwright.

    with headless.chromium() as browser:
        page = browser.new_page()

The test is skipped, with the reason, where one of the two is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llamalite

FOLDER = Path(llamalite.__file__).parent / "server" / "page"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install '.[browser]'")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    # Chromium's own sandbox does not start for root, as in a container.
    arguments = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()
