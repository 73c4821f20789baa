"""Changing the notebook file itself."""

from typing import Any

from tests.attacks import STUB, Attack

Document = dict[str, Any]


def cells_of(document: Document, name: str) -> list[Document]:
    return [cell for cell in document["cells"] if cell["metadata"].get("nbgrader", {}).get("grade_id", "") == name]


def points(document: Document) -> Document:
    for cell in document["cells"]:
        if "nbgrader" in cell["metadata"]:
            cell["metadata"]["nbgrader"] |= {"points": 10**6, "grade": True, "solution": True, "locked": False}
    return document


def without_tests(document: Document) -> Document:
    document["cells"] = [cell for cell in document["cells"] if not cell["id"].startswith("test-")]
    return document


def own_tests(document: Document) -> Document:
    for cell in document["cells"]:
        if cell["id"].startswith("test-"):
            cell["source"] = "10.0"
            result = {"output_type": "execute_result", "data": {"text/plain": "10.0"}, "metadata": {}}
            cell["outputs"] = [result | {"execution_count": 1}]
    return document


def doubled(document: Document) -> Document:
    document["cells"] += [dict(cell) for cell in document["cells"]]
    return document


def same_name(document: Document) -> Document:
    for cell in document["cells"]:
        cell["id"] = "test-widths"
        cell["metadata"]["nbgrader"] = {"grade_id": "test-widths", "grade": True, "solution": False, "points": 99}
    return document


def added(document: Document) -> Document:
    """Cells before everything and after it that replace what grades."""
    code = "import puzzles.submit\npuzzles.submit.grade = grade = lambda *a: 10.0\nprint('10 of 10 points')"
    cell: dict[str, Any] = {"cell_type": "code", "id": "mine", "metadata": {}, "source": code}
    cell |= {"outputs": [], "execution_count": None}
    document["cells"] = [cell, *document["cells"], cell]
    return document


def kernel(document: Document) -> Document:
    document["metadata"]["kernelspec"] = {"name": "bash", "display_name": "sh", "language": "bash"}
    document["nbformat"] = 3
    return document


def skipping(document: Document) -> Document:
    """Tags and metadata that other tools obey."""
    for cell in document["cells"]:
        cell["metadata"] |= {"tags": ["oracle", "skip-execution", "raises-exception"], "deletable": False}
    return document


def graded_already(document: Document) -> Document:
    verdict = {"part": "widths", "title": "", "status": "passed", "score": 10.0, "max": 10.0, "message": ""}
    document["metadata"]["nanochat_puzzles"] = {"digest": "x", "seed": 0, "status": "graded", "verdicts": [verdict]}
    return document


def strange_types(document: Document) -> Document:
    document["cells"] += [None, 1, [], {"cell_type": "code"}, {"cell_type": "raw", "source": "x"}, {"source": {}}]
    document["metadata"] = [document["metadata"]]
    return document


ATTACKS = [
    Attack("points for everything", STUB, points),
    Attack("no tests", STUB, without_tests),
    Attack("tests that are content, with outputs", STUB, own_tests),
    Attack("every cell twice", STUB, doubled),
    Attack("every cell called as a test", STUB, same_name),
    Attack("added cells that replace what grades", STUB, added),
    Attack("another kernel and format", STUB, kernel),
    Attack("tags that skip cells", STUB, skipping),
    Attack("metadata that says it is graded", STUB, graded_already),
    Attack("cells of strange types", STUB, strange_types),
    Attack("no object", tamper=lambda document: [document]),
    Attack("numbers too long to read", tamper=lambda document: document | {"nbformat": "N"}),
    Attack("a cell of a megabyte", "#" * 2**20 + "\n" + STUB),
    Attack("code that cannot be parsed", "def widths(:\n  'LO" + "OT'\n\x00"),
    Attack("lone surrogates and controls", STUB + "\nprint('\\ud800 \\x1b]0;title\\x07 \\x00')"),
    Attack(
        "modules of its own that shadow others",
        f"""
from pathlib import Path
import sys
for name in ("torch", "json", "puzzles", "safetensors"):
    Path(f"{{name}}.py").write_text("raise SystemExit('shadowed')")
sys.path.insert(0, "")
for name in ("puzzles.submit", "puzzles"): sys.modules.pop(name, None)
{STUB}
""",
    ),
]
