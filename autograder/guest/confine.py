"""What a child gives up between the fork and the first line of a submission, and how it then runs the cells.

The order matters: each step may still do what it needs, and cannot be undone afterwards. Nothing is imported here that
the zygote has not imported already.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from nanochat import isolation
from puzzles import submit

from . import warden
from .shell import Shell, run_cells

LIMITS = {"CORE": 0, "MSGQUEUE": 0, "MEMLOCK": 2**16, "NOFILE": 256}
LENGTH = struct.Struct(">I")


def become_submission(
    settings: dict[str, Any], request: dict[str, Any], link_fd: int, referee_fd: int, shell: Shell
) -> NoReturn:
    """Take on every layer, say so, read the cells from the link, run them, and leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link_fd, referee_fd = _keep_only(link_fd, referee_fd)
    link = socket.socket(fileno=link_fd)
    for layer, step in _steps(settings, request).items():
        if layer in settings["layers"]:
            try:
                step()
            except OSError as error:
                send(link, {"refused": [layer, str(error)]})
                os._exit(1)
    send(link, {"confined": True})
    if settings["processes"]:
        warden.fork_submission(request["memory_bytes"], "namespaces" in settings["layers"], (link_fd, referee_fd))
    _forget_the_zygote(request)
    cells = json.loads(_receive(link))
    submit.connect(submit.over(socket.socket(fileno=referee_fd)))
    run_cells(shell, cells, request["cell_seconds"], lambda frame: send(link, frame))
    link.shutdown(socket.SHUT_RDWR)
    os._exit(0)


def send(link: socket.socket, frame: dict[str, Any]) -> None:
    """A frame to the grader: its length, then JSON."""
    body = json.dumps(frame).encode()
    link.sendall(LENGTH.pack(len(body)) + body)


def _receive(link: socket.socket) -> bytes:
    (size,) = LENGTH.unpack(link.recv(LENGTH.size, socket.MSG_WAITALL))
    return link.recv(size, socket.MSG_WAITALL)


def _keep_only(*wanted: int) -> list[int]:
    """Close every descriptor but the standard three, which lead nowhere, and these; their new numbers. No program that
    a submission may start inherits these."""
    high = [os.dup2(fd, 200 + number, inheritable=False) for number, fd in enumerate(wanted)]
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, 200)
    os.closerange(200 + len(wanted), 2**16)
    return high


def _steps(settings: dict[str, Any], request: dict[str, Any]) -> dict[str, Callable[[], object]]:
    layers, workdir = settings["layers"], request["workdir"]
    if "private root" in layers:
        readable, writable = ["/"], ["/tmp", *isolation.DEVICES, *settings["devices"]]
    else:
        readable, writable = settings["readable"], [workdir, *isolation.DEVICES, *settings["devices"]]
        os.chdir(workdir)
        for name in ("HOME", "TMPDIR", "MPLCONFIGDIR", "IPYTHONDIR"):
            os.environ[name] = workdir

    def namespaces() -> None:
        isolation.unshare("mount", "net", "ipc")

    def private_root() -> None:
        isolation.enter_private_root(
            settings["root"], [*settings["readable"], *settings["devices"]], request["disk_bytes"]
        )

    def other_user() -> None:
        if "private root" not in layers:
            os.chown(workdir, isolation.NOBODY, isolation.NOBODY)
        isolation.become_nobody()

    def limits() -> None:
        seconds = request["notebook_seconds"] * request["threads"] + 10
        chosen = LIMITS | {"CPU": int(seconds), "FSIZE": request["disk_bytes"]}
        if "own user namespace" in layers:
            chosen["NPROC"] = (
                settings["processes"] or request["max_threads"]
            )  # elsewhere it would count all that the user runs
        isolation.limit_resources(chosen)

    def seccomp() -> None:
        never = (*isolation.OTHER_PROCESSES, *isolation.NEW_SOCKETS, *isolation.UNCOUNTED_MEMORY)
        if settings["processes"]:
            # a signal reaches what is in its pid namespace, and what dies with its parent dies with the namespace too
            surface = [rule for rule in isolation.KERNEL_SURFACE if rule[0] != "prctl"]
            isolation.deny_syscalls((*isolation.NEW_NAMESPACES, *isolation.FIRST_PROCESS, *never, *surface))
        else:
            alone = (*isolation.NEW_PROCESSES, *isolation.signals_beyond(os.getpid()))
            isolation.deny_syscalls((*alone, *never, *isolation.KERNEL_SURFACE))

    def memory_limit() -> None:
        # CUDA reserves address space by the hundred GiB
        if not settings["devices"]:
            isolation.limit_resources({"AS": _address_space() + request["memory_bytes"]})

    return {
        "namespaces": namespaces,
        "private root": private_root,
        "other user": other_user,
        "own user namespace": isolation.unshare_user_alone,
        "limits": limits,
        "no capabilities": isolation.drop_capabilities,
        "Landlock": lambda: isolation.restrict_files(readable, writable),
        "seccomp": seccomp,
        "memory limit": memory_limit,
    }


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _forget_the_zygote(request: dict[str, Any]) -> None:
    """Start from the state a fresh interpreter would have, the same for every submission."""
    tempfile.tempdir = None
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the global generator is what a notebook uses)
    torch.manual_seed(0)
    torch.set_num_threads(request["threads"])
    os.environ["OMP_NUM_THREADS"] = str(request["threads"])
    sys.argv = [""]
