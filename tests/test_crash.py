"""Whatever happens to a grading run, the next one completes it: nothing lost, nothing doubled, nothing half-written."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from autograder import gradebook
from autograder.course import Course
from autograder.demo import CONFIG
from autograder.grading import Graded, grade_course
from autograder.release import release
from autograder.template import solution_cells
from autograder.variants import source
from puzzles import catalog
from puzzles.catalog import UserError

PUZZLE = "01_transformer_blueprint"
KEPT = ("widths", "window_sizes")
STUDENTS = 8
SEED = 3
KILLS = 25


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """Students who solved both parts of a notebook cut down to two, or only the first: 25 or 10 points."""
    root = tmp_path / "course"
    script = catalog.ROOT / "source" / PUZZLE / f"{PUZZLE}.ipynb"
    small = nbformat.read(script, as_version=4)
    names = {"imports", *KEPT, *(f"test-{name}" for name in KEPT), *(f"check-{name}" for name in KEPT)}
    small.cells = [cell for cell in small.cells if cell.id in names]
    (root / "source" / PUZZLE).mkdir(parents=True)
    nbformat.write(small, root / "source" / PUZZLE / f"{PUZZLE}.ipynb")
    shutil.copy(catalog.ROOT / CONFIG, root)
    course = Course(root)
    release(course, [PUZZLE])
    solutions = {name: cell.source for name, cell in solution_cells(source(PUZZLE)).items()}
    for number in range(STUDENTS):
        notebook = nbformat.read(catalog.release_notebook(PUZZLE, root), as_version=4)
        for name, cell in solution_cells(notebook).items():
            cell.source = solutions[name] if name == "widths" or number % 2 == 0 else cell.source
        path = root / "submitted" / f"student_{number}" / PUZZLE / f"{PUZZLE}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
    return course


def expected(number: int) -> float:
    return 25.0 if number % 2 == 0 else 10.0


def grade(course: Course, **options: object) -> list[Graded]:
    return list(grade_course(course, list(course.submissions()), SEED, jobs=2, **options))  # type: ignore[arg-type]


def assert_complete(course: Course) -> None:
    """Every score once in the gradebook, every graded notebook whole, and nothing else lying about."""
    with Gradebook(course.db_url) as book:
        submissions = book.find_assignment(PUZZLE).submissions
        scores = sorted((each.student.id, each.score) for each in submissions)
        assert scores == [(f"student_{n}", expected(n)) for n in range(STUDENTS)]
        assert all(len(each.notebooks) == 1 and len(each.notebooks[0].grades) == 2 for each in submissions)
    for number, submission in enumerate(course.submissions()):
        saved = gradebook.recorded(course, submission)
        assert saved is not None and saved[2].score == expected(number)
    lying_about = [p for p in (course.root / "autograded").rglob("*") if p.is_file() and p.name != f"{PUZZLE}.ipynb"]
    assert [path.name for path in lying_about] in ([], [".grading.lock"])
    assert not list((course.root / "autograded").rglob("*.half"))


def _grade_in_a_process(root: str, temporary: str) -> None:
    os.environ["TMPDIR"] = temporary
    course = Course(Path(root))
    list(grade_course(course, list(course.submissions()), SEED, jobs=2))


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again(course: Course, tmp_path: Path):
    """SIGKILL again and again, at moments drawn from the whole length of a run. A run that ends untouched is
    not counted, and the next ones are killed sooner."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_crash"])
    rng = random.Random(0)

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_grade_in_a_process, args=(str(course.root), str(temporary)))
        process.start()
        return process

    first = start()
    started = time.monotonic()
    first.join(300)
    assert first.exitcode == 0
    length = time.monotonic() - started
    kills = 0
    for number in range(4 * KILLS):
        if number % 5 == 0:  # from nothing, from half, or over what is there
            shutil.rmtree(course.root / "autograded", ignore_errors=True)
        elif number % 5 == 3:
            for folder in sorted((course.root / "autograded").glob("student_*"))[::2]:
                shutil.rmtree(folder)
        process = start()
        process.join(length * rng.uniform(0.2, 1.0))
        assert process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            length *= 0.9
            continue
        kills += 1
        if kills == KILLS:
            break
    assert kills == KILLS, f"only {kills} of {number + 1} runs could be killed before they were over"
    until = time.monotonic() + 20
    while running_below(temporary) and time.monotonic() < until:
        time.sleep(0.2)
    assert not running_below(temporary), "sandboxes outlive their grader"
    # a grader killed before its zygote had started leaves a folder, which a run removes once it is old
    for folder in temporary.iterdir():
        os.utime(folder, (0, 0))
    process = start()
    process.join(300)
    assert process.exitcode == 0
    assert_complete(course)
    assert not list(temporary.iterdir())


