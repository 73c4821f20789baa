"""The gradebook on a real PostgreSQL server that these tests start: nbgrader's `db_url` is all that changes."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autograder import gradebook
from autograder.course import Course
from autograder.demo import CONFIG
from autograder.export import export
from autograder.grading import grade_course
from tests.conftest import PUZZLE, SEED, Command, SampleClass

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
BIN = SERVERS[-1] if SERVERS else Path(shutil.which("postgres") or "/nonexistent").parent
STUDENTS = ("ada_reference", "ben_blank", "hal_damaged")

pytestmark = pytest.mark.skipif(
    not (BIN / "initdb").exists(), reason="no PostgreSQL server on this machine (Debian: apt-get install postgresql)"
)


@pytest.fixture(scope="module")
def db_url() -> Iterator[str]:
    """An empty database on a server of its own, reached over loopback, that runs as whom it may: never as root."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(folder, user.pw_uid, user.pw_gid)
    who: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def command(*arguments: object) -> None:
        subprocess.run(list(map(str, arguments)), check=True, capture_output=True, cwd=folder, timeout=120, **who)

    data = folder / "data"
    command(BIN / "initdb", "-D", data, "-U", "grader", "--auth", "trust", "--no-sync")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"],
            cwd=folder,
            stdout=log,
            stderr=log,
            **who,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                command(BIN / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "grader", "grades")
                break
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql+psycopg://grader@127.0.0.1:{port}/grades"
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def course(db_url: str, sample: SampleClass, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """Some of the sample class, in a course whose configuration names the server."""
    root = tmp_path_factory.mktemp("postgresql") / "course"
    shutil.copytree(sample.course.root / "source", root / "source")
    for student in STUDENTS:
        shutil.copytree(sample.course.root / "submitted" / student, root / "submitted" / student)
    config = (sample.course.root / CONFIG).read_text()
    (root / CONFIG).write_text(f"{config}\nget_config().CourseDirectory.db_url = {db_url!r}\n")
    return Course(root)


def test_the_commands_use_the_server(course: Course, sample: SampleClass, run: Command):
    """release, grade and export, as an instructor types them: the scores of the sample class, and no file of SQLite."""
    for command in (["release"], ["grade", "--jobs", 2, "--seed", SEED], ["export", "--output", course.root / "s.csv"]):
        done = run("autograder", *command, "--course", course.root)
        assert done.returncode == 0, done.stderr
    assert not (course.root / "gradebook.db").exists()
    scores = gradebook.scores(course, PUZZLE)
    assert {student: entry["score"] for student, entry in scores.items()} == {
        student: sample.graded[student].result.score for student in STUDENTS
    }
    assert all(student in (course.root / "s.csv").read_text() for student in STUDENTS)


def test_regrading_doubles_nothing(course: Course):
    before = export(course, [PUZZLE], "csv")
    again = list(grade_course(course, list(course.submissions()), SEED + 1, jobs=2, force=True))
    assert [each.fresh for each in again] == [True] * len(STUDENTS)
    assert export(course, [PUZZLE], "csv") == before
