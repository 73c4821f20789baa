"""The sample class, graded once for all tests that look at what came out."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from autograder import demo
from autograder.course import Course
from autograder.grading import Graded, grade_course
from autograder.release import release
from autograder.sandbox import Limits

SEED = 7
PUZZLE = "01_transformer_blueprint"
Command = Callable[..., subprocess.CompletedProcess]


@dataclass(frozen=True)
class SampleClass:
    """A course in a temporary folder whose submissions have been graded."""

    course: Course
    graded: dict[str, Graded]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleClass:
    """The sample class of puzzle 1 down the whole road, two at a time."""
    course = demo.build(tmp_path_factory.mktemp("class") / "course", [PUZZLE])
    release(course, [PUZZLE])
    graded = grade_course(course, list(course.submissions()), SEED, jobs=2, limits=Limits(cell_seconds=15))
    return SampleClass(course, {each.submission.student: each for each in graded})


@pytest.fixture
def run(tmp_path: Path) -> Command:
    """Run `python -m MODULE ARGS` as a user would, with work/ in a temporary folder."""

    def command(module: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
        environment = os.environ | {"NANOCHAT_WORK": str(tmp_path / "work"), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd or Path(__file__).parent.parent,
            timeout=300,
        )

    return command
