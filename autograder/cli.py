"""`python -m autograder`: make releases, grade, report, give feedback, export, and check the course itself."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from puzzles import catalog
from puzzles.catalog import UserError
from puzzles.show import LOOKS

if TYPE_CHECKING:
    from autograder.course import Course
    from autograder.grading import Graded
    from autograder.pipeline import Result

out = Console()
err = Console(stderr=True)


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns 0 when all went well, 1 when something that was checked is wrong, 2 for bad input."""
    options = _parser().parse_args(argv)
    # nbgrader's queries make SQLAlchemy 2 warn about its own autoflush; a teacher can do nothing about it
    warnings.filterwarnings("ignore", message="Object of type", module="nbgrader")
    try:
        return options.run(options)
    except UserError as error:
        err.print(Text(str(error)))
        return 2
    except KeyboardInterrupt:
        err.print("Stopped. What was graded is kept; run the same command to go on.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autograder", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--course", type=Path, default=catalog.ROOT, metavar="DIR", help="an nbgrader course folder")
        added.set_defaults(run=run)
        return added

    command("release", _release, "Make the student versions.").add_argument("ids", nargs="*", metavar="ID")
    grade = command("grade", _grade, "Grade what has been handed in and not been graded yet.")
    grade.add_argument("--assignment", metavar="ID")
    grade.add_argument("--student", metavar="ID")
    grade.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="submissions at a time (default: cores)")
    grade.add_argument("--dask", metavar="ADDR", help="let the workers of this dask scheduler do it, tcp://host:port")
    grade.add_argument("--seed", type=int, help="draw the hidden cases from this seed (default: a fresh one)")
    grade.add_argument("--force", action="store_true", help="grade again what has been graded")
    grade.add_argument("--strict", action="store_true", help="refuse to grade without full isolation")
    grade.add_argument("--cell-seconds", type=float, default=20.0, help="how long one cell may take (default: 20)")
    grade.add_argument("--json", action="store_true", help="print one JSON object")
    command("report", _report, "Write the HTML report of everything graded.")
    command("feedback", _feedback, "Make nbgrader's feedback pages, without hidden tests.").add_argument(
        "ids", nargs="*", metavar="ID"
    )
    export = command("export", _export, "Print the scores in the gradebook.")
    export.add_argument("--format", default="csv", choices=["csv", "canvas", "moodle", "gradescope", "json"])
    export.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead")
    demo = command("demo", _demo, "Build the sample class in demo/, grade it, and write its report.")
    demo.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    demo.add_argument("--seed", type=int)
    check = command("check", _check, "Prove that the puzzles grade as they should.")
    check.add_argument("ids", nargs="*", metavar="ID")
    check.add_argument("--seed", type=int, default=0)
    check.add_argument("--mutate", action="store_true", help="try automatic mutants of the solutions instead")
    return parser


def _course(options: argparse.Namespace) -> Course:
    from autograder.course import Course

    return Course(options.course)


def _chosen(course: Course, ids: list[str]) -> list[str]:
    """The assignments named, or all the course has."""
    known = course.assignments()
    if not known:
        raise UserError(f"{course.root / 'source'} holds no puzzle: put one there as <id>/<id>.ipynb.")
    for name in ids:
        if name not in known:
            raise UserError(f"The course has no assignment '{name}': choose from {', '.join(known)}.")
    return ids or known


def _release(options: argparse.Namespace) -> int:
    from autograder.release import release

    course = _course(options)
    chosen = _chosen(course, options.ids)
    release(course, chosen)
    for name in chosen:
        out.print(f"release/{name}/{name}.ipynb", highlight=False)
    return 0


