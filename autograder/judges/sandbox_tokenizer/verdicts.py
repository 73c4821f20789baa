"""Judge of `execute_code`: what is made of an ending, by nanochat.execution, and what is left of the directory."""

import math
import threading
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import execution
from puzzles.witness import PRECIOUS

RUBBISH = ("file", "tree", "closed", "link")
FIELDS = ("success", "stdout", "stderr", "error", "timeout", "memory_exceeded")
_patching = threading.Lock()

Ending = tuple[int, str, str, bool]


def endings(rng: Random) -> list[Case]:
    word = f"w{rng.randint(0, 10**6)}"
    fixed: list[tuple[Ending, list[str], str]] = [
        ((0, word, "", False), [], ""),
        ((0, "", word, False), ["file"], ""),
        ((1, word, f"a\n{word}: b\n", False), ["tree"], ""),
        ((rng.randint(2, 120), "", " \n\n", False), [], ""),
        ((1, "", f"\n a\n  {word} \n \n", False), ["link"], ""),
        ((-rng.choice([4, 6, 8, 11]), "", f"{word}\n", False), ["closed"], ""),
        ((-9, word, "", True), list(RUBBISH), ""),
        ((-9, "", word, False), [], ""),
        ((0, "", "", True), [], ""),  # it ended in the moment in which its time was up
        ((1, "", f"{word}\nMemoryError\n", False), [], ""),
        ((-9, "", f"MemoryError: {word}\n", True), [], ""),
        ((0, "", "no MemoryError here", False), [], ""),
        ((0, "MemoryError", "", False), [], ""),
        ((0, "é\xff日".encode().decode("latin-1") + "\xe9!", "\xff\xfe", False), [], ""),
        ((3, "", "\xc3\xa9\n", False), [], ""),
        ((0, "", "", False), ["tree", "closed"], "start"),
        ((0, "", "", False), ["closed", "link"], "supervise"),
    ]
    rows = [(ending, leaves, breaks, *some_request(rng)) for ending, leaves, breaks in fixed]
    for _ in range(6):
        ending = (
            rng.choice([0, 0, 1, 3, -9, -11]),
            rng.choice(["", word]),
            rng.choice(["", word + "\n\n"]),
            rng.random() < 0.3,
        )
        rows.append((ending, rng.sample(RUBBISH, rng.randint(0, 4)), "", *some_request(rng)))
    return asked("ending leaves breaks code timeout maximum_memory_bytes", *rows)


def some_request(rng: Random) -> tuple[str, float, int | None]:
    code = rng.choice(["", "print('é')", f"x = {rng.randint(0, 99)}"])
    return code, rng.choice([0.25, 1.0, 2, 2.5, 10]), rng.choice([None, rng.randint(1, 2**30)])


def concluded(
    ending: Ending, leaves: list[str], breaks: str, code: str, timeout: float, maximum_memory_bytes: int | None
) -> Case:
    """What the witness reports of nanochat's verdict and of a directory of which nothing is left."""
    request: dict[str, Any] = {"start": [code, maximum_memory_bytes, math.ceil(timeout) + 1]}
    if breaks != "start":
        request["supervise"] = [True, timeout, execution.MAX_OUTPUT_BYTES, True]
    return {
        "result": "broke" if breaks else _verdict(ending, timeout),
        "asked": request,
        "directory": [[], "0o700", True],
        "left": {"directories": 0, "names": ["canary.txt", "work"], "canary": PRECIOUS},
    }


def _verdict(ending: Ending, timeout: float) -> Case:
    """nanochat's result for a program that ended like this."""
    exit_code, *outputs, timed_out = ending
    stdout, stderr = (str(output).encode("latin-1").decode(errors="replace") for output in outputs)
    launched = {"exit_code": exit_code, "timeout": timed_out}, stdout, stderr
    stand_in: dict[str, Any] = {
        "_launch": lambda *_: launched,
        "available_protections": lambda: execution.Protections({}, {}),
    }
    with _patching, patch.multiple(execution, **stand_in):
        result = execution.execute_code("", timeout)
    return {name: getattr(result, name) for name in FIELDS}


def but(change: Callable[[Case, Case], Case]) -> Callable[..., Case]:
    """The right answer after `change`, which gets the result and the case; unless there is no result."""

    def mistaken(**case: Any) -> Case:
        answer = concluded(**case)
        if answer["result"] == "broke":
            return answer
        return answer | {"result": change(answer["result"], case)}

    return mistaken


def left_behind(*when: str) -> Callable[..., Case]:
    """One directory is left if something of this kind was in it."""

    def mistaken(**case: Any) -> Case:
        answer = concluded(**case)
        left = int(any(each in case["leaves"] for each in when) if when else bool(case["breaks"]))
        return answer | {"left": answer["left"] | {"directories": left}}

    return mistaken


def by_output(result: Case, case: Case) -> Case:
    return result | {"success": result["stderr"] == "" and result["error"] is None}


def signal_first(result: Case, case: Case) -> Case:
    late = result["timeout"] and case["ending"][0] < 0
    name = "SIGSEGV" if case["ending"][0] == -11 else "SIGKILL"
    return result | ({"error": f"killed by {name}"} if late else {})


def numbered_signal(result: Case, case: Case) -> Case:
    code = case["ending"][0]
    return result | ({"error": f"killed by signal {-code}"} if code < 0 and not result["timeout"] else {})


EXECUTE_CODE = Judge(
    endings,
    concluded,
    mistakes={
        "any ending is a success": but(lambda result, case: result | {"success": True}),
        "a program that wrote to stderr is taken for failed; its exit code decides": but(by_output),
        "a timeout is told as a signal; its time was up comes first": but(signal_first),
        "a program that has met a MemoryError is exceeded only if it has failed for it": but(
            lambda result, case: result | {"memory_exceeded": result["memory_exceeded"] and not result["success"]}
        ),
        "memory is never exceeded; stderr says when it was": but(
            lambda result, case: result | {"memory_exceeded": False}
        ),
        "the name of the signal is wanted, not its number": but(numbered_signal),
        "the directory is left behind when something raises": left_behind(),
        "directories that the program has closed are left behind": left_behind("closed"),
    },
)
