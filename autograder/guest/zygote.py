"""A process with everything imported that forks one child a submission.

`main` starts in a fresh interpreter with an empty environment. It moves into namespaces of its own while it is small
and single-threaded, imports, and then serves: a request on the control socket brings three descriptors, for the child's
link to the grader, for its link to the referee, and for its life. Over the last the grader asks for an interrupt, and
closing it, or dying, kills the child; the zygote says there that the child has started and how it ended. What a
submission says is read by the child alone and never enters this process.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nanochat import isolation

from . import confine

MAX_MESSAGE = 2**16
INTERRUPT = b"i"


@dataclass(frozen=True)
class _Child:
    pid: int
    life: socket.socket


def main(control_fd: int) -> NoReturn:
    """Serve until the other end of the control socket closes. Says {"ready"} or {"refused": [layer, reason]} first."""
    control = socket.socket(fileno=control_fd)
    settings = json.loads(control.recv(MAX_MESSAGE))
    if "namespaces" in settings["layers"]:
        try:
            isolation.unshare("user", "pid", "net", "ipc")
        except OSError as error:
            _say(control, refused=["namespaces", str(error)])
            os._exit(1)
        # the first process of the new pid namespace: when it ends, the kernel ends all others in there
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            _leave(settings)
        isolation.die_with_parent(signal.SIGKILL)
    _serve(control, settings)


def _serve(control: socket.socket, settings: dict[str, Any]) -> NoReturn:
    from . import warm

    shell = warm.shell(settings["imports"])
    gc.collect()
    gc.freeze()
    _say(control, ready=True, threads=len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 1)
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY) if "namespaces" in settings["layers"] else -1
    bell, ring = os.pipe()
    for end in (bell, ring):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # a warden, which nothing inside its pid namespace can touch, ends its submission and then itself
    wardened = bool(settings["processes"]) and own_namespace >= 0
    children: dict[int, _Child] = {}  # by the descriptor of its life
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(bell, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                child = _start(control, settings, own_namespace, shell, list(children.values()))
                children[child.life.fileno()] = child
                poll.register(child.life, select.POLLIN)
            elif fd == bell:
                os.read(bell, 4096)
                for life in [life for life, child in children.items() if _bury(child)]:
                    if _listening(poll, life):
                        poll.unregister(life)
                    children.pop(life).life.close()
            elif fd in children:
                child = children[fd]
                if child.life.recv(1) == INTERRUPT:
                    os.kill(child.pid, signal.SIGINT)
                else:
                    os.kill(child.pid, signal.SIGTERM if wardened else signal.SIGKILL)
                    poll.unregister(fd)


def _listening(poll: select.poll, fd: int) -> bool:
    try:
        poll.modify(fd, select.POLLIN)
    except FileNotFoundError:
        return False
    return True


def _start(
    control: socket.socket, settings: dict[str, Any], own_namespace: int, shell: Any, others: list[_Child]
) -> _Child:
    """Fork a child for the next request; or leave, with every child, when there will be none."""
    message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 3)
    if not message:
        for other in others:
            os.kill(other.pid, signal.SIGKILL)
        _leave(settings)
    request = json.loads(message)
    link, referee, life_fd = descriptors
    if own_namespace >= 0:
        isolation.unshare("pid")
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            confine.become_submission(settings, request, link, referee, shell)
        finally:
            os._exit(70)
    if own_namespace >= 0:
        isolation.enter_namespace(own_namespace)
    os.close(link)
    os.close(referee)
    life = socket.socket(fileno=life_fd)
    _say(life, started=pid)
    return _Child(pid, life)


def _leave(settings: dict[str, Any]) -> NoReturn:
    """End, without the folder this sandbox was made of: if the grader was killed, nobody else would remove it."""
    shutil.rmtree(settings["folder"], ignore_errors=True)
    os._exit(0)


def _bury(child: _Child) -> bool:
    """Whether a child has ended; it is then reaped, and the grader told how it ended."""
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid:
        _say(
            child.life,
            exit_code=os.waitstatus_to_exitcode(status),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_kib=usage.ru_maxrss,
        )
    return bool(pid)


def _say(connection: socket.socket, **what: Any) -> None:
    try:
        connection.sendall(json.dumps(what).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):  # nobody wants to know any more
        return
