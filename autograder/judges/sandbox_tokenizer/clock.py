"""Judge of `supervise`: programs that end in every way there is, or not at all, each with how it should be found."""

from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case
from autograder.judges.sandbox_tokenizer.walls import Answer, Script

TIDY = {"reaped": True, "closed": True, "group": "gone"}
READY = "open('ready', 'w').close()\n"
PATIENT = 6.0


def ends(exit_code: int, stdout: str = "", stderr: str = "", timed_out: bool = False) -> Answer:
    outcome = {"exit": exit_code, "stdout": stdout, "stderr": stderr, "timed out": timed_out}
    return {"outcome": outcome, **TIDY}


def case(code: str, timeout: float = PATIENT, max_bytes: int = 1000, interrupt: bool = False) -> Case:
    return {"code": code, "timeout": timeout, "max_bytes": max_bytes, "interrupt": interrupt}


def child(seconds: float, own_words: str) -> str:
    """A child that holds the pipes for a while, and then says something."""
    return f"""
import os, time
if os.fork() == 0:
    time.sleep({seconds})
    os.write(1, b{own_words!r})
    os.write(2, b{own_words!r})
    os._exit(0)
"""


def sleep(seconds: float = 3.0) -> str:
    return f"import time\ntime.sleep({seconds})\n"


def programs(rng: Random) -> list[tuple[Case, Answer]]:
    soon = rng.uniform(0.2, 0.35)
    code, number = rng.randint(1, 99), rng.randint(10**4, 10**5)
    short = rng.randint(3, 9)
    size = rng.randint(20_000, 50_000)
    words = f"print({number}, flush=True)\nimport os\nos.write(2, b'{number}' * 3)\n"
    signal_number = rng.choice([6, 15])
    turns = f"import os\nfor _ in range({rng.randint(200, 400)}):\n"
    flood = turns + f"    os.write(2, b'{number}' * 150)\n    os.write(1, b'ab' * 400)\n"
    endless = "import os, time\nend = time.time() + 3\nwhile time.time() < end:\n    os.write(2, b'z' * 5000)\n"
    deaf = "import signal\nfor n in range(1, 32):\n    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n"
    both = f"{number}" * 3
    return [
        (case(READY), ends(0)),
        (case(READY + words + f"os._exit({code})"), ends(code, f"{number}\n", both)),
        (case(words + READY, max_bytes=short), ends(0, f"{number}\n"[:short], both[:short])),
        (case(READY + f"import os\nos.kill(os.getpid(), {signal_number})\n" + sleep()), ends(-signal_number)),
        (case(READY + "import os\nos.kill(os.getpid(), 9)\n" + sleep()), ends(-9)),
        (case(READY + flood, max_bytes=short), ends(0, ("ab" * short)[:short], (f"{number}" * short)[:short])),
        (
            case(f"import os\nos.write(2, b'{number % 10}' * {size})\n" + READY, max_bytes=2 * size),
            ends(0, "", f"{number % 10}" * size),
        ),
        (case(READY + "import os\nos.close(1)\nos.close(2)\n" + sleep(0.15) + f"os._exit({code})"), ends(code)),
        (case(child(3.0, "late") + words + READY), ends(0, f"{number}\n", both)),
        (case(words + deaf + READY + sleep(), soon), ends(-9, f"{number}\n", both, timed_out=True)),
        (case(child(3.0, "late") + READY + endless, soon, short), ends(-9, "", "z" * short, timed_out=True)),
        (
            case("import os\nos.close(1)\nos.close(2)\n" + READY + "os.kill(os.getpid(), 19)\n" + sleep(), soon),
            ends(-9, timed_out=True),
        ),
        (case(child(3.0, "late") + READY + sleep(), PATIENT, 9, True), {"outcome": "interrupted", **TIDY}),
    ]


SCRIPT = Script(programs)


def outcome(**changes: Any) -> Any:
    """The right answer with some of the outcome's fields changed by functions of case and value."""

    def change(case: Case, answer: Answer) -> Answer:
        if not isinstance(answer["outcome"], dict):
            return answer
        fields = answer["outcome"]
        changed = {name.replace("_", " "): value for name, value in changes.items()}
        return answer | {"outcome": fields | {name: make(case, fields[name]) for name, make in changed.items()}}

    return SCRIPT.but(change)


def late(case: Case, text: str) -> str:
    return (text + "late")[: case["max_bytes"]] if "late" in case["code"] and case["timeout"] == PATIENT else text


SUPERVISE = Judge(
    SCRIPT.cases,
    SCRIPT.answer,
    mistakes={
        "the pipes are left open": SCRIPT.but(lambda case, answer: answer | {"closed": False}),
        "what the program started goes on; kill its whole group, also when it has ended by itself": (
            SCRIPT.but(lambda case, answer: answer | {"group": "alive" if "fork" in case["code"] else "gone"})
        ),
        "the program's child, which holds the pipes, is waited for; the program has ended": outcome(
            stdout=late, stderr=late
        ),
        "a program that was killed by a signal is not one whose time was up": (
            outcome(timed_out=lambda case, value: value or ("getpid" in case["code"] and "fork" not in case["code"]))
        ),
        "its time was up, but nobody says so": outcome(timed_out=lambda case, value: False),
    },
)
