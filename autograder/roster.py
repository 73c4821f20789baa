"""The class list: from a CSV, as nbgrader, Canvas, Moodle or Gradescope write it, into nbgrader's gradebook."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nbgrader.api import Gradebook
from nbgrader.api import Student as Entry
from sqlalchemy.exc import OperationalError

from autograder.course import Course
from puzzles.catalog import UserError

# By field, the headers it may stand under (letters and digits only), the best first.
HEADERS = {
    "id": ("studentid", "sisloginid", "sisuserid", "loginid", "username", "sid", "id", "idnumber"),
    "first_name": ("firstname", "givenname"),
    "last_name": ("lastname", "surname", "familyname"),
    "email": ("email", "emailaddress", "mail"),
    "lms_user_id": ("lmsuserid", "canvasuserid", "idnumber"),
    "name": ("student", "studentname", "name", "fullname"),
}
CANVAS = {"student", "section"}
# Rows of a Canvas export that are no people.
NOBODY = ("points possible", "student, test")
MAX_LENGTH = 128
# An id becomes the name of a folder, and nbgrader joins names with "+".
_UNSAFE = re.compile(r'[/\\:*?"<>|\[\]+\x00-\x1f\x7f]|^[.\-]|^\s|\s$')


@dataclass(frozen=True)
class Student:
    """A student as the gradebook knows one; what is unknown is empty."""

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    lms_user_id: str = ""

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}".strip()


@dataclass(frozen=True)
class Outcome:
    """How many students of a list were new, changed, or as before, and how many in the gradebook are not in it."""

    new: int
    changed: int
    same: int
    others: int


def enrol(course: Course, file: Path) -> Outcome:
    """Put the students of a CSV into the gradebook, all or none. An empty cell leaves what is known alone; nobody is
    ever removed. UserError names every line that cannot be meant."""
    listed = read_roster(file)
    try:
        with Gradebook(course.db_url, course.nbgrader.coursedir.course_id) as book:
            known = {entry.id: entry for entry in book.students}
            changed = sum(_update(known[each.id], each) for each in listed if each.id in known)
            added = [each for each in listed if each.id not in known]
            book.db.add_all([Entry(**_filled(each)) for each in added])
            book.db.commit()
    except OperationalError as error:
        raise UserError(f"The gradebook cannot be written ({error.orig}): put that right and try again.") from None
    kept = len(listed) - len(added)
    return Outcome(len(added), changed, kept - changed, len(known) - kept)


def students(course: Course) -> list[Student]:
    """Everyone in the gradebook, in the order of names."""
    with Gradebook(course.db_url, course.nbgrader.coursedir.course_id) as book:
        found = [Student(**{f.name: getattr(entry, f.name) or "" for f in fields(Student)}) for entry in book.students]
    return sorted(found, key=lambda each: (each.last_name.casefold(), each.first_name.casefold(), each.id))


def read_table(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with their line numbers, by header in lower-case letters and digits: separated by commas,
    semicolons or tabs, in UTF-8 or UTF-16 with a mark. UserError if it is none."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name a CSV file.") from None
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8: save it again as 'CSV UTF-8'.") from None
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        header = [re.sub(r"[\W_]", "", cell.casefold()) for cell in next(reader, [])]
        for cells in reader:
            if any(cell.strip() for cell in cells):
                named = zip(header, cells, strict=False)
                yield reader.line_num, {name: cell.strip() for name, cell in named if name}
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num} is no CSV ({error}): save it again as CSV.") from None


def read_roster(file: Path) -> list[Student]:
    """The students of a CSV. UserError unless every line names one, by an id of its own that a folder can have."""
    rows = list(read_table(file))
    header = set(rows[0][1]) if rows else set()
    columns = _columns(header, [row for _, row in rows])
    found: dict[str, Student] = {}
    troubles = []
    for line, row in rows:
        student = _student(row, columns)
        if row.get(columns["name"], "").casefold() in NOBODY or student == Student(""):
            continue
        if problem := _problem(student, found):
            troubles.append(f"line {line}: {problem}")
        found[student.id] = student
    if troubles:
        more = f"; and {len(troubles) - 10} more" if len(troubles) > 10 else ""
        raise UserError(f"Nothing was changed, put these right in {file}: {'; '.join(troubles[:10])}{more}.")
    if not found:
        raise UserError(f"{file} lists nobody: it needs a first line with headers like id,first_name,last_name,email.")
    return list(found.values())


def _columns(header: set[str], rows: list[dict[str, str]]) -> dict[str, str]:
    """The header that each field stands under in this file, "" for none. In Canvas's files ID is Canvas's own number;
    a column that is empty in every row is as good as none, and whoever has no id has an email."""

    def first(names: tuple[str, ...]) -> str:
        return next((name for name in names if name in header and any(row.get(name) for row in rows)), "")

    columns = {field: first(names) for field, names in HEADERS.items()}
    if header >= CANVAS or "sisloginid" in header:
        columns["lms_user_id"] = first(("id",))
    elif columns["lms_user_id"] == columns["id"]:
        columns["lms_user_id"] = ""
    columns["id"] = columns["id"] or columns["email"]
    return columns


def _student(row: dict[str, str], columns: dict[str, str]) -> Student:
    first, last = (row.get(columns[field], "") for field in ("first_name", "last_name"))
    if not (first or last):
        whole = row.get(columns["name"], "")
        if "," in whole:
            last, first = (part.strip() for part in whole.split(",", 1))
        else:
            first, _, last = whole.rpartition(" ")
    others = {field: row.get(columns[field], "") for field in ("id", "email", "lms_user_id")}
    return Student(first_name=first, last_name=last, **others)


def _problem(student: Student, seen: dict[str, Student]) -> str:
    if not student.id:
        return "no id"
    if student.id in seen:
        return f"the id '{student.id}' once more"
    if _UNSAFE.search(student.id):
        return f"the id {student.id!r} cannot name a folder"
    if any(len(value) > MAX_LENGTH for value in asdict(student).values()):
        return f"more than {MAX_LENGTH} characters in a cell"
    return ""


def _filled(student: Student) -> dict[str, str]:
    return {field: value for field, value in asdict(student).items() if value}


def _update(entry: Entry, student: Student) -> bool:
    """Bring an entry of the gradebook up to date; whether that changed anything."""
    different = {field: value for field, value in _filled(student).items() if getattr(entry, field) != value}
    for field, value in different.items():
        setattr(entry, field, value)
    return bool(different)
