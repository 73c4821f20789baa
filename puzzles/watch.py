"""Run a notebook's checks or tests whenever it is saved."""

import time
from collections.abc import Iterator
from pathlib import Path

from puzzles import terminal
from puzzles.catalog import Puzzle, UserError
from puzzles.running import Verifier, remember, visible_checks
from puzzles.workspace import read, shown

SECONDS = 0.5


def watch(puzzle: Puzzle, notebook: Path, hidden: bool, seed: int | None) -> int:
    """See the visible checks, or with `hidden` the hidden tests, now and at every save. Returns 0 at Ctrl-C, which is
    how it ends, or with full marks."""
    read(notebook)
    try:
        with terminal.busy("warming up"):
            verifier = Verifier(puzzle, seed)
        with verifier:
            for _ in saves(notebook):
                if _look(verifier, notebook, hidden):
                    return 0
    except KeyboardInterrupt:
        terminal.say("Stopped watching.")
    return 0


def saves(path: Path, seconds: float = SECONDS) -> Iterator[bytes | None]:
    """What a file holds: now, and again whenever that has changed; None while it cannot be read."""
    last: object = ...
    while True:
        try:
            content = path.read_bytes()
        except OSError:
            content = None
        if content != last:
            last = content
            yield content
        time.sleep(seconds)


def _look(verifier: Verifier, notebook: Path, hidden: bool) -> bool:
    """Run once and show what comes out; whether nothing is left to do."""
    puzzle, started, done = verifier.puzzle, time.monotonic(), False
    try:
        with terminal.busy(f"running {shown(notebook)}"):
            found = verifier.verify(notebook) if hidden else visible_checks(puzzle, notebook, verifier.without_plots)
        terminal.clear()
        if isinstance(found, dict):
            terminal.show_verdicts(puzzle, found)
            done = found["score"] == found["max"]
        else:
            terminal.show_checks(puzzle, found, only_next=True)
        remember(puzzle, notebook, found)
    except UserError as error:  # a file half written or damaged; the next save may put it right
        terminal.say(str(error))
    if not done:
        seconds = time.monotonic() - started
        terminal.say(f"({seconds:.1f} s) Save {shown(notebook)} to run it again; Ctrl-C ends.")
    return done
