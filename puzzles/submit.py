"""What a graded cell calls: fetch the cases of a part, run the learner's code on them, hand the answers in.

While grading, the sandbox connects this process to a referee in another one, and only its ledger counts. Anywhere else
(JupyterLab, stock nbgrader) the same referee runs in this process: same cases, same verdicts, no isolation.
"""

import contextlib
import io
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from puzzles import wire
from puzzles.show import show

SEED_VARIABLE = "NANOCHAT_GRADING_SEED"

Ask = Callable[[dict[str, Any]], dict[str, Any]]


def grade(puzzle_id: str, part_id: str, answer: Callable) -> float:
    """Grade one part: call `answer(**case)` on every case the referee hands out and return the points awarded, a
    number in [0, points], for the cell to end in. What the learner's code prints is kept out of the cell."""
    ask = _referee(puzzle_id)
    cases = ask({"ask": "cases", "part": part_id})["cases"]
    answers = [
        {"case": number, "device": device, "answer": _answer(answer, case, device)}
        for device in _devices()
        for number, case in enumerate(cases)
        if device == "cpu" or _uses_device(case)
    ]
    verdict = ask({"ask": "submit", "part": part_id, "answers": answers})
    show(verdict)
    return float(verdict["score"])


def _answer(answer: Callable, case: dict[str, Any], device: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return wire.plain(answer(**{key: _on_device(key, value, device) for key, value in case.items()}))
        except wire.WireError as error:
            return wire.Opaque(f"answer that cannot travel: {error}")
        except Exception as error:
            return wire.Raised.of(error)


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _uses_device(case: dict[str, Any]) -> bool:
    return "device" in case or any(isinstance(value, torch.Tensor) for value in case.values())


def _on_device(key: str, value: Any, device: str) -> Any:
    if key == "device":
        return torch.device(device)
    return value.to(device) if isinstance(value, torch.Tensor) else value


_connected: Ask | None = None


def connect(ask: Ask) -> None:
    """Use `ask` as the referee of this process from now on."""
    global _connected
    _connected = ask


def _referee(puzzle_id: str) -> Ask:
    if _connected is None:
        connect(_in_process(puzzle_id))
    assert _connected is not None
    return _connected


def over(connection: socket.socket) -> Ask:
    """The referee at the other end of a connection."""

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        wire.send(connection, request)
        return wire.receive(connection)

    return ask


def _in_process(puzzle_id: str) -> Ask:
    # imported here: a sandboxed submission has no autograder to import
    from autograder.exam import Exam, fresh_seed
    from autograder.referee import Referee

    seed = os.environ.get(SEED_VARIABLE)
    return Referee(Exam(puzzle_id, int(seed) if seed else fresh_seed()), once=False).handle
