"""Try other solutions: curated wrong ones that must lose their part, different right ones that must keep full marks.

A variant replaces the code of solution cells of the source notebook. To try it, the notebook's code cells are run as
plain Python in a forked process (plots and oracle cells left out), graded by the same judges as any submission. Where
solutions start processes they are tried in a sandbox instead, as submissions are.
"""

import ast
import contextlib
import copy
import io
import multiprocessing
import os
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from autograder.exam import Exam, Verdict
from autograder.execute import execute
from autograder.pipeline import graded_part
from autograder.referee import Referee
from autograder.sandbox import Limits, Sandbox
from autograder.shown import ORACLE_TAG
from autograder.template import solution_cells
from autograder.warmth import sandbox_for
from puzzles import catalog, submit
from puzzles.catalog import UserError
from puzzles.checks import Checks
from puzzles.show import MIME

PLOT_TAG = "plot"
SECONDS = 30


@dataclass(frozen=True)
class Variant:
    """A set of replaced solution cells. `loses` names the parts that must lose their points; empty for a right one."""

    name: str
    cells: dict[str, str]
    loses: frozenset[str]


@dataclass(frozen=True)
class Outcome:
    """What a variant earned, and the parts whose visible check it passed."""

    verdicts: dict[str, Verdict]
    visible: frozenset[str]

    @property
    def lost(self) -> frozenset[str]:
        return frozenset(part for part, verdict in self.verdicts.items() if verdict.status != "passed")


def source(puzzle_id: str, course: Path = catalog.ROOT) -> NotebookNode:
    """The instructor's notebook."""
    return nbformat.read(catalog.source_notebook(puzzle_id, course), as_version=4)


def wrong_variants(puzzle_id: str, course: Path = catalog.ROOT) -> Iterator[Variant]:
    """The curated wrong solutions in tests/wrong/<id>.toml, each a patch of one reference solution.
    UserError if a patch no longer fits."""
    path = course / "tests" / "wrong" / f"{puzzle_id}.toml"
    reference = solution_cells(source(puzzle_id, course))
    for entry in tomllib.loads(path.read_text())["wrong"]:
        code = reference[entry["part"]].source
        olds, news = (value if isinstance(value, list) else [value] for value in (entry["old"], entry["new"]))
        for old, new in zip(olds, news, strict=True):
            if code.count(old) != 1:
                found = "is not there" if old not in code else "stands there more than once"
                raise UserError(f"{path.name}: the wrong solution '{entry['name']}' patches {old!r}, which {found}.")
            code = code.replace(old, new)
        loses = frozenset([entry["part"], *entry.get("also_loses", [])])
        yield Variant(f"{entry['part']}: {entry['name']}", {entry["part"]: code}, loses)


def right_variants(puzzle_id: str, course: Path = catalog.ROOT) -> Iterator[Variant]:
    """The right solutions written differently: percent scripts of `hole` cells in tests/right/<id>/."""
    for path in sorted((course / "tests" / "right" / puzzle_id).glob("*.py")):
        cells = {cell.metadata["hole"]: cell.source for cell in jupytext.read(path).cells if "hole" in cell.metadata}
        yield Variant(path.stem, cells, frozenset())


def try_variant(
    notebook: NotebookNode, exam: Exam, cells: dict[str, str], parts: frozenset[str] | None = None
) -> Outcome:
    """Run `notebook` with `cells` in place of its solutions, in a process of its own, and judge it. A part that gives
    no answer within SECONDS is missing. With `parts` only these are examined, and no cell after them is run."""
    tried = NotebookNode(notebook | {"cells": _code_cells(notebook, parts)})
    return (_try_in_sandbox if exam.puzzle.processes else _try_in_fork)(tried, exam, cells)


