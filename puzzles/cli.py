"""The learner's command line: `python -m puzzles` for the course, `python -m puzzles.0X_name` for one puzzle."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from puzzles import catalog, progress
from puzzles.catalog import Puzzle, UserError
from puzzles.show import LOOKS, MIME, line

if TYPE_CHECKING:
    from autograder.pipeline import Result

out = Console()
err = Console(stderr=True)


def overview(argv: list[str] | None = None) -> int:
    """`python -m puzzles`: every puzzle with its progress, and the next step."""
    parser = argparse.ArgumentParser(prog="python -m puzzles", description=overview.__doc__)
    parser.add_argument("--prepare", action="store_true", help="make your copy of every notebook that you have none of")
    options = parser.parse_args(argv)
    table = Table(title="nanochat puzzles", title_justify="left")
    for column in ("puzzle", "", "minutes", "points"):
        table.add_column(column, justify="right" if column in ("minutes", "points") else "left")
    upcoming = None
    try:
        if options.prepare:
            _own_labs()
        for puzzle in catalog.puzzles():
            if options.prepare:
                _own_copy(puzzle)
            state = progress.load(puzzle.id)
            score = state.score(puzzle)
            table.add_row(f"{puzzle.id}", puzzle.difficulty, str(puzzle.minutes), f"{score:g} / {puzzle.points}")
            if upcoming is None and score < puzzle.points:
                upcoming = puzzle
    except UserError as error:
        return _bad_input(error)
    out.print(table)
    if upcoming:
        out.print(f"Next: open {_shown(_default_notebook(upcoming))}, then")
        out.print(f"  python -m puzzles.{upcoming.id}            see the visible checks")
        out.print(f"  python -m puzzles.{upcoming.id} --verify   run the hidden tests")
    else:
        out.print("All solved.")
    return 0


def main(puzzle_id: str, argv: list[str] | None = None) -> int:
    """`python -m puzzles.0X_name`. Returns 0 for full marks (or a command that did its work), 1 for less, 2 for bad
    input."""
    try:
        puzzle = catalog.puzzle(puzzle_id)
        options = _parser(puzzle).parse_args(argv)
        if options.peek is not None:
            return _peek(puzzle, options.peek)
        if options.hint is not None:
            return _hint(puzzle, options.hint)
        if options.reset:
            return _reset(puzzle)
        notebook = options.notebook or _own_copy(puzzle)
        if options.verify:
            return _verify(puzzle, notebook, options.seed, options.json)
        return _run(puzzle, notebook)
    except UserError as error:
        return _bad_input(error)


def _parser(puzzle: Puzzle) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m puzzles.{puzzle.id}",
        description=f"{puzzle.title} {puzzle.difficulty}: {puzzle.goal} Without an option: run the visible checks.",
    )
    parts = ", ".join(part.id for part in puzzle.parts)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="run the hidden tests")
    what.add_argument("--peek", nargs="?", const="", metavar="PART", help=f"show nanochat's own source: {parts}")
    what.add_argument("--hint", nargs="?", const="", metavar="PART", help="show one more hint (default: the next part)")
    what.add_argument("--reset", action="store_true", help="start over with a fresh notebook; the old one is kept")
    parser.add_argument("--notebook", type=Path, metavar="PATH", help="a notebook other than the one in work/")
    parser.add_argument("--seed", type=int, help="with --verify: draw the cases from this seed (default: a fresh one)")
    parser.add_argument("--json", action="store_true", help="with --verify: print one JSON object")
    return parser


def _bad_input(error: UserError) -> int:
    err.print(Text(str(error)))
    return 2


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _default_notebook(puzzle: Puzzle) -> Path:
    return progress.work_folder() / puzzle.id / f"{puzzle.id}.ipynb"


def _own_copy(puzzle: Puzzle) -> Path:
    """The learner's notebook, made from the release on first use."""
    target = _default_notebook(puzzle)
    if not target.exists():
        _copy_release(puzzle, target)
        err.print(f"Made {_shown(target)} from the release: open it in JupyterLab and fill the holes.", highlight=False)
    return target


