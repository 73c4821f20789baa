"""Collect what a class has handed in, from what an LMS exports or a folder of files, into submitted/.

Known are Canvas (`lovelaceada_LATE_123_456_blueprint-2.ipynb`), Moodle
(`Ada Lovelace_123_assignsubmission_file_/blueprint.ipynb`), Gradescope (`submission_123/` and
`submission_metadata.yml`), and files or folders named after a student.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from autograder.archive import File, opened
from autograder.course import Course
from autograder.identify import Clue, People
from autograder.roster import read_table, students
from autograder.source import write_atomically
from puzzles import catalog
from puzzles.catalog import UserError

METADATA = "submission_metadata.yml"
TIMESTAMP = "timestamp.txt"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"
_CANVAS = re.compile(r"(?P<who>[^_]+)_(?P<late>LATE_)?(?P<user>\d+)_(?P<upload>\d+)_(?P<file>.+)")
_MOODLE = re.compile(r"(?:.*/)?(?P<who>[^/]+?)_\d+_assignsubmission_file_/?(?P<file>.+)")
# "blueprint-2", "blueprint (2)": an LMS or a browser has counted
_ATTEMPT = re.compile(r"(?:-| ?\()(\d+)\)?$")


# By file, whose it is, and for each of them when it was handed in, if that is said.
Mapping = dict[str, dict[str, datetime | None]]


@dataclass(frozen=True)
class Handed:
    """A notebook somebody handed in. `order` tells attempts of one student apart, the later the greater; None: nothing
    does. `late` is the LMS's mark; `time` is in UTC, None if the LMS does not tell."""

    file: File
    name: str
    clues: tuple[Clue, ...]
    order: tuple[int, ...] | None = None
    time: datetime | None = None
    late: bool = False


@dataclass
class Collected:
    """What came of it: by student the file taken, what recognised it by, and whether it is new, newer or as before;
    files left out and why; students marked late without a time; and of whom there is nothing."""

    taken: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What to tell the instructor."""
        for student, (file, by, state) in self.taken.items():
            yield f"  {student}: {file} (by {by}, {state})"
        states = Counter(state for _, _, state in self.taken.values())
        counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        yield f"Collected: {counts or 'nothing'}."
        for title, files in (("Left out:", self.left_out), ("Nobody's yet:", self.unknown)):
            if files:
                yield title
                yield from (f"  {file}: {why}" for file, why in files)
        if self.unknown:
            yield "Say whose they are in a CSV with the columns file,id and run this again with --map FILE.csv."
        if self.late:
            yield f"Marked LATE, with no time in the export: {', '.join(self.late)}. A penalty needs one: see --map."
        if self.absent:
            yield f"Nothing from {len(self.absent)} on the class list: {', '.join(self.absent)}."


def collect(course: Course, source: Path, assignment: str, mapping: Path | None = None) -> Collected:
    """Put the latest notebook of every student into submitted/<student>/<assignment>/, with its time if there is one.
    What it takes the place of is kept in replaced/. `mapping` is a CSV that says whose a file is, and when it was
    handed in (file, id, submitted). UserError if there is no class list, or the source or the mapping cannot be
    read."""
    class_list = students(course)
    if not class_list:
        raise UserError("The gradebook knows no students: run `python -m autograder roster FILE.csv` first.")
    people, known = People(class_list), {each.id for each in class_list}
    told = _read_mapping(mapping, known) if mapping else {}
    outcome = Collected()
    with opened(source) as files:
        found = list(_notebooks(files, assignment, outcome))
        for student, handed in sorted(_by_student(found, people, told, outcome).items()):
            _take(course, student, assignment, handed, outcome)
    outcome.absent = sorted(known - set(outcome.taken) - _present(course, assignment))
    return outcome


def _present(course: Course, assignment: str) -> set[str]:
    return {submission.student for submission in course.submissions(assignment)}


def _by_student(
    found: list[Handed], people: People, told: Mapping, outcome: Collected
) -> dict[str, list[tuple[Handed, str]]]:
    """What each student handed in, and what recognised them by; what is nobody's is noted."""
    names = Counter(name for path in {each.file.path for each in found} for name in {str(path), path.name})
    whose: dict[str, list[tuple[Handed, str]]] = {}
    for handed in found:
        path = handed.file.path
        # a bare name will do where it is the only one: in Moodle's exports all may have the same
        named = told.get(str(path)) or (told.get(path.name) if names[path.name] == 1 else None)
        if named:
            for student, time in named.items():
                entry = (replace(handed, time=time or handed.time), "--map")
                if all(path != other.file.path for other, _ in whose.get(student, [])):
                    whose.setdefault(student, []).append(entry)
            continue
        fit = people.find(handed.clues)
        if len(fit.students) == 1:
            whose.setdefault(fit.students[0], []).append((handed, fit.by))
        else:
            several = f"it fits {', '.join(fit.students)} by {fit.by}" if fit.students else "it fits nobody"
            outcome.unknown.append((str(path), several))
    return whose


def _read_mapping(file: Path, known: set[str]) -> Mapping:
    found: Mapping = {}
    for line, row in read_table(file):
        name, student, moment = (row.get(column, "") for column in ("file", "id", "submitted"))
        if not name or student not in known:
            raise UserError(
                f"{file} line {line}: '{student}' is no student in the gradebook, or there is no file: "
                "the columns are file,id and, if you like, submitted."
            )
        try:
            found.setdefault(name, {})[student] = _utc(moment) if moment else None
        except ValueError:
            raise UserError(f"{file} line {line}: '{moment}' is no time: write 2026-10-01T23:59+02:00.") from None
    return found