def try_all(
    notebook: NotebookNode, exam: Exam, tried: Sequence[Variant], whole: bool = True
) -> Iterator[tuple[Variant, Outcome]]:
    """`try_variant` for each, in order; unless `whole`, only what a variant should lose is examined."""

    def attempt(variant: Variant) -> tuple[Variant, Outcome]:
        return variant, try_variant(notebook, exam, variant.cells, None if whole else variant.loses)

    if not exam.puzzle.processes:
        yield from map(attempt, tried)
        return
    _sandbox(exam.puzzle.id).ready()
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:  # most of their time they wait for a clock
        yield from pool.map(attempt, tried)


def _try_in_sandbox(notebook: NotebookNode, exam: Exam, cells: dict[str, str]) -> Outcome:
    for cell in notebook.cells:
        cell.source = cells.get(cell.id, cell.source)
    referee = Referee(exam)
    limits = Limits(cell_seconds=SECONDS, notebook_seconds=SECONDS * len(exam.puzzle.parts))
    execute(notebook, limits, _sandbox(exam.puzzle.id), referee.serve)
    shown = [output.get("data", {}).get(MIME, {}) for cell in notebook.cells for output in cell.outputs]
    visible = frozenset(data["part"] for data in shown if data.get("status") == "passed" and "max" not in data)
    return Outcome({verdict.part: verdict for verdict in referee.verdicts("No answers arrived.")}, visible)


@cache
def _sandbox(puzzle_id: str) -> Sandbox:
    """A warm sandbox, which ends with this process."""
    return sandbox_for(puzzle_id)


def _try_in_fork(notebook: NotebookNode, exam: Exam, cells: dict[str, str]) -> Outcome:
    _warm_up(notebook, exam)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(notebook, exam, cells, sender), daemon=True)
    process.start()
    sender.close()
    verdicts: dict[str, Verdict] = {}
    visible: frozenset[str] = frozenset()
    with contextlib.suppress(EOFError):  # the process is through
        while receiver.poll(SECONDS):
            message = receiver.recv()
            if isinstance(message, Verdict):
                verdicts[message.part] = message
            else:
                visible = message
    process.kill()
    process.join()
    for part in exam.puzzle.parts:
        verdicts.setdefault(part.id, exam.missing(part.id, "No answers arrived."))
    return Outcome(verdicts, visible)


def _warm_up(notebook: NotebookNode, exam: Exam) -> None:
    """Do before the fork what every variant would do again: draw the cases, ask the oracle, import."""
    for part in exam.puzzle.parts:
        exam.paper(part.id)
    for cell in notebook.cells:
        for statement in ast.parse(cell.source).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                exec(compile(ast.Module([statement], []), f"<cell {cell.id}>", "exec"), {})


def _code_cells(notebook: NotebookNode, parts: frozenset[str] | None) -> list[NotebookNode]:
    """Copies of the code cells that matter for grading: for all parts, or for these."""
    chosen = []
    for cell in notebook.cells:
        part, tags = graded_part(cell), cell.metadata.get("tags", [])
        matters = cell.cell_type == "code" and not {ORACLE_TAG, PLOT_TAG} & set(tags)
        if matters and (part is None or parts is None or part in parts):
            chosen.append(copy.deepcopy(cell))
    last = max((i for i, cell in enumerate(chosen) if graded_part(cell)), default=-1)
    return chosen if parts is None else chosen[: last + 1]


def _run(notebook: NotebookNode, exam: Exam, cells: dict[str, str], sender: Any) -> None:
    referee = Referee(exam)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        answer = referee.handle(request)
        if request["ask"] == "submit":
            sender.send(referee.ledger[request["part"]])
        return answer

    submit.connect(ask)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook.cells:
        code = cells.get(cell.id, cell.source)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                exec(compile(code, f"<cell {cell.id}>", "exec"), namespace)
            except Exception:
                continue  # as in a notebook: a cell that raises does not stop the run, and its part gets no answer
    checks = [value for value in namespace.values() if isinstance(value, Checks)]
    sender.send(frozenset().union(*(each.passed for each in checks)))
    sender.close()
