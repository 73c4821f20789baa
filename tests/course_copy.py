"""A copy of the course in a folder of its own, as somebody who has cloned and installed it has it."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

from autograder.template import solution_cells
from autograder.variants import source
from puzzles import catalog
from tests.conftest import PUZZLE

ROOT = Path(__file__).parent.parent
FOLDERS = ("autograder", "docs", "nanochat", "notebooks", "puzzles", "release", "source", "tests/right", "tests/wrong")
PROGRAMS = ("python", "pip", "jupyter", "nbgrader")


def make_copy(folder: Path) -> Path:
    """The course, without what its use and its tests have made, in `folder`. Its `.venv` stands for this Python's
    environment; `make` takes it for installed."""
    folder.mkdir(parents=True)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in ROOT.iterdir():
        if file.is_file() and file.suffix in (".toml", ".py", ".md", ".txt", "") and not file.name.startswith("."):
            shutil.copy(file, folder)
    _lend_environment(folder / ".venv")
    return folder


def _lend_environment(folder: Path) -> None:
    """Programs that hand over to this Python's environment: links would be another one, which no sandbox shows."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        (programs / name).write_text(f'#!/bin/sh\nexec "{Path(sys.prefix) / "bin" / name}" "$@"\n')
        (programs / name).chmod(0o755)
    shutil.copy(Path(sys.prefix) / "bin" / "activate", programs)
    (folder / "installed").touch()


def environment_of(copy: Path) -> dict[str, str]:
    """What has to be set for commands in a copy: its own packages before those installed in the environment."""
    return {
        "PATH": f"{copy / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(copy),
        "NANOCHAT_WORK": "",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


def fill(*parts: str, puzzle: str = PUZZLE) -> Callable[[Path], None]:
    """What a person does who solves these parts in the notebook in a copy's work/."""

    def solve(copy: Path) -> None:
        path = copy / "work" / puzzle / f"{puzzle}.ipynb"
        notebook = nbformat.read(path if path.exists() else catalog.release_notebook(puzzle), as_version=4)
        solutions = solution_cells(source(puzzle))
        for part in parts:
            solution_cells(notebook)[part].source = solutions[part].source
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)

    return solve
