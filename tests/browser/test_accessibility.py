"""axe's rules (names, contrast, structure) on the pages of the course, light and dark."""

from pathlib import Path
from typing import Any

import pytest

from autograder.report import write_report
from tests.browser.axe import violations
from tests.browser.jupyterlab import Notebook, Server, screenshot
from tests.conftest import PUZZLE, SampleClass

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OURS = ".jp-RenderedHTMLCommon"  # what cells show, and Markdown; the rest of the page is JupyterLab's


def test_axe_finds_a_picture_without_words_and_text_too_pale(page: Any) -> None:
    page.set_content("<html lang=en><title>x</title><main class=bad><img src=x><p style='color:#aaa'>pale</p></main>")
    assert {line.split(":")[0] for line in violations(page, ".bad")} == {"image-alt", "color-contrast"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report(scheme: str, sample: SampleClass, page: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(write_report(sample.course, [PUZZLE]).as_uri())
    assert violations(page) == []
    screenshot(page, f"report-{scheme}")


def test_a_feedback_page(sample: SampleClass, page: Any) -> None:
    """Of a page whose frame is nbgrader's: what we show in it."""
    student = "dan_plausible"
    sample.course.nbgrader.generate_feedback(PUZZLE, student)
    page.goto((sample.course.root / "feedback" / student / PUZZLE / f"{PUZZLE}.html").as_uri())
    assert page.locator(".output_html [role=status]").count() > 0
    assert page.locator(".output_html img").count() > 0
    assert violations(page, ".output_html") == []


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_start_page_and_the_checks(theme: str, lab: Server, page: Any) -> None:
    for path in ("START.ipynb", f"{PUZZLE}/{PUZZLE}.ipynb"):
        notebook = Notebook.open(page, lab, path)
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        notebook.run_all()
        assert violations(page, OURS) == []
        notebook.screenshot(f"{Path(path).stem}-{theme.split()[-1].lower()}")
