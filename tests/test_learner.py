"""The learner's commands, run as a learner runs them."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from autograder import demo
from puzzles import catalog, cli, commands, progress, requirements
from puzzles.catalog import UserError
from puzzles.checks import Checks
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
    labs = {path.name for path in catalog.labs()}
    assert made == {f"{puzzle.id}.ipynb" for puzzle in catalog.puzzles()} | labs | {"START.ipynb"}
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
        (["--watch", "--hint"], "--watch goes with --verify, --notebook and --seed only"),
        (["--watch", "--notebook", "nowhere.ipynb"], "nowhere.ipynb cannot be read"),
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


@pytest.mark.parametrize("content", ["[]", "3", '{"x": {"earned": {"widths": "ten"}}}', '{"x": {"points": 1}}', "\xff"])
def test_progress_is_what_it_should_be_or_is_called_damaged(content: str, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_WORK", str(tmp_path))
    (tmp_path / "progress.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"progress\.json is damaged: delete it"):
        progress.load(PUZZLE)


def test_progress_of_an_older_course_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_WORK", str(tmp_path))
    (tmp_path / "progress.json").write_text(json.dumps({PUZZLE: {"earned": {"widths": 10.0}, "hints_read": {}}}))
    assert progress.load(PUZZLE) == progress.Progress(earned={"widths": 10.0})


def test_who_writes_progress_at_the_same_time_loses_nothing(tmp_path):
    """Two notebooks, their checks and the hidden tests all write the one file."""
    code = (
        "import sys; from puzzles import progress\nfor n in range(20):\n with progress.changing(sys.argv[1]) as state:"
    )
    code += "\n  state.check({f'part-{n}': True})"
    environment = os.environ | {"NANOCHAT_WORK": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in ("a", "b", "c")]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    saved = json.loads((tmp_path / "progress.json").read_text())
    assert {name: len(state["checked"]) for name, state in saved.items()} == {"a": 20, "b": 20, "c": 20}


def test_a_verdict_is_shown_even_if_it_cannot_be_saved(run: Command, tmp_path):
    target = tmp_path / "work" / PUZZLE / f"{PUZZLE}.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(demo.STUDENTS["ben_blank"](PUZZLE))
    (tmp_path / "work" / "progress.json").write_text("{")
    done = run(MODULE, "--verify")
    assert done.returncode == 2
    assert "0 of 100 points" in done.stdout
    assert "progress.json is damaged" in done.stderr and "Traceback" not in done.stderr


# Checks in the learner's own notebook are progress; anywhere else they are nobody's


@pytest.fixture
def own_kernel(tmp_path, monkeypatch):
    """As the kernel of the learner's notebook: in the notebook's folder."""
    folder = tmp_path / "work" / PUZZLE
    folder.mkdir(parents=True)
    monkeypatch.setenv("NANOCHAT_WORK", str(tmp_path / "work"))
    monkeypatch.chdir(folder)
    return tmp_path / "work"


def test_a_check_in_the_own_notebook_counts_and_stops_counting_when_it_fails(own_kernel):
    check = Checks(PUZZLE)
    for part in PARTS[:2]:
        with check(part.id):
            pass
    assert progress.load(PUZZLE).checked == [PARTS[0].id, PARTS[1].id]
    with check(PARTS[0].id):
        raise NotImplementedError
    assert progress.load(PUZZLE).checked == [PARTS[1].id]
    assert progress.load(PUZZLE).earned == {}, "hidden tests alone give points"


def test_a_check_elsewhere_writes_nothing(own_kernel, tmp_path, monkeypatch):
    """A grader, a test, or the same notebook in another folder."""
    monkeypatch.chdir(tmp_path)
    with Checks(PUZZLE)(PARTS[0].id):
        pass
    assert {path.name for path in own_kernel.rglob("*")} == {PUZZLE}


@pytest.mark.parametrize("trouble", ["damaged", "closed"])
def test_a_check_goes_on_where_progress_cannot_be_saved(own_kernel, trouble, capsys):
    if trouble == "damaged":
        (own_kernel / "progress.json").write_text("{")
    else:
        (own_kernel / ".progress.lock").mkdir()  # a disk that refuses, for root as well
    check = Checks(PUZZLE)
    with check(PARTS[0].id):
        pass
    assert check.visible(PARTS[0].id) == PARTS[0].points
    assert "passed" in capsys.readouterr().out


def test_a_passed_check_names_the_next_step(own_kernel, capsys):
    check = Checks(PUZZLE)
    with check(PARTS[0].id):
        pass
    assert f"Next: {PARTS[1].title}." in capsys.readouterr().out
    for part in PARTS[1:]:
        with check(part.id):
            pass
    assert f"python -m {MODULE} --verify" in capsys.readouterr().out


def test_a_run_in_the_terminal_counts_too_and_a_reset_starts_anew(run: Command, tmp_path):
    target = tmp_path / "work" / PUZZLE / f"{PUZZLE}.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(demo.STUDENTS["cleo_half_done"](PUZZLE))
    run(MODULE)
    assert f"{len(PARTS) // 2} / {len(PARTS)}" in run("puzzles").stdout
    run(MODULE, "--reset")
    assert f"0 / {len(PARTS)}" in run("puzzles").stdout


# What full marks open


def test_alternatives_open_part_by_part(run: Command, tmp_path):
    refused = run(MODULE, "--alternative", PARTS[0].id)
    assert refused.returncode == 2
    assert f"once you have earned the part '{PARTS[0].id}'" in refused.stderr
    assert run(MODULE, "--alternative").returncode == 2
    earned = {PARTS[0].id: PARTS[0].points, PARTS[1].id: 0}
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work" / "progress.json").write_text(json.dumps({PUZZLE: {"earned": earned}}))
    shown = run(MODULE, "--alternative", PARTS[0].id)
    assert shown.returncode == 0
    assert shown.stdout.count("Another way: ") == 3 and "while n_head * head_dim < wanted" in shown.stdout
    everything = run(MODULE, "--alternative").stdout
    assert everything.count("Another way: ") == 3, "only what is earned"
    assert run(MODULE, "--alternative", PARTS[1].id).returncode == 2


# What can go wrong around a learner


def test_a_kernel_that_dies_is_told_with_the_cell(run: Command, tmp_path):
    path = tmp_path / "dies.ipynb"
    notebook = nbformat.read(catalog.release_notebook(PUZZLE), as_version=4)
    for cell in notebook.cells:
        if cell.id == PARTS[1].id:
            cell.source = "import os\n\nos._exit(1)"
    nbformat.write(notebook, path)
    done = run(MODULE, "--notebook", path)
    assert done.returncode == 1
    assert f"The kernel died in cell '{PARTS[1].id}'" in done.stdout and "Look there" in done.stdout
    assert "not solved yet" in done.stdout, "what ran before is shown"
    assert "Traceback" not in done.stderr


def limited(*arguments: str, work: Path, bytes_: int) -> subprocess.CompletedProcess:
    """A command on a disk that takes files of so many bytes and no more."""
    code = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_}));"
    code += f"sys.argv = {list(arguments)!r}; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"NANOCHAT_WORK": str(work), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=120,
    )


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path):
    done = limited("puzzles", "--prepare", work=tmp_path / "work", bytes_=2000)
    assert done.returncode == 2
    assert "cannot be written (File too large): make room there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_a_full_temporary_folder_is_told(tmp_path, solved):
    done = limited(MODULE, "--verify", "--notebook", str(solved), work=tmp_path / "work", bytes_=2000)
    assert done.returncode == 2
    assert "File too large" in done.stderr and "then do the same again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["puzzles", MODULE])
def test_a_package_that_is_too_old_is_named_with_what_to_do(module, tmp_path):
    """As an environment that another project has spoilt."""
    (tmp_path / "torch-2.1.0.dist-info").mkdir()
    (tmp_path / "torch-2.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "has torch 2.1.0, and 2.5 or newer is needed" in done.stderr and ".venv/bin/python" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_python_without_the_packages_is_told_which_one_to_use():
    """Somebody has not activated .venv."""
    bare = [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, '.'); from puzzles.cli import overview;"]
    bare[-1] += "sys.exit(overview([]))"
    done = subprocess.run(bare, capture_output=True, text=True, cwd=catalog.ROOT)
    assert done.returncode == 2
    assert "has no torch" in done.stderr and ".venv/bin/python" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_python_that_is_asked_for_is_the_projects():
    project = tomllib.loads((catalog.ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, requirements.LEAST_PYTHON))


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(argv: list[str] | None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "overview", interrupted)
    assert cli.overview([]) == 130
    assert capsys.readouterr().err == "Stopped.\n"
