"""What happened to one submission, for whoever has to explain its grade: logs/<student>/<assignment>.log."""

from datetime import datetime
from pathlib import Path

from autograder.course import Course, Submission
from autograder.exam import printable
from autograder.pipeline import Result
from autograder.sandbox import losses
from autograder.source import write_atomically
from puzzles.show import line


def log_path(course: Course, submission: Submission) -> Path:
    """Where the log of a submission's last grading lies."""
    return course.root / "logs" / submission.student / f"{submission.assignment}.log"


def write_log(course: Course, submission: Submission, result: Result, digest: str, seed: int) -> None:
    """Say when, of what and how it was graded, every verdict, and where the time went."""
    about = [
        f"{submission.assignment} of {submission.student}",
        f"{datetime.now().astimezone().isoformat(timespec='seconds')}, seed {seed}, graded content {digest}",
        f"{result.status}: {result.score:g} of {result.max:g} points",
        f"{result.seconds:.2f} s, {result.cpu_seconds:.2f} s of CPU time",
        "isolated" if result.isolated else f"not isolated: {losses(result.missing)}",
        *result.notes,
    ]
    for verdict in result.verdicts:
        score = f"{verdict.score:g} of {verdict.max:g} points"
        seconds = result.part_seconds.get(verdict.part)
        about += [
            "",
            line(verdict.status, verdict.title, score) + (f", {seconds:.2f} s" if seconds is not None else ""),
            f"  {verdict.message}",
        ]
    write_atomically(log_path(course, submission), "\n".join(map(printable, about)) + "\n")
