"""Make the student versions: percent script -> instructor's notebook -> nbgrader's generate_assignment -> release/."""

import nbformat
from nbgrader.api import Gradebook

from autograder.course import Course
from autograder.source import notebook_from_script, sync, sync_labs, write_atomically
from puzzles import catalog

CONFIG = "nbgrader_config.py"


def release(course: Course, assignments: list[str]) -> None:
    """Build `release/<id>/<id>.ipynb` of every assignment and register it in the gradebook, with the moment it is due
    if `course.toml` tells. UserError on failure."""
    _provide_sources(course, assignments)
    sync(course.root, tuple(assignments))
    sync_labs(course.root)
    for assignment in assignments:
        outcome = course.nbgrader.generate_assignment(assignment, force=True)
        course.require_success(outcome, f"make the release of '{assignment}'")
        path = catalog.release_notebook(assignment, course.root)
        write_atomically(path, nbformat.writes(_without_volatile(nbformat.read(path, as_version=4))) + "\n")
    _set_due(course, assignments)


def _provide_sources(course: Course, assignments: list[str]) -> None:
    """Give a course folder that has a course.toml what it lacks: nbgrader's settings, and the instructor's notebooks,
    made with its points from the repository's scripts. A script of its own in source/<id>/<id>.py comes first."""
    if not (course.root / catalog.COURSE_FILE).exists() or course.root == catalog.ROOT:
        return
    if not (course.root / CONFIG).exists():
        write_atomically(course.root / CONFIG, (catalog.ROOT / CONFIG).read_bytes())
    for assignment in assignments:
        target = catalog.source_notebook(assignment, course.root)
        if not target.with_suffix(".py").exists():
            script = catalog.source_notebook(assignment).with_suffix(".py")
            write_atomically(target, nbformat.writes(notebook_from_script(script, course.root)) + "\n")


def _set_due(course: Course, assignments: list[str]) -> None:
    due = catalog.settings(course.root).due
    with Gradebook(course.db_url, course.nbgrader.coursedir.course_id) as book:
        for assignment in assignments:
            if assignment in due:
                book.update_or_create_assignment(assignment, duedate=due[assignment])


def _without_volatile(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what nbgrader and nbconvert write anew each time, so that equal sources give equal files."""
    notebook.metadata.pop("celltoolbar", None)
    return notebook
