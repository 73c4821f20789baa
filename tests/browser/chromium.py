"""The system's Chromium (Debian's `chromium`), driven by Playwright."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from puzzles.catalog import UserError


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A Chromium without windows, as Playwright's Browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("Browser tests and pictures need Playwright: run `make browser`, which installs it.") from None
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise UserError("Browser tests and pictures need Chromium: apt-get install chromium.")
    # the sandbox needs namespaces that containers refuse; the pages are our own
    with sync_playwright() as driver, driver.chromium.launch(executable_path=path, args=["--no-sandbox"]) as running:
        yield running
