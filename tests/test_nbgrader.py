"""Stock nbgrader in a course folder: its own commands give the scores ours give, and tell nothing hidden."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from autograder.course import Course
from puzzles import catalog
from puzzles.submit import SEED_VARIABLE
from tests.conftest import PUZZLE, SEED, SampleClass
from tests.test_grading import copy_of

STUDENTS = ["ada_reference", "ben_blank", "dan_plausible", "eve_cheating"]


def nbgrader(course: Course, *arguments: str) -> str:
    """Run the stock command in the course folder and return what it said."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "nbgrader"), *arguments],
        cwd=course.root,
        capture_output=True,
        text=True,
        env=os.environ | {SEED_VARIABLE: str(SEED)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def stock(sample: SampleClass, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The sample class graded by stock commands alone, from nothing but sources and submissions."""
    course = copy_of(sample, tmp_path_factory.mktemp("stock"), *STUDENTS)
    for made in ("autograded", "release", "reports"):
        shutil.rmtree(course.root / made, ignore_errors=True)
    (course.root / "gradebook.db").unlink()
    nbgrader(course, "generate_assignment", PUZZLE)
    nbgrader(course, "autograde", PUZZLE)
    nbgrader(course, "generate_feedback", PUZZLE)
    return course


@pytest.mark.slow
def test_stock_autograde_gives_our_scores(stock, sample):
    with Gradebook(stock.db_url) as book:
        scores = {student: book.find_submission(PUZZLE, student).score for student in STUDENTS}
    assert scores == {student: sample.graded[student].result.score for student in STUDENTS}


@pytest.mark.slow
def test_stock_generate_assignment_makes_our_release(stock):
    theirs = nbformat.read(catalog.release_notebook(PUZZLE, stock.root), as_version=4)
    ours = nbformat.read(catalog.release_notebook(PUZZLE), as_version=4)
    assert theirs == ours


@pytest.mark.slow
def test_feedback_shows_messages_and_no_hidden_test(stock):
    page = (stock.root / "feedback" / "dan_plausible" / PUZZLE / f"{PUZZLE}.html").read_text()
    assert "not yet right" in page
    assert "HIDDEN TESTS" not in page
    assert "puzzles.submit" not in page


@pytest.mark.slow
def test_formgrader_shows_the_mark_scheme_and_feedback_does_not(stock):
    heading = "For the marker only"
    assert heading in stock.autograded(next(stock.submissions(PUZZLE, "ben_blank"))).read_text()
    assert not [page for page in (stock.root / "feedback").rglob("*.html") if heading in page.read_text()]


@pytest.mark.slow
def test_validate_passes_the_source_and_fails_the_release(stock):
    assert "Success" in nbgrader(stock, "validate", f"source/{PUZZLE}/{PUZZLE}.ipynb")
    said = nbgrader(stock, "validate", f"release/{PUZZLE}/{PUZZLE}.ipynb")
    assert f"VALIDATION FAILED ON {len(catalog.puzzle(PUZZLE).parts)} CELL" in said


PLAIN_CONFIG = """
from autograder.course import configure

config = get_config()
configure(config)
del config.Autograde
"""


@pytest.mark.slow
def test_the_cheat_would_have_had_full_marks_in_a_plain_nbgrader(sample: SampleClass, tmp_path: Path):
    """With nbgrader's own steps the learner's code and the tests share a kernel, and it can say what they return."""
    course = copy_of(sample, tmp_path, "eve_cheating")
    assert sample.graded["eve_cheating"].result.score == 0
    (course.root / "nbgrader_config.py").write_text(PLAIN_CONFIG)
    nbgrader(course, "autograde", PUZZLE, "--force")
    with Gradebook(course.db_url) as book:
        assert book.find_submission(PUZZLE, "eve_cheating").score == 100
