"""Put results into nbgrader's gradebook and folders, through nbgrader's own API; and read them back.

The graded notebook is written last and by rename: while it is not there, the submission counts as not graded, and a
rerun does it again from the start.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import nbformat
from filelock import FileLock, Timeout
from nbconvert.exporters.exporter import ResourcesDict
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.preprocessors import AssignLatePenalties, SaveAutoGrades
from sqlalchemy.exc import OperationalError

from autograder.course import Course, Submission
from autograder.exam import Verdict
from autograder.log import write_log
from autograder.pipeline import Result
from autograder.rubric import show_rubrics
from puzzles.catalog import UserError

# Where a graded notebook keeps what the gradebook has no room for.
METADATA_KEY = "nanochat_puzzles"
# How long another program (Formgrader, a backup) may keep the database to itself.
LOCKED_SECONDS = 60.0


def require_assignment(course: Course, assignment: str) -> None:
    """Raise UserError unless the gradebook knows the assignment."""
    with Gradebook(course.db_url) as gradebook:
        try:
            gradebook.find_assignment(assignment)
        except MissingEntry:
            raise UserError(
                f"The gradebook does not know '{assignment}': run `python -m autograder release {assignment}` first."
            ) from None


@contextlib.contextmanager
def only_writer(course: Course) -> Iterator[None]:
    """Keep other grading runs out of the course while the block runs; clear away what a killed one has left.
    UserError if there is another. A lock dies with its process, however that dies."""
    folder = course.root / "autograded"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / ".grading.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"Another run is grading {course.root}: wait for it, or stop it.") from None
    try:
        for leftover in folder.glob("*/.*.half"):
            shutil.rmtree(leftover)
        yield
    finally:
        lock.release()


def record(course: Course, submission: Submission, result: Result, digest: str, seed: int) -> None:
    """Save scores, late penalty and graded notebook of one submission. Comments and manual scores that a person has
    given are kept, as nbgrader keeps them. Waits for a locked database. UserError if it stays locked or nothing can be
    written; doing it again, by then or in another run, puts everything right."""
    give_up = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            _record(course, submission, result, digest, seed)
        except OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise UserError(
                    f"The gradebook cannot be written ({error.orig}): put that right and run the command again. "
                    "What was graded is kept."
                ) from None
            time.sleep(0.2)
        except OSError as error:
            raise UserError(
                f"{error.filename or course.root} cannot be written ({error.strerror}): put that right and run the "
                "command again. What was graded is kept."
            ) from None
        else:
            return


def _record(course: Course, submission: Submission, result: Result, digest: str, seed: int) -> None:
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
    show_rubrics(result.notebook, submission.assignment, course.root)
    result.notebook.metadata[METADATA_KEY] = {
        "digest": digest,
        "seed": seed,
        "status": result.status,
        "seconds": result.seconds,
        "notes": list(result.notes),
        "missing": list(result.missing),
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
        "cpu_seconds": result.cpu_seconds,
        "part_seconds": result.part_seconds,
    }
    write_log(course, submission, result, digest, seed)
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
        saved["status"],
        verdicts,
        tuple(saved["notes"]),
        saved["seconds"],
        notebook,
        saved.get("cpu_seconds", 0.0),
        tuple(saved["missing"]),
        dict(saved.get("part_seconds", {})),
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
    temporary = target.with_name(f".{target.name}.new.half")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / f"{submission.assignment}.ipynb").write_text(notebook)
    # nbgrader compares the times to see whether a submission is newer than its grade, and releases feedback through the
    # exchange only to whoever knows the secret
    for name in ("timestamp.txt", "submission_secret.txt"):
        if (submission.folder / name).is_file() and not (submission.folder / name).is_symlink():
            shutil.copy(submission.folder / name, temporary)
    if target.exists():
        old = target.with_name(f".{target.name}.old.half")
        os.replace(target, old)
        os.replace(temporary, target)
        # nbgrader leaves graded files read-only
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, target)
