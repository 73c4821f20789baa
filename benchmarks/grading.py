"""The same class through stock nbgrader and through ours, one and two submissions at a time, in one run.

    python -m benchmarks.grading [--submissions 24] [--puzzles ID…] [--json FILE]

Stock means nbgrader's own preprocessors and kernels; the notebooks are the course's, without the cells that meet the
oracle, which only the stock kernel could run. CPU is that of the command and everything it started. The floor is the
CPU of the cells themselves, in a warm process; what a submission costs beyond it is the fixed cost.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import nbformat

from autograder import demo
from autograder.course import Course
from autograder.exam import Exam
from autograder.execute import execute
from autograder.pipeline import examine
from autograder.rebuild import rebuild
from autograder.release import release
from autograder.sandbox import Limits
from autograder.shown import ORACLE_TAG
from autograder.template import template
from autograder.variants import right_variants
from autograder.warmth import sandbox_for
from puzzles import catalog

STOCK_CONFIG = """
from autograder.course import configure

config = get_config()
configure(config)
del config.Autograde
config.Execute.timeout = 120
"""
CORES = 2
PATIENT = Limits(cell_seconds=120.0, notebook_seconds=600.0)


@dataclass(frozen=True)
class Cost:
    """Seconds of a way to grade the class; `cells` is the CPU of the cells in this very run, as far as it is told."""

    way: str
    wall: float
    cpu: float
    cells: float = 0.0


def build_class(folder: Path, puzzles: list[str], n: int) -> Course:
    """A course of `n` submissions: right, wrong, half done, blank, and right in other ways, in turn."""
    course = demo.build(folder, puzzles)
    shutil.rmtree(folder / "submitted")
    for puzzle_id in puzzles:
        path = catalog.source_notebook(puzzle_id, folder)
        path.write_text(_without_oracle(path.read_text()))
    release(course, puzzles)
    makers = {puzzle_id: cycle(_submissions(puzzle_id)) for puzzle_id in puzzles}
    for number, puzzle_id in enumerate(islice(cycle(puzzles), n)):
        target = folder / "submitted" / f"student_{number:02}" / puzzle_id / f"{puzzle_id}.ipynb"
        target.parent.mkdir(parents=True)
        target.write_text(_without_oracle(next(makers[puzzle_id])))
    return course


def _without_oracle(text: str) -> str:
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if ORACLE_TAG not in cell.metadata.get("tags", [])]
    return nbformat.writes(notebook)


def _submissions(puzzle_id: str) -> list[str]:
    solutions = demo._solutions(puzzle_id)
    others = [demo._filled(puzzle_id, solutions | variant.cells) for variant in right_variants(puzzle_id)]
    made = [make(puzzle_id) for make in (demo._reference, demo._wrong, demo._half, demo._blank)]
    return [*made, *map(nbformat.writes, others)]


def timed(way: str, course: Course, commands: list[list[str]]) -> Cost:
    """Run commands in a course folder from which all results are gone."""
    shutil.rmtree(course.root / "autograded", ignore_errors=True)
    before, started = os.times(), time.monotonic()
    for command in commands:
        done = subprocess.run(command, cwd=course.root, capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    wall, after = time.monotonic() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{way:<28} {wall:8.1f} s wall {cpu:8.1f} s CPU", flush=True)
    return Cost(way, wall, cpu, sum(_told(done.stdout)))


def _told(output: str) -> list[float]:
    """The CPU of the process of each submission, if a command prints that."""
    try:
        return [each["cpu_seconds"] for each in json.loads(output)["submissions"]]
    except (ValueError, KeyError):
        return []


def _environment() -> dict[str, str]:
    path = f"{catalog.ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": path, "PATH": binaries, "NANOCHAT_GRADING_SEED": "7", "OMP_NUM_THREADS": "1"}


def floor(course: Course) -> tuple[float, float]:
    """(CPU seconds of all cells of the class, CPU seconds of a child that runs an empty notebook)."""
    total, empty = 0.0, 0.0
    for puzzle_id in course.assignments():
        exam, instructor = Exam(puzzle_id, 7), template(puzzle_id, course.root)
        with sandbox_for(puzzle_id, course.root) as sandbox:
            nothing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("")])
            empty = min(execute(nothing, Limits(), sandbox).cpu_seconds for _ in range(3))
            for submission in course.submissions(puzzle_id):
                notebook, _ = rebuild(instructor, submission.read())
                total += examine(notebook, exam, PATIENT, sandbox).cpu_seconds - empty
    return total, empty


def verify(course: Course) -> list[Cost]:
    """Time to verdict for one learner: the command cold (its files not yet in memory) and warm."""
    submission = next(course.submissions())
    notebook = submission.folder / f"{submission.assignment}.ipynb"
    command = [
        sys.executable,
        "-m",
        f"puzzles.{submission.assignment}",
        "--verify",
        "--json",
        "--notebook",
        str(notebook),
    ]
    return [timed(f"--verify, {state}", course, [command]) for state in ("first", "again")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=24)
    parser.add_argument("--puzzles", nargs="*", default=[p.id for p in catalog.puzzles()])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stock-submissions", type=int, help="run stock on so many only and scale up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        course = build_class(Path(folder) / "course", options.puzzles, options.submissions)
        costs = verify(course)
        grade = [sys.executable, "-m", "autograder", "grade", "--course", str(course.root), "--json", "--force"]
        grade += ["--seed", "7", "--cell-seconds", "120"]
        for jobs in (1, 2):
            costs.append(timed(f"ours, --jobs {jobs}", course, [[*grade, "--jobs", str(jobs)]]))
        cells, empty = floor(course)
        n = options.submissions
        print(
            f"{'the cells themselves':<28} {'':>15} {cells:8.1f} s CPU; a child that runs nothing: {empty:.3f} s",
            flush=True,
        )
        if options.stock_submissions:
            for each in list(course.submissions())[options.stock_submissions :]:
                shutil.rmtree(each.folder.parent)
        (course.root / "nbgrader_config.py").write_text(STOCK_CONFIG)
        stock = timed(
            "stock nbgrader", course, [["nbgrader", "autograde", name, "--force"] for name in course.assignments()]
        )
    factor = n / (options.stock_submissions or n)
    stock = Cost(stock.way, stock.wall * factor, stock.cpu * factor)
    costs.append(stock)
    ours = {cost.way: cost for cost in costs}
    one, two = ours["ours, --jobs 1"], ours["ours, --jobs 2"]
    own = one.cells - n * empty  # the same run's: seconds of one run are not those of another
    summary = {
        "submissions": n,
        "cells_cpu": cells,
        "fixed_cpu_per_submission": {"stock": (stock.cpu - cells) / n, "ours": (one.cpu - own) / n},
        "fixed_wall_per_submission": {"stock": (stock.wall - cells) / n, "ours": (one.wall - own) / n},
        "times_faster_wall": {"one job": stock.wall / one.wall, "two jobs": stock.wall / two.wall},
        "share_of_floor_two_jobs": (two.cells - n * empty) / CORES / two.wall,
        "load": os.getloadavg()[0],
        "costs": [asdict(cost) for cost in costs],
    }
    print(json.dumps(summary, indent=2))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
