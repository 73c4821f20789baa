"""The first puzzle in JupyterLab, as a learner has it: from the empty notebook to checks that pass."""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from autograder.template import solution_cells
from autograder.variants import source
from puzzles import catalog
from tests.browser.jupyterlab import Notebook, Server
from tests.conftest import PUZZLE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PARTS = catalog.puzzle(PUZZLE).parts
WIDTHS = """n_head = -(-depth * aspect_ratio // head_dim)
n_kv_head = n_kv_head or n_head
if n_head % n_kv_head: raise ValueError("n_kv_head does not divide n_head")
return {"n_embd": n_head * head_dim, "n_head": n_head, "n_kv_head": n_kv_head}"""


@pytest.fixture
def own_copy(work: Path, request: pytest.FixtureRequest) -> str:
    """The learner's notebook of the first puzzle, a fresh one for each test, as a path in JupyterLab."""
    name = f"{PUZZLE}/{request.node.name}.ipynb"
    shutil.copy(catalog.release_notebook(PUZZLE), work / name)
    return name


def alt_texts(notebook: Notebook, name: str) -> list[str]:
    """The pictures a cell shows, by what they say to those who do not see them."""
    return notebook.output(name).locator("img").evaluate_all("images => images.map(image => image.alt)")


def test_a_hole_filled_at_the_keyboard_turns_its_check_and_shows_its_picture(
    lab: Server, page: Any, own_copy: str
) -> None:
    """Run all on the release stops nowhere; a solved hole changes its own check and nothing else; all is kept."""
    notebook = Notebook.open(page, lab, own_copy)
    notebook.run_all()
    assert notebook.troubles() == []
    check = notebook.output("check-widths")
    assert "○ One dial: the widths: not solved yet" in check.inner_text()
    assert alt_texts(notebook, "plot-widths") == []
    hint = check.get_by_text(PARTS[0].hints[0])
    assert not hint.is_visible()
    check.get_by_text("Hint 1 of 3").click()
    assert hint.is_visible()
    notebook.screenshot("learner-unsolved")

    notebook.cell("widths").locator(".cm-content").click()
    notebook.type_over_stub(WIDTHS)
    notebook.run_all()
    assert notebook.troubles() == []
    assert "✓ One dial: the widths: passed" in check.inner_text()
    assert check.locator("details").count() == 0
    assert alt_texts(notebook, "plot-widths")[0].startswith("Your width climbs")
    assert "not solved yet" in notebook.output("check-window_sizes").inner_text()
    check.scroll_into_view_if_needed()
    notebook.screenshot("learner-solved")

    failed = re.findall(r'check\.visible\("(\w+)"\)', notebook.validate())
    assert failed == [part.id for part in PARTS[1:]]
    page.goto("about:blank")
    again = Notebook.open(page, lab, own_copy)
    assert "n_head = -(-depth" in again.cell("widths").inner_text()
    assert "✓ One dial: the widths: passed" in again.output("check-widths").inner_text()
    assert alt_texts(again, "plot-widths")[0].startswith("Your width climbs")


def test_a_solved_notebook_validates_and_shows_the_oracle_beside_it(
    lab: Server, work: Path, page: Any, own_copy: str
) -> None:
    notebook = nbformat.read(work / own_copy, as_version=4)
    solutions = {name: cell.source for name, cell in solution_cells(source(PUZZLE)).items()}
    for name, cell in solution_cells(notebook).items():
        cell.source = solutions.get(name, cell.source)
    nbformat.write(notebook, work / own_copy)
    opened = Notebook.open(page, lab, own_copy)
    opened.run_all()
    assert opened.troubles() == []
    for part in PARTS:
        assert f"✓ {part.title}: passed" in opened.output(f"check-{part.id}").inner_text()
    assert all(picture["alt"] and picture["width"] > 300 for picture in opened.pictures())
    assert "nanochat differs" in alt_texts(opened, "plot-model-masks")[0]
    opened.cell("plot-model-masks").scroll_into_view_if_needed()
    opened.screenshot("learner-beside-the-oracle")
    assert "Success" in opened.validate()


def tab_to(page: Any, text: str) -> None:
    """Press Tab until what has the focus begins with `text`."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText ?? ''").startswith(text):
            return
    pytest.fail(f"forty presses of Tab do not reach '{text}'")


def run_until(notebook: Notebook, name: str) -> None:
    """Press Shift+Enter until the cell nbgrader calls `name` is the current one."""
    current = "window.jupyterapp.shell.currentWidget.content.activeCell.model.getMetadata('nbgrader')?.grade_id"
    for _ in range(60):
        if notebook.page.evaluate(current) == name:
            return
        notebook.page.keyboard.press("Shift+Enter")
    pytest.fail(f"sixty presses of Shift+Enter do not reach the cell {name}")


def test_from_the_start_page_to_a_passed_check_without_a_mouse(lab: Server, page: Any) -> None:
    puzzle = catalog.puzzle(PUZZLE)
    start = Notebook.open(page, lab, "START.ipynb")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    start.page.get_by_role("link", name=puzzle.title).wait_for()
    page.keyboard.press("ArrowUp")
    tab_to(page, puzzle.title)
    page.keyboard.press("Enter")
    notebook = Notebook.wait_for(page, f"{PUZZLE}/{PUZZLE}.ipynb")

    run_until(notebook, "widths")
    page.keyboard.press("Enter")
    notebook.type_over_stub(WIDTHS)
    run_until(notebook, "test-window_sizes")
    notebook.output("check-widths").get_by_text("✓ One dial: the widths: passed").wait_for()
    notebook.output("check-window_sizes").get_by_text("not solved yet").wait_for()
    page.keyboard.press("ArrowUp")
    tab_to(page, "Hint 1 of 3")
    page.keyboard.press("Enter")
    notebook.output("check-window_sizes").get_by_text(PARTS[1].hints[0]).wait_for()
    notebook.screenshot("learner-keyboard")
    page.keyboard.press("Control+s")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
