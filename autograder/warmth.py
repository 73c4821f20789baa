"""What to have ready before a puzzle's submissions run: the modules its notebook imports.

Light to import, and reads notebooks as plain JSON, so that a sandbox warms up while its grader is still importing.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autograder.sandbox import Sandbox
from autograder.shown import ORACLE_TAG
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
# a second of imports, which torch puts off until the first optimizer is made
WITH_OPTIMIZERS = "torch._dynamo"


def sandbox_for(puzzle_id: str, course: Path = catalog.ROOT, without: Iterable[str] = ()) -> Sandbox:
    """The warm sandbox of a puzzle of a course."""
    return warm(puzzle_id, json.loads(catalog.source_notebook(puzzle_id, course).read_text()), without)


def warm(puzzle_id: str, notebook: Mapping[str, Any], without: Iterable[str] = ()) -> Sandbox:
    """A sandbox of a puzzle in which everything that `notebook` imports is ready."""
    return Sandbox(catalog.puzzle(puzzle_id), [*ALWAYS, *imports_of(notebook)], without)


def first_warm(course: Path, assignment: str | None, student: str | None) -> dict[str, Sandbox]:
    """The sandbox, by puzzle, of what will be graded first; empty if there is nothing to grade."""
    for folder in catalog.submission_folders(course, assignment, student):
        return {folder.name: sandbox_for(folder.name, course)}
    return {}


def imports_of(notebook: Mapping[str, Any]) -> list[str]:
    """The modules a notebook's code cells import, wherever in the code, but for cells that meet the oracle; and what
    optimizers import, if they speak of one."""
    names: list[str] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code" or ORACLE_TAG in cell["metadata"].get("tags", []):
            continue
        code = "".join(cell["source"])
        if "optim" in code:
            names.append(WITH_OPTIMIZERS)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.append(node.module)
    return list(dict.fromkeys(names))
