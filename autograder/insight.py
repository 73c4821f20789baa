"""What a graded class tells its teacher: common mistakes, who is stuck, what another seed would say."""

import hashlib
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import nbformat

from autograder import demo
from autograder.course import Course, Submission
from autograder.exam import Verdict, fresh_seed
from autograder.grading import grade_course, unit_of
from autograder.pipeline import Result
from autograder.release import release
from autograder.report import Row, likely_mistake, summaries
from autograder.sandbox import Limits
from autograder.template import template
from autograder.workplace import Workplace
from puzzles import catalog
from puzzles.show import LOOKS

MOST = 0.5  # the share of a class that counts as most of it


@dataclass(frozen=True)
class Mistake:
    """A reason for which points of one part were lost, and who lost them."""

    part: str
    reason: str
    students: tuple[str, ...]


@dataclass(frozen=True)
class Stuck:
    """A student who lost parts that most of the class has, and what the first of them says."""

    student: str
    verdicts: tuple[Verdict, ...]


def mistakes(rows: Iterable[Row]) -> list[Mistake]:
    """Why points were lost, the most frequent reason first: a misconception a judge has recognised, else the status.
    Of equally frequent ones the misconceptions come first."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for verdict in row.result.verdicts:
            if verdict.status != "passed":
                reason = likely_mistake(verdict) or LOOKS[verdict.status][1]
                found.setdefault((verdict.title, reason), []).append(row.submission.student)
    plain = {word for _, word, _ in LOOKS.values()}
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0][1] in plain, item[0]))
    return [Mistake(part, reason, tuple(students)) for (part, reason), students in ordered]


def part_seconds(rows: Iterable[Row]) -> dict[str, float]:
    """The median time a part took to run and examine, by title, over those who got as far as its hidden tests."""
    took: dict[str, list[float]] = {}
    for row in rows:
        for verdict in row.result.verdicts:
            if verdict.part in row.result.part_seconds:
                took.setdefault(verdict.title, []).append(row.result.part_seconds[verdict.part])
    return {title: median(seconds) for title, seconds in took.items()}


def stuck(rows: list[Row]) -> list[Stuck]:
    """Students who have tried, and lost parts that most of the class has; those with most such parts first."""
    easy = {part.title for part in summaries([row.result for row in rows]) if part.share > MOST} if rows else set()
    found = []
    for row in rows:
        lost = tuple(each for each in row.result.verdicts if each.status != "passed" and each.title in easy)
        has_tried = any(each.status != "unsolved" for each in row.result.verdicts)
        if lost and has_tried:
            found.append(Stuck(row.submission.student, lost))
    return sorted(found, key=lambda each: (-len(each.verdicts), each.student))


def aliases(students: Iterable[str]) -> dict[str, str]:
    """A name for everyone that gives nobody away: "student 1" and so on, in an order unlike that of the names."""
    shuffled = sorted(set(students), key=lambda name: hashlib.sha256(name.encode()).digest())
    return {name: f"student {number}" for number, name in enumerate(shuffled, 1)}


def preview(course: Course, submission: Submission, seed: int, limits: Limits | None = None) -> Result:
    """What grading `submission` again with the cases of `seed` would give. Nothing is recorded."""
    source = nbformat.writes(template(submission.assignment, course.root)).encode()
    _, unit = unit_of(submission, source, seed, limits or Limits(), strict=False)
    with Workplace() as workplace:
        return workplace.grade(unit)


def sample_class(assignment: str = "", jobs: int = 2) -> Course:
    """The sample class of one puzzle (the first), graded in a new temporary folder; takes about half a minute."""
    chosen = [assignment or catalog.puzzles()[0].id]
    course = demo.build(Path(tempfile.mkdtemp(prefix="sample-class-")), chosen)
    with warnings.catch_warnings():
        # nbgrader's queries make SQLAlchemy 2 warn about its own autoflush
        warnings.filterwarnings("ignore", message="Object of type", module="nbgrader")
        release(course, chosen)
        for _ in grade_course(course, list(course.submissions()), fresh_seed(), jobs, Limits(cell_seconds=5)):
            pass
    return course
