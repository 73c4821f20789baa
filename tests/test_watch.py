"""`--watch`: the loop from save to verdict, as somebody sees it who leaves it running beside an editor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autograder import demo
from puzzles import catalog, progress
from puzzles.watch import saves
from tests.conftest import PUZZLE

SECONDS = 120
PARTS = catalog.puzzle(PUZZLE).parts


class Watching:
    """A command that goes on, and what it has said so far."""

    def __init__(self, work: Path, *options: str) -> None:
        self.notebook = work / PUZZLE / f"{PUZZLE}.ipynb"
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", f"puzzles.{PUZZLE}", "--watch", *options],
            env=os.environ | {"NANOCHAT_WORK": str(work), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def until(self, words: str) -> str:
        """Wait until it has said `words`, forget what it said up to there, and return that."""
        deadline = time.monotonic() + SECONDS
        while words not in self.said:
            assert time.monotonic() < deadline and (self.reader.is_alive() or words in self.said), self.said
            time.sleep(0.05)
        before, _, self.said = self.said.partition(words)
        return before

    def save(self, content: str) -> None:
        """As JupyterLab saves: the file is replaced."""
        new = self.notebook.with_name("new")
        new.write_text(content)
        os.replace(new, self.notebook)

    def end(self) -> int:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_WORK", str(tmp_path / "work"))
    return tmp_path / "work"


@pytest.fixture
def watching(work: Path) -> Iterator[Watching]:
    running = Watching(work)
    yield running
    running.process.kill()
    running.process.wait()


def test_each_save_is_checked_until_ctrl_c(watching: Watching, work: Path):
    """The next part moves on; a file half written, damaged or gone costs a sentence and nothing else."""
    watching.until(f"Next: the hole '{PARTS[0].id}'")
    watching.until("Ctrl-C ends")
    half = demo.STUDENTS["cleo_half_done"](PUZZLE)
    watching.save(half)
    shown = watching.until(f"Next: the hole '{PARTS[len(PARTS) // 2].id}'")
    assert shown.count(": passed") == len(PARTS) // 2
    assert shown.count("Fill the hole above") == 1, "only the next part has its message shown"
    watching.save(half[:1000])
    watching.until("not a Jupyter notebook")
    watching.notebook.unlink()
    watching.until("cannot be read")
    watching.save(half)
    watching.until("Ctrl-C ends")
    watching.until(f"Next: the hole '{PARTS[len(PARTS) // 2].id}'")
    assert progress.load(PUZZLE).checked == [part.id for part in PARTS[: len(PARTS) // 2]]
    watching.until("Ctrl-C ends")
    assert watching.end() == 0
    watching.reader.join()
    assert "Traceback" not in watching.said and "Stopped watching." in watching.said


def test_watching_the_hidden_tests_ends_with_full_marks(work: Path):
    target = work / PUZZLE / f"{PUZZLE}.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(demo.STUDENTS["ada_reference"](PUZZLE))
    watching = Watching(work, "--verify")
    assert watching.process.wait(SECONDS) == 0
    watching.reader.join()
    assert "100 of 100 points" in watching.said
    assert "--alternative" in watching.said, "full marks open other solutions"
    assert progress.load(PUZZLE).next_part(catalog.puzzle(PUZZLE)) is None


def test_ctrl_c_while_it_warms_up_is_an_end_like_any_other(watching: Watching):
    watching.until("from the release")  # its first words, before anything slow
    assert watching.end() in (0, 130)
    watching.reader.join()
    assert "Traceback" not in watching.said


def test_a_save_is_seen_once_and_what_changes_nothing_is_not(tmp_path: Path):
    path = tmp_path / "file"
    seen = saves(path, seconds=0)
    assert next(seen) is None
    path.write_bytes(b"a")
    assert next(seen) == b"a"
    os.utime(path)
    (tmp_path / "new").write_bytes(b"b")
    threading.Timer(0.2, os.replace, [tmp_path / "new", path]).start()
    assert next(seen) == b"b"
