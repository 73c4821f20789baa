"""The start page's one call: the course with its progress, and a button for each puzzle's hidden tests."""

import html
import json
import subprocess
import sys
import time
from typing import Any

import ipywidgets
from IPython.display import display

from puzzles import catalog, page
from puzzles.catalog import Puzzle, UserError
from puzzles.explore import Slot
from puzzles.page import Bundle
from puzzles.workspace import own_notebook

WIDE = ipywidgets.Layout(width="auto", min_width="18em")


def start() -> None:
    """Show the course, buttons that run the hidden tests, and below them what came out. Each is an ordinary output,
    replaced in place, so a saved page keeps what it showed."""
    course, result = Slot(), Slot()
    course.show(lambda: _show(page.course()))
    again = ipywidgets.Button(description="Show my progress again", layout=WIDE)
    again.on_click(lambda _: course.show(lambda: _show(page.course())))
    buttons = [_button(puzzle, course, result) for puzzle in catalog.puzzles()]
    box = ipywidgets.HBox([again, *buttons], layout=ipywidgets.Layout(flex_flow="row wrap"))
    without = "Hidden tests: run this cell for buttons, or python -m puzzles.0X_name --verify in a terminal."
    display({**box._repr_mimebundle_(), "text/html": f"<p>{html.escape(without)}</p>"}, raw=True)
    result.show(lambda: _show(page.notice("Save a notebook (Ctrl+S), then press its button: the hidden tests run.")))


def _button(puzzle: Puzzle, course: Slot, result: Slot) -> ipywidgets.Button:
    number = int(puzzle.id.split("_")[0])
    button = ipywidgets.Button(
        description=f"Test {number} · {puzzle.title}", tooltip=f"Run the hidden tests of puzzle {number}", layout=WIDE
    )

    def clicked(_: Any) -> None:
        result.show(lambda: _show(page.notice(f"Running the hidden tests of {puzzle.title}: some ten seconds …")))
        outcome = verify(puzzle)
        result.show(lambda: _show(outcome))
        course.show(lambda: _show(page.course()))

    button.on_click(clicked)
    return button


def verify(puzzle: Puzzle) -> Bundle:
    """The page of a run of the hidden tests in a process of its own; a sentence if there is no verdict."""
    command = [sys.executable, "-m", f"puzzles.{puzzle.id}", "--verify", "--json"]
    done = subprocess.run(command, cwd=catalog.ROOT, capture_output=True, text=True)
    said = done.stderr.strip()
    try:
        document = json.loads(done.stdout)
        saved = time.strftime("%H:%M:%S", time.localtime(own_notebook(puzzle).stat().st_mtime))
        if done.returncode == 2:  # there is a verdict, and its progress could not be saved
            document["notes"].append(said)
        return page.verdict(document, saved)
    except json.JSONDecodeError:
        reason = said.splitlines()[-1] if said else f"it ended with code {done.returncode} and said nothing"
        return page.notice(f"There is no verdict: {reason}")
    except UserError as error:
        return page.notice(str(error))


def _show(bundle: Bundle) -> None:
    display(bundle, raw=True)
