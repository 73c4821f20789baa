"""The instructor's notebooks: written as percent scripts, turned into what nbgrader reads.

A cell of `source/<id>/<id>.py` names its role in its header, and everything nbgrader wants to know follows from it:

    # %% given="imports"             code the learner runs and cannot change
    # %% hole="window_sizes"         code between BEGIN/END SOLUTION is the learner's to write
    # %% graded="window_sizes"       hidden tests; worth the part's points in puzzles/<id>.toml
    # %% [markdown] written="why"    a question answered in words and marked by hand
    # %% [markdown]                  text

A cell that already carries `nbgrader` metadata keeps it.
"""

import os
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from puzzles import catalog

SCHEMA_VERSION = 3
ROLES = ("given", "hole", "graded", "written")
# Cells that show the learner's work beside the oracle's: the oracle is out of reach while a submission is graded.
ORACLE_TAG = "oracle"


def notebook_from_script(script: Path) -> NotebookNode:
    """The notebook a percent script describes: cell ids and nbgrader metadata are determined by the script alone.
    Raises UserError for a role that is unknown or stands twice."""
    puzzle = catalog.puzzle(script.stem)
    notebook = jupytext.read(script)
    seen: set[str] = set()
    for position, cell in enumerate(notebook.cells):
        cell.metadata = _metadata(cell, puzzle)
        cell.id = cell.metadata.get("nbgrader", {}).get("grade_id", f"text-{position}")
        if cell.id in seen:
            raise catalog.UserError(f"{script.name} has two cells called '{cell.id}': rename one.")
        seen.add(cell.id)
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
    stale = []
    for script in sorted((course / "source").glob("*/*.py")):
        if script.stem != script.parent.name or (only and script.stem not in only):
            continue
        text = nbformat.writes(notebook_from_script(script)) + "\n"
        target = script.with_suffix(".ipynb")
        if target.exists() and target.read_text() == text:
            continue
        stale.append(script.stem)
        if write:
            write_atomically(target, text)
    return stale


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
