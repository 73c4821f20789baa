"""Hostile submissions of every class: none gains a point, reads a secret, outlives its run or harms its neighbour.

Each is a submission graded by the real engine, at the same time as an honest one. The notebook is puzzle 1's, cut down
to two parts, so that a case takes tenths of a second; for attacks by processes it is puzzle 7's, which may start them.
"""

import json
import os
import re
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from autograder.exam import Exam
from autograder.pipeline import Result, grade, to_json
from autograder.sandbox import LAYERS, Limits, Sandbox, require_isolation
from autograder.template import solution_cells, template
from autograder.variants import source
from autograder.warmth import sandbox_for
from puzzles import catalog
from puzzles.catalog import UserError
from tests.attacks import Attack, exhausting, forging, multiplying, pages, protocol, stealing, tampering

PUZZLE = "01_transformer_blueprint"
KEPT = ("imports", "widths", "check-widths", "test-widths", "window_sizes", "check-window_sizes", "test-window_sizes")
WITH_PROCESSES = "07_sandbox_tokenizer"
KEPT_WITH_PROCESSES = (
    *("imports", "vocabulary", "train_tokenizer", "check-train_tokenizer", "test-train_tokenizer"),
    *("walls", "start", "actors", "check-start", "test-start"),
)
HONEST = 25.0
SECRET = "SECRET-5f1c"
LIMITS = Limits(cell_seconds=2.0, grace_seconds=1.0, notebook_seconds=20.0, memory_bytes=2**30, disk_bytes=2**24)
# a neighbour is not to lose a point for living on a busy machine
PATIENT = Limits(cell_seconds=60.0)
CLASSES = {
    module.__name__.rpartition(".")[2]: module.ATTACKS
    for module in (forging, stealing, exhausting, protocol, tampering, pages)
}


