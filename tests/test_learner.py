"""The learner's commands, run as a learner runs them."""

import json

import nbformat
import pytest

from autograder import demo
from puzzles import catalog
from tests.conftest import PUZZLE, Command

MODULE = f"puzzles.{PUZZLE}"
PARTS = catalog.puzzle(PUZZLE).parts


@pytest.fixture
def solved(tmp_path):
    path = tmp_path / "solved.ipynb"
    path.write_text(demo.STUDENTS["ada_reference"](PUZZLE))
    return path


def test_the_first_run_makes_a_copy_and_names_the_next_step(run: Command, tmp_path):
    done = run(MODULE)
    assert done.returncode == 1
    assert (tmp_path / "work" / PUZZLE / f"{PUZZLE}.ipynb").exists()
    assert done.stdout.count("not solved yet") == len(PARTS)
    assert f"Next: the hole '{PARTS[0].id}'" in done.stdout


def test_prepare_lays_out_puzzles_and_labs_and_keeps_what_is_there(run: Command, tmp_path):
    """What `make lab` does before it opens JupyterLab."""
    own = tmp_path / "work" / PUZZLE / f"{PUZZLE}.ipynb"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert run("puzzles", "--prepare").returncode == 0
    made = {path.name for path in (tmp_path / "work").rglob("*.ipynb")}
    labs = {path.name for path in (catalog.ROOT / "notebooks").glob("*.ipynb")}
    assert made == {f"{puzzle.id}.ipynb" for puzzle in catalog.puzzles()} | labs
    assert len(labs) == 5
    assert own.read_text() == "mine"


def test_verify_gives_full_marks_as_json(run: Command, solved):
    done = run(MODULE, "--verify", "--notebook", solved, "--seed", 5, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["puzzle"] == PUZZLE
    assert (document["seed"], document["score"], document["max"]) == (5, 100, 100)
    assert document["isolated"] is True
    assert document["device"] in ("cpu", "cuda")
    assert [part["id"] for part in document["parts"]] == [part.id for part in PARTS]
    assert {part["status"] for part in document["parts"]} == {"passed"}


def test_verify_keeps_progress_and_the_overview_shows_it(run: Command, tmp_path):
    target = tmp_path / "work" / PUZZLE / f"{PUZZLE}.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(demo.STUDENTS["cleo_half_done"](PUZZLE))
    done = run(MODULE, "--verify")
    assert done.returncode == 1
    earned = sum(part.points for part in PARTS[: len(PARTS) // 2])
    assert f"{earned} of 100 points" in done.stdout
    assert f"{earned} / 100" in run("puzzles").stdout
    assert PARTS[len(PARTS) // 2].id in run(MODULE, "--hint").stdout


def test_run_with_everything_solved(run: Command, solved):
    done = run(MODULE, "--notebook", solved)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("passed") == len(PARTS)


def test_peek_shows_nanochats_lines_with_their_numbers(run: Command):
    done = run(MODULE, "--peek", PARTS[1].id)
    assert done.returncode == 0
    assert "nanochat/gpt.py, line" in done.stdout
    assert "def " in done.stdout


def test_hints_come_one_by_one(run: Command):
    first = run(MODULE, "--hint", PARTS[0].id).stdout
    second = run(MODULE, "--hint", PARTS[0].id).stdout
    assert "Hint 1 of 3" in first
    assert "Hint 2 of 3" not in first
    assert "Hint 2 of 3" in second


def test_reset_keeps_the_old_notebook(run: Command, tmp_path):
    run(MODULE, "--reset")
    target = tmp_path / "work" / PUZZLE / f"{PUZZLE}.ipynb"
    target.write_text("mine")
    done = run(MODULE, "--reset")
    assert done.returncode == 0
    assert target.with_name(f"{PUZZLE}.old-1.ipynb").read_text() == "mine"
    assert nbformat.read(target, as_version=4) == nbformat.read(catalog.release_notebook(PUZZLE), as_version=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--verify", "--notebook", "nowhere.ipynb"], "nowhere.ipynb cannot be read"),
        (["--notebook", "README.md"], "not a Jupyter notebook"),
        (["--verify", "--notebook", "README.md"], "not a Jupyter notebook"),
        (["--verify", "--notebook", "tests"], "cannot be read"),
        (["--peek", "nothing"], "no part 'nothing'"),
        (["--hint", "nothing"], "no part 'nothing'"),
        (["--seed", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words, run: Command):
    done = run(MODULE, *arguments)
    assert done.returncode == 2
    assert words in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_damaged_progress_is_told_and_not_overwritten(run: Command, tmp_path):
    path = tmp_path / "work" / "progress.json"
    path.parent.mkdir()
    path.write_text("{")
    done = run("puzzles")
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert path.read_text() == "{"
