"""An instructor in Formgrader: a submission graded by a click, the written question marked by hand."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from autograder import demo, gradebook
from autograder.course import Course
from autograder.release import release
from puzzles.submit import SEED_VARIABLE
from tests.browser.jupyterlab import Server, screenshot, serve
from tests.conftest import PUZZLE, SEED, SampleClass

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STUDENT = "dan_plausible"
QUESTION = "why_windows"
FIELDS = {
    f"{QUESTION}_extra_credit": "1.5",
    f"{QUESTION}-comment": "(a) and (b) are argued well; (c) is missing.",
}


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A course with two submissions, not graded yet."""
    built = demo.build(tmp_path_factory.mktemp("formgrader") / "course", [PUZZLE])
    for folder in (built.root / "submitted").iterdir():
        if folder.name not in ("ben_blank", STUDENT):
            shutil.rmtree(folder)
    release(built, [PUZZLE])
    return built


@pytest.fixture(scope="module")
def server(course: Course, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {SEED_VARIABLE: str(SEED), "OMP_NUM_THREADS": "1"}
    with serve(course.root, tmp_path_factory.mktemp("jupyter"), **environment) as running:
        yield running


def row_of(page: Any, text: str) -> Any:
    """The row of Formgrader's table in which a cell says exactly `text`."""
    row = page.locator("#main-table tr").filter(has=page.get_by_text(text, exact=True))
    row.wait_for()
    return row


def saved(page: Any) -> Any:
    """Wait at the end of the block for what was done in it to be saved."""
    return page.expect_response(lambda answer: answer.request.method == "PUT" and answer.ok)


def test_a_click_grades_and_a_mark_by_hand_is_kept(
    server: Server, course: Course, sample: SampleClass, page: Any
) -> None:
    expected = sample.graded[STUDENT].result
    page.goto(server.address("formgrader/manage_assignments"))
    row_of(page, PUZZLE).get_by_role("link", name="2", exact=True).click()
    row = row_of(page, STUDENT)
    assert "needs autograding" in row.inner_text()
    row.locator(".autograde a").click()
    page.get_by_text(f"Successfully autograded '{PUZZLE}' for student '{STUDENT}'").wait_for(timeout=60_000)
    assert page.locator("#success-modal").count() == 1
    row.get_by_text(f"{expected.score:g} / {expected.max:g}").wait_for()
    row.get_by_text("needs manual grading").wait_for()
    assert "needs autograding" in row_of(page, "ben_blank").inner_text()
    screenshot(page, "formgrader-autograded")

    page.locator("#success-modal").get_by_role("button", name="OK").click()

    page.get_by_role("link", name="Manual Grading").click()
    for link in (PUZZLE, PUZZLE, "Submission #1"):  # the assignment, its notebook, the one submission graded so far
        before = page.url
        page.locator("#main-table").get_by_role("link", name=link, exact=True).click()
        page.wait_for_url(lambda url, before=before: url != before)
    page.wait_for_function("window.formgrader?.grades?.loaded && window.formgrader.comments?.loaded")
    answer = page.locator(".nbgrader_cell").filter(has=page.locator(f"#{QUESTION}"))
    with saved(page):
        answer.get_by_role("button", name="Full credit").click()  # of 0 points: it says that the answer has been read
    for field, value in FIELDS.items():
        with saved(page):
            page.locator(f"#{field}").fill(value)
            page.locator(f"#{field}").press("Tab")
    answer.scroll_into_view_if_needed()
    screenshot(page, "formgrader-marked")
    page.reload()
    for field, value in FIELDS.items():
        page.wait_for_function("([id, text]) => document.getElementById(id).value === text", arg=[field, value])
    standing = gradebook.scores(course, PUZZLE)[STUDENT]
    assert standing["score"] == expected.score + 1.5
    assert not standing["needs_manual_grade"]
