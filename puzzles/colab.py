"""The course on Google Colab: what the first code cell of a notebook calls there, and hidden tests without a terminal.

The cell itself (`autograder.source`) only fetches the repository and calls `bootstrap`.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distribution, distributions, version
from pathlib import Path

from packaging.utils import canonicalize_name

from puzzles import catalog
from puzzles.requirements import PYPROJECT, problem

# CUDA and all that is compiled against them fit the versions that Colab brings, and no others.
UNTOUCHED = ("torch", "numpy")
# For JupyterLab, the labs' sliders and grading. Colab has a kernel and a front end of its own, which these would break.
LEFT_OUT = {"bleach", "ipykernel", "ipywidgets", "jupyterlab", "jupytext", "nbclient", "nbformat", "nbgrader"}

# What this kernel holds in an older version than the disk, and the puzzles it has been told about.
_stale: set[str] = set()
_greeted: set[str] = set()


class Halt(catalog.UserError):
    """Nothing below the cell would work. A notebook shows the sentence alone, and "Run all" stops there."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def bootstrap(puzzle_id: str) -> None:
    """Make a Colab runtime fit for a puzzle: install what is missing, then say on what it computes and how to go on.
    Run again, it does and says nothing. Raises Halt if something is in the way, a restart that is needed included."""
    missing = missing_requirements(PYPROJECT)
    if missing:
        print(f"Installing {', '.join(missing)} ...")
        _stale.update(install(missing))
        kept = " and ".join(f"{name} {version(name)}" for name in UNTOUCHED)
        print(f"Installed. {kept} were not touched.{'' if _stale else ' No restart is needed.'}")
    if _stale:
        raise Halt(
            f"Restart the kernel (Runtime > Restart session) and run all cells again: {', '.join(sorted(_stale))} "
            "was replaced after this kernel had loaded it."
        )
    if puzzle_id not in _greeted:
        _greeted.add(puzzle_id)
        print(f"Ready. {device()}")
        print("Colab forgets your work unless you save it: File > Save a copy in Drive.")
        print(f'To run the hidden tests: from puzzles.colab import verify; verify("{puzzle_id}")')


def missing_requirements(pyproject: Path) -> list[str]:
    """The requirements of the puzzles that this Python does not meet, as `pip install` takes them. Raises Halt for one
    of UNTOUCHED, which the runtime has to bring."""
    missing = []
    for requirement in tomllib.loads(pyproject.read_text())["project"]["dependencies"]:
        name = requirement.partition(">=")[0]
        if name not in LEFT_OUT and problem(requirement):
            if name in UNTOUCHED:
                raise Halt(
                    f"The course needs {requirement}, and this runtime {problem(requirement)}: choose a newer one "
                    "(Runtime > Change runtime type)."
                )
            missing.append(requirement)
    return missing


def install(requirements: list[str]) -> set[str]:
    """Install with pip, holding UNTOUCHED at their exact versions. Returns the packages that were replaced by another
    version while this process had them loaded. Raises Halt if that cannot be done."""
    before = _versions()
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("".join(f"{name}=={before[name]}\n" for name in UNTOUCHED))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        done = subprocess.run([*pip, "--constraint", str(pins), *requirements], capture_output=True, text=True)
    importlib.invalidate_caches()
    after = _versions()
    if touched := [name for name in UNTOUCHED if after.get(name) != before[name]]:
        raise Halt(f"pip has changed {' and '.join(touched)}: start afresh (Runtime > Disconnect and delete runtime).")
    if done.returncode:
        reasons = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise Halt(
            f"pip could not install {', '.join(requirements)} ({(reasons or [f'exit code {done.returncode}'])[0]}): "
            "check the network, then run this cell again."
        )
    return {name for name, old in before.items() if after.get(name, old) != old and _loaded(name)}


def device() -> str:
    """What the runtime computes on and in, in a sentence."""
    import torch

    from nanochat.common import detect_compute_dtype

    dtype, reason = detect_compute_dtype()
    kind = str(dtype).removeprefix("torch.")
    if not torch.cuda.is_available():
        return f"There is no GPU, and none is needed: nanochat computes in {kind} on the CPU."
    return f"GPU: {torch.cuda.get_device_name()}, where nanochat computes in {kind} ({reason})."


def verify(puzzle_id: str) -> None:
    """Run the hidden tests of a puzzle on what is defined in this kernel, and show the verdict on each part.

    The cases and the marking are those of `--verify`, without its sandbox: call it on your own code.
    """
    # here: light enough for any kernel, but a sandboxed submission has no autograder to import
    from IPython import get_ipython

    from autograder.exam import Exam, fresh_seed
    from autograder.referee import Referee
    from puzzles import show, submit

    exam = Exam(puzzle_id, fresh_seed())
    referee = Referee(exam, once=False)
    submit.connect(referee.handle)
    for cell in json.loads(catalog.source_notebook(puzzle_id).read_text())["cells"]:
        about = cell["metadata"].get("nbgrader", {})
        if cell["cell_type"] == "code" and about.get("grade"):
            try:
                # a copy: the names of the tests are not to stay
                exec("".join(cell["source"]), dict(get_ipython().user_ns))
            except Exception as error:
                reason = f"Run the cells above this one first ({type(error).__name__}: {error})."
                show.show(exam.missing(about["grade_id"].removeprefix("test-"), reason).to_dict())
    verdicts = referee.verdicts("")
    score, best = sum(verdict.score for verdict in verdicts), sum(verdict.max for verdict in verdicts)
    print(f"{score:g} of {best:g} points (seed {exam.seed}).")


def _versions() -> dict[str, str]:
    """The version of every package that can be imported; of two copies the first on the path counts."""
    found: dict[str, str] = {}
    for each in distributions():
        found.setdefault(canonicalize_name(each.metadata["Name"]), each.version)
    return found


def _loaded(name: str) -> bool:
    """Whether this process has imported anything of a package."""
    files = distribution(name).files or []
    return any(file.parts[0].removesuffix(".py") in sys.modules for file in files)
