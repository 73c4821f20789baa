"""How the learner's commands look in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from puzzles import catalog
from puzzles.catalog import Part, Puzzle
from puzzles.progress import Progress
from puzzles.show import LOOKS, line
from puzzles.workspace import own_notebook, shown

if TYPE_CHECKING:
    from puzzles.peek import Excerpt
    from puzzles.running import Checked

out = Console()
err = Console(stderr=True)


def say(text: str) -> None:
    """A line as it is, for the terminal to wrap: what is to be copied stays whole."""
    out.print(Text(text), soft_wrap=True)


def busy(text: str) -> AbstractContextManager[object]:
    """Show that something is going on."""
    return err.status(Text(text))


def clear() -> None:
    """An empty screen; in a file or a pipe, a line across."""
    if out.is_terminal:
        out.clear()
    else:
        out.rule()


def show_course(standing: list[tuple[Puzzle, Progress]]) -> None:
    """Every puzzle with its progress, and the next step."""
    table = Table(title="nanochat puzzles", title_justify="left")
    for column in ("puzzle", "", "minutes", "checks", "points"):
        table.add_column(column, justify="left" if column in ("puzzle", "") else "right")
    for puzzle, state in standing:
        checks = f"{len(state.checked)} / {len(puzzle.parts)}"
        points = f"{state.score(puzzle):g} / {puzzle.points}"
        table.add_row(puzzle.id, puzzle.difficulty, str(puzzle.minutes), checks, points)
    out.print(table)
    for puzzle, state in standing:
        part_id = state.next_part(puzzle)
        if part_id is not None:
            say(f"Next: the hole '{part_id}' in {shown(own_notebook(puzzle))}. Open it with `make lab`, then")
            say(f"  python -m puzzles.{puzzle.id} --watch    see the visible checks at every save")
            say(f"  python -m puzzles.{puzzle.id} --hint     read a hint")
            say(f"  python -m puzzles.{puzzle.id} --verify   run the hidden tests")
            return
    say("All solved.")


def show_checks(puzzle: Puzzle, found: Checked, only_next: bool = False) -> None:
    """How the visible checks ended and the next step; with `only_next` no messages but those of the next part."""
    stuck = next((part for part in puzzle.parts if not found.passed[part.id]), None)
    for part in puzzle.parts:
        data = found.shown[part.id]
        out.print(Text(line(data["status"], part.title)))
        if data["message"] and (part == stuck or not only_next):
            out.print(Text(f"    {data['message']}"))
    for note in found.notes:
        out.print(Text(note))
    if stuck:
        say(f"Next: the hole '{stuck.id}'. Stuck? python -m puzzles.{puzzle.id} --hint {stuck.id}")
    else:
        say(f"Every visible check passes. Next: python -m puzzles.{puzzle.id} --verify")


def show_verdicts(puzzle: Puzzle, document: dict[str, Any]) -> None:
    """The verdicts on the hidden tests, and the next step; after full marks, what they open."""
    say(f"{puzzle.title}: {document['score']:g} of {document['max']:g} points")
    table = Table()
    table.add_column("part")
    table.add_column("points", justify="right")
    table.add_column("", overflow="fold")
    for part in document["parts"]:
        symbol, word, _ = LOOKS[part["status"]]
        message = "" if part["status"] == "passed" else f"{word}. {part['message']}"
        table.add_row(f"{symbol} {part['id']}", f"{part['points']:g} / {part['max']:g}", Text(message))
    out.print(table)
    for note in document["notes"]:
        out.print(Text(note))
    say(f"Seed {document['seed']} (--seed {document['seed']} draws the same cases).")
    if not document["isolated"]:
        say(f"Your code ran without {', '.join(document['missing'])}: not isolated.")
    lost = [part["id"] for part in document["parts"] if part["status"] != "passed"]
    if lost:
        say(f"Next: '{lost[0]}'. Stuck? python -m puzzles.{puzzle.id} --hint {lost[0]}")
    else:
        for paragraph in puzzle.commentary.split("\n\n"):
            out.print(Text(f"\n{' '.join(paragraph.split())}"))
        out.print()
        say(f"Other solutions: python -m puzzles.{puzzle.id} --alternative")
        say(f"nanochat's own:  python -m puzzles.{puzzle.id} --peek")
        following = _after(puzzle)
        if following:
            say(f"Next: {following.title}: python -m puzzles.{following.id} --watch")


def show_excerpts(part: Part, excerpts: Iterable[Excerpt]) -> None:
    """nanochat's own lines for a part."""
    _heading(part)
    for excerpt in excerpts:
        out.print(Text(f"{excerpt.file}, line {excerpt.first}"))
        out.print(Syntax(excerpt.code, "python", line_numbers=True, start_line=excerpt.first, word_wrap=True))


def show_alternatives(part: Part, alternatives: Iterable[tuple[str, str]]) -> None:
    """Other solutions of a part."""
    _heading(part)
    for name, code in alternatives:
        out.print(Text(f"Another way: {name}"))
        out.print(Syntax(code, "python", word_wrap=True))


def show_hints(puzzle: Puzzle, part: Part, read: int) -> None:
    """The first hints of a part."""
    _heading(part)
    for number, hint in enumerate(part.hints[:read], 1):
        out.print(Text(f"Hint {number} of {len(part.hints)}: {hint}"))
    if read < len(part.hints):
        say("The same command shows one more.")
    else:
        say(f"That was the last one. nanochat's own code: python -m puzzles.{puzzle.id} --peek {part.id}")


def _heading(part: Part) -> None:
    out.print(Text(f"{part.id}: {part.title}", style="bold"))


def _after(puzzle: Puzzle) -> Puzzle | None:
    """The puzzle that comes next in the course."""
    given = list(catalog.puzzles())
    place = given.index(puzzle) + 1 if puzzle in given else 0
    return given[place] if place < len(given) else None
