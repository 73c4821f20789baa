"""Where `python -m puzzles` and `python -m puzzles.0X_name` begin, and how they end: 0 for full marks (or a command
that did its work), 1 for less, 2 for bad input, 130 for Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys

from puzzles.requirements import trouble

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def overview(argv: list[str] | None = None) -> int:
    """`python -m puzzles`."""
    return _run("overview", argv)


def main(puzzle_id: str, argv: list[str] | None = None) -> int:
    """`python -m puzzles.0X_name`."""
    return _run("one_puzzle", puzzle_id, argv)


def _run(command: str, *arguments: object) -> int:
    if sentence := trouble():
        print(sentence, file=sys.stderr)
        return 2
    # only now: a Python that lacks something could not import these
    from puzzles import commands
    from puzzles.catalog import UserError

    try:
        return getattr(commands, command)(*arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except OSError as error:
        reason = next((os.strerror(code) for code in FULL if os.strerror(code) in str(error)), None)
        if reason is None:
            raise
        print(
            f"The disk does not take what has to be written to it ({reason}): make room in {_places()}, "
            "then do the same again.",
            file=sys.stderr,
        )
        return 2


def _places() -> str:
    """Where the commands write."""
    import tempfile

    from puzzles.progress import work_folder

    try:
        return f"{work_folder()} and {tempfile.gettempdir()}"
    except OSError:
        return f"{work_folder()} and the folder for temporary files"
