"""Judge of the best-fit buffer: what it answers, and in how many comparisons."""

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case
from nanochat.packing import BestFitBuffer
from puzzles.compare import difference

# An operation may take this many times log2(n) comparisons of lengths: a binary search takes one or two a step, a
# search tree some more.
MOST_PER_STEP = 10
WAITING = 2048


def script(text: str) -> list[list]:
    """Operations from text: "add 3 7 5, pop_largest 6 6, pop_shortest -, len -", a word for each call."""
    operations: list[list] = []
    for name, *values in map(str.split, text.split(", ")):
        operations += [[name] if value == "-" else [name, int(value)] for value in values]
    return operations


def random_operations(rng: Random, n: int, longest: int) -> list[list]:
    """Operations in any order, more of them `add` than anything else; few lengths make ties common."""
    operations: list[list] = []
    for _ in range(n):
        kind = rng.choice(("add", "add", "add", "pop_largest", "pop_largest", "pop_shortest", "len", "items"))
        takes_number = kind in ("add", "pop_largest")
        operations.append([kind, rng.randint(1, longest)] if takes_number else [kind])
    return operations


def crowded_operations(rng: Random, longest: int) -> list[list]:
    """WAITING documents are added, then taken and replaced."""
    operations = [["add", rng.randint(1, longest)] for _ in range(WAITING)]
    for _ in range(80):
        operations += [["pop_largest", rng.randint(1, longest)], ["pop_shortest"]]
        operations += [["add", rng.randint(1, longest)], ["add", rng.randint(1, longest)]]
    return operations


def buffer_cases(rng: Random) -> list[Case]:
    scripts = [
        "len -, pop_largest 4, pop_shortest -, items -",
        "add 4, pop_largest 3 4 4, len -",
        "add 3 5 2 4, pop_largest 4 4 4, len -",
        "add 6 2 4, pop_largest 5 5 5",
        "add 3 1 2, pop_shortest - - - -",
        "add 4 4 4 4, pop_largest 9, pop_shortest -, pop_largest 4 4",
        "add 4 4 4, pop_largest 4 9 4 4",
        "add 2 2 3 2, pop_shortest - - - -",
        "add 5 3 5, pop_largest 5, add 5 3, pop_largest 5 5 5 5",
        "add 1 1, pop_shortest -, add 1 1, pop_shortest - - -",
        "add 5 2 9 2 7, items - -, pop_largest 8, items -, pop_shortest -, items -, len -",
        "add 3, pop_shortest - -, add 8 4, items -, pop_largest 4, len -, pop_shortest -, len -",
    ]
    plain = [script(text) for text in scripts]
    plain += [random_operations(rng, rng.randint(20, 120), rng.choice((3, 8, 40))) for _ in range(10)]
    crowded = [crowded_operations(rng, longest) for longest in (3 * WAITING, 40)]
    return [{"operations": each, "counted": False} for each in plain] + [
        {"operations": each, "counted": True} for each in crowded
    ]


def replay(buffer: Any, operations: list[list]) -> list[Any]:
    """What a buffer answers; the items are the numbers 0, 1, ... in the order in which they are added."""
    numbers = itertools.count()
    answers: list[Any] = []
    for name, *values in operations:
        try:
            match name:
                case "add":
                    buffer.add(next(numbers), *values)
                case "len":
                    answers.append(len(buffer))
                case "items":
                    answers.append(list(buffer))
                case _:
                    answers.append(getattr(buffer, name)(*values))
        except IndexError:
            answers.append("IndexError")
    return answers


def best_fit_buffer(operations: list[list], counted: bool) -> dict[str, Any]:
    kinds = {name for name, *_ in operations} - {"len", "items"}
    most = MOST_PER_STEP * math.log2(WAITING)
    return {
        "answers": replay(BestFitBuffer(), operations),
        "comparisons": dict.fromkeys(sorted(kinds), most) if counted else None,
    }


def examine_buffer(expected: Any, got: Any) -> str | None:
    """The answers must be right, and no kind of operation may take more comparisons than are allowed."""
    if not isinstance(got, dict) or got.keys() != expected.keys():
        return difference(expected, got)
    if found := difference(expected["answers"], got["answers"], where="['answers']"):
        return found
    if expected["comparisons"] is None:
        return difference(None, got["comparisons"], where="['comparisons']")
    for kind, most in expected["comparisons"].items():
        used = got["comparisons"].get(kind) if isinstance(got["comparisons"], dict) else None
        if not isinstance(used, float):
            return f"the comparisons of {kind} were not counted"
        if used > most:
            return (
                f"{kind} takes {used:.0f} comparisons of lengths on average with {WAITING} documents waiting; "
                f"10 log2({WAITING}) = {most:.0f} are allowed, so it must not look at all of them"
            )
    if got["comparisons"]["pop_largest"] == 0:
        return "pop_largest compares no lengths at all: they must be kept and compared as they are handed in"
    return None


