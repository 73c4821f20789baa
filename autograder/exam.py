"""An exam: the cases of one puzzle drawn from one seed, the oracle's answers, and the marking of a submission's.

The same exam serves a whole class: cases and oracle answers are made once and reused.
"""

import random
import secrets
import threading
from dataclasses import asdict, dataclass
from typing import Any

from autograder.judges import Judge, judges_of
from puzzles import catalog, wire
from puzzles.checks import call_text
from puzzles.compare import difference


@dataclass(frozen=True)
class Verdict:
    """What one part of one submission earned. status: passed, wrong, unsolved (the hole was never filled) or missing
    (no answers arrived)."""

    part: str
    title: str
    status: str
    score: float
    max: float
    message: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fresh_seed() -> int:
    """A seed nobody can guess, short enough to write down."""
    return secrets.randbelow(2**31)


def printable(text: str) -> str:
    """`text` without control characters: a message quotes what a submission said, and ends up on terminals."""
    return "".join(character if character.isprintable() else " " for character in text)


def outcome(function: Any, case: dict[str, Any]) -> Any:
    """What `function(**case)` answers as plain data; an exception is an outcome too."""
    try:
        return wire.plain(function(**case))
    except Exception as error:
        return wire.Raised.of(error)


class Exam:
    """The cases of a puzzle drawn from `seed`. Safe to share between threads. A puzzle that is named by its id has the
    points it has in the repository's course."""

    def __init__(self, puzzle: catalog.Puzzle | str, seed: int) -> None:
        self.puzzle = catalog.puzzle(puzzle) if isinstance(puzzle, str) else puzzle
        self.seed = seed
        self._judges = judges_of(self.puzzle)
        self._papers: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        self._lock = threading.Lock()

    def paper(self, part_id: str) -> list[tuple[dict[str, Any], Any]]:
        """The cases of a part, each with the oracle's answer."""
        self.puzzle.part(part_id)
        with self._lock:
            if part_id not in self._papers:
                judge = self._judges[part_id]
                rng = random.Random(f"{self.seed}/{self.puzzle.id}/{part_id}")
                self._papers[part_id] = [(case, outcome(judge.oracle, case)) for case in judge.cases(rng)]
            return self._papers[part_id]

    def mark(self, part_id: str, answers: dict[int, list[Any]]) -> Verdict:
        """Mark a part. `answers` maps a case's number to the answers given to it (one for each device it ran on).
        A part is earned whole: every case needs an answer and every answer must be right."""
        part = self.puzzle.part(part_id)
        judge, paper = self._judges[part_id], self.paper(part_id)

        def verdict(status: str, message: str) -> Verdict:
            score = part.points if status == "passed" else 0
            return Verdict(part_id, part.title, status, float(score), float(part.points), printable(message))

        given = [answer for number in answers for answer in answers[number]]
        if given and all(isinstance(a, wire.Raised) and a.type_name == "NotImplementedError" for a in given):
            return verdict("unsolved", "The hole is not filled: it raises NotImplementedError.")
        for number, (case, expected) in enumerate(paper):
            found = None if answers.get(number) else "no answer was submitted"
            for got in answers.get(number, []):
                found = found or _wrong(judge, case, expected, got)
            if found:
                where = f"Case {number + 1} of {len(paper)} (seed {self.seed}), called with {call_text((), case)}"
                return verdict("wrong", f"{where}: {found}.")
        return verdict("passed", f"All {len(paper)} cases right (seed {self.seed}).")

    def missing(self, part_id: str, reason: str) -> Verdict:
        """The verdict on a part no answers arrived for."""
        part = self.puzzle.part(part_id)
        return Verdict(part_id, part.title, "missing", 0.0, float(part.points), reason)


def _wrong(judge: Judge, case: dict[str, Any], expected: Any, got: Any) -> str | None:
    """None if `got` is right, else what differs and the likely mistake."""
    try:
        found = judge.examine(expected, got) if judge.examine else difference(expected, got, judge.tolerance)
        if not found or isinstance(got, wire.Raised):
            return found
        for sentence, mistake in judge.mistakes.items():
            if difference(outcome(mistake, case), got, judge.tolerance) is None:
                return f"{found}. Likely mistake: {sentence}"
    except Exception as error:  # plain data, but of a form that no judge has thought of
        return f"the answer is of a form that cannot be compared ({type(error).__name__})"
    return found