def running_below(folder: Path) -> list[Path]:
    """Processes started from a sandbox in this folder."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(process)
    return found


def test_a_full_disk_is_one_sentence_and_the_next_run_completes(course: Course, monkeypatch: pytest.MonkeyPatch):
    """The disk fills up while the third graded notebook is written."""
    written = 0
    write = Path.write_text

    def full(self: Path, *arguments: object, **options: object) -> int:
        nonlocal written
        if ".half" in str(self):
            written += 1
            if written == 3:
                self.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            grade(course)
    assert sum(each.fresh for each in grade(course)) == STUDENTS - 2
    assert_complete(course)


@contextlib.contextmanager
def locked(course: Course) -> Iterator[None]:
    connection = sqlite3.connect(course.root / "gradebook.db", check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def test_a_locked_database_is_waited_for(course: Course):
    block = locked(course)
    list(grade_course(course, list(course.submissions())[:1], SEED))
    block.__enter__()
    threading.Timer(8.0, lambda: block.__exit__(None, None, None)).start()
    submissions = list(course.submissions())
    monitored = gradebook.recorded(course, submissions[0])
    assert monitored is not None
    result = monitored[2]
    started = time.monotonic()
    gradebook.record(course, submissions[0], result, monitored[0], SEED)
    assert time.monotonic() - started > 5
    grade(course)
    assert_complete(course)


def test_a_database_that_stays_locked_is_one_sentence(course: Course, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gradebook, "LOCKED_SECONDS", 0.1)
    grade(course)
    submission = next(course.submissions())
    saved = gradebook.recorded(course, submission)
    assert saved is not None
    with locked(course), pytest.raises(UserError, match=r"gradebook cannot be written \(database is locked"):
        gradebook.record(course, submission, saved[2], saved[0], SEED)
    grade(course, force=True)
    assert_complete(course)


def test_what_was_graded_is_what_is_recorded_though_it_changed_meanwhile(
    course: Course, monkeypatch: pytest.MonkeyPatch
):
    """A student hands in again while the first version is being recorded: the next run grades the new one."""
    path = next(course.submissions()).folder / f"{PUZZLE}.ipynb"
    better, blank = path.read_bytes(), nbformat.read(catalog.release_notebook(PUZZLE, course.root), as_version=4)
    path.write_text(nbformat.writes(blank))
    record = gradebook.record

    def change_and_record(*arguments: object) -> None:
        path.write_bytes(better)
        record(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(gradebook, "record", change_and_record)
        assert grade(course)[0].fresh
    again = grade(course)
    assert [each.submission.student for each in again if each.fresh] == ["student_0"]
    assert_complete(course)


def test_two_runs_do_not_grade_one_course_at_once(course: Course):
    with gradebook.only_writer(course), pytest.raises(UserError, match="Another run is grading"):
        grade(course)


def test_the_number_of_jobs_changes_nothing(course: Course):
    def outcome(jobs: int) -> str:
        graded = grade_course(course, list(course.submissions()), SEED, jobs=jobs, force=True)
        rows = {g.submission.student: [v.to_dict() for v in g.result.verdicts] for g in graded}
        notebooks = {}
        for submission in course.submissions():
            notebook = nbformat.read(course.autograded(submission), as_version=4)
            del notebook.metadata[gradebook.METADATA_KEY]
            notebooks[submission.student] = notebook
        return json.dumps([sorted(rows.items()), sorted(notebooks.items())])

    assert outcome(1) == outcome(3)


def test_regrading_keeps_what_a_person_has_given(course: Course):
    """Manual grades, extra credit and comments survive a regrade, as in nbgrader."""
    grade(course)
    with Gradebook(course.db_url) as book:
        submission = book.find_submission(PUZZLE, "student_1")
        mark = submission.notebooks[0].grades[0]
        mark.manual_score, mark.extra_credit = 7.0, 1.0
        comment = submission.notebooks[0].comments[0] if submission.notebooks[0].comments else None
        if comment is not None:
            comment.manual_comment = "Well argued."
        book.db.commit()
    grade(course, force=True)
    with Gradebook(course.db_url) as book:
        submission = book.find_submission(PUZZLE, "student_1")
        mark = submission.notebooks[0].grades[0]
        assert (mark.manual_score, mark.extra_credit, mark.score) == (7.0, 1.0, 8.0)
        if submission.notebooks[0].comments:
            assert submission.notebooks[0].comments[0].comment == "Well argued."