Entry = tuple[int, int]  # (length, number)
Rank = Callable[[int, int], Any]


class MistakenBuffer:
    """A scan that takes the entry, of those that fit, with the highest `largest(length, number)`, or the highest
    `shortest(length, number)`."""

    def __init__(
        self,
        largest: Rank = lambda length, number: (length, -number),
        shortest: Rank = lambda length, number: (-length, -number),
        fits: Callable[[int, int], bool] = operator.le,
        taken: bool = True,
        by_arrival: bool = True,
    ) -> None:
        self.entries: list[Entry] = []
        self.largest, self.shortest, self.fits = largest, shortest, fits
        self.taken, self.by_arrival = taken, by_arrival

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[int]:
        return (number for _, number in (self.entries if self.by_arrival else sorted(self.entries)))

    def add(self, item: int, length: int) -> None:
        self.entries.append((length, item))

    def pop_largest(self, room: int) -> int | None:
        fitting = [entry for entry in self.entries if self.fits(entry[0], room)]
        return self._take(max(fitting, key=lambda entry: self.largest(*entry))) if fitting else None

    def pop_shortest(self) -> int:
        if not self.entries:
            raise IndexError
        return self._take(max(self.entries, key=lambda entry: self.shortest(*entry)))

    def _take(self, entry: Entry) -> int:
        if self.taken:
            self.entries.remove(entry)
        return entry[1]


class Unguarded(MistakenBuffer):
    def pop_shortest(self) -> Any:
        return super().pop_shortest() if self.entries else None


def mistaken_buffer(make_buffer: Callable[[], Any]) -> Callable[..., dict[str, Any]]:
    def mistake(operations: list[list], counted: bool) -> dict[str, Any]:
        return {"answers": replay(make_buffer(), operations), "comparisons": None}

    return mistake


BEST_FIT_BUFFER = Judge(
    buffer_cases,
    best_fit_buffer,
    examine=examine_buffer,
    mistakes={
        "pop_shortest answers None when nothing waits; it must raise IndexError": mistaken_buffer(Unguarded),
        "a document of exactly `room` tokens is refused; it fits": (
            mistaken_buffer(partial(MistakenBuffer, fits=operator.lt))
        ),
        "what was chosen stays in the buffer; it must be taken out": (
            mistaken_buffer(partial(MistakenBuffer, taken=False))
        ),
        "a document one token too long is let in": (
            mistaken_buffer(partial(MistakenBuffer, fits=lambda length, room: length <= room + 1))
        ),
        "the first that fits is taken; it must be the longest that fits": (
            mistaken_buffer(partial(MistakenBuffer, largest=lambda length, number: -number))
        ),
        "the shortest that fits is taken; it must be the longest that fits": (
            mistaken_buffer(partial(MistakenBuffer, largest=lambda length, number: (-length, -number)))
        ),
        "pop_shortest takes the longest": (
            mistaken_buffer(partial(MistakenBuffer, shortest=lambda length, number: (length, -number)))
        ),
        "pop_shortest takes the one that has waited longest, whatever its length": (
            mistaken_buffer(partial(MistakenBuffer, shortest=lambda length, number: -number))
        ),
        "among equal lengths the last added goes first, in both; the first added must": (
            mistaken_buffer(
                partial(
                    MistakenBuffer,
                    largest=lambda length, number: (length, number),
                    shortest=lambda length, number: (-length, number),
                )
            )
        ),
        "among equal lengths pop_largest takes the last added; it must take the first": (
            mistaken_buffer(partial(MistakenBuffer, largest=lambda length, number: (length, number)))
        ),
        "among equal lengths pop_shortest takes the last added; it must take the first": (
            mistaken_buffer(partial(MistakenBuffer, shortest=lambda length, number: (-length, number)))
        ),
        "iterating yields the items by length; it must yield them in the order in which they were added": (
            mistaken_buffer(partial(MistakenBuffer, by_arrival=False))
        ),
    },
)
