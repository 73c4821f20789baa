"""Every command that README.md and docs/ show in a `sh` block is run: here, in a copy of the course, or by the test
that is named for it.

To document a command: write it in a `sh` block, one command a line (a line that begins with "[" is an answer). Then
add it to `HERE` under its page, in the order of the page, if it takes seconds; or to `ELSEWHERE` with the test that
runs it. A page whose commands are all run by one test stands in `WHOLE` instead.
"""

import ast
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.course_copy import ROOT, environment_of, fill, make_copy

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Run:
    """A command, what it must say, the code it must end with, and what a person has done before (given the copy)."""

    command: str
    says: str
    code: int = 0
    before: Callable[[Path], object] | None = None


HERE: dict[str, list[Run]] = {
    "docs/learner.md": [
        Run("python -m puzzles", "Next: the hole 'widths'"),
        Run("python -m puzzles.01_transformer_blueprint", "Who looks how far: attention windows: not solved yet", 1),
        Run("python -m puzzles.01_transformer_blueprint --hint widths", "Hint 1 of 3"),
        Run("python -m puzzles.01_transformer_blueprint --peek widths", "nanochat/recipe.py, line"),
        Run("python -m puzzles.01_transformer_blueprint --verify", "10 of 100 points", 1, fill("widths")),
        Run("python -m puzzles.01_transformer_blueprint --alternative widths", "Another way: loops"),
        Run("python -m puzzles.01_transformer_blueprint --reset", "is fresh"),
    ],
}

ELSEWHERE: dict[str, str] = {
    "make demo": "tests/test_make.py::test_make_demo_ends_with_a_grade_table_and_a_report",
    "make lab": "tests/test_make.py::test_make_lab_opens_jupyterlab_on_the_start_page",
    "source .venv/bin/activate": "tests/test_make.py::test_an_activated_environment_runs_the_commands",
    "python -m puzzles.01_transformer_blueprint --watch": "tests/test_watch.py::test_each_save_is_checked_until_ctrl_c",
    "python -m puzzles.01_transformer_blueprint --watch --verify": (
        "tests/test_watch.py::test_watching_the_hidden_tests_ends_with_full_marks"
    ),
    "python -m nanochat.scripts.toy_pipeline": "tests/test_toy_pipeline.py::report",
    'python -m nanochat.scripts.chat_cli --toy -p "What is 417 times 36?"': (
        "tests/test_toy_pipeline.py::test_the_shipped_model_calls_the_calculator"
    ),
}

# Pages that one test takes its commands from, all of them, and runs from top to bottom.
WHOLE: dict[str, str] = {
    "docs/adding-a-puzzle.md": "tests/test_template.py::test_every_command_of_the_page_does_what_the_page_says",
    "docs/instructor.md": "tests/test_instructor.py::taught",
}


def commands(page: Path) -> Iterator[str]:
    """The commands in the `sh` blocks of a page, without comments."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s+)#\s.*", "", line).strip()
            if command and not command.startswith("["):
                yield re.sub(r"\s+", " ", command)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_every_command_in_the_docs_is_run():
    for page in (page for page in PAGES if name_of(page) not in WHOLE):
        here = {each.command for each in HERE.get(name_of(page), [])}
        missing = [command for command in commands(page) if command not in here and command not in ELSEWHERE]
        assert not missing, f"{name_of(page)} shows what no test runs: {missing}; see the top of this file"


def test_what_is_run_is_in_the_docs():
    """An entry outlives its command otherwise, and looks like a promise."""
    shown = {command: name_of(page) for page in PAGES for command in commands(page)}
    listed = {each.command for runs in HERE.values() for each in runs} | set(ELSEWHERE)
    assert listed <= set(shown), sorted(listed - set(shown))
    for page, runs in HERE.items():
        order = list(commands(ROOT / page))
        places = [order.index(each.command) for each in runs]
        assert places == sorted(places), f"{page} shows them in another order"


@pytest.mark.parametrize("test", sorted({*ELSEWHERE.values(), *WHOLE.values()}))
def test_the_tests_named_for_commands_exist(test: str):
    file, _, name = test.partition("::")
    functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
    assert name in functions


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(HERE))
def test_the_commands_of_a_page_do_what_it_says(page: str, tmp_path: Path):
    """In their order, one after the other, as a reader would."""
    copy = make_copy(tmp_path / "course")
    for each in HERE[page]:
        if each.before:
            each.before(copy)
        done = subprocess.run(
            ["bash", "-c", each.command],
            cwd=copy,
            env=os.environ | environment_of(copy),
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = done.stdout + done.stderr
        assert (each.says in said, done.returncode) == (True, each.code), f"{each.command}\n{said}"
