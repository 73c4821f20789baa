"""`make` from a copy of the course: what a newcomer types first, and what it says where it cannot go on."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.course_copy import environment_of, make_copy

SECONDS = 120


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return make_copy(tmp_path / "course")


def run(copy: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=copy,
        env=os.environ | environment_of(copy) | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@contextlib.contextmanager
def make_lab(copy: Path, home: Path, **environment: str) -> Iterator[list[str]]:
    """`make lab` without a browser; its lines so far. It and all it started end with the block."""
    home.mkdir(exist_ok=True)
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    process = subprocess.Popen(
        ["make", "lab", "OPTIONS=--no-browser --allow-root"],
        cwd=copy,
        env=os.environ | environment_of(copy) | folders | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "127.0.0.1" in line and "token=" in line:
                break
        yield lines
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=SECONDS)


def fetch(address: str) -> bytes:
    """A page of a server that has said where it is, and may listen only a moment later."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=SECONDS) as page:
                return page.read()
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
def test_make_lab_opens_jupyterlab_on_the_start_page(copy: Path, tmp_path: Path):
    """The address it prints, and opens in a browser, is the start page's; a port that is taken only moves it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        token = secrets.token_hex(8)
        with make_lab(copy, tmp_path / "home", JUPYTER_PORT=str(port), JUPYTER_TOKEN=token) as lines:
            said = "".join(lines)
            address = re.search(r"http://127\.0\.0\.1:(\d+)/lab/tree/START\.ipynb", said)
            assert address, said
            assert int(address[1]) != port and f"port {port} is already in use" in said
            assert b"JupyterLab" in fetch(f"{address[0]}?token={token}")
            contents = f"http://127.0.0.1:{address[1]}/api/contents/START.ipynb?token={token}"
            assert b"The Transformer Blueprint" in fetch(contents)
    assert (copy / "work" / "01_transformer_blueprint" / "01_transformer_blueprint.ipynb").exists()


@pytest.mark.slow
def test_make_demo_ends_with_a_grade_table_and_a_report(copy: Path):
    """A course of one puzzle: the demo is then a matter of half a minute."""
    settings = copy / "course.toml"
    settings.write_text(f'puzzles = ["01_transformer_blueprint"]\n{settings.read_text()}')
    for other in (copy / "source").iterdir():
        if other.name != "01_transformer_blueprint":
            shutil.rmtree(other)
    done = run(copy, "make", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ada_reference.*100.*✓✓✓✓✓✓✓✓", done.stdout)
    report = re.search(r"^Report: (.+)$", done.stdout, re.MULTILINE)
    assert report and Path(report[1]).is_file()


def test_an_activated_environment_runs_the_commands(copy: Path):
    done = run(copy, "bash", "-c", "source .venv/bin/activate && python -m puzzles")
    assert done.returncode == 0, done.stderr
    assert "Next: the hole" in done.stdout


def without_environment(copy: Path) -> None:
    """As it is after cloning."""
    shutil.rmtree(copy / ".venv")


def test_make_says_which_python_it_needs(copy: Path, tmp_path: Path):
    without_environment(copy)
    old = tmp_path / "python3.9"
    old.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "sys.version_info, sys.version = (3, 9, 2), '3.9.2 (main)'\nexec(sys.argv[2])\n"
    )
    old.chmod(0o755)
    done = run(copy, "make", "lab", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed, this is 3.9.2: set PYTHON=python3.x" in done.stderr
    assert "Traceback" not in done.stderr and not (copy / ".venv").exists()


@pytest.mark.slow
def test_make_says_that_the_network_is_missing_and_goes_on_when_asked_again(copy: Path):
    without_environment(copy)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    for _ in range(2):  # nothing half-done counts as done
        done = run(copy, "make", "lab", f"PYTHON={sys.executable}", **nowhere, PIP_FIND_LINKS="", PIP_NO_CACHE_DIR="1")
        assert done.returncode != 0
        assert "connect, then run the same command again" in done.stdout
        assert not (copy / ".venv" / "installed").exists()
