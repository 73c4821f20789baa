"""From the bytes of a submission to its verdicts: rebuild, execute, referee. What records them is in gradebook.py."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output

from autograder.exam import Exam, Verdict
from autograder.execute import execute
from autograder.rebuild import Refused, rebuild
from autograder.referee import Referee
from autograder.sandbox import Limits, Sandbox, isolated
from puzzles.show import line

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """The outcome of grading one submission.

    status: graded, or refused (there was no notebook to grade; every part is 0 and `notes` says why).
    notebook: executed, the outputs of graded cells replaced by the referee's report.
    cpu_seconds: what its process used.
    missing: the protections (autograder.sandbox.LAYERS) this machine could not give it.
    part_seconds: how long the hole and the hidden tests of each part took, as far as they were run.
    """

    status: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    seconds: float
    notebook: NotebookNode
    cpu_seconds: float = 0.0
    missing: tuple[str, ...] = ()
    part_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return sum(verdict.score for verdict in self.verdicts)

    @property
    def isolated(self) -> bool:
        """Whether it ran behind everything that docs/security.md promises; true as well if nothing ran."""
        return isolated(self.missing)

    @property
    def max(self) -> float:
        return sum(verdict.max for verdict in self.verdicts)


def grade(template: NotebookNode, submission: bytes, exam: Exam, limits: Limits, sandbox: Sandbox) -> Result:
    """Grade one submission in a sandbox of its puzzle. Never raises for anything that is in the submission."""
    try:
        notebook, notes = rebuild(template, submission)
    except Refused as refusal:
        return refuse(template, str(refusal), exam)
    result = examine(notebook, exam, limits, sandbox)
    return replace(result, notes=(*notes, *result.notes))


def examine(notebook: NotebookNode, exam: Exam, limits: Limits, sandbox: Sandbox) -> Result:
    """Run a rebuilt notebook (changed in place) before a referee."""
    referee = Referee(exam)
    run = execute(notebook, limits, sandbox, referee.serve)
    verdicts = {verdict.part: verdict for verdict in referee.verdicts(run.trouble or "No answers arrived.")}
    for cell in run.notebook.cells:
        _report(cell, verdicts, limits)
    notes = (run.trouble,) if run.trouble else ()
    part_seconds = {
        part: run.cell_seconds.get(part, 0.0) + run.cell_seconds[f"test-{part}"]
        for part in verdicts
        if f"test-{part}" in run.cell_seconds
    }
    marked = tuple(verdicts.values())
    return Result("graded", marked, notes, run.seconds, run.notebook, run.cpu_seconds, run.missing, part_seconds)


def refuse(template: NotebookNode, reason: str, exam: Exam) -> Result:
    """The result for a submission that holds no notebook: the empty template, with the reason on top, and no points."""
    notebook = deepcopy(template)
    verdicts = {part.id: exam.missing(part.id, reason) for part in exam.puzzle.parts}
    for cell in notebook.cells:
        _report(cell, verdicts, Limits())
    notebook.cells.insert(0, new_markdown_cell(f"**This submission could not be graded.** {reason}", id="refused"))
    return Result("refused", tuple(verdicts.values()), (reason,), 0.0, notebook)


def grade_all(jobs: Iterable[tuple[K, Callable[[], T]]], workers: int) -> Iterator[tuple[K, T | BaseException]]:
    """Run the jobs (a key and a function each) on `workers` threads and yield (key, result) as they finish. What a job
    raises is its result: one submission never stops another. Jobs are taken, and results made, only a few ahead of
    whoever consumes them, so that a large class takes no more memory than a small one."""
    with ThreadPoolExecutor(workers) as pool:
        pending: dict[Future[T], K] = {}
        waiting = iter(jobs)
        try:
            while True:
                for key, job in islice(waiting, 2 * workers - len(pending)):
                    pending[pool.submit(job)] = key
                if not pending:
                    return
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    key = pending.pop(future)
                    error = future.exception()
                    yield key, error if error else future.result()
        finally:
            for future in pending:
                future.cancel()


def graded_part(cell: NotebookNode) -> str | None:
    """The part a cell's hidden tests examine, or None for a cell that has none."""
    nbgrader = cell.metadata.get("nbgrader", {})
    if nbgrader.get("grade") and not nbgrader.get("solution") and cell.cell_type == "code":
        return nbgrader["grade_id"].removeprefix("test-")
    return None


def _report(cell: NotebookNode, verdicts: dict[str, Verdict], limits: Limits) -> None:
    """Replace what a graded cell printed by the ledger's verdict, in the form nbgrader reads a score from."""
    part = graded_part(cell)
    if part is None:
        return
    verdict = verdicts[part]
    if verdict.status == "missing" and (stopped := _error_of(cell, limits)):
        verdict = replace(verdict, message=f"{verdict.message} {stopped}")
        verdicts[part] = verdict
    text = line(verdict.status, verdict.title, f"{verdict.score:g} of {verdict.max:g} points")
    cell.execution_count = cell.execution_count or 1
    cell.outputs = [
        new_output("stream", name="stdout", text=f"{text}\n  {verdict.message}\n"),
        new_output("execute_result", data={"text/plain": repr(verdict.score)}, execution_count=cell.execution_count),
    ]


def _error_of(cell: NotebookNode, limits: Limits) -> str:
    """What ended a cell, in a sentence; "" if nothing did."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            if output.ename in ("CellTimeoutError", "KeyboardInterrupt"):  # how a cell that takes too long is ended
                return f"The cell was stopped after {limits.cell_seconds:g} s."
            return f"{output.ename}: {output.evalue}."
    return ""


def to_json(student: str, assignment: str, result: Result) -> dict[str, Any]:
    """A result as `grade --json` prints it."""
    return {
        "student": student,
        "assignment": assignment,
        "score": result.score,
        "max": result.max,
        "status": result.status,
        "seconds": round(result.seconds, 2),
        "cpu_seconds": round(result.cpu_seconds, 3),
        "notes": list(result.notes),
        "parts": [
            verdict_json(verdict) | {"seconds": round(result.part_seconds.get(verdict.part, 0.0), 3)}
            for verdict in result.verdicts
        ],
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the commands print it."""
    return {
        "id": verdict.part,
        "title": verdict.title,
        "points": verdict.score,
        "max": verdict.max,
        "status": verdict.status,
        "message": verdict.message,
    }


def dumps(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2)
