"""The learner's commands: what each option does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from puzzles import catalog, progress, running, terminal, workspace
from puzzles.alternative import alternatives, earned_parts
from puzzles.catalog import Part, Puzzle, UserError


def overview(argv: list[str] | None = None) -> int:
    """Every puzzle with your progress, and the next step."""
    parser = argparse.ArgumentParser(prog="python -m puzzles", description=overview.__doc__)
    parser.add_argument(
        "--prepare", action="store_true", help="lay out work/: every notebook you have none of, and the start page"
    )
    if parser.parse_args(argv).prepare:
        workspace.provide_all()
        terminal.say(f"{workspace.shown(progress.work_folder())} holds a notebook of every puzzle and the start page.")
        return 0
    terminal.show_course([(puzzle, progress.load(puzzle.id)) for puzzle in catalog.puzzles()])
    return 0


def one_puzzle(puzzle_id: str, argv: list[str] | None = None) -> int:
    """One command on one puzzle."""
    puzzle = catalog.puzzle(puzzle_id)
    parser = _parser(puzzle)
    options = parser.parse_args(argv)
    reading = {"peek": _peek, "hint": _hint, "alternative": _alternative}
    chosen = [name for name in reading if getattr(options, name) is not None]
    if options.watch and (chosen or options.reset or options.json):
        parser.error("--watch goes with --verify, --notebook and --seed only")
    for name in chosen:
        return reading[name](puzzle, getattr(options, name))
    if options.reset:
        return _reset(puzzle)
    notebook = options.notebook.absolute() if options.notebook else workspace.own_notebook(puzzle)
    if not options.notebook and workspace.provide(puzzle):
        terminal.say(f"Made {workspace.shown(notebook)} from the release: open it in JupyterLab and fill the holes.")
    if options.watch:
        from puzzles.watch import watch

        return watch(puzzle, notebook, options.verify, options.seed)
    if options.verify:
        return _verify(puzzle, notebook, options.seed, options.json)
    return _check(puzzle, notebook)


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
    what.add_argument(
        "--alternative", nargs="?", const="", metavar="PART", help="show other solutions of what you have earned"
    )
    what.add_argument("--reset", action="store_true", help="start over with a fresh notebook; the old one is kept")
    parser.add_argument("--watch", action="store_true", help="run again whenever the notebook is saved, until Ctrl-C")
    parser.add_argument("--notebook", type=Path, metavar="PATH", help="a notebook other than the one in work/")
    parser.add_argument("--seed", type=int, help="with --verify: draw the cases from this seed (default: a fresh one)")
    parser.add_argument("--json", action="store_true", help="with --verify: print one JSON object")
    return parser


def _check(puzzle: Puzzle, notebook: Path) -> int:
    """Run the learner's notebook and show what its visible checks say."""
    with terminal.busy(f"running {workspace.shown(notebook)}"):
        found = running.visible_checks(puzzle, notebook, running.in_kernel)
    terminal.show_checks(puzzle, found)
    running.remember(puzzle, notebook, found)
    return 0 if all(found.passed.values()) else 1


def _verify(puzzle: Puzzle, notebook: Path, seed: int | None, as_json: bool) -> int:
    """Run the hidden tests on the learner's notebook and show the verdicts."""
    workspace.read(notebook)  # what cannot be read need not wait for a sandbox
    with terminal.busy(f"verifying {workspace.shown(notebook)}"), running.Verifier(puzzle, seed) as verifier:
        document = verifier.verify(notebook)
    if as_json:
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        terminal.show_verdicts(puzzle, document)
    running.remember(puzzle, notebook, document)
    return 0 if document["score"] == document["max"] else 1


def _peek(puzzle: Puzzle, part_id: str) -> int:
    from puzzles.peek import excerpts

    for part in _chosen(puzzle, part_id):
        terminal.show_excerpts(part, excerpts(part))
    return 0


def _chosen(puzzle: Puzzle, part_id: str) -> list[Part]:
    return [puzzle.part(part_id)] if part_id else list(puzzle.parts)


def _hint(puzzle: Puzzle, part_id: str) -> int:
    """Show the hints of a part read so far and one more."""
    chosen = part_id or progress.load(puzzle.id).next_part(puzzle)
    if chosen is None:
        terminal.say("Every part is solved; name one to see its hints.")
        return 0
    part = puzzle.part(chosen)
    with progress.changing(puzzle.id) as state:
        read = min(state.hints_read.get(part.id, 0) + 1, len(part.hints))
        state.hints_read[part.id] = read
    terminal.show_hints(puzzle, part, read)
    return 0


def _alternative(puzzle: Puzzle, part_id: str) -> int:
    for part in earned_parts(puzzle, progress.load(puzzle.id), part_id):
        found = alternatives(puzzle.id, part.id)
        if not found:
            raise UserError(f"tests/right/{puzzle.id} holds no other solutions: take it from a clone of the course.")
        terminal.show_alternatives(part, found)
    return 0


def _reset(puzzle: Puzzle) -> int:
    kept = workspace.reset(puzzle)
    if kept:
        terminal.say(f"Your notebook is kept as {workspace.shown(kept)}.")
    terminal.say(f"{workspace.shown(workspace.own_notebook(puzzle))} is fresh.")
    return 0
