"""One Chromium for all browser tests: the system's (Debian's `chromium`), driven by Playwright."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    # the sandbox needs namespaces that containers refuse; the pages are our own
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as running,
    ):
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page in a browser that remembers nothing."""
    with browser.new_context(viewport={"width": 1400, "height": 1000}) as context:
        yield context.new_page()
