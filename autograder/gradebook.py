"""Put results into nbgrader's gradebook and folders, through nbgrader's own API; and read them back.

The graded notebook is written last and by rename: while it is not there, the submission counts as not graded, and a
rerun does it again from the start.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.preprocessors import AssignLatePenalties, SaveAutoGrades

from autograder.course import Course, Submission
from autograder.exam import Verdict
from autograder.pipeline import Result
from puzzles.catalog import UserError

# Where a graded notebook keeps what the gradebook has no room for.
METADATA_KEY = "nanochat_puzzles"


def require_assignment(course: Course, assignment: str) -> None:
    """Raise UserError unless the gradebook knows the assignment."""
    with Gradebook(course.db_url) as gradebook:
        try:
            gradebook.find_assignment(assignment)
        except MissingEntry:
            raise UserError(
                f"The gradebook does not know '{assignment}': run `python -m autograder release {assignment}` first."
            ) from None


def record(course: Course, submission: Submission, result: Result, digest: str, seed: int) -> None:
    """Save scores, late penalty and graded notebook of one submission. Comments and manual scores that a person has
    given are kept, as nbgrader keeps them."""
    coursedir = course.nbgrader.coursedir
    timestamp = coursedir.get_existing_timestamp(str(submission.folder))
    with Gradebook(course.db_url, coursedir.course_id) as gradebook:
        gradebook.update_or_create_student(submission.student)
        extra = {"timestamp": timestamp} if timestamp else {}
        gradebook.update_or_create_submission(submission.assignment, submission.student, **extra)
    resources = ResourcesDict(
        nbgrader={
            "student": submission.student,
            "assignment": submission.assignment,
            "notebook": submission.assignment,
            "db_url": course.db_url,
        }
    )
    for step in (SaveAutoGrades, AssignLatePenalties):
        step(config=course.config).preprocess(result.notebook, resources)
    result.notebook.metadata[METADATA_KEY] = {
        "digest": digest,
        "seed": seed,
        "status": result.status,
        "seconds": result.seconds,
        "notes": list(result.notes),
        "missing": list(result.missing),
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
    }
    _replace_folder(course.autograded(submission).parent, submission, nbformat.writes(result.notebook))


def recorded(course: Course, submission: Submission) -> tuple[str, int, Result] | None:
    """(digest, seed, result) of a graded submission, or None if it has not been graded by us."""
    path = course.autograded(submission)
    if not path.exists():
        return None
    notebook = nbformat.read(path, as_version=4)
    saved = notebook.metadata.get(METADATA_KEY)
    if not saved:
        return None
    verdicts = tuple(Verdict(**verdict) for verdict in saved["verdicts"])
    result = Result(
        saved["status"], verdicts, tuple(saved["notes"]), saved["seconds"], notebook, 0.0, tuple(saved["missing"])
    )
    return saved["digest"], saved["seed"], result


def scores(course: Course, assignment: str) -> dict[str, dict[str, float]]:
    """By student: score, max_score, late_submission_penalty and whether a manual grade is due, from the gradebook."""
    with Gradebook(course.db_url) as gradebook:
        try:
            submissions = gradebook.find_assignment(assignment).submissions
        except MissingEntry:
            return {}
        return {
            each.student.id: {
                "score": max(0.0, each.score - each.late_submission_penalty),
                "max_score": each.max_score,
                "late_submission_penalty": each.late_submission_penalty,
                "needs_manual_grade": float(each.needs_manual_grade),
            }
            for each in submissions
        }


def _replace_folder(target: Path, submission: Submission, notebook: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / f"{submission.assignment}.ipynb").write_text(notebook)
    timestamp = submission.folder / "timestamp.txt"
    if timestamp.is_file():
        # nbgrader compares the two to see whether a submission is newer than its grade
        shutil.copy(timestamp, temporary)
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.replace(target, old)
        os.replace(temporary, target)
        # nbgrader leaves graded files read-only
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, target)
