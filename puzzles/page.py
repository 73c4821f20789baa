"""The course and a verdict as a page: HTML for JupyterLab, the same in plain text, both as one MIME bundle.

Links lead from the folder work/ to the notebooks in it. Symbol and word carry every meaning, colour only repeats it.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from puzzles import catalog, progress
from puzzles.catalog import Puzzle, UserError
from puzzles.progress import Progress
from puzzles.show import LOOKS, folded_hints

Bundle = dict[str, str]
MOST_STARS = 5
CELL = "text-align:left;vertical-align:top;padding:.3em .8em"
NUMBER = "text-align:right;vertical-align:top;padding:.3em .8em"


def course() -> Bundle:
    """Every puzzle with stars, minutes and progress, the next step, and the labs."""
    try:
        standing = [(puzzle, progress.load(puzzle.id)) for puzzle in catalog.puzzles()]
        trouble = ""
    except UserError as error:
        standing, trouble = [(puzzle, Progress()) for puzzle in catalog.puzzles()], str(error)
    step = _next_step(standing)
    lines = [f"{puzzle.id:26} {_state(puzzle, state)}" for puzzle, state in standing]
    rows = "".join(_row(puzzle, state) for puzzle, state in standing)
    heads = _heads("puzzle", "stars", ">minutes", ">visible checks", ">points", "state")
    labs = "".join(f"<li>{_link(f'notebooks/{lab.name}', _title(lab))}</li>" for lab in catalog.labs())
    return {
        "text/plain": "\n".join([*lines, *filter(None, [step, trouble])]),
        "text/html": (
            f"<table><caption>The puzzles and how far you are</caption>{heads}{rows}</table>"
            f"<p><b>{html.escape(step)}</b></p>{f'<p>{html.escape(trouble)}</p>' if trouble else ''}"
            f"<p>Labs, to play with and not graded:</p><ul>{labs}</ul>"
        ),
    }


def verdict(document: dict[str, Any], saved: str = "") -> Bundle:
    """What `--verify --json` printed: part, points, message and next step. `saved` says when the notebook was."""
    puzzle = catalog.puzzle(document["puzzle"])
    title = f"{puzzle.title}: {document['score']:g} of {document['max']:g} points"
    notes = [*document["notes"], *([f"Tested: your notebook as saved at {saved}."] if saved else [])]
    rows = "".join(_verdict_row(puzzle, part) for part in document["parts"])
    lines = [_verdict_line(part) for part in document["parts"]]
    lost = [part for part in document["parts"] if part["status"] != "passed"]
    step = f"Next: {lost[0]['title']}." if lost else "All solved: read how else it can be done, below."
    rest = "" if lost else _reward(puzzle)
    return {
        "text/plain": "\n".join([title, *lines, *notes, step]),
        "text/html": (
            f"<div role='status'><table><caption><b>{html.escape(title)}</b></caption>"
            f"{_heads('part', '>points', 'result and next step')}{rows}</table>"
            f"{''.join(f'<p>{html.escape(note)}</p>' for note in notes)}<p><b>{html.escape(step)}</b></p>{rest}</div>"
        ),
    }


def notice(text: str) -> Bundle:
    """A sentence."""
    return {"text/plain": text, "text/html": f"<p role='status'>{html.escape(text)}</p>"}


def _next_step(standing: list[tuple[Puzzle, Progress]]) -> str:
    for puzzle, state in standing:
        part_id = state.next_part(puzzle)
        if part_id is not None:
            if len(state.checked) == len(puzzle.parts):
                return f"Next: every visible check of {puzzle.title} passes; run its hidden tests."
            return f"Next: open {puzzle.title}, part '{puzzle.part(part_id).title}'."
    return "All solved."


def _state(puzzle: Puzzle, state: Progress) -> str:
    return (
        f"{puzzle.stars} stars, {puzzle.minutes} minutes, checks {len(state.checked)} of {len(puzzle.parts)}, "
        f"points {state.score(puzzle):g} of {puzzle.points}"
    )


def _row(puzzle: Puzzle, state: Progress) -> str:
    score = state.score(puzzle)
    if score >= puzzle.points:
        word = "✓ solved"
    elif score or state.checked:
        word = "◐ begun"
    else:
        word = "○ to do"
    number = int(puzzle.id.split("_")[0])
    return (
        f"<tr><th scope='row' style='{CELL}'>{number} · {_link(f'{puzzle.id}/{puzzle.id}.ipynb', puzzle.title)}</th>"
        f"<td style='{CELL}'><span role='img' aria-label='{puzzle.stars} stars' title='{puzzle.stars} stars'>"
        f"{'★' * puzzle.stars}{'☆' * (MOST_STARS - puzzle.stars)}</span></td>"
        f"<td style='{NUMBER}'>{puzzle.minutes}</td>"
        f"<td style='{NUMBER}'>{len(state.checked)} of {len(puzzle.parts)}</td>"
        f"<td style='{NUMBER}'>{score:g} of {puzzle.points}</td><td style='{CELL}'>{word}</td></tr>"
    )


def _verdict_row(puzzle: Puzzle, part: dict[str, Any]) -> str:
    symbol, word, colour = LOOKS[part["status"]]
    passed = part["status"] == "passed"
    said = "" if passed else f"<div>{html.escape(part['message'])}</div>{folded_hints(puzzle.part(part['id']).hints)}"
    return (
        f"<tr><th scope='row' style='{CELL};border-left:4px solid {colour}'>{symbol} {html.escape(part['title'])}</th>"
        f"<td style='{NUMBER}'>{part['points']:g} of {part['max']:g}</td><td style='{CELL}'>{word}{said}</td></tr>"
    )


def _verdict_line(part: dict[str, Any]) -> str:
    symbol, word, _ = LOOKS[part["status"]]
    message = "" if part["status"] == "passed" else f": {part['message']}"
    return f"{symbol} {part['title']} ({part['points']:g} of {part['max']:g}): {word}{message}"


def _reward(puzzle: Puzzle) -> str:
    """What full marks open: the commentary, and other solutions that are right as well."""
    from puzzles.alternative import alternatives  # it reads what only tests and full marks need

    paragraphs = "".join(f"<p>{_prose(each)}</p>" for each in puzzle.commentary.split("\n\n"))
    others = "".join(
        f"<details><summary>Another solution: {html.escape(name)}</summary><pre>{html.escape(code)}</pre></details>"
        for name, code in alternatives(puzzle.id)
    )
    return paragraphs + others


def _prose(markdown: str) -> str:
    """A paragraph of markdown that has code and emphasis in it and nothing else."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(markdown))
    return re.sub(r"(?<![\w*])\*(\w[^*<]*)\*(?![\w*])", r"<em>\1</em>", code)


def _heads(*names: str) -> str:
    cells = (f"<th scope='col' style='{NUMBER if n[0] == '>' else CELL}'>{n.lstrip('>')}</th>" for n in names)
    return f"<tr>{''.join(cells)}</tr>"


def _link(path: str, text: str) -> str:
    return f"<a href='{path}'>{html.escape(text)}</a>"


def _title(lab: Path) -> str:
    """The heading a notebook begins with."""
    first = "".join(json.loads(lab.read_text())["cells"][0]["source"])
    return first.splitlines()[0].removeprefix("# ")