def _utc(text: str) -> datetime:
    """A moment in UTC, without its zone, as nbgrader wants it. ValueError if it is none, or has no zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC).replace(tzinfo=None)


def _notebooks(files: list[File], assignment: str, outcome: Collected) -> Iterator[Handed]:
    """The notebooks among the files that may be of the assignment; the other files are noted."""
    others = [puzzle.id for puzzle in catalog.puzzles() if puzzle.id != assignment]
    metadata = {file.path.parent: _gradescope(file) for file in files if file.path.name == METADATA}
    for file in files:
        if file.path.name in (METADATA, TIMESTAMP):
            continue
        trouble = file.trouble
        if not trouble and file.path.suffix.lower() == ".zip":
            trouble = "it is a zip within: unpack it into a folder and collect that too"
        elif not trouble and file.path.suffix.lower() != ".ipynb":
            trouble = "it is no notebook"
        elif not trouble and (other := [name for name in others if name in str(file.path)]):
            trouble = f"it is of {other[0]}"
        if trouble:
            outcome.left_out.append((str(file.path), trouble))
        else:
            yield from _handed(file, assignment, metadata)


def _handed(file: File, assignment: str, metadata: dict[PurePosixPath, dict[str, Any]]) -> Iterator[Handed]:
    """What the place and the name of a notebook say about it: once for each of a group."""
    for folder in file.path.parents:
        if folder.parent in metadata and folder.name in metadata[folder.parent]:
            yield from _of_gradescope(file, metadata[folder.parent][folder.name])
            return
    if moodle := _MOODLE.fullmatch(file.path.as_posix()):
        yield Handed(file, moodle["file"], (Clue("name", moodle["who"]),), _attempt(moodle["file"]))
    elif canvas := _CANVAS.fullmatch(file.path.name):
        clues = (Clue("LMS id", canvas["user"]), Clue("name", canvas["who"]))
        yield Handed(file, canvas["file"], clues, (int(canvas["upload"]),), late=bool(canvas["late"]))
    else:
        stem = file.path.stem.replace(assignment, " ")
        places = [part for part in file.path.parts[:-1] if part not in ("submitted", assignment)]
        hints = tuple(Clue("file name", text) for text in (*places, _ATTEMPT.sub("", stem), stem))
        yield Handed(file, file.path.name, hints, _attempt(file.path.name))


def _attempt(name: str) -> tuple[int, ...]:
    counted = _ATTEMPT.search(Path(name).stem)
    return (int(counted[1]) if counted else 1,)


def _gradescope(file: File) -> dict[str, Any]:
    try:
        data = yaml.safe_load(b"" if file.trouble else file.read())
    except (yaml.YAMLError, UserError):
        raise UserError(f"{file.path} cannot be read: export the submissions once more.") from None
    return data if isinstance(data, dict) else {}


def _of_gradescope(file: File, entry: Any) -> Iterator[Handed]:
    entry = entry if isinstance(entry, dict) else {}
    created = entry.get(":created_at")
    time = _utc(str(created)) if created else None
    for submitter in entry.get(":submitters") or [{}]:
        said = {"id": ":sid", "email": ":email", "name": ":name"}
        clues = tuple(Clue(kind, str(submitter[key])) for kind, key in said.items() if submitter.get(key))
        order = (int(time.replace(tzinfo=UTC).timestamp()),) if time else None
        yield Handed(file, file.path.name, clues, order, time)


def _take(course: Course, student: str, assignment: str, found: list[tuple[Handed, str]], outcome: Collected) -> None:
    """Keep the latest of a student's notebooks; say which were left out."""
    named = [(handed, by) for handed, by in found if assignment in handed.name]
    found = sorted(named or found, key=lambda each: each[0].order or ())
    (latest, by), earlier = found[-1], found[:-1]
    if earlier and earlier[-1][0].order == latest.order:
        for handed, _ in found:
            outcome.unknown.append(
                (str(handed.file.path), f"{student} has {len(found)} of them and nothing tells which is the latest")
            )
        return
    for handed, _ in earlier:
        outcome.left_out.append((str(handed.file.path), f"{student} has a later one, {latest.file.path.name}"))
    if latest.late and not latest.time:
        outcome.late.append(student)
    folder = course.root / "submitted" / student / assignment
    try:
        outcome.taken[student] = (str(latest.file.path), by, _put(course, folder, latest, latest.file.read()))
    except UserError as damage:
        outcome.left_out.append((str(latest.file.path), str(damage)))
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written ({error.strerror}): put that right and run the command "
            "again. What was collected is kept."
        ) from None


def _put(course: Course, folder: Path, handed: Handed, content: bytes) -> str:
    """Write a notebook and its time into a student's folder: "new", "newer", or "as before"; or "older", and it was
    not written, because the folder holds one that was handed in later."""
    target = folder / f"{folder.name}.ipynb"
    state = "new"
    if target.exists():
        state = "as before" if target.read_bytes() == content else "newer"
        before = course.nbgrader.coursedir.get_existing_timestamp(str(folder))
        if before and handed.time and handed.time < before:
            return "older"
    if state == "newer":
        student = folder.parent.name
        number, kept = 1, course.root / "replaced" / student
        while (place := kept / f"{folder.name}-{number}.ipynb").exists():
            number += 1
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(target, place)
    if handed.time:
        write_atomically(folder / TIMESTAMP, handed.time.strftime(TIME_FORMAT))
    elif state == "newer":
        (folder / TIMESTAMP).unlink(missing_ok=True)
    if state != "as before":
        write_atomically(target, content)
    return state
