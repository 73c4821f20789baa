"""Judge of `start`: programs that try the walls, each with what it gets from a sandbox that holds.

They do little harm where nothing stops them: a submission is not always graded where everything can be isolated.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case
from puzzles.witness import PRECIOUS

MIB = 2**20
QUIET = {"last": "-", "exit": 0, "around": {"names": ["canary.txt", "work"], "canary": PRECIOUS}, "signals": 0}
ATTEMPT = """
def attempt(what, action):
    try:
        action()
    except Exception:
        print(what, "refused")
    else:
        print(what, "done")

"""

Answer = dict[str, Any]


def says(*lines: str, **otherwise: Any) -> Answer:
    """What the witness reports of a program that prints these lines."""
    return {"says": list(lines), **QUIET, **otherwise}


def greeting(rng: Random) -> tuple[str, Answer]:
    number, code = rng.randint(0, 10**6), rng.randint(1, 99)
    text = f"import sys\nprint('日本é', {number})\nsys.stderr.write('one\\ntwo {number}')\nsys.exit({code})\n"
    return text, says(f"日本é {number}", last=f"two {number}", exit=code)


def failing(rng: Random) -> tuple[str, Answer]:
    number = rng.randint(2, 10**6)
    return f"print(1)\nint('x{number}')", says(
        "1", last=f"ValueError: invalid literal for int() with base 10: 'x{number}'", exit=1
    )


def aborting(rng: Random) -> tuple[str, Answer]:
    return "import os\nprint('so far', flush=True)\nos.abort()", says("so far", exit=-6)


def long_one(rng: Random) -> tuple[str, Answer]:
    number = rng.randint(0, 10**6)
    return f"x = {'1 + ' * 50}{number}\n" + "# so much to say\n" * 20_000 + "print(x)", says(str(50 + number))


def census(rng: Random) -> tuple[str, Answer]:
    code = f"""
import os, sys
print(os.path.exists("here"), __name__, len(sys.stdin.read()), sys.flags.isolated)
print(os.getpid() == os.getpgid(0) == os.getsid(0))
print("PATH" in os.environ, "WITNESS_SECRET" in os.environ, len(set(os.environ) - {{"LC_CTYPE"}}) < 8)
print([fd for fd in range(3, {rng.randint(60, 250)}) if os.path.exists(f"/dev/fd/{{fd}}") or is_open(fd)])
"""
    helper = "import os\ndef is_open(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n"
    return helper + code, says("True __main__ 0 1", "True", "True False True", "[]")


def limits(rng: Random, seconds: int) -> tuple[str, Answer]:
    code = """
import resource
for name in ("CPU", "FSIZE", "NOFILE", "CORE"):
    print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
"""
    size = 16 * MIB
    return code, says(f"CPU {seconds} {seconds}", f"FSIZE {size} {size}", "NOFILE 64 64", "CORE 0 0")


def memory(rng: Random, limit: int | None) -> tuple[str, Answer]:
    """One allocation that fits, and one that is larger than the limit."""
    room = (limit or 600 * MIB) // MIB
    small, large = room // 2, room + rng.randint(0, 50)
    code = f"attempt('small', lambda: bytes({small} * 2**20))\nattempt('large', lambda: bytes({large} * 2**20))"
    return ATTEMPT + code, says("small done", "large done" if limit is None else "large refused")


def hungry(rng: Random) -> tuple[str, Answer]:
    code = f"x = bytes({rng.randint(700, 900)} * 2**20)"
    return code, says(last="MemoryError", exit=1)


def processes(rng: Random) -> tuple[str, Answer]:
    code = f"""
