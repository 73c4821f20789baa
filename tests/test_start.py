"""The start page: what it shows before it is run, once it is run, and when its buttons are pressed."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from autograder import demo
from puzzles import catalog, page, progress, start, workspace
from puzzles.alternative import alternatives
from tests.conftest import PUZZLE, Command

PARTS = catalog.puzzle(PUZZLE).parts
PRESS = """from ipywidgets import Button, Widget

buttons = [each for each in Widget.widgets.values() if isinstance(each, Button)]
[button] = [each for each in buttons if each.description.startswith("Test 1 ")]
button.click()"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path / "work"


def document(*passed: str) -> dict[str, Any]:
    """What `--verify --json` prints where these parts are right."""
    parts: list[dict[str, Any]] = [
        {
            "id": part.id,
            "title": part.title,
            "points": part.points if part.id in passed else 0,
            "max": part.points,
            "status": "passed" if part.id in passed else "wrong",
            "message": "All right." if part.id in passed else "<b>Case 1</b>: 3 is not 4.",
        }
        for part in PARTS
    ]
    score = sum(part["points"] for part in parts)
    return {"puzzle": PUZZLE, "score": score, "max": 100, "parts": parts, "notes": []}


def run_page(work: Path, *more: str) -> NotebookNode:
    """The start page of `work`, run as JupyterLab runs it, and then these cells."""
    notebook = nbformat.read(work / "START.ipynb", as_version=4)
    notebook.cells += [new_code_cell(code) for code in more]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(work)}}).execute()
    return notebook


def shown(notebook: NotebookNode, kind: str = "text/html") -> str:
    [cell] = [cell for cell in notebook.cells if "start()" in cell.source]
    return "\n".join(output.data[kind] for output in cell.outputs if kind in output.get("data", {}))


def test_the_page_is_readable_before_anything_is_run(run: Command, work: Path):
    """JupyterLab runs nothing on opening, and shows of unsigned HTML what cannot harm: no script, no button."""
    assert run("puzzles", "--prepare").returncode == 0
    notebook = nbformat.read(work / "START.ipynb", as_version=4)
    nbformat.validate(notebook)
    html = shown(notebook)
    for puzzle in catalog.puzzles():
        assert (
            puzzle.title in html
            and f"{puzzle.minutes}</td>" in html
            and f"title='{puzzle.stars} stars'>{'★' * puzzle.stars}" in html
        )
    links = re.findall(r"href='([^']*)'", html)
    assert len(links) == len(catalog.puzzles()) + len(catalog.labs())
    assert all((work / link).is_file() for link in links), "links lead to what was laid out"
    assert "Next: open The Transformer Blueprint" in html
    assert not re.search("<script|<button|onclick", html)
    assert "Next: open" in shown(notebook, "text/plain")


def test_preparing_again_brings_the_page_up_to_date(run: Command, work: Path):
    run("puzzles", "--prepare")
    with progress.changing(PUZZLE) as state:
        state.earn({part.id: part.points for part in PARTS})
    run("puzzles", "--prepare")
    html = shown(nbformat.read(work / "START.ipynb", as_version=4))
    assert "✓ solved" in html and "100 of 100" in html and "Next: open The Optimization Layer" in html


@pytest.mark.slow
def test_a_button_runs_the_hidden_tests_and_brings_the_table_up_to_date(run: Command, work: Path):
    run("puzzles", "--prepare")
    workspace.own_notebook(catalog.puzzle(PUZZLE)).write_text(demo.STUDENTS["ada_reference"](PUZZLE))
    notebook = run_page(work, PRESS)
    html, text = shown(notebook), shown(notebook, "text/plain")
    assert "The Transformer Blueprint: 100 of 100 points" in html and "The Transformer Blueprint: 100 of 100" in text
    assert "✓ solved" in html, "the table above shows it at once"
    assert "as saved at" in html
    assert "Another solution: loops" in html, "full marks open what else is right"
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"
    ]


def test_a_button_says_in_a_sentence_why_there_is_no_verdict(run: Command, work: Path):
    run("puzzles", "--prepare")
    workspace.own_notebook(catalog.puzzle(PUZZLE)).write_text("{")
    assert "There is no verdict: " in (html := shown(run_page(work, PRESS)))
    assert "not a Jupyter notebook" in html and "Traceback" not in html


@pytest.mark.slow
def test_a_verdict_that_cannot_be_saved_is_shown_with_the_reason(run: Command, work: Path):
    run("puzzles", "--prepare")
    (work / "progress.json").write_text("{")
    text = start.verify(catalog.puzzle(PUZZLE))["text/plain"]
    assert "0 of 100 points" in text and "progress.json is damaged: delete it" in text


def test_damaged_progress_is_told_on_the_page_and_stops_nothing(run: Command, work: Path):
    work.mkdir()
    (work / "progress.json").write_text("[")
    assert run("puzzles", "--prepare").returncode == 0, "make lab goes on"
    bundle = page.course()
    assert "progress.json is damaged" in bundle["text/html"] and "progress.json is damaged" in bundle["text/plain"]
    assert "The Transformer Blueprint" in bundle["text/html"]


def test_a_verdict_says_part_points_message_and_next_step(work: Path):
    bundle = page.verdict(document("widths"), "12:00:00")
    html, text = bundle["text/html"], bundle["text/plain"]
    assert html.count("<tr>") == len(PARTS) + 1
    assert "✓ One dial: the widths" in html and "10 of 10" in html and ">passed" in html
    assert "✗ Where am I: rotary tables" in html and "not yet right" in html
    assert "&lt;b&gt;Case 1&lt;/b&gt;" in html and "<b>Case 1" not in html, "messages are text"
    assert html.count("<details>") == 3 * (len(PARTS) - 1), "every part that is not right folds out its hints"
    assert f"Next: {PARTS[1].title}." in html and f"Next: {PARTS[1].title}." in text
    assert text.count("3 is not 4") == len(PARTS) - 1
    assert catalog.puzzle(PUZZLE).commentary[:40] not in html, "the commentary is for who has full marks"


def test_full_marks_open_commentary_and_alternatives(work: Path):
    html = page.verdict(document(*(part.id for part in PARTS)))["text/html"]
    assert "Another way to write the mask" in html and "<code>torch.nn.attention.flex_attention</code>" in html
    names = [name for name, _ in alternatives(PUZZLE)]
    assert len(names) == 3 and all(f"Another solution: {name}" in html for name in names)


@pytest.mark.parametrize("puzzle", [puzzle.id for puzzle in catalog.puzzles()])
def test_every_part_of_every_puzzle_has_alternatives(puzzle: str):
    for part in catalog.puzzle(puzzle).parts:
        found = alternatives(puzzle, part.id)
        assert found and all("def " in code or "class " in code for _, code in found)


def test_the_page_of_a_course_is_its_data(work: Path):
    """A bundle that Jupyter can save: text only."""
    assert json.loads(json.dumps(page.course())) == page.course()
