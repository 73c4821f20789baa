# ruff: noqa: PTH101, PTH106, PTH108, PTH112, PTH114, PTH208
"""The inner side of `execute_code`: what runs in the fresh interpreter, as supervisor and then as the program.

The interpreter that `nanochat.execution` starts stays outside the sandbox as its supervisor, with nothing in memory or
environment worth stealing. It makes the namespaces and forks once. The fork is the first process of the new pid
namespace: it takes on every other restriction and runs the program; when it ends or is killed, the kernel kills all it
started. Imports are kept few, since they are most of what a call costs.
"""

from __future__ import annotations

import marshal
import math
import os
import select
import signal
import sys
import time
import types
from importlib.machinery import ModuleSpec, PathFinder

from nanochat import isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SYSTEM_PATHS = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")
DISK_BYTES = 64 * 2**20
LIMITS = {"CORE": 0, "FSIZE": DISK_BYTES // 2, "NOFILE": 64, "MSGQUEUE": 0, "MEMLOCK": 2**16}
MAX_THREADS = 64

# Not a protection (a program can find these elsewhere) but an early answer to one that means no harm.
REMOVED = {
    "builtins": "exit quit help",
    "os": "remove unlink rmdir removedirs rename renames replace truncate chmod fchmod chown fchown lchown "
    "chroot chdir fchdir getcwd setuid fork forkpty kill killpg system",
    "shutil": "rmtree move chown",
    "subprocess": "Popen",
}
HIDDEN_MODULES = ("resource", "psutil", "tkinter")

_GO = b"go"


def main() -> None:
    """Read a request from stdin, run its program, write a report to the descriptor `request["report_to"]`.

    The request and the report are marshalled dicts. The report is {"refused": (layer, reason)} when the kernel refused
    one of `request["layers"]`, and the program has then not run; else {"exit_code": negative for a signal, "timeout":
    bool}. Stdin stays open as a lifeline: when the other end is gone, so is the program.
    """
    del sys.path[0]
    request = marshal.load(sys.stdin.buffer)
    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    report = _supervise(request, lifeline)
    os.write(request["report_to"], marshal.dumps(report))
    os._exit(0)


def _supervise(request: dict[str, Any], lifeline: int) -> dict[str, Any]:
    if "namespaces" in request["layers"]:
        try:
            isolation.unshare("user", "pid", "net", "ipc")
        except OSError as error:
            return {"refused": ("namespaces", str(error))}
    bell = _ring_on(signal.SIGCHLD, signal.SIGTERM)
    if sys.platform == "linux":
        isolation.die_with_parent(signal.SIGTERM)  # not at once: there is a program to be killed
        isolation.adopt_orphans()
    ready, setup = os.pipe()
    child = os.fork()
    if child == 0:
        _become_program(request, setup)
    os.close(setup)
    with os.fdopen(ready, "rb") as pipe:
        answer = pipe.read()
    if answer != _GO:
        os.waitpid(child, 0)
        return {"refused": marshal.loads(answer) if answer else ("set-up", "the program's process died in it")}
    status, cpu_seconds, timed_out = _wait(child, request["timeout"], bell, lifeline)
    _kill_survivors(child, request["layers"])
    _remove_workdir(request["workdir"])
    exit_code = os.waitstatus_to_exitcode(status)
    out_of_cpu = exit_code == -signal.SIGKILL and cpu_seconds >= _cpu_limit(request)
    return {"exit_code": exit_code, "timeout": timed_out or out_of_cpu}


def _ring_on(*numbers: int) -> int:
    """The read end of a pipe that gets a byte with the number of each of these signals."""
    bell, ring = os.pipe()
    os.set_blocking(ring, False)
    signal.set_wakeup_fd(ring)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return bell


def _wait(child: int, timeout: float, bell: int, lifeline: int) -> tuple[int, float, bool]:
    """Wait for the program; kill it when time is up or the caller gone. (wait status, CPU seconds, whether killed)"""
    deadline = time.monotonic() + timeout
    killed = False
    while True:
        pid, status, usage = os.wait4(child, 0 if killed else os.WNOHANG)
        if pid:
            return status, usage.ru_utime + usage.ru_stime, killed
        readable, _, _ = select.select([bell, lifeline], [], [], max(0.0, deadline - time.monotonic()))
        asked_to_end = bell in readable and signal.SIGTERM in os.read(bell, 4096)
        if asked_to_end or lifeline in readable or time.monotonic() >= deadline:
            killed = True
            os.kill(child, signal.SIGKILL)


def _kill_survivors(child: int, layers: tuple[str, ...]) -> None:
    """Kill what the program left running: nothing inside a pid namespace, nothing if it could not fork."""
    if "namespaces" in layers or "seccomp" in layers:
        return
    if sys.platform == "linux":
        isolation.kill_descendants()
    else:
        try:
            os.killpg(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # the latter is how macOS says the same
            return


def _remove_workdir(directory: str) -> None:
    """Remove the directory and what the program left in it, however deeply nested, and closed to its own owner or not.

    Done on this side, because the caller may be gone, and by walking there, because paths have a greatest length.
    """
    try:
        os.chdir(directory)
        entered: list[str] = []
        waiting = [os.listdir()]
        while waiting:
            if waiting[-1]:
                entry = waiting[-1].pop()
                if os.path.islink(entry) or not os.path.isdir(entry):
                    os.unlink(entry)
                else:
                    os.chmod(entry, 0o700)
                    os.chdir(entry)
                    entered.append(entry)
                    waiting.append(os.listdir())
            else:
                waiting.pop()
                os.chdir("..")
                os.rmdir(entered.pop() if entered else directory)
    except FileNotFoundError:
        return


def _cpu_limit(request: dict[str, Any]) -> int:
    return math.ceil(request["timeout"]) + 1


def _become_program(request: dict[str, Any], setup: int) -> NoReturn:
    """Take on every layer of the request, say so on `setup`, and run the program; or say what was refused and leave."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    for layer, step in _steps(request).items():
        _take_on(layer, step, request, setup)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what was printed outlives a kill
    sys.path += request["site_packages"]
    _disarm()
    os.closerange(3, setup)
    os.closerange(setup + 1, 2**16)
    if request["memory"] is not None:
        _take_on("memory limit", lambda: isolation.limit_resources({"AS": request["memory"]}), request, setup)
    os.write(setup, _GO)
    os.close(setup)
    _run(request["code"])


def _take_on(layer: str, step: Callable[[], object], request: dict[str, Any], setup: int) -> None:
    if layer in request["layers"]:
        try:
            step()
        except OSError as error:
            os.write(setup, marshal.dumps((layer, str(error))))
            os._exit(1)


def _steps(request: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """The layers of the program's own process, in an order in which each may still do what it needs."""
    layers, workdir = request["layers"], request["workdir"]
    readable = (*SYSTEM_PATHS, *request["python_paths"])
    limits = LIMITS | {"CPU": _cpu_limit(request)}
    if "namespaces" in layers:
        limits["NPROC"] = MAX_THREADS  # elsewhere it would count all that the user runs
    if "private root" in layers:
        land = {"read_only": ("/",), "read_write": ("/tmp", *isolation.DEVICES)}
    else:
        land = {"read_only": readable, "read_write": (workdir, *isolation.DEVICES)}
        os.chdir(workdir)

    def become_nobody() -> None:
        if "private root" not in layers:
            os.chown(workdir, isolation.NOBODY, isolation.NOBODY)
        isolation.become_nobody()
        for needed in (os.__file__, *filter(os.path.exists, request["python_paths"])):
            if not os.access(needed, os.R_OK):
                raise PermissionError(f"user nobody may not read {needed}")

    def drop_capabilities() -> None:
        isolation.drop_capabilities()
        isolation.die_with_parent(signal.SIGKILL)

    def deny_syscalls() -> None:
        isolation.deny_syscalls(
            (
                *isolation.NEW_PROCESSES,
                *isolation.OTHER_PROCESSES,
                *isolation.signals_beyond(os.getpid()),
                *isolation.NEW_SOCKETS,
                *isolation.UNCOUNTED_MEMORY,
                *isolation.KERNEL_SURFACE,
            )
        )

    return {
        "private root": lambda: isolation.enter_private_root(workdir, readable, DISK_BYTES),
        "limits": lambda: isolation.limit_resources(limits),
        "other user": become_nobody,
        "no capabilities": drop_capabilities,
        "Landlock": lambda: isolation.restrict_files(**land),
        "seccomp": deny_syscalls,
    }


class _Disarm:
    """Takes the `REMOVED` names out of a module: at once where it is loaded, else when the program imports it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name in REMOVED else None
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_disarmed(module: types.ModuleType) -> None:
                load(module)
                _remove_names(module)

            spec.loader.exec_module = load_disarmed  # type: ignore[method-assign]
        return spec


def _remove_names(module: types.ModuleType) -> None:
    for name in REMOVED[module.__name__].split():
        setattr(module, name, None)


def _disarm() -> None:
    for name in REMOVED:
        if name in sys.modules:
            _remove_names(sys.modules[name])
    sys.meta_path.insert(0, _Disarm)
    for name in HIDDEN_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own way of "no such module"
    for name in ("nanochat.execution_child", "nanochat.isolation", "nanochat"):
        del sys.modules[name]


def _run(code: str) -> NoReturn:
    """Run `code` as __main__ and leave the interpreter the way it would after a script, status 1 for an exception."""
    main_module = types.ModuleType("__main__")
    namespace = vars(main_module)
    namespace.clear()
    namespace["__name__"] = "__main__"
    sys.modules["__main__"] = main_module
    try:
        exec(compile(code, "<program>", "exec"), namespace)
    except SystemExit:
        raise
    except BaseException as error:
        assert error.__traceback__
        of_the_program = error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(of_the_program), of_the_program)
        sys.exit(1)
    sys.exit(0)
