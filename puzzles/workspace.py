"""The learner's own files in work/: notebooks made from the release, labs, and the start page."""

import json
import os
from pathlib import Path

from puzzles import catalog, files, page
from puzzles.catalog import Puzzle, UserError
from puzzles.progress import changing, work_folder

START = "START.ipynb"


def own_notebook(puzzle: Puzzle) -> Path:
    """Where the learner's notebook of a puzzle lies."""
    return work_folder() / puzzle.id / f"{puzzle.id}.ipynb"


def shown(path: Path) -> Path:
    """A path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def provide(puzzle: Puzzle) -> bool:
    """Make the learner's notebook from the release if there is none; whether one was made."""
    target = own_notebook(puzzle)
    if target.exists():
        return False
    _copy_release(puzzle, target)
    return True


def provide_all() -> None:
    """The learner's copies of everything that is not there yet, and the start page, which is always made anew."""
    for puzzle in catalog.puzzles():
        provide(puzzle)
    for original in [*catalog.labs(), catalog.ROOT / "microgpt.py"]:  # which the first lab reads
        target = work_folder() / original.relative_to(catalog.ROOT)
        if not target.exists():
            files.write(target, original.read_bytes())
    files.write(work_folder() / START, _start_page())


def reset(puzzle: Puzzle) -> Path | None:
    """Put a fresh notebook in place. The old one stays beside it under a free name, which is returned."""
    target = own_notebook(puzzle)
    kept = _free_name(target) if target.exists() else None
    if kept:
        os.replace(target, kept)
    _copy_release(puzzle, target)
    with changing(puzzle.id) as progress:
        progress.checked = []
    return kept


def _free_name(notebook: Path) -> Path:
    number = 1
    while (free := notebook.with_name(f"{notebook.stem}.old-{number}.ipynb")).exists():
        number += 1
    return free


def read(notebook: Path) -> bytes:
    """A notebook's bytes; UserError if it cannot be read."""
    try:
        return notebook.read_bytes()
    except OSError as error:
        raise UserError(
            f"The notebook {notebook} cannot be read ({error.strerror}): check its name and place."
        ) from None


def _copy_release(puzzle: Puzzle, target: Path) -> None:
    release = catalog.release_notebook(puzzle.id)
    if not release.exists():
        raise UserError(f"There is no {shown(release)}: run `python -m autograder release {puzzle.id}` first.")
    files.write(target, release.read_bytes())


def _start_page() -> str:
    """The start page with its table already in it: JupyterLab shows outputs on opening, and runs nothing."""
    notebook = json.loads((catalog.ROOT / "notebooks" / START).read_text())
    [cell] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": page.course()}]
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
