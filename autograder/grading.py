"""Grade a course: every submission through the pipeline, in parallel, recorded by one writer."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import nbformat
from nbformat import NotebookNode
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autograder import gradebook
from autograder.course import Course, Submission, digest
from autograder.exam import Exam
from autograder.pipeline import Result, grade, grade_all, refuse
from autograder.sandbox import Limits, require_isolation
from autograder.template import template
from autograder.warmth import sandbox_for
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
) -> Iterator[Graded]:
    """Grade what has not been graded yet (everything with `force`) and yield each submission once it is recorded.

    Every submission of an assignment gets the same cases. A rerun after a kill does only what is missing: a submission
    counts as graded once its graded notebook is in place. UserError if another run is grading the course, if the disk
    is full or the gradebook stays locked (what is recorded stays), and with `strict` unless all is isolated."""
    limits = limits or Limits()
    templates = {name: template(name, course.root) for name in {s.assignment for s in submissions}}
    for name in templates:
        gradebook.require_assignment(course, name)
    exams = {name: Exam(name, seed) for name in templates}
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
            if earlier and earlier[0] == digest(sources[submission.assignment], _content(submission)):
                yield done(submission, earlier[2], fresh=False)
            else:
                waiting.append(submission)
        sandboxes = {
            name: stack.enter_context(sandbox_for(name, course.root))
            for name in dict.fromkeys(submission.assignment for submission in waiting)
        }
        if strict:
            for sandbox in sandboxes.values():
                require_isolation(sandbox)

        def job(submission: Submission) -> tuple[str, Result]:
            """The digest of what was graded, which may have changed since, and the result."""
            name = submission.assignment
            try:
                raw = submission.read()
            except UserError as error:
                return digest(sources[name], str(error).encode()), refuse(templates[name], str(error), exams[name])
            return digest(sources[name], raw), grade(templates[name], raw, exams[name], limits, sandboxes[name])

        for submission, outcome in grade_all(((each, partial(job, each)) for each in waiting), jobs):
            if isinstance(outcome, BaseException):
                raise outcome
            graded, result = outcome
            gradebook.record(course, submission, result, graded, seed)
            yield done(submission, result, fresh=True)


def _content(submission: Submission) -> bytes:
    """What a submission's grade depends on: its bytes, or the reason why it has none."""
    try:
        return submission.read()
    except UserError as error:
        return str(error).encode()


def progress_bar() -> Progress:
    """The bar a long run shows: how many, how long, how much longer."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )
