"""Scores out of the gradebook in the forms learning management systems read.

Everyone on the class list is in each of them. Who handed in nothing has 0 in `csv` and `json`, and an empty cell in
what an LMS imports: there it means no grade, and overwrites none.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from autograder import gradebook
from autograder.course import Course
from autograder.roster import Student, students
from puzzles.catalog import Puzzle

Scores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Sheet:
    """What is exported: puzzles with the course's points, everyone, and by puzzle and student what the gradebook
    says."""

    puzzles: list[Puzzle]
    students: list[Student]
    scores: Scores

    def score(self, puzzle: Puzzle, student: Student) -> str:
        """The score as an LMS wants it: empty if there is nothing to grade."""
        entry = self.scores[puzzle.id].get(student.id)
        return "" if entry is None else f"{entry['score']:g}"

    def entry(self, puzzle: Puzzle, student: Student) -> dict[str, Any]:
        """All there is to know about a student and a puzzle."""
        nothing = {"score": 0.0, "late_submission_penalty": 0.0, "needs_manual_grade": 0.0}
        found = self.scores[puzzle.id].get(student.id)
        known = found or {"max_score": float(puzzle.points), **nothing}
        return known | {"handed_in": found is not None, "needs_manual_grade": bool(known["needs_manual_grade"])}


def export(course: Course, assignments: list[str], form: str) -> str:
    """The scores of `assignments` as text in one of FORMATS."""
    scores = {name: gradebook.scores(course, name) for name in assignments}
    return FORMATS[form](Sheet([course.puzzle(name) for name in assignments], students(course), scores))


def _csv(rows: list[list[str]]) -> str:
    """Quoted where needed; a cell a spreadsheet would take for a formula is made text."""
    out = io.StringIO()
    csv.writer(out).writerows([[_no_formula(cell) for cell in row] for row in rows])
    return out.getvalue()


def _no_formula(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _plain(sheet: Sheet) -> str:
    """One line a student and puzzle, with everything."""
    who, marks = "student first_name last_name email", "score max_score late_penalty needs_manual_grade"
    rows = [[*who.split(), "assignment", "handed_in", *marks.split()]]
    for puzzle in sheet.puzzles:
        for student in sheet.students:
            entry = sheet.entry(puzzle, student)
            numbers = [f"{entry[key]:g}" for key in ("score", "max_score", "late_submission_penalty")]
            yes_no = ["yes" if entry[key] else "no" for key in ("handed_in", "needs_manual_grade")]
            person = [student.id, student.first_name, student.last_name, student.email]
            rows.append([*person, puzzle.id, yes_no[0], *numbers, yes_no[1]])
    return _csv(rows)


def _canvas(sheet: Sheet) -> str:
    """Canvas's gradebook import: identity columns, one column an assignment, a row of possible points. Canvas knows a
    student by ID, its own number (our LMS id), or by SIS Login ID (our id)."""
    rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *(puzzle.title for puzzle in sheet.puzzles)]]
    rows.append(["Points Possible", "", "", "", "", *(f"{puzzle.points:g}" for puzzle in sheet.puzzles)])
    for student in sheet.students:
        name = ", ".join(part for part in (student.last_name, student.first_name) if part) or student.id
        scores = [sheet.score(puzzle, student) for puzzle in sheet.puzzles]
        rows.append([name, student.lms_user_id, "", student.id, "", *scores])
    return _csv(rows)


def _moodle(sheet: Sheet) -> str:
    """Moodle's grade import: users by username, ID number or email address, one column an assignment."""
    rows = [["First name", "Last name", "Username", "ID number", "Email address"] + [p.title for p in sheet.puzzles]]
    for student in sheet.students:
        who = [student.first_name, student.last_name, student.id, student.lms_user_id or student.id, student.email]
        rows.append([*who, *(sheet.score(puzzle, student) for puzzle in sheet.puzzles)])
    return _csv(rows)


def _gradescope(sheet: Sheet) -> str:
    """The columns of a Gradescope grade sheet: who, then score and possible points an assignment."""
    columns = [name for puzzle in sheet.puzzles for name in (puzzle.title, f"{puzzle.title} - Max Points")]
    rows = [["First Name", "Last Name", "SID", "Email", *columns]]
    for student in sheet.students:
        scores = [cell for puzzle in sheet.puzzles for cell in (sheet.score(puzzle, student), f"{puzzle.points:g}")]
        rows.append([student.first_name, student.last_name, student.id, student.email, *scores])
    return _csv(rows)


def _json(sheet: Sheet) -> str:
    document = {
        puzzle.id: {each.id: asdict(each) | sheet.entry(puzzle, each) for each in sheet.students}
        for puzzle in sheet.puzzles
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


FORMATS: dict[str, Callable[[Sheet], str]] = {
    "csv": _plain,
    "canvas": _canvas,
    "moodle": _moodle,
    "gradescope": _gradescope,
    "json": _json,
}
