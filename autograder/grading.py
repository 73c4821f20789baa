"""Grade a course: every submission through the pipeline, in parallel, recorded by one writer."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import nbformat
from nbformat import NotebookNode
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from autograder import gradebook
from autograder.course import Course, Submission, digest
from autograder.pipeline import Result, grade_all
from autograder.sandbox import Limits, Sandbox
from autograder.template import template
from autograder.workplace import Unit, Workplace, on_cluster
from puzzles.catalog import UserError


@dataclass(frozen=True)
class Graded:
    """A submission and its result, whose notebook is on disk only; `fresh` is False if an earlier run had graded these
    very bytes."""

    submission: Submission
    result: Result
    fresh: bool


def grade_course(
    course: Course,
    submissions: list[Submission],
    seed: int,
    jobs: int = 1,
    limits: Limits | None = None,
    force: bool = False,
    progress: Progress | None = None,
    strict: bool = False,
    dask: str | None = None,
    sandboxes: dict[str, Sandbox] | None = None,
) -> Iterator[Graded]:
    """Grade what has not been graded yet (everything with `force`) and yield each submission once it is recorded.

    Every submission of an assignment gets the same cases. A rerun after a kill does only what is missing: a submission
    counts as graded once its graded notebook is in place. UserError if another run is grading the course, if the disk
    is full or the gradebook stays locked (what is recorded stays), and with `strict` unless all is isolated. With
    `dask`, the address of a scheduler, its workers do the grading; recording stays here. `sandboxes` are warm already,
    by puzzle; they are used and closed."""
    limits = limits or Limits()
    templates = {name: template(name, course.root) for name in {s.assignment for s in submissions}}
    for name in templates:
        gradebook.require_assignment(course, name)
    sources = {name: nbformat.writes(notebook).encode() for name, notebook in templates.items()}
    task = progress.add_task("grading", total=len(submissions)) if progress else None

    def done(submission: Submission, result: Result, fresh: bool) -> Graded:
        if progress and task is not None:
            progress.advance(task)
        return Graded(submission, replace(result, notebook=NotebookNode()), fresh)

    with contextlib.ExitStack() as stack:
        stack.enter_context(gradebook.only_writer(course))
        waiting: list[Submission] = []
        for submission in submissions:
            earlier = None if force else gradebook.recorded(course, submission)
            if (
                earlier
                and earlier[0] == unit_of(submission, sources[submission.assignment], seed, limits, strict)[0][1]
            ):
                yield done(submission, earlier[2], fresh=False)
            else:
                waiting.append(submission)
        units = (unit_of(each, sources[each.assignment], seed, limits, strict) for each in waiting)
        if dask:
            outcomes = on_cluster(dask, units)
        else:
            here = stack.enter_context(Workplace(sandboxes))
            outcomes = grade_all(((key, partial(here.grade, unit)) for key, unit in units), jobs)
        for (submission, content), outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            gradebook.record(course, submission, outcome, content, seed)
            yield done(submission, outcome, fresh=True)


def unit_of(
    submission: Submission, template: bytes, seed: int, limits: Limits, strict: bool
) -> tuple[tuple[Submission, str], Unit]:
    """What grades a submission as it is now, under its name and the digest of what its grade depends on.
    `template` is the JSON of its assignment's template."""
    raw, refusal = None, ""
    try:
        raw = submission.read()
    except UserError as error:
        refusal = str(error)
    unit = Unit(submission.assignment, template.decode(), raw, refusal, seed, limits, strict)
    content = raw if raw is not None else refusal.encode()
    # when it came in decides about a late penalty
    return (submission, digest(template, content, *submission.timestamp())), unit


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{60 * speed:.0f} a minute" if speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """The bar a long run shows: how many, how fast, how long, how much longer."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
