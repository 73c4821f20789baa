"""What happens to a program in a sandbox that somebody else has written, and what is left when it has ended.

Each function makes a scene in a new folder, lets the sandbox play in it, and reports plain data. The scene is there to
be damaged: a file that is precious, a secret in the environment, an open pipe, a parent that hears signals.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from nanochat import isolation

PRECIOUS = "precious"
SECRET = "WITNESS_SECRET"
PATIENCE = 30.0  # for what is not part of the question, on a machine that has much else to do
INTERRUPT_AFTER = 0.2


class InterruptedByWitness(Exception):
    """Raised in the middle of a call, as KeyboardInterrupt would be."""


def behind_walls(start: Callable, code: str, maximum_memory_bytes: int | None, cpu_seconds: int) -> dict[str, Any]:
    """A program that `start` starts in the folder `work` of a scene. Reports

    says: what it printed, by line
    last: the last line it wrote on stderr
    exit: its exit code
    around: what lies around its folder, and whether the file there still says what it said
    signals: how many it has sent to its parent
    """
    with _scene() as scene, _listening() as heard, _secrets():
        work = scene / "work"
        work.mkdir()
        (work / "here").touch()
        process = start(code, str(work), maximum_memory_bytes, cpu_seconds)
        try:
            stdout, stderr = (output.decode(errors="replace") for output in process.communicate(timeout=PATIENCE))
        finally:
            _kill_group(process)
            process.kill()
            process.wait()
        says, around = stdout.splitlines(), _around(scene)
        if not _landlock():  # what no kernel refuses cannot be asked for
            says = [line.replace(" done", " refused") if line.startswith("outside") else line for line in says]
            around = {"names": ["canary.txt", "work"], "canary": PRECIOUS}
        last = (stderr.strip() or "-").splitlines()[-1]
        return {"says": says, "last": last, "exit": process.returncode, "around": around, "signals": len(heard)}


def by_the_clock(
    supervise: Callable, code: str, timeout: float, max_bytes: int, interrupt: bool = False
) -> dict[str, Any]:
    """An ordinary process, first of its group and once it has made the file `ready`, given to `supervise`; with
    `interrupt` an exception breaks into that. Reports

    outcome: what `supervise` returned, or that it was interrupted
    reaped: whether somebody has waited for the process
    closed: whether its two pipes are closed
    group: whether a process of its group is still there
    """
    with _scene() as scene:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            cwd=scene,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _await(lambda: (scene / "ready").exists() or process.poll() is not None)
            outcome: Any = "interrupted"
            with _interruption(interrupt), suppress(InterruptedByWitness):
                exit_code, stdout, stderr, timed_out = supervise(process, timeout, max_bytes)
                texts = {"stdout": bytes(stdout).decode("latin-1"), "stderr": bytes(stderr).decode("latin-1")}
                outcome = {"exit": exit_code, **texts, "timed out": timed_out}
            return {
                "outcome": outcome,
                "reaped": process.returncode is not None,
                "closed": all(pipe is not None and pipe.closed for pipe in (process.stdout, process.stderr)),
                "group": "gone" if _await(lambda: not _group_exists(process.pid), 1.0) else "alive",
            }
        finally:
            _kill_group(process)
            process.kill()
            process.wait()


def played(
    execute_code: Callable,
    code: str,
    timeout: float,
    maximum_memory_bytes: int | None,
    ending: tuple,
    leaves: list[str],
    breaks: str = "",
) -> dict[str, Any]:
    """`execute_code` with actors in the parts of `start` and `supervise`. The one leaves things behind in the directory
    it is given (`leaves`: "file", "tree", "closed", "link"), the other says that the program ended with `ending`
    (exit code, stdout, stderr, timed out). `breaks` names the one that raises instead. Reports

    result: all six fields of what is returned, or that it broke
    asked: what the two were given, and whether the second still finds the directory there
    directory: what was in the directory at first, and who may enter it
    left: what is left where temporary files are made, and around it
    """
    asked: dict[str, Any] = {}
    process, places = object(), []

    def start(code: str, workdir: str, maximum_memory_bytes: int | None, cpu_seconds: int) -> object:
        found = Path(workdir)
        places.append(found)
        asked["start"] = [code, maximum_memory_bytes, cpu_seconds]
        asked["directory"] = [_names(found), oct(found.stat().st_mode & 0o777), found.parent == folder]
        _leave_behind(found, scene / "canary.txt", leaves)
        if breaks == "start":
            raise InterruptedByWitness
        return process

    def supervise(given: object, timeout: float, max_bytes: int) -> Any:
        asked["supervise"] = [given is process, timeout, max_bytes, all(place.exists() for place in places)]
        if breaks == "supervise":
            raise InterruptedByWitness
        exit_code, stdout, stderr, timed_out = ending
        return _Outcome(exit_code, stdout.encode("latin-1"), stderr.encode("latin-1"), timed_out)

    with _scene() as scene:
        folder = scene / "work"
        folder.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        result: Any = "broke"
        try:
            with suppress(InterruptedByWitness):
                got = execute_code(code, timeout, maximum_memory_bytes, start, supervise)
                names = ("success", "stdout", "stderr", "error", "timeout", "memory_exceeded")
                result = {name: getattr(got, name) for name in names}
        finally:
            tempfile.tempdir = before
        directory = asked.pop("directory", None)
        left = {"directories": len(_names(folder)), **_around(scene)}
        return {"result": result, "asked": asked, "directory": directory, "left": left}


class _Outcome(tuple):
    """What `supervise` returns, by name and by place."""

    __slots__ = ()

    def __new__(cls, *values: Any) -> "_Outcome":
        return super().__new__(cls, values)

    exit_code = property(lambda self: self[0])
    stdout = property(lambda self: self[1])
    stderr = property(lambda self: self[2])
    timed_out = property(lambda self: self[3])


# scenes


@contextmanager
def _scene() -> Iterator[Path]:
    """A folder with a canary in it, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="scene-") as folder:
        scene = Path(folder).resolve()
        (scene / "canary.txt").write_text(PRECIOUS)
        yield scene


