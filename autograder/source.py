"""The instructor's notebooks: written as percent scripts, turned into what nbgrader reads.

A cell of `source/<id>/<id>.py` names its role in its header, and everything nbgrader wants to know follows from it:

    # %% given="imports"             code the learner runs and cannot change
    # %% hole="window_sizes"         code between BEGIN/END SOLUTION is the learner's to write
    # %% graded="window_sizes"       hidden tests; worth the part's points in puzzles/<id>.toml
    # %% [markdown] written="why"    a question answered in words and marked by hand
    # %% [markdown]                  text

A cell that already carries `nbgrader` metadata keeps it. The labs in `notebooks/` are written the same way, without
roles.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from autograder import bootstrap
from puzzles import catalog

SCHEMA_VERSION = 3
ROLES = ("given", "hole", "graded", "written")
# Cells of a lab that only draw: JupyterLab folds them, and a click opens them.
DRAWING_TAG = "drawing"


def notebook_from_script(script: Path, course: Path = catalog.ROOT) -> NotebookNode:
    """The notebook a percent script describes, with the cells that open it on Google Colab: all of it is determined by
    the script and the course's settings. Raises UserError for a role that is unknown or stands twice."""
    puzzle = catalog.puzzle(script.stem, course)
    notebook = jupytext.read(script)
    seen = {bootstrap.NAME}
    for position, cell in enumerate(notebook.cells):
        cell.metadata = _metadata(cell, puzzle)
        cell.id = cell.metadata.get("nbgrader", {}).get("grade_id", f"text-{position}")
        if cell.id in seen:
            raise catalog.UserError(f"{script.name} has two cells called '{cell.id}': rename one.")
        seen.add(cell.id)
    _say_points(notebook, puzzle)
    _open_on_colab(notebook, puzzle, catalog.settings(course))
    return _complete(notebook)


def _say_points(notebook: NotebookNode, puzzle: catalog.Puzzle) -> None:
    """Write the course's points where the script speaks of the puzzle's own: under the title, in the headings of parts,
    and in the first line of graded cells."""

    def of_part(found: re.Match) -> str:
        return f"{found[1]}{puzzle.parts[int(found[2]) - 1].points} points"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"· \d+ points in ", f"· {puzzle.points} points in ", cell.source)
            cell.source = re.sub(r"(?m)^(## Part (\d+) · .*\()\d+ points(?=, \d+ minutes\)$)", of_part, cell.source)
        elif points := cell.metadata.get("nbgrader", {}).get("points"):
            cell.source = re.sub(r"^# \d+ points\.", f"# {points} points.", cell.source)


def _open_on_colab(notebook: NotebookNode, puzzle: catalog.Puzzle, settings: catalog.Settings) -> None:
    """Put the badge on top and the bootstrap before the first code."""
    if not settings.repository:
        return
    code = bootstrap.code_cell(puzzle.id, settings.repository, settings.branch)
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
    notebook.cells.insert(first, code)
    if badge := bootstrap.badge_cell(puzzle.id, settings.repository, settings.branch):
        notebook.cells.insert(0, badge)


def lab_from_script(script: Path) -> NotebookNode:
    """The notebook of an ungraded lab: cells have tags and numbers, but no roles; drawing code is folded."""
    notebook = jupytext.read(script)
    for position, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if DRAWING_TAG in tags:
            cell.metadata["jupyter"] = NotebookNode(source_hidden=True)
        cell.id = f"cell-{position}"
    return _complete(notebook)


def _complete(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return notebook


def _metadata(cell: NotebookNode, puzzle: catalog.Puzzle) -> NotebookNode:
    roles = [role for role in ROLES if role in cell.metadata]
    metadata = NotebookNode({key: cell.metadata[key] for key in ("tags", "nbgrader") if key in cell.metadata})
    if "nbgrader" in metadata:
        return metadata
    if not roles:
        if cell.cell_type == "code":
            raise catalog.UserError(
                f"{puzzle.id}: the code cell {cell.source[:40]!r} has no role: give it one of {', '.join(ROLES)}."
            )
        return metadata
    role = roles[0]
    name = cell.metadata[role]
    nbgrader = {
        "grade": role in ("graded", "written"),
        "grade_id": f"test-{name}" if role == "graded" else name,
        "locked": role in ("given", "graded"),
        "schema_version": SCHEMA_VERSION,
        "solution": role in ("hole", "written"),
        "task": False,
        "cell_type": cell.cell_type,
    }
    if role == "graded":
        nbgrader["points"] = puzzle.part(name).points
    if role == "written":
        # read by a person; a good answer can earn extra credit in Formgrader
        nbgrader["points"] = 0
    metadata["nbgrader"] = NotebookNode(nbgrader)
    return metadata


def sync(course: Path = catalog.ROOT, only: tuple[str, ...] = (), write: bool = True) -> list[str]:
    """Bring every `source/<id>/<id>.ipynb` up to date with its script; return the ids whose notebook was not.
    With `write=False` nothing is changed."""
    scripts = [path for path in sorted((course / "source").glob("*/*.py")) if path.stem == path.parent.name]
    chosen = [path for path in scripts if not only or path.stem in only]
    return _sync(chosen, partial(notebook_from_script, course=course), write)


def sync_labs(course: Path = catalog.ROOT, write: bool = True) -> list[str]:
    """The same for `notebooks/<lab>.ipynb`."""
    return _sync(sorted((course / "notebooks").glob("*.py")), lab_from_script, write)


def _sync(scripts: list[Path], make: Callable[[Path], NotebookNode], write: bool) -> list[str]:
    stale = []
    for script in scripts:
        text = nbformat.writes(make(script)) + "\n"
        target = script.with_suffix(".ipynb")
        if target.exists() and target.read_text() == text:
            continue
        stale.append(script.stem)
        if write:
            write_atomically(target, text)
    return stale


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(temporary, path)
