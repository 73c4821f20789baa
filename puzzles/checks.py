"""Visible checks: small literal cases in the notebook that say what is wrong and never stop a "run all"."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from puzzles import catalog, progress
from puzzles.compare import EXACT, Tolerance, difference, short
from puzzles.show import show
from puzzles.wire import Raised, plain


class CheckFailed(AssertionError):
    """A visible check found a difference; its text is for the learner."""


class Checks:
    """The visible checks of one puzzle's notebook; remembers which have passed in this kernel, and, in the learner's
    own notebook, counts them as progress.

    check = Checks("01_transformer_blueprint")
    with check("window_sizes"):
        expect(window_sizes, (4, 2048, "SSSL"), [(512, 0), (512, 0), (512, 0), (2048, 0)])
    """

    def __init__(self, puzzle_id: str) -> None:
        self.puzzle = catalog.puzzle(puzzle_id)
        self.passed: set[str] = set()
        self._counts = progress.in_own_notebook(puzzle_id)  # now: the learner's code may change the folder

    @contextmanager
    def __call__(self, part_id: str) -> Iterator[None]:
        """Run the cases in the `with` block and show the outcome. Whatever the learner's code raises ends here, so
        that an unsolved hole never blocks the next one."""
        part = self.puzzle.part(part_id)
        self.passed.discard(part_id)
        status, message = "passed", ""
        try:
            yield
        except NotImplementedError:
            status, message = "unsolved", "Fill the hole above, then run it and this cell again."
        except CheckFailed as failure:
            status, message = "wrong", str(failure)
        except Exception as error:
            status, message = "crashed", _where(error)
        else:
            self.passed.add(part_id)
        data = {"part": part_id, "title": part.title, "status": status, "message": message}
        if status == "passed":
            show(data | {"next": self._next_step()})
        else:
            show(data, part.hints)
        if self._counts:
            # a disk that is full or closed is told by the commands and the start page; a check goes on
            with suppress(catalog.UserError), progress.changing(self.puzzle.id) as state:
                state.check({part_id: status == "passed"})

    def _next_step(self) -> str:
        left = [part.title for part in self.puzzle.parts if part.id not in self.passed]
        if left:
            return f"Next: {left[0]}."
        return (
            f"All pass. Next: save, then the hidden tests: START.ipynb, or python -m puzzles.{self.puzzle.id} --verify."
        )

    def visible(self, part_id: str) -> float:
        """The points of a part if its visible check has passed in this kernel, else 0.0: what `nbgrader validate`
        looks at in the student version. Hidden tests alone award the points of a graded run."""
        part = self.puzzle.part(part_id)
        return float(part.points) if part_id in self.passed else 0.0


def expect(
    function: Callable,
    arguments: Sequence | Mapping[str, Any],
    expected: Any,
    because: str = "",
    tolerance: Tolerance = EXACT,
) -> None:
    """Call `function` on `arguments` (a tuple, or a dict of keywords) and compare with `expected`; an exception class
    as `expected` must be raised. `because` is the likely mistake, told when the answer differs. Raises CheckFailed."""
    keywords = dict(arguments) if isinstance(arguments, Mapping) else {}
    positional = () if keywords else tuple(arguments)
    want = Raised(expected.__name__) if inspect.isclass(expected) and issubclass(expected, Exception) else expected
    try:
        got = function(*positional, **keywords)
    except NotImplementedError:
        raise
    except Exception as error:
        if not isinstance(want, Raised):
            raise
        got = Raised.of(error)
    found = difference(plain(want), plain(got), tolerance)
    if found:
        call = f"{getattr(function, '__name__', 'your function')}({call_text(positional, keywords)})"
        raise CheckFailed(f"{call}: {found}.{f' Likely mistake: {because}' if because else ''}")


def call_text(positional: Sequence = (), keywords: Mapping[str, Any] | None = None) -> str:
    """Arguments as they would stand in a call, each in short form."""
    return ", ".join(
        [*(short(value, 60) for value in positional), *(f"{k}={short(v, 60)}" for k, v in (keywords or {}).items())]
    )


def _where(error: Exception) -> str:
    """The error and the last line of notebook code it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "ipykernel" in f.filename or f.filename.startswith("<ipython")]
    place = f" (line {own[-1].lineno}: {own[-1].line})" if own and own[-1].line else ""
    return f"{type(error).__name__}: {error}{place}"