def _own_labs() -> None:
    """The learner's copies of the labs, and of the file that the first one reads."""
    for original in [*(catalog.ROOT / "notebooks").glob("*.ipynb"), catalog.ROOT / "microgpt.py"]:
        target = progress.work_folder() / original.relative_to(catalog.ROOT)
        if not target.exists():
            _copy(original, target)


def _copy_release(puzzle: Puzzle, target: Path) -> None:
    release = catalog.release_notebook(puzzle.id)
    if not release.exists():
        raise UserError(f"There is no {_shown(release)}: run `python -m autograder release {puzzle.id}` first.")
    _copy(release, target)


def _copy(original: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(original.read_bytes())
    os.replace(temporary, target)


def _read(notebook: Path) -> bytes:
    try:
        return notebook.read_bytes()
    except OSError as error:
        raise UserError(f"The notebook {notebook} cannot be read ({error.strerror}): check --notebook.") from None


def _run(puzzle: Puzzle, notebook: Path) -> int:
    """Run the learner's notebook and show what its visible checks say."""
    import nbformat

    from autograder.kernel import execute
    from autograder.rebuild import Refused, rebuild
    from autograder.sandbox import Limits

    frame = nbformat.reads(_read(catalog.release_notebook(puzzle.id)).decode(), as_version=4)
    try:
        rebuilt, notes = rebuild(frame, _read(notebook))
    except Refused as refusal:
        raise UserError(f"{notebook}: {refusal}") from None
    with err.status(f"running {_shown(notebook)}"):
        run = execute(rebuilt, Limits(threads=os.cpu_count() or 1))
    outcomes = {data["part"]: data for cell in run.notebook.cells if (data := _check_outcome(cell))}
    for part in puzzle.parts:
        data = outcomes.get(part.id, {"status": "missing", "message": ""})
        out.print(Text(line(data["status"], part.title)))
        if data["message"]:
            out.print(Text(f"    {data['message']}"))
    for note in [*notes, *([run.trouble] if run.trouble else [])]:
        out.print(Text(note))
    passed = sum(data["status"] == "passed" for data in outcomes.values())
    if passed == len(puzzle.parts):
        out.print(f"Every visible check passes. Next: python -m puzzles.{puzzle.id} --verify")
        return 0
    stuck = next(part for part in puzzle.parts if outcomes.get(part.id, {}).get("status") != "passed")
    out.print(f"Next: the hole '{stuck.id}'. Stuck? python -m puzzles.{puzzle.id} --hint {stuck.id}")
    return 1


def _check_outcome(cell: Any) -> dict[str, Any] | None:
    """What a visible check displayed in this cell, or None."""
    for output in cell.get("outputs", []):
        data = output.get("data", {}).get(MIME)
        if data and "max" not in data:
            return data
    return None


def _verify(puzzle: Puzzle, notebook: Path, seed: int | None, as_json: bool) -> int:
    """Run the hidden tests on the learner's notebook and show the verdicts."""
    from autograder.warmth import sandbox_for

    raw = _read(notebook)
    # it warms up in a process of its own while this one imports the oracle
    sandbox = sandbox_for(puzzle.id)
    import torch

    from autograder.exam import Exam, fresh_seed
    from autograder.pipeline import grade, verdict_json
    from autograder.sandbox import Limits
    from autograder.template import template

    seed = fresh_seed() if seed is None else seed
    limits = Limits(threads=os.cpu_count() or 1)
    with err.status(f"verifying {_shown(notebook)}"), sandbox:
        result = grade(template(puzzle.id), raw, Exam(puzzle.id, seed), limits, sandbox)
    if result.status == "refused":
        raise UserError(f"{notebook}: {result.notes[0]}")
    if notebook == _default_notebook(puzzle):
        state = progress.load(puzzle.id)
        state.earned = {v.part: max(v.score, state.earned.get(v.part, 0.0)) for v in result.verdicts}
        progress.save(puzzle.id, state)
    if as_json:
        document = {
            "puzzle": puzzle.id,
            "seed": seed,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "isolated": result.isolated,
            "score": result.score,
            "max": result.max,
            "parts": [verdict_json(verdict) for verdict in result.verdicts],
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_verdicts(puzzle, result, seed)
    return 0 if result.score == result.max else 1


def _print_verdicts(puzzle: Puzzle, result: Result, seed: int) -> None:
    table = Table(title=f"{puzzle.title}: {result.score:g} of {result.max:g} points", title_justify="left")
    table.add_column("part")
    table.add_column("points", justify="right")
    table.add_column("", overflow="fold")
    for verdict in result.verdicts:
        symbol, word, _ = LOOKS[verdict.status]
        message = "" if verdict.status == "passed" else f"{word}. {verdict.message}"
        table.add_row(f"{symbol} {verdict.part}", f"{verdict.score:g} / {verdict.max:g}", Text(message))
    out.print(table)
    for note in result.notes:
        out.print(Text(note))
    out.print(f"Seed {seed} (--seed {seed} draws the same cases).", highlight=False)
    if not result.isolated:
        out.print(f"Your code ran without {', '.join(result.missing)}: not isolated.", highlight=False)
    lost = [verdict for verdict in result.verdicts if verdict.status != "passed"]
    if lost:
        out.print(f"Next: '{lost[0].part}'. Stuck? python -m puzzles.{puzzle.id} --hint {lost[0].part}")
    else:
        out.print(Text(f"\n{puzzle.commentary}\n"))
        out.print(f"Compare with nanochat: python -m puzzles.{puzzle.id} --peek")


def _peek(puzzle: Puzzle, part_id: str) -> int:
    from puzzles.peek import excerpts

    parts = [puzzle.part(part_id)] if part_id else puzzle.parts
    for part in parts:
        out.print(Text(f"{part.id}: {part.title}", style="bold"))
        for excerpt in excerpts(part):
            out.print(Text(f"{excerpt.file}, line {excerpt.first}"))
            out.print(Syntax(excerpt.code, "python", line_numbers=True, start_line=excerpt.first))
    return 0


def _hint(puzzle: Puzzle, part_id: str) -> int:
    """Show the hints of a part read so far and one more."""
    state = progress.load(puzzle.id)
    chosen = part_id or state.next_part(puzzle)
    if chosen is None:
        out.print("Every part is solved; name one to see its hints.")
        return 0
    part = puzzle.part(chosen)
    read = min(state.hints_read.get(part.id, 0) + 1, len(part.hints))
    state.hints_read[part.id] = read
    progress.save(puzzle.id, state)
    out.print(Text(f"{part.id}: {part.title}", style="bold"))
    for number, hint in enumerate(part.hints[:read], 1):
        out.print(Text(f"Hint {number} of {len(part.hints)}: {hint}"))
    if read < len(part.hints):
        out.print("The same command shows one more.")
    else:
        out.print(f"That was the last one. nanochat's own code: python -m puzzles.{puzzle.id} --peek {part.id}")
    return 0


def _reset(puzzle: Puzzle) -> int:
    """Put a fresh notebook in place; the old one stays beside it under a free name."""
    target = _default_notebook(puzzle)
    if target.exists():
        number = 1
        while (kept := target.with_name(f"{puzzle.id}.old-{number}.ipynb")).exists():
            number += 1
        os.replace(target, kept)
        out.print(f"Your notebook is kept as {_shown(kept)}.", highlight=False)
    _copy_release(puzzle, target)
    out.print(f"{_shown(target)} is fresh.", highlight=False)
    return 0
