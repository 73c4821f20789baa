"""`python -m autograder`: make releases, collect, grade, report, give feedback, export, and check the course itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from puzzles import catalog
from puzzles.catalog import UserError

if TYPE_CHECKING:
    from autograder.course import Course
    from autograder.sandbox import Sandbox

COURSE_HELP = f"a course folder (default: this one if it has a {catalog.COURSE_FILE}, else the repository)"

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
        added.add_argument("--course", type=Path, default=_here(), metavar="DIR", help=COURSE_HELP)
        added.set_defaults(run=run)
        return added

    command("release", _release, "Make the student versions.").add_argument("ids", nargs="*", metavar="ID")
    roster = command("roster", _roster, "Put a class list into the gradebook.")
    roster.add_argument(
        "file", type=Path, metavar="FILE.csv", help="as nbgrader, Canvas, Moodle or Gradescope write it"
    )
    collect = command("collect", _collect, "Sort what an LMS exports, or a folder of notebooks, into submitted/.")
    collect.add_argument("source", type=Path, metavar="ZIP-or-FOLDER")
    collect.add_argument("--assignment", metavar="ID", required=True)
    collect.add_argument("--map", type=Path, metavar="FILE.csv", help="whose a file is: columns file,id[,submitted]")
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
    feedback = command("feedback", _feedback, "Make nbgrader's feedback pages, without hidden tests.")
    feedback.add_argument("ids", nargs="*", metavar="ID")
    feedback.add_argument("--student", metavar="ID")
    export = command("export", _export, "Print the scores of everyone on the class list.")
    export.add_argument("ids", nargs="*", metavar="ID")
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


def _here() -> Path:
    """The course a command is about if nobody says: the folder we are in if it is one, else the repository."""
    here = Path.cwd()
    return here if (here / catalog.COURSE_FILE).is_file() else catalog.ROOT


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


def _roster(options: argparse.Namespace) -> int:
    from autograder.roster import enrol

    done = enrol(_course(options), options.file)
    out.print(f"{done.new} new, {done.changed} changed, {done.same} as before.", highlight=False)
    if done.others:
        out.print(f"{done.others} more in the gradebook are not in {options.file}; they stay.", highlight=False)
    return 0


def _collect(options: argparse.Namespace) -> int:
    from autograder.collect import collect

    course = _course(options)
    _chosen(course, [options.assignment])
    done = collect(course, options.source, options.assignment, options.map)
    for line in done.lines():
        out.print(Text(line), soft_wrap=True)
    return 1 if done.unknown else 0


def _grade(options: argparse.Namespace) -> int:
    from autograder.warmth import first_warm

    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs} is too few: give 1 or more.")
    with contextlib.ExitStack() as stack:
        # it warms up while this process imports the rest of the grader
        sandboxes = {} if options.dask else first_warm(options.course, options.assignment, options.student)
        for sandbox in sandboxes.values():
            stack.enter_context(sandbox)
        return _grade_with(options, sandboxes)


def _grade_with(options: argparse.Namespace, sandboxes: dict[str, Sandbox]) -> int:
    from autograder.exam import fresh_seed
    from autograder.grading import grade_course, progress_bar
    from autograder.pipeline import to_json
    from autograder.sandbox import Limits
    from autograder.table import print_table

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
                course,
                submissions,
                seed,
                options.jobs,
                limits,
                force=options.force,
                progress=shown,
                strict=options.strict,
                dask=options.dask,
                sandboxes=sandboxes,
            )
        )
    graded.sort(key=lambda each: (each.submission.assignment, each.submission.student))
    if options.json:
        rows = [to_json(each.submission.student, each.submission.assignment, each.result) for each in graded]
        isolated = all(each.result.isolated for each in graded)
        print(json.dumps({"seed": seed, "isolated": isolated, "submissions": rows}, ensure_ascii=False, indent=2))
    else:
        print_table(out, graded, seed)
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


def _report(options: argparse.Namespace) -> int:
    from autograder.report import write_report

    course = _course(options)
    out.print(f"Report: {write_report(course, _chosen(course, []))}", highlight=False, soft_wrap=True)
    return 0


def _graded(course: Course, options: argparse.Namespace) -> list[str]:
    """The assignments named, or all of which something is graded. UserError for one of which nothing is."""
    student = getattr(options, "student", None) or "*"
    chosen = _chosen(course, options.ids)
    graded = [name for name in chosen if list((course.root / "autograded").glob(f"{student}/{name}"))]
    if missing := [name for name in options.ids if name not in graded] or ([] if graded else chosen):
        whose = "" if student == "*" else f" of {student}"
        raise UserError(f"Nothing of '{missing[0]}'{whose} is graded yet: run `python -m autograder grade` first.")
    return graded


def _feedback(options: argparse.Namespace) -> int:
    course = _course(options)
    for name in _graded(course, options):
        outcome = course.nbgrader.generate_feedback(name, options.student)
        course.require_success(outcome, f"make feedback for '{name}'")
        out.print(f"feedback/{options.student or '<student>'}/{name}/{name}.html", highlight=False)
    return 0


def _export(options: argparse.Namespace) -> int:
    from autograder.export import export
    from autograder.source import write_atomically

    course = _course(options)
    text = export(course, _graded(course, options), options.format)
    if options.output:
        try:
            write_atomically(options.output, text)
        except OSError as error:
            raise UserError(f"{options.output} cannot be written ({error.strerror}): name another --output.") from None
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
