"""The referee: hands a submission its cases, takes its answers, and keeps the ledger that alone awards points."""

import socket
from typing import Any

from autograder.exam import Exam, Verdict
from puzzles import wire
from puzzles.catalog import UserError

MAX_REQUESTS = 64


class Referee:
    """The examination of one submission.

    Every part is judged once: with `once`, what is submitted first counts and later answers change nothing. Without
    it (a learner trying again in the same kernel) the last counts.
    """

    def __init__(self, exam: Exam, once: bool = True) -> None:
        self.exam = exam
        self.once = once
        self.ledger: dict[str, Verdict] = {}

    def handle(self, request: Any) -> dict[str, Any]:
        """Answer {"ask": "cases", "part"} with {"cases"}, and {"ask": "submit", "part", "answers"} with a verdict.
        Raises WireError for any other request."""
        match request:
            case {"ask": "cases", "part": str(part_id)}:
                return {"cases": [case for case, _ in self.exam.paper(part_id)]}
            case {"ask": "submit", "part": str(part_id), "answers": list(answers)}:
                if not (self.once and part_id in self.ledger):
                    self.ledger[part_id] = self.exam.mark(part_id, _by_case(answers))
                return self.ledger[part_id].to_dict()
        raise wire.WireError("the request is none the referee knows")

    def serve(self, connection: socket.socket) -> None:
        """Answer requests until the other side closes, misbehaves or asks too often."""
        with connection:
            for _ in range(MAX_REQUESTS):
                try:
                    wire.send(connection, self.handle(wire.receive(connection)))
                except (EOFError, OSError, wire.WireError, UserError):
                    return

    def verdicts(self, reason: str) -> list[Verdict]:
        """The ledger in the order of the parts; a part nothing was submitted for is missing for `reason`."""
        return [self.ledger.get(part.id) or self.exam.missing(part.id, reason) for part in self.exam.puzzle.parts]


def _by_case(answers: list[Any]) -> dict[int, list[Any]]:
    """Answers by case number; the first answer for a case on a device counts, later ones are ignored."""
    taken: dict[tuple[int, str], Any] = {}
    for item in answers:
        match item:
            case {"case": int(number), "device": str(device), "answer": answer}:
                taken.setdefault((number, device), answer)
            case _:
                raise wire.WireError("an answer without case, device and answer")
    if any((number, "cpu") not in taken for number, _ in taken):
        raise wire.WireError("an answer that was not computed on the CPU")
    by_case: dict[int, list[Any]] = {}
    for (number, _), answer in taken.items():
        by_case.setdefault(number, []).append(answer)
    return by_case
