"""The labs in JupyterLab, as a learner has them: everything shows, and a slider changes its picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter

from tests.browser.jupyterlab import Notebook, Server, screenshot, serve
from tests.lab_notebooks import LABS, lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# By lab: a control with its picture, and the key that moves it or what to choose
CONTROLS = {
    "00_microgpt": [("a", "ArrowLeft"), ("temperature", "ArrowRight"), ("name", "chloe")],
    "attention_masks": [("layer", "ArrowRight"), ("query", "PageDown"), ("context", "ArrowRight")],
    "instructor_dashboard": [("bins", "ArrowLeft"), ("seed", "ArrowRight")],
    "lr_schedules": [("iterations", "ArrowRight"), ("peak rate", "ArrowRight"), ("matrix", "Gaussian")],
    "pipeline": [("vocabulary", "320"), ("conversation", "ArrowRight")],
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, sample: Any) -> Iterator[Server]:
    """The labs, without outputs. The pipeline is only tried, and the dashboard reads the graded sample class."""
    folder = tmp_path_factory.mktemp("labs")
    parameters: dict[str, dict[str, object]] = {
        "pipeline": {"BASE_STEPS": 10, "SFT_STEPS": 6, "RL_STEPS": 2, "EXAM_QUESTIONS": 4},
        "instructor_dashboard": {"COURSE": str(sample.course.root)},
    }
    for name in LABS:
        nbformat.write(lab(name, **parameters.get(name, {})), folder / f"{name}.ipynb")
    with serve(folder, tmp_path_factory.mktemp("jupyter"), OMP_NUM_THREADS="1") as running:
        yield running


@pytest.mark.parametrize("name", LABS)
def test_a_lab_runs_and_its_controls_change_its_pictures(name: str, server: Server, page: Any) -> None:
    notebook = Notebook.open(page, server, f"{name}.ipynb")
    notebook.run_all()
    assert notebook.troubles() == []
    pictures = notebook.pictures()
    assert len(pictures) >= 4
    assert all(picture["alt"] and picture["width"] > 300 for picture in pictures)
    for number, (label, to) in enumerate(CONTROLS[name]):
        notebook.screenshot(f"{name}-{number}-before", label)
        notebook.move(label, to)
        notebook.screenshot(f"{name}-{number}-after", label)
    assert notebook.troubles() == []
    assert not [text for text in notebook.cells.all_inner_texts() if "cannot be shown" in text]


def test_the_dashboard_shows_names_only_when_asked(server: Server, page: Any) -> None:
    notebook = Notebook.open(page, server, "instructor_dashboard.ipynb")
    notebook.run_all()
    seconds = notebook.cells.filter(has_text="explore(draw_time").last
    output = seconds.locator(".jp-Cell-outputArea")
    assert "student" in output.inner_text()
    assert "finn_crashing" not in page.content()
    seconds.get_by_label("hide names").uncheck()
    output.get_by_text("finn_crashing").wait_for(timeout=30_000)
    notebook.screenshot("instructor_dashboard-names")


def test_pictures_are_there_without_a_kernel_or_widgets(page: Any, tmp_path: Path, server: Server) -> None:
    """A page made from an executed lab, opened offline: no widget manager can be fetched, every picture is there."""
    notebook = Notebook.open(page, server, "attention_masks.ipynb")
    notebook.run_all()
    expected = notebook.pictures()
    notebook.save()
    saved = page.request.get(server.address("api/contents/attention_masks.ipynb")).json()["content"]
    html, _ = HTMLExporter().from_notebook_node(nbformat.from_dict(saved))
    (tmp_path / "page.html").write_text(html)
    page.context.set_offline(True)
    page.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
    images = page.locator("img")
    images.first.wait_for()
    found = images.evaluate_all("images => images.map(image => ({alt: image.alt, width: image.naturalWidth}))")
    assert found == expected
    screenshot(page, "attention_masks-without-kernel")
