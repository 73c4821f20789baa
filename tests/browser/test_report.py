"""The class report in a browser: at the width of a phone, without a mouse."""

from pathlib import Path
from typing import Any

import pytest

from autograder.report import write_report
from tests.browser.jupyterlab import screenshot
from tests.conftest import PUZZLE, SampleClass

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDTHS = {"phone": 375, "desktop": 1280}


@pytest.fixture(scope="module")
def report(sample: SampleClass) -> Path:
    return write_report(sample.course, [PUZZLE])


@pytest.mark.parametrize("device", WIDTHS)
def test_the_report_fits_its_window(device: str, report: Path, page: Any) -> None:
    """Wide tables scroll in themselves; the page does not, and no letter is too small to read."""
    page.set_viewport_size({"width": WIDTHS[device], "height": 800})
    page.goto(report.as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth") <= WIDTHS[device]
    assert page.locator("h1").count() == 1
    assert page.locator("h2").count() == 1
    assert page.locator("table").count() >= 2
    smallest = page.evaluate(
        """() => Math.min(...[...document.body.querySelectorAll('*')].filter(element => element.innerText?.trim())
            .map(element => parseFloat(getComputedStyle(element).fontSize)))"""
    )
    assert smallest >= 12
    screenshot(page, f"report-{device}")
    page.screenshot(path=screenshot(page, f"report-{device}-whole"), full_page=True)


def test_the_report_is_read_by_keyboard_alone(report: Path, page: Any) -> None:
    """Every stop of the Tab key shows that it has the focus; Enter folds a submission in and out."""
    page.goto(report.as_uri())
    stops = []
    for _ in range(200):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const element = document.activeElement;
                const style = getComputedStyle(element);
                return {tag: element.tagName, text: element.innerText, visible: style.outlineStyle !== 'none'
                    && parseFloat(style.outlineWidth) > 0};
            }"""
        )
        if stop["tag"] == "BODY":
            break
        stops.append(stop)
    assert [stop for stop in stops if not stop["visible"]] == []
    assert {"A", "SUMMARY", "DIV"} <= {stop["tag"] for stop in stops}
    summary = page.locator("summary").first
    details = page.locator("details").first
    summary.focus()
    before = details.evaluate("element => element.open")
    page.keyboard.press("Enter")
    assert details.evaluate("element => element.open") is not before