def _grade(options: argparse.Namespace) -> int:
    from autograder.exam import fresh_seed
    from autograder.grading import grade_course, progress_bar
    from autograder.pipeline import to_json
    from autograder.sandbox import Limits

    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs} is too few: give 1 or more.")
    course = _course(options)
    if options.assignment:
        _chosen(course, [options.assignment])
    submissions = list(course.submissions(options.assignment, options.student))
    if not submissions:
        raise UserError(
            f"Nothing to grade: {course.root / 'submitted'}/<student>/<assignment>/ holds nothing that fits."
        )
    seed = fresh_seed() if options.seed is None else options.seed
    limits = Limits(cell_seconds=options.cell_seconds)
    with progress_bar() as progress:
        progress.disable = options.json
        shown = None if options.json else progress
        graded = list(
            grade_course(
                course, submissions, seed, options.jobs, limits, options.force, shown, options.strict, options.dask
            )
        )
    graded.sort(key=lambda each: (each.submission.assignment, each.submission.student))
    if options.json:
        rows = [to_json(each.submission.student, each.submission.assignment, each.result) for each in graded]
        isolated = all(each.result.isolated for each in graded)
        print(json.dumps({"seed": seed, "isolated": isolated, "submissions": rows}, ensure_ascii=False, indent=2))
    else:
        _print_table(graded, seed)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from autograder.demo import build

    folder = str(build(catalog.ROOT / "demo", _chosen(_course(options), [])).root)
    grade = ["grade", "--jobs", str(options.jobs), "--cell-seconds", "15"]
    grade += [] if options.seed is None else ["--seed", str(options.seed)]
    for argv in (["release"], grade, ["report"]):
        if code := main([*argv, "--course", folder]):
            return code
    first = catalog.puzzles()[0].id
    out.print(f"\nYour turn: `make lab`, or python -m puzzles.{first}", highlight=False)
    return 0


def _print_table(graded: list[Graded], seed: int) -> None:
    from autograder.sandbox import losses

    for assignment in dict.fromkeys(each.submission.assignment for each in graded):
        puzzle = catalog.puzzle(assignment)
        table = Table(title=puzzle.title, title_justify="left")
        table.add_column("student")
        table.add_column("score", justify="right")
        table.add_column("parts")
        table.add_column("why", overflow="fold")
        table.add_column("s", justify="right")
        for each in (g for g in graded if g.submission.assignment == assignment):
            result = each.result
            table.add_row(
                Text(each.submission.student),
                f"{result.score:g}",
                "".join(LOOKS[verdict.status][0] for verdict in result.verdicts),
                Text(_why(result)),
                f"{result.seconds:.1f}" if each.fresh else "kept",
            )
        out.print(table)
    symbols = ", ".join(f"{symbol} {word}" for symbol, word, _ in LOOKS.values())
    missing = sorted({layer for each in graded if not each.result.isolated for layer in each.result.missing})
    how = f"Not isolated: {losses(missing)}" if missing else "Every submission ran isolated"
    out.print(f"{symbols}. Seed {seed}. {how}.", highlight=False)


def _why(result: Result) -> str:
    """The first thing to know about a submission that did not get everything."""
    if result.notes:
        return result.notes[0]
    lost = [verdict for verdict in result.verdicts if verdict.status != "passed"]
    if not lost:
        return ""
    wrong = [verdict for verdict in lost if verdict.status == "wrong"]
    if wrong:
        message = wrong[0].message.split("Likely mistake: ")[-1]
        return f"{wrong[0].title}: {message}"[:200]
    return f"{len(lost)} of {len(result.verdicts)} parts {LOOKS[lost[0].status][1]}"


def _report(options: argparse.Namespace) -> int:
    from autograder.report import write_report

    course = _course(options)
    out.print(f"Report: {write_report(course, _chosen(course, []))}", highlight=False, soft_wrap=True)
    return 0


def _feedback(options: argparse.Namespace) -> int:
    course = _course(options)
    for name in _chosen(course, options.ids):
        if not list((course.root / "autograded").glob(f"*/{name}")):
            raise UserError(f"Nothing of '{name}' is graded yet: run `python -m autograder grade` first.")
        course.require_success(course.nbgrader.generate_feedback(name), f"make feedback for '{name}'")
        out.print(f"feedback/<student>/{name}/{name}.html", highlight=False)
    return 0


def _export(options: argparse.Namespace) -> int:
    from autograder.export import export
    from autograder.source import write_atomically

    course = _course(options)
    text = export(course, _chosen(course, []), options.format)
    if options.output:
        write_atomically(options.output, text)
    else:
        sys.stdout.write(text)
    return 0


def _check(options: argparse.Namespace) -> int:
    from autograder.check import check, mutation
    from autograder.grading import progress_bar

    course = _course(options)
    failed = 0
    for name in _chosen(course, options.ids):
        out.print(f"{name} (seed {options.seed})", highlight=False)
        with progress_bar() as progress:
            for finding in (mutation if options.mutate else check)(course, name, options.seed, progress):
                failed += bool(finding.trouble)
                mark = "✗" if finding.trouble else "✓"
                text = f"  {mark} {finding.subject}{f': {finding.trouble}' if finding.trouble else ''}"
                progress.console.print(Text(text))
    out.print(f"{failed} of the checks failed." if failed else "All checks hold.")
    return 1 if failed else 0
