"""The template a submission is laid into: the instructor's notebook without solutions, with hidden tests."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbformat import NotebookNode
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, ClearSolutions, ComputeChecksums, LockCells
from traitlets.config import Config

from puzzles import catalog

# What a hole holds in the release.
STUB = 'raise NotImplementedError("This hole is yours to fill.")'
# What nbgrader's generate_assignment does before it saves the cells to the gradebook and strips the hidden tests.
STEPS = (LockCells, ClearSolutions, ClearOutput, CheckCellMetadata, ComputeChecksums)


def template(puzzle_id: str, course: Path = catalog.ROOT) -> NotebookNode:
    """The template of a puzzle, with the checksums nbgrader's gradebook knows. UserError if the course lacks it, or
    has changed its points since."""
    path = catalog.source_notebook(puzzle_id, course)
    if not path.exists():
        raise catalog.UserError(f"There is no {path}: the course has no source notebook of '{puzzle_id}'.")
    notebook = nbformat.read(path, as_version=4)
    if puzzle_of(puzzle_id, notebook) != catalog.puzzle(puzzle_id, course):
        raise catalog.UserError(
            f"{catalog.COURSE_FILE} gives {puzzle_id} other points than it was released with: "
            f"run `python -m autograder release {puzzle_id}`."
        )
    config = Config()
    config.ClearSolutions.code_stub = {"python": STUB}
    for step in STEPS:
        notebook, _ = step(config=config).preprocess(notebook, ResourcesDict())
    return notebook


def puzzle_of(puzzle_id: str, notebook: NotebookNode) -> catalog.Puzzle:
    """A puzzle with the points that stand in its notebook, which are the same on whatever machine it is graded."""
    cells = [cell.metadata.get("nbgrader", {}) for cell in notebook.cells]
    points = {cell["grade_id"].removeprefix("test-"): cell["points"] for cell in cells if cell.get("grade")}
    return catalog.with_points(catalog.puzzle(puzzle_id), points)


def solution_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """The cells a learner fills, by grade_id."""
    return {
        cell.metadata.nbgrader.grade_id: cell
        for cell in notebook.cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def solution_lines(source: str) -> Iterator[tuple[int, str]]:
    """The lines of a hole that are the learner's to write, with their numbers from 1. A class may have several such
    stretches, one a method."""
    inside = False
    for number, line in enumerate(source.split("\n"), 1):
        if "BEGIN SOLUTION" in line or "END SOLUTION" in line:
            inside = "BEGIN SOLUTION" in line
        elif inside:
            yield number, line


def strip_hidden_tests(source: str) -> str:
    """The source of a graded cell without its hidden tests."""
    lines, hidden = [], False
    for line in source.split("\n"):
        if "BEGIN HIDDEN TESTS" in line:
            hidden = True
        elif "END HIDDEN TESTS" in line:
            hidden = False
        elif not hidden:
            lines.append(line)
    return "\n".join(lines)
