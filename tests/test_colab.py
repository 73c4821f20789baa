"""The notebooks on Google Colab: in an environment that looks like it, with a real kernel, a real git and a real pip.

Colab itself is out of a test's reach. What is built here is what its runtime is to the course: a Python that has torch,
numpy, IPython's kernel and `google.colab`, a home folder without the course, and nothing else.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from nbgrader.api import Gradebook
from packaging.requirements import Requirement

from autograder import bootstrap
from autograder.course import Course
from autograder.rebuild import rebuild
from autograder.release import release
from autograder.source import notebook_from_script, sync
from autograder.template import solution_cells, template
from puzzles import catalog, colab
from puzzles.show import MIME
from tests.conftest import PUZZLE
from tests.course_copy import make_copy

ALL = [puzzle.id for puzzle in catalog.puzzles()]
GITHUB = "https://github.com/someone/nanochat-puzzles"


@dataclass(frozen=True)
class Lookalike:
    """A runtime like Colab's. `brought` holds what it came with; `environment` is that of its processes."""

    python: Path
    brought: Path
    home: Path
    environment: dict[str, str]

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a script that can import the course."""
        variables = self.environment | {"PYTHONPATH": str(catalog.ROOT)} | environment
        return subprocess.run(
            [str(self.python), "-c", code], env=variables, cwd=self.home, capture_output=True, text=True, timeout=300
        )

    def run_cells(self, cells: Iterable[str], **environment: str) -> list[NotebookNode]:
        """The outputs of cells run in one kernel, in one list a cell."""
        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
        client = NotebookClient(notebook, timeout=300, kernel_name="colab", allow_errors=True)
        client.execute(env=self.environment | environment)
        return notebook.cells

    def fingerprint(self) -> str:
        """Of every byte of torch and numpy."""
        total = hashlib.sha256()
        for name in ("torch", "numpy"):
            for path in sorted((self.brought / name).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    with path.open("rb") as file:
                        total.update(str(path).encode() + hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


def closure(*names: str) -> set[str]:
    """Packages and all that they need."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def lookalike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookalike]:
    root = tmp_path_factory.mktemp("colab")
    venv, brought, home = root / "venv", root / "brought", root / "home"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    brought.mkdir()
    home.mkdir()
    for name in closure("torch", "numpy", "ipykernel"):
        for file in distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (brought / top).exists():
                (brought / top).symlink_to(str(distribution(name).locate_file(top)))
    (brought / "google" / "colab").mkdir(parents=True)
    (brought / "google" / "colab" / "__init__.py").touch()
    site = next((venv / "lib").glob("python*/site-packages"))
    # Colab's kernels have google.colab imported before a notebook's first cell
    (site / "brought.pth").write_text(f"{brought}\nimport google.colab\n")

    kernel = root / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    python = venv / "bin" / "python"
    argv = [str(python), "-m", "ipykernel_launcher", "--IPKernelApp.log_level=ERROR", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NANOCHAT_"))}
    # what pip on this machine is told, and has fetched before
    own = {"XDG_CONFIG_HOME": str(Path.home() / ".config"), "PIP_CACHE_DIR": str(Path.home() / ".cache" / "pip")}
    environment = own | kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        yield Lookalike(python, brought, home, environment)


@dataclass(frozen=True)
class Visit:
    """What a learner saw who opened puzzle 1 on Colab, cell by cell; and torch and numpy before and after."""

    cells: dict[str, NotebookNode]
    before: str
    after: str
    seconds: dict[str, float]

    def text(self, name: str) -> str:
        return "".join(output.get("text", "") for output in self.cells[name].outputs)

    def shown(self, name: str) -> list[dict]:
        """The verdicts a cell displayed."""
        found = (output.get("data", {}).get(MIME) for output in self.cells[name].outputs)
        return [each for each in found if each]


@pytest.fixture(scope="module")
def visit(lookalike: Lookalike, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The first cells of a release, made by a course whose repository is a local one, run from top to bottom; then the
    first hole filled, and the hidden tests."""
    course = make_copy(tmp_path_factory.mktemp("course") / "nanochat-puzzles")
    settings = course / "course.toml"
    settings.write_text(settings.read_text().replace(catalog.settings().repository, f"file://{course}"))
    release(Course(course), [PUZZLE])
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    for arguments in (["init", "--quiet"], ["add", "--all", ":!.venv"], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*git, *arguments], cwd=course, check=True)

    sources = {cell.id: cell.source for cell in nbformat.read(catalog.release_notebook(PUZZLE, course), 4).cells}
    solutions = solution_cells(nbformat.read(catalog.source_notebook(PUZZLE, course), 4))
    first = catalog.puzzle(PUZZLE).parts[0].id
    cells = {
        "colab": sources["colab"],
        "again": sources["colab"],
        "imports": sources["imports"],
        "hole": sources[first],
        "check": sources[f"check-{first}"],
        "where": "import sys, numpy\n\nprint(torch.__file__, numpy.__file__)",
        "too early": f'from puzzles.colab import verify\n\nverify("{PUZZLE}")',
        "solved": solutions[first].source,
        "verify": f'verify("{PUZZLE}")',
    }
    before = lookalike.fingerprint()
    run = lookalike.run_cells(cells.values())
    seconds = {name: _seconds(cell) for name, cell in zip(cells, run, strict=True)}
    return Visit(dict(zip(cells, run, strict=True)), before, lookalike.fingerprint(), seconds)


def _seconds(cell: NotebookNode) -> float:
    begin, end = (cell.metadata.execution[f"iopub.status.{state}"] for state in ("busy", "idle"))
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


# A visit


@pytest.mark.slow
def test_the_first_cell_installs_what_is_missing_and_says_how_to_go_on(visit):
    said = visit.text("colab")
    assert [output.output_type for output in visit.cells["colab"].outputs if output.output_type != "stream"] == [], said
    installing, installed, ready, save, hidden = said.splitlines()
    assert installing.startswith("Installing ") and "rustbpe" in installing
    assert f"torch {torch.__version__}" in installed and "not touched" in installed and "No restart" in installed
    assert ready == "Ready. There is no GPU, and none is needed: nanochat computes in float32 on the CPU."
    assert "Save a copy in Drive" in save
    assert f'verify("{PUZZLE}")' in hidden


@pytest.mark.slow
def test_only_what_the_puzzles_need_is_installed(visit):
    for name in colab.LEFT_OUT | set(colab.UNTOUCHED):
        assert f"{name}>" not in visit.text("colab")


@pytest.mark.slow
def test_torch_and_numpy_stay_byte_for_byte_what_they_were(visit, lookalike):
    assert visit.after == visit.before
    for path in visit.text("where").split():
        assert path.startswith(str(lookalike.brought)), "a second copy lies before it on the path"


@pytest.mark.slow
def test_the_first_cell_run_again_is_quick_and_silent(visit):
    assert visit.cells["again"].outputs == []
    assert visit.seconds["again"] < 2


@pytest.mark.slow
def test_the_visible_check_runs(visit):
    assert visit.cells["imports"].outputs == [] and visit.cells["hole"].outputs == []
    (check,) = visit.shown("check")
    assert check["status"] == "unsolved"


@pytest.mark.slow
def test_hidden_tests_run_in_the_kernel(visit):
    parts = catalog.puzzle(PUZZLE).parts
    early, late = visit.shown("too early"), visit.shown("verify")
    assert (
        [verdict["part"] for verdict in early] == [verdict["part"] for verdict in late] == [part.id for part in parts]
    )
    assert early[0]["status"] == "unsolved" and late[0]["status"] == "passed"
    assert "Run the cells above" in early[1]["message"] and "is not defined" in early[1]["message"]
    assert f"{parts[0].points} of 100 points" in visit.text("verify")


@pytest.mark.slow
def test_everything_the_eight_notebooks_import_is_there(visit, lookalike):
    """Cells that meet the oracle included: nothing is hidden from a learner on Colab."""
    names = sorted({name for puzzle_id in ALL for name in _imported(puzzle_id)})
    assert "rustbpe" in names and "nanochat.gpt" in names
    done = lookalike.run(f"for name in {names}: __import__(name)", PYTHONPATH=str(lookalike.home / "nanochat-puzzles"))
    assert (done.returncode, done.stderr) == (0, "")


def _imported(puzzle_id: str) -> Iterator[str]:
    for cell in nbformat.read(catalog.release_notebook(puzzle_id), 4).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module


# What may be in the way


@pytest.mark.slow
def test_without_network_the_first_cell_says_one_sentence(lookalike, tmp_path):
    code = bootstrap.code_cell(PUZZLE, f"file://{tmp_path}/nowhere", "main").source
    (cell,) = lookalike.run_cells([code], HOME=str(tmp_path))
    (output,) = cell.outputs
    (sentence,) = output.traceback
    assert sentence.startswith("The course cannot be fetched (fatal: ")
    assert sentence.endswith("check the network, then run this cell again.")


def halt(lookalike: Lookalike, requirement: str, **environment: str) -> str:
    """What `install` says when it cannot."""
    done = lookalike.run(
        f"from puzzles import colab\ntry: colab.install([{requirement!r}])\nexcept colab.Halt as halt: print(halt)",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_without_a_package_index_install_says_one_sentence(lookalike):
    said = halt(lookalike, "no-such-thing>=1", PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="0")
    assert said.startswith("pip could not install no-such-thing>=1 (") and "check the network" in said
    assert "\n" not in said


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A package of one module that is only its version."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.mark.slow
def test_a_package_that_wants_another_numpy_is_refused(lookalike, tmp_path):
    """Without the constraint pip would install this numpy."""
    wheel(tmp_path, "numpy", "99")
    wheel(tmp_path, "greedy", "1", needs="numpy>=99")
    said = halt(lookalike, "greedy", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert said.startswith("pip could not install greedy (")
    there = lookalike.run("import numpy, importlib.util; print(numpy.__file__, importlib.util.find_spec('greedy'))")
    assert there.stdout.split() == [str(lookalike.brought / "numpy" / "__init__.py"), "None"]


@pytest.mark.slow
def test_a_restart_is_needed_if_what_was_replaced_is_in_use(lookalike, tmp_path):
    wheel(tmp_path, "oldie", "1")
    wheel(tmp_path, "oldie", "2")
    links = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    install = "from puzzles.colab import install\n"
    first = lookalike.run(f"{install}print(install(['oldie==1']))", **links)
    used = lookalike.run(f"import oldie\n{install}print(install(['oldie==2']))", **links)
    unused = lookalike.run(f"{install}print(install(['oldie==1']))", **links)
    assert [each.stdout.strip() for each in (first, used, unused)] == ["set()", "{'oldie'}", "set()"]


def test_a_restart_is_asked_for_until_it_is_done(monkeypatch, capsys):
    missing = ["pyarrow>=15"]
    monkeypatch.setattr(colab, "_stale", set())
    monkeypatch.setattr(colab, "missing_requirements", lambda _: missing)
    monkeypatch.setattr(colab, "install", lambda _: {"pyarrow"})
    for _ in range(2):
        with pytest.raises(colab.Halt, match=r"Restart the kernel .* pyarrow was replaced"):
            colab.bootstrap(PUZZLE)
        missing.clear()
    assert "No restart" not in capsys.readouterr().out


def test_a_torch_that_is_too_old_is_left_alone_and_told(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["torch>=99"]\n')
    with pytest.raises(colab.Halt, match=r"needs torch>=99.* newer one"):
        colab.missing_requirements(pyproject)


def test_a_t4_which_has_no_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert colab.device().startswith("GPU: Tesla T4, where nanochat computes in float32 (CUDA compute capability 7.5")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "computes in bfloat16" in colab.device()


# The cells


@pytest.mark.parametrize("puzzle_id", ALL)
def test_a_release_has_a_badge_on_top_and_a_read_only_bootstrap_before_its_first_code(puzzle_id):
    settings = catalog.settings()
    cells = nbformat.read(catalog.release_notebook(puzzle_id), 4).cells
    place = settings.repository.removeprefix("https://github.com/")
    assert f"/github/{place}/blob/{settings.branch}/release/{puzzle_id}/{puzzle_id}.ipynb)" in cells[0].source
    assert cells[0].source.startswith("[![Open in Colab](")
    code = next(cell for cell in cells if cell.cell_type == "code")
    assert code.id == "colab"
    assert code.metadata == {"editable": False, "deletable": False}
    assert settings.repository in code.source and f'bootstrap("{puzzle_id}")' in code.source
    assert sum("google.colab" in cell.source for cell in cells) == 1


@pytest.mark.parametrize("address", [GITHUB, f"{GITHUB}/", f"{GITHUB}.git"])
def test_the_badge_leads_to_the_repository_that_is_set(tmp_path, address):
    (tmp_path / "course.toml").write_text(f'repository = "{address}"\nbranch = "autumn"\n')
    script = catalog.source_notebook(PUZZLE).with_suffix(".py")
    cells = notebook_from_script(script, tmp_path).cells
    link = (
        f"https://colab.research.google.com/github/someone/nanochat-puzzles/blob/autumn/release/{PUZZLE}/{PUZZLE}.ipynb"
    )
    assert f"]({link})" in cells[0].source
    (code,) = [cell for cell in cells if cell.id == "colab"]
    assert f'fetch_course("{address}", "autumn")' in code.source


def test_colab_opens_no_notebook_from_elsewhere_so_there_is_no_badge(tmp_path):
    (tmp_path / "course.toml").write_text('repository = "https://git.example.org/nanochat-puzzles"\n')
    cells = notebook_from_script(catalog.source_notebook(PUZZLE).with_suffix(".py"), tmp_path).cells
    assert [cell.id for cell in cells[:2]] == ["text-0", "colab"]


def test_another_setting_makes_every_notebook_stale(tmp_path):
    course = make_copy(tmp_path / "course")
    assert sync(course, write=False) == []
    (course / "course.toml").write_text(f'repository = "{GITHUB}"\n')
    assert sync(course, write=False) == ALL


@pytest.mark.slow
def test_a_course_that_has_submissions_can_get_and_lose_the_cells(tmp_path):
    """nbgrader refuses a release whose cells are others than those its gradebook has submissions of."""
    (tmp_path / "source").mkdir()
    course = Course(tmp_path)
    for repository, names in (("", ["text-0", "imports"]), (GITHUB, ["colab-badge", "text-0", "colab", "imports"])):
        (tmp_path / "course.toml").write_text(f'repository = "{repository}"\n')
        release(course, [PUZZLE])
        cells = nbformat.read(catalog.release_notebook(PUZZLE, tmp_path), 4).cells
        assert [cell.id for cell in cells][: len(names)] == names
        with Gradebook(course.db_url) as book:
            book.update_or_create_student("ada")
            book.update_or_create_submission(PUZZLE, "ada")


def test_outside_colab_the_cell_does_nothing():
    """It defines one function: nothing is imported for it, run or said."""
    (code,) = [cell.source for cell in nbformat.read(catalog.release_notebook(PUZZLE), 4).cells if cell.id == "colab"]
    probe = f"""
import sys
before, names = set(sys.modules), set(globals())
sys.addaudithook(lambda event, _: sys.exit(event) if event in ("subprocess.Popen", "socket.connect", "open") else None)
exec({code!r})
assert set(sys.modules) == before and set(globals()) - names == {{"before", "names", "fetch_course"}}, globals()
"""
    done = subprocess.run([sys.executable, "-S", "-c", probe], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Submissions


def old_release() -> dict:
    """A release as it was before there were such cells."""
    document = json.loads(catalog.release_notebook(PUZZLE).read_text())
    document["cells"] = [cell for cell in document["cells"] if not cell["id"].startswith("colab")]
    return document


def from_colab() -> dict:
    """A release as Colab saves it: in an older format without ids of cells, with one of its own in the metadata."""
    document = json.loads(catalog.release_notebook(PUZZLE).read_text())
    for cell in document["cells"]:
        cell["metadata"]["id"] = cell.pop("id")[::-1]
    return document | {"nbformat_minor": 0}


@pytest.mark.parametrize("document", [old_release(), from_colab()], ids=["from the old release", "from Colab"])
def test_a_submission_is_laid_into_the_whole_template(document):
    """Its holes are found, the bootstrap is there and the learner's own cells keep their place."""
    first, second = (part.id for part in catalog.puzzle(PUZZLE).parts[:2])
    position = {cell["metadata"].get("nbgrader", {}).get("grade_id"): i for i, cell in enumerate(document["cells"])}
    document["cells"][position[first]]["source"] = "mine = 1"
    document["cells"].insert(position[second], {"cell_type": "code", "source": "helper = 1", "metadata": {}})
    frame = template(PUZZLE)
    rebuilt, notes = rebuild(frame, json.dumps(document).encode())
    names = [cell.id for cell in rebuilt.cells]
    assert notes == []
    assert [name for name in names if not name.startswith("added")] == [cell.id for cell in frame.cells]
    sources = {cell.id: cell.source for cell in rebuilt.cells}
    assert sources[first] == "mine = 1" and "fetch_course" in sources["colab"]
    (added,) = [name for name in names if name.startswith("added")]
    assert sources[added] == "helper = 1" and names.index(f"test-{first}") < names.index(added) < names.index(second)
