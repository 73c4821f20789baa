"""What browser tests share: one Chromium, a learner's folder, and JupyterLab over it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puzzles.catalog import UserError
from tests.browser.chromium import chromium
from tests.browser.jupyterlab import ROOT, Server, serve


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        with chromium() as running:
            yield running
    except UserError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page in a browser that remembers nothing and reaches nothing but this machine."""
    with browser.new_context(viewport={"width": 1400, "height": 1000}) as context:
        context.route(
            lambda url: not url.startswith(("http://127.0.0.1", "file:", "data:")), lambda route: route.abort()
        )
        yield context.new_page()


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learner's folder, as `make lab` prepares it."""
    folder = tmp_path_factory.mktemp("learner") / "work"
    subprocess.run(
        [sys.executable, "-m", "puzzles", "--prepare"],
        cwd=ROOT,
        env=os.environ | {"NANOCHAT_WORK": str(folder)},
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="session")
def lab(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab over the learner's folder, as `make lab` starts it."""
    home = tmp_path_factory.mktemp("jupyter")
    with serve(work, home, ROOT, NANOCHAT_WORK=str(work), OMP_NUM_THREADS="1") as running:
        yield running