import os, subprocess, time
def multiply():
    for _ in range({rng.randint(10, 24)}):
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
attempt("fork", multiply)
attempt("program", lambda: subprocess.run(["/bin/true"]))
attempt("shell", lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 2"], {{}}))
"""
    return ATTEMPT + code, says("fork refused", "program refused", "shell refused")


def one_child(rng: Random) -> tuple[str, Answer]:
    """A single child, to which a limit on many would be no hindrance, past what Python's own modules offer."""
    code = """
import ctypes, posix
def child():
    pid = posix.fork()
    if pid == 0: posix._exit(0)
attempt("child", child)
libc = ctypes.CDLL(None)
pid = libc.fork()
if pid == 0: posix._exit(0)
print("libc", "refused" if pid < 0 else "done")
"""
    return ATTEMPT + code, says("child refused", "libc refused")


def disk(rng: Random) -> tuple[str, Answer]:
    code = f"""
import os
def fill(name, mebibytes):
    with open(name, "wb") as file:
        for _ in range(mebibytes):
            file.write(bytes(2**20))
attempt("small file", lambda: fill("small", {rng.randint(1, 8)}))
attempt("large file", lambda: fill("large", {rng.randint(33, 40)}))
hoard = []
attempt("open files", lambda: hoard.extend(open("/dev/null") for _ in range({rng.randint(64, 99)})))
"""
    return ATTEMPT + code, says("small file done", "large file refused", "open files refused")


def outside(rng: Random) -> tuple[str, Answer]:
    name = f"new-{rng.randint(0, 10**6)}"
    code = f"""
import os
attempt("own", lambda: open("{name}", "w").write("x"))
attempt("own directory", lambda: os.mkdir("{name}.d"))
attempt("null", lambda: open("/dev/null", "w").write("x"))
attempt("library", lambda: open(os.__file__).read())
attempt("outside: read", lambda: open("../canary.txt").read())
attempt("outside: append", lambda: open("../canary.txt", "a").write("x"))
attempt("outside: make", lambda: open("../{name}", "w").write("x"))
attempt("outside: directory", lambda: os.mkdir("../{name}.d"))
attempt("outside: link", lambda: os.link("../canary.txt", "../{name}"))
attempt("outside: rename", lambda: os.rename("../canary.txt", "../{name}"))
attempt("outside: delete", lambda: os.remove("../canary.txt"))
attempt("outside: list", lambda: os.listdir(".."))
"""
    inside = [f"{what} done" for what in ("own", "own directory", "null", "library")]
    what = ("read", "append", "make", "directory", "link", "rename", "delete", "list")
    return ATTEMPT + code, says(*inside, *(f"outside: {each} refused" for each in what))


def others(rng: Random) -> tuple[str, Answer]:
    code = """
import os, signal, socket
attempt("signal", lambda: os.kill(os.getppid(), signal.SIGUSR1))
attempt("any signal", lambda: os.kill(os.getppid(), 0))
attempt("socket", lambda: socket.socket())
attempt("local socket", lambda: socket.socket(socket.AF_UNIX))
attempt("memory without a limit", lambda: os.memfd_create("x"))
attempt("outside: environment of the parent", lambda: open(f"/proc/{os.getppid()}/environ").read())
"""
    what = ("signal", "any signal", "socket", "local socket", "memory without a limit")
    return ATTEMPT + code, says(*(f"{each} refused" for each in (*what, "outside: environment of the parent")))


def programs(rng: Random) -> list[tuple[Case, Answer]]:
    """Cases, each with its answer."""
    room = rng.randint(300, 400) * MIB
    seconds = rng.randint(3, 20)
    plain = (greeting, failing, aborting, long_one, census, processes, one_child, disk, outside, others)
    made: list[tuple[Case, tuple[str, Answer]]] = [
        ({"maximum_memory_bytes": room, "cpu_seconds": seconds}, make(rng)) for make in plain
    ]
    made.append(({"maximum_memory_bytes": room, "cpu_seconds": seconds}, limits(rng, seconds)))
    made.append(({"maximum_memory_bytes": room, "cpu_seconds": 9}, hungry(rng)))
    made += [({"maximum_memory_bytes": most, "cpu_seconds": 9}, memory(rng, most)) for most in (room, None)]
    return [({"code": code, **settings}, answer) for settings, (code, answer) in made]


class Script:
    """What every program of a judge should get. Programs carry random numbers, so each is known by its own text."""

    def __init__(self, make: Callable[[Random], list[tuple[Case, Answer]]]) -> None:
        self._make = make
        self._answers: dict[str, Answer] = {}

    def cases(self, rng: Random) -> list[Case]:
        pairs = self._make(rng)
        self._answers |= {repr(case): answer for case, answer in pairs}
        return [case for case, _ in pairs]

    def answer(self, **case: Any) -> Answer:
        return self._answers[repr(case)]

    def but(self, change: Callable[[Case, Answer], Answer]) -> Callable[..., Answer]:
        """The right answer after `change`, as a mistake would have it. Nothing is run."""
        return lambda **case: change(case, self.answer(**case))


SCRIPT = Script(programs)


def lines(old: str, new: str) -> Callable[..., Answer]:
    """Lines that begin with `old` say `new` at their end instead."""

    def change(case: Case, answer: Answer) -> Answer:
        says = [line.replace(" refused", f" {new}") if line.startswith(old) else line for line in answer["says"]]
        return answer | {"says": says}

    return SCRIPT.but(change)


START = Judge(
    SCRIPT.cases,
    SCRIPT.answer,
    mistakes={
        "memory is not limited": SCRIPT.but(
            lambda case, answer: (
                answer | {"says": [line.replace("large refused", "large done") for line in answer["says"]]}
            )
        ),
        "there is a limit on memory where None was asked for": SCRIPT.but(
            lambda case, answer: (
                answer | {"says": [line.replace("large done", "large refused") for line in answer["says"]]}
            )
        ),
        "files can be of any size: FSIZE": lines("large file", "done"),
        "any number of files can be open: NOFILE": lines("open files", "done"),
        "sockets can be made: NEW_SOCKETS": SCRIPT.but(
            lambda case, answer: (
                answer | {"says": [line.replace("socket refused", "socket done") for line in answer["says"]]}
            )
        ),
    },
)
