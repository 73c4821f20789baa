"""Grade a course: every submission through the pipeline, in parallel, recorded by one writer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import nbformat
from nbformat import NotebookNode
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autograder import gradebook
from autograder.course import Course, Submission, digest
from autograder.exam import Exam
from autograder.pipeline import Result, grade, grade_all, refuse
from autograder.sandbox import Limits, Sandbox, require_isolation
from autograder.template import template
from autograder.warmth import sandbox_for
from puzzles.catalog import UserError


@dataclass(frozen=True)
class Graded:
    """A submission and its result; `fresh` is False if an earlier run had graded these very bytes."""

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
    counts as graded once its graded notebook is in place. With `strict`, UserError unless all is isolated."""
    limits = limits or Limits()
    templates = {name: template(name, course.root) for name in {s.assignment for s in submissions}}
    for name in templates:
        gradebook.require_assignment(course, name)
    exams = {name: Exam(name, seed) for name in templates}
    digests: dict[Submission, str] = {}
    waiting: list[Submission] = []
    work: dict[Submission, Work] = {}
    task = progress.add_task("grading", total=len(submissions)) if progress else None

    def done() -> None:
        if progress and task is not None:
            progress.advance(task)

    for submission in submissions:
        work[submission], digests[submission] = _work(templates[submission.assignment], submission)
        earlier = None if force else gradebook.recorded(course, submission)
        if earlier and earlier[0] == digests[submission]:
            done()
            yield Graded(submission, earlier[2], fresh=False)
        else:
            waiting.append(submission)
    with contextlib.ExitStack() as open_sandboxes:
        sandboxes = {
            name: open_sandboxes.enter_context(sandbox_for(name, course.root))
            for name in dict.fromkeys(s.assignment for s in waiting)
        }
        if strict:
            for sandbox in sandboxes.values():
                require_isolation(sandbox)

        def job(submission: Submission) -> Result:
            name = submission.assignment
            return work[submission](exams[name], limits, sandboxes[name])

        for submission, result in grade_all(((each, partial(job, each)) for each in waiting), jobs):
            if isinstance(result, BaseException):
                raise result
            gradebook.record(course, submission, result, digests[submission], seed)
            done()
            yield Graded(submission, result, fresh=True)


Work = Callable[[Exam, Limits, Sandbox], Result]


def _work(instructor: NotebookNode, submission: Submission) -> tuple[Work, str]:
    """What grades a submission, and the digest of everything its grade depends on but the seed."""
    source = nbformat.writes(instructor).encode()
    try:
        raw = submission.read()
    except UserError as error:
        reason = str(error)
        return lambda exam, limits, sandbox: refuse(instructor, reason, exam), digest(source, reason.encode())
    return lambda exam, limits, sandbox: grade(instructor, raw, exam, limits, sandbox), digest(source, raw)


def progress_bar() -> Progress:
    """The bar a long run shows: how many, how long, how much longer."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )
