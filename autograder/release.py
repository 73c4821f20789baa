"""Make the student versions: percent script -> instructor's notebook -> nbgrader's generate_assignment -> release/."""

import nbformat

from autograder.course import Course
from autograder.source import sync, sync_labs, write_atomically
from puzzles import catalog


def release(course: Course, assignments: list[str]) -> None:
    """Build `release/<id>/<id>.ipynb` of every assignment and register it in the gradebook. UserError on failure."""
    sync(course.root, tuple(assignments))
    sync_labs(course.root)
    for assignment in assignments:
        outcome = course.nbgrader.generate_assignment(assignment, force=True)
        course.require_success(outcome, f"make the release of '{assignment}'")
        path = catalog.release_notebook(assignment, course.root)
        write_atomically(path, nbformat.writes(_without_volatile(nbformat.read(path, as_version=4))) + "\n")


def _without_volatile(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what nbgrader and nbconvert write anew each time, so that equal sources give equal files."""
    notebook.metadata.pop("celltoolbar", None)
    return notebook