@dataclass(frozen=True)
class Ground:
    """Where attacks take place: the sandbox, and a machine with something to steal."""

    puzzle: str
    sandbox: Sandbox
    template: NotebookNode
    exam: Exam
    home: Path
    course: Path

    def submission(self, code: dict[str, str]) -> NotebookNode:
        notebook = deepcopy(self.template)
        for name, cell in solution_cells(notebook).items():
            cell.source = code.get(name, cell.source)
        return notebook

    def grade(self, raw: bytes, limits: Limits) -> Result:
        return grade(self.template, raw, self.exam, limits, self.sandbox)

    def files(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for root in (self.home, self.course) for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prepared(PUZZLE, KEPT, tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def ground_with_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prepared(WITH_PROCESSES, KEPT_WITH_PROCESSES, tmp_path_factory) as made:
        yield made


@contextmanager
def prepared(puzzle: str, kept: Collection[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    home, course = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("course")
    (home / "secret.txt").write_text(SECRET)
    other = course / "submitted" / "other" / puzzle / f"{puzzle}.ipynb"
    for path in (course / "gradebook.db", course / "source" / "solution.txt", other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
    for folder in (home, course):
        folder.chmod(0o755)
    small = template(puzzle)
    small.cells = [cell for cell in small.cells if cell.id in kept or cell.id == "why_windows"]
    os.environ["GRADERS_SECRET"] = SECRET
    try:
        with sandbox_for(puzzle) as sandbox:
            assert sandbox.isolated, sandbox.missing
            yield Ground(puzzle, sandbox, small, Exam(puzzle, 5), home, course)
    finally:
        os.environ.pop("GRADERS_SECRET", None)  # there may be two grounds


@pytest.fixture(scope="module")
def honest(ground: Ground) -> bytes:
    return honest_on(ground)


def honest_on(ground: Ground) -> bytes:
    solutions = {name: cell.source for name, cell in solution_cells(source(ground.puzzle)).items()}
    return nbformat.writes(ground.submission(solutions)).encode()


@pytest.mark.parametrize(
    "attack",
    [pytest.param(attack, id=f"{name}: {attack.name}") for name, attacks in CLASSES.items() for attack in attacks],
)
def test_attack(attack: Attack, ground: Ground, honest: bytes):
    assert_harmless(attack, "widths", ground, honest)


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in multiplying.ATTACKS])
def test_attack_by_processes(attack: Attack, ground_with_processes: Ground):
    assert_harmless(attack, "train_tokenizer", ground_with_processes, honest_on(ground_with_processes))


def test_orphans_are_reaped(ground_with_processes: Ground):
    """Their remains would count as processes, and before long there could be no more."""
    orphans = """
import os, time
for _ in range(200):
    child = os.fork()
    if child == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.002)
print("all 200")
"""
    raw = nbformat.writes(ground_with_processes.submission({"train_tokenizer": orphans})).encode()
    assert "all 200" in printed(ground_with_processes.grade(raw, PATIENT))


def test_the_time_of_processes_is_accounted_for(ground_with_processes: Ground):
    result = ground_with_processes.grade(honest_on(ground_with_processes), PATIENT)
    assert (result.score, result.missing) == (HONEST, ())
    assert result.cpu_seconds > 0.3


def assert_harmless(attack: Attack, hole: str, ground: Ground, honest: bytes):
    names = {"ROOT": str(catalog.ROOT), "HOME": str(ground.home), "COURSE": str(ground.course), "GRADER": os.getpid()}
    code = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + attack.code
    document = json.loads(nbformat.writes(ground.submission({hole: code})))
    raw = json.dumps(attack.tamper(document) if attack.tamper else document).encode()
    before = ground.files()
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        neighbour = pool.submit(ground.grade, honest, PATIENT)
        result = pool.submit(ground.grade, raw, LIMITS).result()
    assert neighbour.result().score == HONEST
    assert result.score == 0
    said = nbformat.writes(result.notebook) + json.dumps(to_json("student", ground.puzzle, result))
    assert "LOOT" not in printed(result), printed(result)
    assert SECRET not in said
    assert ground.files() == before
    assert processes(ground.sandbox) == 1
    assert len(said) < 40 * 2**20
    assert time.monotonic() - started < 120
    assert not list(harmful(result.notebook)), list(harmful(result.notebook))


def printed(result: Result) -> str:
    """What was printed; tracebacks quote the attack's own source."""
    return "\n".join(o.get("text", "") for cell in result.notebook.cells for o in cell.get("outputs", []))


def processes(sandbox: Sandbox) -> int:
    """How many processes descend from the one that started the zygote; only the zygote, once a submission is through.
    Whatever loses its parent in there becomes the zygote's child."""
    parents = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    below = {sandbox.pid}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return len(below) - 1


HARMFUL = re.compile(
    r"<script|<svg|<iframe|<style|<form|<input|<base|onerror=|onload=|onclick=|javascript:|url\(", re.I
)
CONTROL = re.compile(r"[\x00-\x07\x0e-\x1a\x7f-\x9f]|\x1b(?!\[[0-9;]*m)")


def harmful(notebook: NotebookNode) -> Iterator[str]:
    """What a browser would run or a terminal obey. Streams and errors are escaped wherever they are shown."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (cell.id.startswith("added") or cell.id == "why_windows"):
            text = re.sub(r"&lt;[^>]*>?", "", cell.source)
            if HARMFUL.search(text):
                yield text
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if (
                data.keys()
                - {"text/plain", "text/html", "text/markdown", "text/latex", "image/png", "image/jpeg"}
                - {"application/vnd.nanochat-puzzles+json"}
            ):
                yield str(data.keys())
            for mime, value in data.items():
                if mime in ("text/html", "text/markdown", "text/latex") and HARMFUL.search(
                    re.sub(r"&lt;.*?(?:&gt;|>)", "", value, flags=re.S)
                ):
                    yield value
            for text in (output.get("text", ""), output.get("evalue", "")):
                if CONTROL.search(text):
                    yield repr(text)


def test_the_attacks_would_be_noticed(ground: Ground):
    """Without the walls around the files, the attack on the gradebook does get its loot."""
    attack = next(each for each in stealing.ATTACKS if each.name == "the gradebook")
    raw = nbformat.writes(ground.submission({"widths": f"COURSE = {str(ground.course)!r}\n{attack.code}"})).encode()
    ground.course.parent.chmod(0o755)
    with sandbox_for(PUZZLE, without=["private root", "Landlock", "other user", "own user namespace"]) as weak:
        assert not weak.isolated
        result = grade(ground.template, raw, ground.exam, LIMITS, weak)
    assert not result.isolated
    assert "LOOT" in printed(result)


@pytest.mark.parametrize("missing", [layer for layer in LAYERS if layer not in ("namespaces", "private root")])
def test_what_a_kernel_refuses_is_done_without(missing: str, ground: Ground, honest: bytes):
    """Any layer but the first two can be missing: the honest submission keeps its score, and the result says so."""
    with sandbox_for(PUZZLE, without=[missing]) as weak:
        result = grade(ground.template, honest, ground.exam, PATIENT, weak)
    assert (result.score, result.missing) == (HONEST, (missing,))
    assert result.isolated == (missing == "Landlock")


def test_strict_refuses_a_machine_without_namespaces(ground: Ground, honest: bytes):
    with sandbox_for(PUZZLE, without=["namespaces"]) as weak:
        result = grade(ground.template, honest, ground.exam, PATIENT, weak)
        with pytest.raises(UserError, match="does not allow full isolation: namespaces"):
            require_isolation(weak)
    assert result.score == HONEST
    assert "namespaces" in result.missing and not result.isolated
