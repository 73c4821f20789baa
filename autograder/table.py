"""The table that `grade` ends with."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autograder.grading import Graded
from autograder.pipeline import Result
from autograder.sandbox import losses
from puzzles import catalog
from puzzles.show import LOOKS


def print_table(out: Console, graded: list[Graded], seed: int) -> None:
    """Print everyone's score, parts and first trouble, puzzle by puzzle; then what the symbols mean, and the seed."""
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
