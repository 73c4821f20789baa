"""The mark scheme of a written question: in the graded notebook, under the answer, where Formgrader shows it to whoever
marks by hand; in nothing that learners get.

It is what stands in the question's cell of the instructor's notebook, which the release replaces by an empty answer.
"""

from functools import lru_cache
from pathlib import Path

import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from nbgrader.preprocessors import NbGraderPreprocessor

from puzzles import catalog

TAG = "rubric"


def show_rubrics(notebook: NotebookNode, assignment: str, course: Path) -> None:
    """Put the mark scheme of every written question under its answer, in a graded notebook (changed in place)."""
    path = catalog.source_notebook(assignment, course)
    schemes = _schemes(path, path.stat().st_mtime_ns)
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        cells.append(cell)
        if scheme := schemes.get(cell.metadata.get("nbgrader", {}).get("grade_id", "")):
            heading = "#### For the marker only: not in the feedback"
            cells.append(new_markdown_cell(f"{heading}\n\n{scheme}", id=f"{TAG}-{cell.id}", metadata={"tags": [TAG]}))
    notebook.cells = cells


def hide_rubrics(notebook: NotebookNode) -> None:
    """Take the mark schemes out again."""
    notebook.cells = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]


@lru_cache(maxsize=64)
def _schemes(source: Path, _changed_at: int) -> dict[str, str]:
    """The mark schemes in an instructor's notebook, by question."""
    found = {}
    for cell in nbformat.read(source, as_version=4).cells:
        nbgrader = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "markdown" and nbgrader.get("grade") and nbgrader.get("solution"):
            lines = [
                line for line in cell.source.split("\n") if "BEGIN SOLUTION" not in line and "END SOLUTION" not in line
            ]
            found[nbgrader["grade_id"]] = "\n".join(lines).strip()
    return found


class ShowRubrics(NbGraderPreprocessor):
    """The last step of `nbgrader autograde`."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        """The graded notebook with its mark schemes."""
        # nbgrader changes into the course folder while it converts
        show_rubrics(nb, resources["nbgrader"]["assignment"], Path.cwd())
        return nb, resources


class HideRubrics(NbGraderPreprocessor):
    """The first step of `nbgrader generate_feedback`."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        """The graded notebook as learners may see it."""
        hide_rubrics(nb)
        return nb, resources
