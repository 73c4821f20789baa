"""docs/adding-a-puzzle.md, done as it says: the template is a ninth puzzle that works."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from puzzles.catalog import ROOT
from tests.course_copy import environment_of, make_copy

PAGE = ROOT / "docs" / "adding-a-puzzle.md"
TEMPLATE = ROOT / "docs" / "template"


def commands() -> list[str]:
    """The lines of every shell block of the page, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@dataclass(frozen=True)
class Walk:
    """What the page's commands did, run one after the other in one shell: (command, exit code, what it said)."""

    course: Path
    steps: list[tuple[str, int, str]]

    def said(self, command: str, code: int = 0) -> str:
        """What the first run of a command said that ended so."""
        return next(said for line, ended, said in self.steps if line == command and ended == code)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    course = make_copy(tmp_path_factory.mktemp("ninth") / "course")
    lines = commands()
    script = "".join(f"{line}\nprintf '\\n\\036%s\\n' $?\n" for line in lines)
    done = subprocess.run(
        ["bash"],
        input=script,
        cwd=course,
        env=os.environ | environment_of(course),
        stdout=-1,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    said = re.findall(r"(.*?)\n\036(\d+)\n", done.stdout, re.DOTALL)
    assert len(said) == len(lines), done.stdout
    return Walk(course, [(line, int(code), text) for line, (text, code) in zip(lines, said, strict=True)])


@pytest.mark.slow
def test_every_command_of_the_page_does_what_the_page_says(walk):
    """Only what runs an unsolved notebook ends with 1."""
    unsolved = ["python -m puzzles.$ID --verify --notebook release/$ID/$ID.ipynb", "python -m puzzles.$ID"]
    unsolved.append("python -m puzzles.$ID --verify")
    for command, code, said in walk.steps:
        assert code == (1 if command in unsolved else 0), f"{command}\n{said}"


@pytest.mark.slow
def test_check_holds_and_mutants_are_caught(walk):
    said = walk.said("python -m autograder check $ID")
    assert "All checks hold." in said and "✗" not in said
    for finding in ("the source, run as it is, earns 100", "the release, run as it is, earns 0", "nothing secret"):
        assert finding in said
    assert "All checks hold." in walk.said("python -m autograder check $ID --mutate")


@pytest.mark.slow
def test_a_learner_gets_checks_hints_sources_and_points(walk):
    assert "The Batch Size" in walk.said("python -m puzzles.$ID --verify --notebook source/$ID/$ID.ipynb")
    assert "100 of 100" in walk.said("python -m puzzles.$ID --verify --notebook source/$ID/$ID.ipynb")
    assert "0 of 100" in walk.said("python -m puzzles.$ID --verify", code=1)
    checks = walk.said("python -m puzzles.$ID", code=1)
    assert "How many tokens a step: not solved yet" in checks and "How many passes a step: not solved yet" in checks
    assert "def grad_accum_steps" in walk.said("python -m puzzles.$ID --peek")
    assert "Hint 1 of 3" in walk.said("python -m puzzles.$ID --hint")
    assert "09_learning_to_batch" in walk.said("python -m puzzles")


@pytest.mark.slow
def test_an_instructor_grades_it(walk):
    assert re.search(r"ada +│? *100", walk.said("python -m autograder grade --assignment $ID"))


@pytest.mark.slow
def test_the_name_of_the_template_is_gone(walk):
    made = [path for path in walk.course.rglob("*learning_to_batch*") if path.is_file()]
    made += list((walk.course / "tests" / "right" / "09_learning_to_batch").iterdir())
    assert len([path for path in made if path.suffix in (".py", ".toml")]) == 6
    assert not [
        path for path in made if path.suffix in (".py", ".toml", ".ipynb") and "09_batch_size" in path.read_text()
    ]
    document = json.loads((walk.course / "release/09_learning_to_batch/09_learning_to_batch.ipynb").read_text())
    assert any('Checks("09_learning_to_batch")' in "".join(cell["source"]) for cell in document["cells"])


def test_the_page_copies_every_file_of_the_template():
    copied = {Path(word).name for line in commands() for word in line.split() if word.startswith("docs/template/")}
    assert copied == {path.name for path in TEMPLATE.iterdir() if path.is_file()}