def _around(scene: Path) -> dict[str, Any]:
    canary = scene / "canary.txt"
    return {"names": _names(scene), "canary": canary.read_text() if canary.exists() else "gone"}


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def _listening() -> Iterator[list[int]]:
    """The signals of one kind that this process gets meanwhile."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGUSR1, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _secrets() -> Iterator[None]:
    """Something to be stolen: a variable, and a pipe that a child would inherit."""
    ends = os.pipe()
    os.set_inheritable(ends[0], True)
    os.environ[SECRET] = PRECIOUS
    try:
        yield
    finally:
        del os.environ[SECRET]
        for end in ends:
            os.close(end)


@contextmanager
def _interruption(wanted: bool) -> Iterator[None]:
    """With `wanted`, raise InterruptedByWitness in the block before long."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise InterruptedByWitness

    if not wanted:
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _leave_behind(directory: Path, canary: Path, what: list[str]) -> None:
    if "file" in what:
        (directory / "result.txt").write_text("x")
    if "link" in what:
        (directory / "link").symlink_to(canary)
        (directory / "links").symlink_to(canary.parent)
    for name in ("tree", "closed"):
        if name in what:
            (directory / name / "inner").mkdir(parents=True)
            (directory / name / "inner" / "file").write_text("x")
    if "closed" in what:
        (directory / "closed" / "inner").chmod(0)
        (directory / "closed").chmod(0)


# processes


def _await(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _group_exists(group: int) -> bool:
    """Whether a process of this group is alive; the dead count as long as nobody has reaped them, where there is no
    /proc to tell them apart."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = [_state_and_group(path) for path in Path("/proc").glob("[0-9]*/stat")]
    return not states or any(of == str(group) and state not in "ZX" for state, of in states)


def _state_and_group(path: Path) -> tuple[str, str]:
    try:
        state, _, group = path.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return "X", ""
    return state, group


def _kill_group(process: Any) -> None:
    """Kill what is left of a process's group, if it has one of its own."""
    with suppress(ProcessLookupError, PermissionError):
        if process.pid != os.getpgrp():
            os.killpg(process.pid, signal.SIGKILL)


def _landlock() -> bool:
    try:
        return isolation.landlock_version() > 0
    except OSError:
        return False
