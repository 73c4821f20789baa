"""Scores out of the gradebook in the forms learning management systems read."""

import csv
import io
import json
from collections.abc import Callable

from autograder import gradebook
from autograder.course import Course
from puzzles import catalog

Table = list[list[str]]


def export(course: Course, assignments: list[str], form: str) -> str:
    """The scores of `assignments` as text in one of FORMATS."""
    scores = {name: gradebook.scores(course, name) for name in assignments}
    students = sorted({student for by_student in scores.values() for student in by_student})
    return FORMATS[form](assignments, students, scores)


Scores = dict[str, dict[str, dict[str, float]]]


def _csv(rows: Table) -> str:
    """Quoted where needed; a cell a spreadsheet would take for a formula is made text."""
    out = io.StringIO()
    csv.writer(out).writerows([[_no_formula(cell) for cell in row] for row in rows])
    return out.getvalue()


def _no_formula(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _number(scores: Scores, assignment: str, student: str) -> str:
    entry = scores[assignment].get(student)
    return "" if entry is None else f"{entry['score']:g}"


def _plain(assignments: list[str], students: list[str], scores: Scores) -> str:
    rows = [["student", "assignment", "score", "max_score", "late_penalty", "needs_manual_grade"]]
    for assignment in assignments:
        for student, entry in sorted(scores[assignment].items()):
            rows.append(
                [
                    student,
                    assignment,
                    f"{entry['score']:g}",
                    f"{entry['max_score']:g}",
                    f"{entry['late_submission_penalty']:g}",
                    "yes" if entry["needs_manual_grade"] else "no",
                ]
            )
    return _csv(rows)


def _canvas(assignments: list[str], students: list[str], scores: Scores) -> str:
    """Canvas's gradebook import: identity columns, one column an assignment, a row of possible points."""
    titles = [catalog.puzzle(name).title for name in assignments]
    possible = [f"{catalog.puzzle(name).points:g}" for name in assignments]
    rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *titles]]
    rows.append(["Points Possible", "", "", "", "", *possible])
    rows += [[s, "", "", s, "", *(_number(scores, name, s) for name in assignments)] for s in students]
    return _csv(rows)


def _moodle(assignments: list[str], students: list[str], scores: Scores) -> str:
    """Moodle's grade import: users by username, one column an assignment."""
    rows = [["username", *(catalog.puzzle(name).title for name in assignments)]]
    rows += [[s, *(_number(scores, name, s) for name in assignments)] for s in students]
    return _csv(rows)


def _gradescope(assignments: list[str], students: list[str], scores: Scores) -> str:
    """The columns of a Gradescope grade sheet: student id, then score and possible points an assignment."""
    header = ["SID"]
    for name in assignments:
        header += [catalog.puzzle(name).title, f"{catalog.puzzle(name).title} - Max Points"]
    rows = [header]
    for student in students:
        row = [student]
        for name in assignments:
            row += [_number(scores, name, student), f"{catalog.puzzle(name).points:g}"]
        rows.append(row)
    return _csv(rows)


def _json(assignments: list[str], students: list[str], scores: Scores) -> str:
    return json.dumps({name: scores[name] for name in assignments}, ensure_ascii=False, indent=2) + "\n"


FORMATS: dict[str, Callable[[list[str], list[str], Scores], str]] = {
    "csv": _plain,
    "canvas": _canvas,
    "moodle": _moodle,
    "gradescope": _gradescope,
    "json": _json,
}
