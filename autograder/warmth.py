"""What to have ready before a puzzle's submissions run: the modules its notebook imports."""

import ast
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.sandbox import Sandbox
from autograder.source import ORACLE_TAG
from puzzles import catalog

# what every notebook comes to use, when it shows its first value, its first plot, and when it is graded
ALWAYS = (
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib_inline.backend_inline",
    "PIL.PngImagePlugin",
    "puzzles.checks",
    "puzzles.submit",
)


def sandbox_for(puzzle_id: str, course: Path = catalog.ROOT, without: Iterable[str] = ()) -> Sandbox:
    """The warm sandbox of a puzzle of a course."""
    return warm(puzzle_id, nbformat.read(catalog.source_notebook(puzzle_id, course), as_version=4), without)


def warm(puzzle_id: str, notebook: NotebookNode, without: Iterable[str] = ()) -> Sandbox:
    """A sandbox of a puzzle in which everything that `notebook` imports is ready."""
    return Sandbox(catalog.puzzle(puzzle_id), [*ALWAYS, *imports_of(notebook)], without)


def imports_of(notebook: NotebookNode) -> list[str]:
    """The modules a notebook's code cells import, wherever in the code, but for cells that meet the oracle."""
    names: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and ORACLE_TAG not in cell.metadata.get("tags", []):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.append(node.module)
    return list(dict.fromkeys(names))
