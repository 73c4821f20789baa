"""The first process of a submission that may start processes: it outlives none of them, and none outlives it.

It is what init is to a machine. As the first process of the pid namespace it cannot be killed from inside; when it
leaves, the kernel kills all the others. It reaps orphans, whose remains would count as processes, hands interrupts on
to the notebook, and adds up memory, because the kernel limits a process and not their sum.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

from nanochat import isolation

TICK_SECONDS = 0.05
_MEMORY = re.compile(rb"^(?:RssAnon|RssShmem):\s*(\d+) kB", re.MULTILINE)


def fork_submission(memory_bytes: int, in_namespace: bool, not_mine: Iterable[int]) -> None:
    """Fork. The child returns from here and runs the notebook; this process closes `not_mine`, watches, and leaves when
    the child has ended. Told to end (SIGTERM), it first waits for the child: only so is its CPU time accounted for."""
    if not in_namespace and sys.platform == "linux":
        isolation.adopt_orphans()
    awaited = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    notebook = os.fork()
    if notebook == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    for fd in not_mine:
        os.close(fd)
    inherited = _memory(os.getpid())
    while True:
        received = _wait_for(awaited)
        if received == signal.SIGINT:
            os.kill(notebook, signal.SIGINT)
        elif received == signal.SIGTERM:
            os.kill(notebook, signal.SIGKILL)
        for pid, status in _ended():
            if pid == notebook:
                _leave(os.waitstatus_to_exitcode(status), in_namespace)
        if in_namespace:
            _bound_memory(notebook, memory_bytes, inherited)


def _wait_for(signals: set[signal.Signals]) -> int | None:
    """The number of one of these blocked signals when it comes, None after a tick."""
    information = signal.sigtimedwait(signals, TICK_SECONDS)
    return information and information.si_signo


def _ended() -> Iterator[tuple[int, int]]:
    """(pid, wait status) of every child that has ended."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        yield pid, status


def _leave(exit_code: int, in_namespace: bool) -> NoReturn:
    if not in_namespace and sys.platform == "linux":
        isolation.kill_descendants()
    os._exit(exit_code if exit_code >= 0 else 128 - exit_code)


def _bound_memory(notebook: int, memory_bytes: int, inherited: int) -> None:
    """Kill what the notebook has started when all together use too much. What every fork of the zygote has in common
    (`inherited` bytes, at most) counts for none of them; the notebook by itself has a limit of its own."""
    processes = [int(name) for name in _listing("/proc") if name.isdigit()]
    if sum(max(0, _memory(pid) - inherited) for pid in processes) > memory_bytes:
        for pid in processes:
            if pid not in (os.getpid(), notebook):
                _kill(pid)


def _memory(pid: int) -> int:
    """Bytes of a process that are no file's; 0 if it is gone or cannot be seen."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123  (twenty times a second)
            return 1024 * sum(map(int, _MEMORY.findall(file.read())))
    except OSError:
        return 0


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except FileNotFoundError:  # a container that hides parts of its /proc may not show a new one
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
