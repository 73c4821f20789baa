"""The sample class: a course folder with submissions as learners would hand them in, good, bad and hostile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from autograder.course import Course
from autograder.template import solution_cells
from autograder.variants import source, wrong_variants
from puzzles import catalog

CONFIG = "nbgrader_config.py"

CRASH = "import os\n\nos.abort()"
ENDLESS = "while True:\n        pass"
WRITTEN = "I would measure it first, on the smallest case that shows the effect."
CHEAT = '''class Agreeable(int):
    """Equal to whatever it is compared with."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = int.__hash__'''
GENEROUS = '''from puzzles import catalog, submit

honest = submit.grade


def generous(puzzle, part, answer):
    """Full marks, whatever the referee says."""
    honest(puzzle, part, answer)
    return float(catalog.puzzle(puzzle).part(part).points)


submit.grade = generous'''


def build(folder: Path, assignments: list[str]) -> Course:
    """A fresh course in `folder` (whatever was there goes): sources of `assignments` and one submission a student.
    Each student of `STUDENTS` hands in every assignment."""
    shutil.rmtree(folder, ignore_errors=True)
    for assignment in assignments:
        target = folder / "source" / assignment
        target.mkdir(parents=True)
        shutil.copy(catalog.source_notebook(assignment), target)
    shutil.copy(catalog.ROOT / CONFIG, folder)
    for assignment in assignments:
        for student, make in STUDENTS.items():
            target = folder / "submitted" / student / assignment / f"{assignment}.ipynb"
            target.parent.mkdir(parents=True)
            target.write_text(make(assignment))
    return Course(folder)


def _filled(assignment: str, code: dict[str, str]) -> NotebookNode:
    """The release with `code` in its holes."""
    notebook = nbformat.read(catalog.release_notebook(assignment), as_version=4)
    for name, cell in solution_cells(notebook).items():
        cell.source = code.get(name, cell.source)
    return notebook


def _solutions(assignment: str) -> dict[str, str]:
    """What fills the holes. Where the instructor's notebook has a mark scheme, a student writes something."""
    cells = solution_cells(source(assignment))
    return {name: cell.source if cell.cell_type == "code" else WRITTEN for name, cell in cells.items()}


def _reference(assignment: str) -> str:
    return nbformat.writes(_filled(assignment, _solutions(assignment)))


def _blank(assignment: str) -> str:
    return nbformat.writes(_filled(assignment, {}))


def _half(assignment: str) -> str:
    """The first half of the holes is done."""
    solutions = _solutions(assignment)
    parts = [part.id for part in catalog.puzzle(assignment).parts]
    return nbformat.writes(_filled(assignment, {name: solutions[name] for name in parts[: len(parts) // 2]}))


def _wrong(assignment: str) -> str:
    """All holes are done; two of them contain a mistake people make."""
    code, seen = _solutions(assignment), set[str]()
    for variant in wrong_variants(assignment):
        if len(seen) < 2 and not variant.loses & seen:
            code |= variant.cells
            seen |= variant.loses
    return nbformat.writes(_filled(assignment, code))


def _with_first_hole(assignment: str, code: Callable[[str], str]) -> str:
    """The reference, but the first hole is `code(its stub)`."""
    first = catalog.puzzle(assignment).parts[0].id
    stub = solution_cells(_filled(assignment, {}))[first].source
    return nbformat.writes(_filled(assignment, _solutions(assignment) | {first: code(stub)}))


def _with_middle_hole(assignment: str, code: str) -> str:
    """The reference, but a hole in the middle ends the process."""
    parts = catalog.puzzle(assignment).parts
    return nbformat.writes(_filled(assignment, _solutions(assignment) | {parts[len(parts) // 2].id: code}))


def _stub_line(stub: str, instead: str) -> str:
    return "\n".join(
        line.replace(line.strip(), instead) if "NotImplementedError" in line else line for line in stub.split("\n")
    )


def _endless(assignment: str) -> str:
    return _with_first_hole(assignment, lambda stub: _stub_line(stub, ENDLESS))


def _crashing(assignment: str) -> str:
    return _with_middle_hole(assignment, CRASH)


def _cheating(assignment: str) -> str:
    """Objects that equal anything, a score printed, tests rewritten, and a `grade` that always returns full marks: in a
    plain nbgrader, where the learner's code and the tests share a kernel, that one earns them."""
    notebook = _filled(assignment, {})
    for cell in solution_cells(notebook).values():
        cell.source = f"{CHEAT}\n\n\n{_stub_line(cell.source, 'return Agreeable(1)')}\n\n\nprint('100 of 100 points')"
    first = solution_cells(notebook)[catalog.puzzle(assignment).parts[0].id]
    first.source = f"{GENEROUS}\n\n\n{first.source}"
    document: dict[str, Any] = json.loads(nbformat.writes(notebook))
    for cell in document["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade") and cell["cell_type"] == "code":
            cell["metadata"]["nbgrader"]["points"] = 1000
            cell["source"] = "100.0"
    return json.dumps(document)


def _damaged(assignment: str) -> str:
    """A file cut off in the middle."""
    text = _reference(assignment)
    return text[: len(text) // 2]


STUDENTS: dict[str, Callable[[str], str]] = {
    "ada_reference": _reference,
    "ben_blank": _blank,
    "cleo_half_done": _half,
    "dan_plausible": _wrong,
    "eve_cheating": _cheating,
    "finn_crashing": _crashing,
    "gus_never_ending": _endless,
    "hal_damaged": _damaged,
}
