"""The class at a glance: one HTML page with the grade table, the hardest parts, and every message."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from autograder import gradebook
from autograder.course import Course, Submission
from autograder.exam import Verdict
from autograder.pipeline import Result
from autograder.roster import Student, students
from autograder.source import write_atomically
from puzzles.show import LOOKS


@dataclass(frozen=True)
class Row:
    """One graded submission in the report."""

    submission: Submission
    result: Result
    seed: int


@dataclass(frozen=True)
class PartSummary:
    """How a class did on one part."""

    title: str
    passed: int
    total: int
    commonest: str

    @property
    def share(self) -> float:
        return self.passed / self.total if self.total else 0.0


def write_report(course: Course, assignments: list[str]) -> Path:
    """Write reports/index.html over everything graded in the course; return its path."""
    sections = []
    class_list = students(course)
    for assignment in assignments:
        rows = graded_rows(course, assignment)
        if rows:
            sections.append(
                {
                    "puzzle": course.puzzle(assignment),
                    "rows": rows,
                    "parts": summaries([row.result for row in rows]),
                    "scores": gradebook.scores(course, assignment),
                    "absent": absent(course, assignment, class_list),
                }
            )
    environment = Environment(loader=PackageLoader("autograder"), autoescape=True, undefined=StrictUndefined)
    names = {each.id: each.name for each in class_list}
    page = environment.get_template("report.html").render(sections=sections, looks=LOOKS, names=names)
    target = course.root / "reports" / "index.html"
    write_atomically(target, page)
    return target


def graded_rows(course: Course, assignment: str) -> list[Row]:
    """Everything of an assignment that has been graded, in the order of names."""
    return [
        Row(submission, saved[2], saved[1])
        for submission in course.submissions(assignment)
        if (saved := gradebook.recorded(course, submission))
    ]


def absent(course: Course, assignment: str, class_list: list[Student]) -> list[Student]:
    """Who is on the class list and has handed in nothing."""
    present = {submission.student for submission in course.submissions(assignment)}
    return [each for each in class_list if each.id not in present]


def summaries(results: list[Result]) -> list[PartSummary]:
    """Each part of a puzzle over a class, in the order of the parts."""
    columns: list[tuple[Verdict, ...]] = list(zip(*(result.verdicts for result in results), strict=True))
    return [
        PartSummary(
            title=column[0].title,
            passed=sum(verdict.status == "passed" for verdict in column),
            total=len(column),
            commonest=_commonest(column),
        )
        for column in columns
    ]


def likely_mistake(verdict: Verdict) -> str | None:
    """The misconception a judge has recognised in a wrong answer, in a sentence; None if there is none."""
    _, marker, sentence = verdict.message.partition("Likely mistake: ")
    return sentence if marker else None


def _commonest(column: tuple[Verdict, ...]) -> str:
    """The likely mistake named most often, else the most frequent reason in a word."""
    mistakes = Counter(sentence for verdict in column if (sentence := likely_mistake(verdict)))
    if mistakes:
        return mistakes.most_common(1)[0][0]
    reasons = Counter(LOOKS[verdict.status][1] for verdict in column if verdict.status != "passed")
    return reasons.most_common(1)[0][0] if reasons else ""
