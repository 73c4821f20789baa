"""Lay a learner's code into the instructor's notebook.

From a submission only the text of cells is taken: the code of solution cells, found by their name, and cells the
learner added. Everything else (tests, given code, metadata, outputs, kernel) comes from the template, so whatever was
done to them in the submission is without effect.
"""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

MAX_BYTES = 64 * 2**20
MAX_SOURCE_CHARACTERS = 2**20


_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_SCRIPT_LINK = re.compile(r"(java|vb)script\s*:", re.IGNORECASE)


class Refused(Exception):
    """A submission that cannot be graded; the text is one sentence for the learner."""


@dataclass(frozen=True)
class Cell:
    """A cell of a submission: its kind, its text, and the names it may be known by, most reliable first."""

    kind: str
    source: str
    names: tuple[str, ...]


def rebuild(template: NotebookNode, submission: bytes) -> tuple[NotebookNode, list[str]]:
    """The notebook to run for `submission` (the file's bytes), and notes on what had to be put right.
    Raises Refused if there is no notebook in it."""
    cells = read_cells(submission)
    known = {cell.id: cell for cell in template.cells}
    holes = {cell.id for cell in template.cells if cell.metadata.get("nbgrader", {}).get("solution")}
    # Colab strips the ids of cells, which are the only names of those that nbgrader does not know
    plain = {
        _as_read(cell.cell_type, cell.source): cell.id for cell in template.cells if "nbgrader" not in cell.metadata
    }
    taken, added, doubled = _assign([_named(cell, plain) for cell in cells], known, holes)

    notebook = deepcopy(template)
    rebuilt: list[NotebookNode] = list(_ordinary(added.get(None, ()), 0))
    for cell in notebook.cells:
        if cell.id in taken:
            cell.source = taken[cell.id].source
        rebuilt.append(cell)
        rebuilt.extend(_ordinary(added.get(cell.id, ()), len(rebuilt)))
    notebook.cells = rebuilt

    notes = []
    if missing := sorted(holes - taken.keys()):
        notes.append(f"Missing from the submission and put back empty: {', '.join(missing)}.")
    if doubled:
        notes.append(f"In the submission more than once, the first counts: {', '.join(sorted(doubled))}.")
    return notebook, notes


def read_cells(submission: bytes) -> list[Cell]:
    """The cells of a notebook file, read as leniently as can be. Raises Refused with the reason if that fails."""
    if len(submission) > MAX_BYTES:
        size = len(submission) / 2**20
        raise Refused(f"The file is {size:.0f} MiB, more than the {MAX_BYTES // 2**20} MiB a notebook may have.")
    try:
        document = json.loads(submission)
    except (ValueError, RecursionError):
        raise Refused("The file is not a Jupyter notebook (it is not JSON): save it again from Jupyter.") from None
    found = document.get("cells") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise Refused("The file is JSON but not a Jupyter notebook (it has no list of cells).")
    cells = [cell for item in found if (cell := _read_cell(item))]
    if sum(len(cell.source) for cell in cells) > MAX_SOURCE_CHARACTERS:
        raise Refused(f"The notebook has more than {MAX_SOURCE_CHARACTERS:,} characters of code and text.")
    return cells


def _read_cell(item: Any) -> Cell | None:
    if not isinstance(item, dict) or item.get("cell_type") not in ("code", "markdown"):
        return None
    source = item.get("source", "")
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    if not isinstance(source, str):
        return None
    metadata = item.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    names = tuple(name for name in (grade_id, item.get("id")) if isinstance(name, str))
    # a lone surrogate is legal JSON and cannot be written back as UTF-8
    source = source.encode("utf-8", "replace").decode()
    return Cell(*_as_read(item["cell_type"], source), names)


def _as_read(kind: str, source: str) -> tuple[str, str]:
    return kind, without_html(source) if kind == "markdown" else source


def without_html(markdown: str) -> str:
    """Markdown in which tags are text and no link runs a script: it is read in pages that can change grades. The
    sanitizer of nbconvert would take the headings and tables of the instructor's text with it."""
    return _SCRIPT_LINK.sub(r"\1script;", _TAG.sub("&lt;", markdown))


def _named(cell: Cell, plain: dict[tuple[str, str], str]) -> Cell:
    """The cell; known as one of the instructor's as well, if it is just like it."""
    name = plain.get((cell.kind, cell.source))
    return replace(cell, names=(*cell.names, name)) if name else cell


def _assign(
    cells: Sequence[Cell], known: dict[str, NotebookNode], holes: set[str]
) -> tuple[dict[str, Cell], dict[str | None, list[Cell]], set[str]]:
    """Split a submission's cells into those that fill a hole, those the learner added (by the known cell they follow),
    and the names of holes found more than once. A repeated hole stays an ordinary cell."""
    taken: dict[str, Cell] = {}
    added: dict[str | None, list[Cell]] = {}
    doubled: set[str] = set()
    previous: str | None = None
    for cell in cells:
        name = next((name for name in cell.names if name in known), None)
        if name in holes and known[name].cell_type == cell.kind and name not in taken:
            taken[name] = cell
        elif name is None or name in taken:
            if name is not None:
                doubled.add(name)
            added.setdefault(previous, []).append(cell)
        previous = name or previous
    return taken, added, doubled


def _ordinary(cells: Sequence[Cell], offset: int) -> list[NotebookNode]:
    make = {"code": new_code_cell, "markdown": new_markdown_cell}
    return [make[cell.kind](source=cell.source, id=f"added-{offset + i}") for i, cell in enumerate(cells)]
