"""Thousands of tiny submissions through the whole road: does memory stay flat, and the time for each?

    python -m benchmarks.many_submissions [--submissions 10000] [--jobs 2] [--json FILE]

The notebook is puzzle 1's, cut down to one part, so that the engine and the gradebook are what is measured. Exit code 1
if the last tenth takes more than half as long again as the second tenth, or needs a quarter more memory.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from autograder.course import Course
from autograder.demo import CONFIG
from autograder.grading import grade_course
from autograder.release import release
from autograder.template import solution_cells
from autograder.variants import source
from puzzles import catalog

PUZZLE = "01_transformer_blueprint"
KEPT = ("imports", "widths", "test-widths", "check-widths")
SLOWER, LARGER = 1.5, 1.25


def build(root: Path, n: int) -> Course:
    """A course of n students, every other of whom has filled the hole."""
    script = source(PUZZLE)
    solution = solution_cells(script)["widths"].source
    script.cells = [cell for cell in script.cells if cell.id in KEPT]
    (root / "source" / PUZZLE).mkdir(parents=True)
    nbformat.write(script, root / "source" / PUZZLE / f"{PUZZLE}.ipynb")
    shutil.copy(catalog.ROOT / CONFIG, root)
    course = Course(root)
    release(course, [PUZZLE])
    notebook = nbformat.read(catalog.release_notebook(PUZZLE, root), as_version=4)
    texts = [nbformat.writes(notebook)]
    solution_cells(notebook)["widths"].source = solution
    texts.append(nbformat.writes(notebook))
    for number in range(n):
        path = root / "submitted" / f"student_{number:05}" / PUZZLE / f"{PUZZLE}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(texts[number % 2])
    return course


def megabytes() -> float:
    """Memory of this process and all below it, each shared page counted once."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[process.name] = (process / "stat").read_text().rpartition(")")[2].split()[1]
    below = {str(os.getpid())}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    total = 0
    for pid in below:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tenths = []
    with tempfile.TemporaryDirectory(prefix="many-") as folder:
        course = build(Path(folder) / "course", options.submissions)
        submissions = list(course.submissions())
        started, cpu, points = time.monotonic(), time.process_time(), 0.0
        for number, graded in enumerate(grade_course(course, submissions, 7, options.jobs), 1):
            points += graded.result.score
            if number % max(1, options.submissions // 10) == 0:
                size = options.submissions // 10
                tenth = {
                    "submissions": number,
                    "milliseconds_each": 1000 * (time.monotonic() - started) / size,
                    "grader_cpu_milliseconds_each": 1000 * (time.process_time() - cpu) / size,
                    "megabytes": megabytes(),
                }
                tenths.append(tenth)
                print("  ".join(f"{name} {value:.0f}" for name, value in tenth.items()), flush=True)
                started, cpu = time.monotonic(), time.process_time()
    expected = 10.0 * (options.submissions // 2)
    flat = (
        tenths[-1]["grader_cpu_milliseconds_each"] < SLOWER * tenths[1]["grader_cpu_milliseconds_each"]
        and tenths[-1]["megabytes"] < LARGER * tenths[1]["megabytes"]
    )
    print(f"points {points:g} of {expected:g}; {'flat' if flat else 'NOT FLAT'}")
    if options.json:
        options.json.write_text(
            json.dumps({"tenths": tenths, "flat": flat, "load": os.getloadavg()[0]}, indent=2) + "\n"
        )
    return 0 if flat and points == expected else 1


if __name__ == "__main__":
    sys.exit(main())
