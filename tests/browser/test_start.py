"""The start page in JupyterLab: the hidden tests without a terminal and without a mouse."""

from pathlib import Path
from typing import Any

import pytest

from puzzles import catalog
from tests.browser.jupyterlab import Notebook, Server
from tests.conftest import PUZZLE

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_button_pressed_at_the_keyboard_shows_verdicts_with_hints(lab: Server, work: Path, page: Any) -> None:
    puzzle = catalog.puzzle(PUZZLE)
    start = Notebook.open(page, lab, "START.ipynb")
    assert puzzle.title in start.cells.first.inner_text(), "the table is there before anything is run"
    start.run_all()
    page.get_by_role("button", name="Show my progress again").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == f"Test 1 · {puzzle.title}"
    page.keyboard.press("Enter")
    page.get_by_text("Tested: your notebook as saved at").wait_for(timeout=120_000)
    result = page.get_by_role("status").filter(has_text=f"{puzzle.title}: ")
    assert result.locator("tr").count() == len(puzzle.parts) + 1
    hint = result.get_by_text(puzzle.parts[-1].hints[0])
    assert not hint.is_visible()
    result.locator("summary", has_text="Hint 1").last.press("Enter")
    assert hint.is_visible()
    assert start.troubles() == []
    start.screenshot("start-verdict")
