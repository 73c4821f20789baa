"""Where submissions are graded: on this machine, or on the workers of a dask cluster.

The unit of work is a submission's bytes and all that its grade depends on; what comes back is a result. Nothing of the
course folder is needed where it is done.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import nbformat
from nbformat import NotebookNode

from autograder.exam import Exam
from autograder.pipeline import Result, grade, refuse
from autograder.sandbox import Limits, Sandbox, require_isolation
from autograder.template import puzzle_of
from autograder.warmth import warm
from puzzles.catalog import Puzzle, UserError

K = TypeVar("K")


@dataclass(frozen=True)
class Unit:
    """One submission to grade. `template` is a notebook's JSON. Without `raw` it is refused, for `refusal`."""

    assignment: str
    template: str
    raw: bytes | None
    refusal: str
    seed: int
    limits: Limits
    strict: bool


class Workplace:
    """Grades units, from any number of threads: exams and sandboxes are made when they are first needed, and kept.
    `sandboxes`, by puzzle, are there already; they end with this."""

    def __init__(self, sandboxes: dict[str, Sandbox] | None = None) -> None:
        self._lock = threading.Lock()
        self._templates: dict[str, NotebookNode] = {}
        self._exams: dict[tuple[Puzzle, int], Exam] = {}
        self._sandboxes = dict(sandboxes or {})

    def grade(self, unit: Unit) -> Result:
        """The result for a unit. UserError if isolation is wanted and this machine does not allow it."""
        with self._lock:
            if unit.template not in self._templates:
                self._templates[unit.template] = nbformat.reads(unit.template, as_version=4)
            template = self._templates[unit.template]
            key = (puzzle_of(unit.assignment, template), unit.seed)
            exam = self._exams.get(key) or self._exams.setdefault(key, Exam(*key))
            if unit.raw is not None and unit.assignment not in self._sandboxes:
                self._sandboxes[unit.assignment] = warm(unit.assignment, template)
        if unit.raw is None:
            return refuse(template, unit.refusal, exam)
        sandbox = self._sandboxes[unit.assignment]
        if unit.strict:
            require_isolation(sandbox)
        return grade(template, unit.raw, exam, unit.limits, sandbox)

    def close(self) -> None:
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def __enter__(self) -> "Workplace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def _of_this_worker() -> Workplace:
    """Warm for as long as the worker's process lives; its zygotes go with it, however it goes."""
    return Workplace()


def _grade_on_worker(unit: Unit) -> Result | UserError:
    try:
        return _of_this_worker().grade(unit)
    except UserError as error:
        return error


def on_cluster(address: str, units: Iterable[tuple[K, Unit]]) -> Iterator[tuple[K, Result | BaseException]]:
    """Grade units on the workers of the dask scheduler at `address`; yield (key, result) as they finish. A unit whose
    worker dies is done again by another. UserError if there is no scheduler, no worker, or no dask here."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise UserError("--dask needs the package distributed: pip install 'nanochat-puzzles[dask]'.") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(f"No dask scheduler answers at {address} ({error}): check the address.") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UserError(f"The dask scheduler at {address} has no workers: start some.")
        waiting, keys = iter(units), dict[Any, K]()

        def submit(n: int) -> list[Any]:
            futures = []
            for key, unit in islice(waiting, n):
                # no submission is the same task as another, even if its bytes are
                futures.append(client.submit(_grade_on_worker, unit, pure=False))
                keys[futures[-1].key] = key
            return futures

        finished = as_completed(submit(2 * threads))
        for future in finished:
            outcome: Any = future.exception() or future.result()
            key = keys.pop(future.key)
            del future
            for another in submit(1):
                finished.add(another)
            yield key, outcome
