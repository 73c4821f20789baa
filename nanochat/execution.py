"""Running a program nobody has read: `execute_code`, for HumanEval and for rewards that come from running code.

The program runs in a fresh interpreter inside every protection the kernel offers (`LAYERS`), each of which would hold
most attacks by itself. `available_protections` says what is in force on this machine and what is missing: without
"namespaces" and "private root" (macOS, many containers) this is a strong fence on Linux and a weak one elsewhere.
"""

import contextlib
import marshal
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

LAYERS = {
    "limits": "CPU time, file size, open files; threads, inside namespaces",
    "memory limit": "memory of the program",
    "namespaces": "own users, mounts, processes, network (none) and shared memory; nothing survives the call",
    "private root": "only the system and Python can be seen, read-only; a bounded /tmp in memory that disappears",
    "other user": "root becomes nobody",
    "no capabilities": "no privilege is left or can be gained",
    "Landlock": "only the system and Python can be read, only the working directory written",
    "seccomp": "no new process, socket, signal to others, look into others, memory outside the limit",
}
MAX_OUTPUT_BYTES = 2**20
START_SECONDS = 20.0


@dataclass
class ExecutionResult:
    """How a program ended.

    `success`: it ended by itself with status 0. `stdout`, `stderr`: the first MiB of each, also of a program that was
    killed. `error`: one line that says why there was no success. `memory_exceeded`: stderr speaks of a MemoryError.
    """

    success: bool
    stdout: str
    stderr: str
    error: str | None = None
    timeout: bool = False
    memory_exceeded: bool = False


@dataclass(frozen=True)
class Protections:
    """The layers of `LAYERS` by what they do (`in_force`) or by why they are not there (`missing`)."""

    in_force: dict[str, str]
    missing: dict[str, str]


def execute_code(code: str, timeout: float = 5.0, maximum_memory_bytes: int | None = 256 * 2**20) -> ExecutionResult:
    """Run the Python program `code` in isolation, for at most `timeout` seconds, and report how it ended.

    The program has the standard library and this environment's packages, an empty working directory, no input, no
    network, no other process, and an environment of three harmless variables. `maximum_memory_bytes` bounds its address
    space (None: no bound). What it writes is gone afterwards. May be called from threads, and with CUDA in use: the
    interpreter is spawned, never forked. Raises RuntimeError when the sandbox itself cannot start.
    """
    layers = tuple(available_protections().in_force)
    report, stdout, stderr = _launch(code, timeout, maximum_memory_bytes, layers)
    if "refused" in report:
        layer, reason = report["refused"]
        raise RuntimeError(f"the sandbox could not start: {layer}: {reason}; nothing was run, try again")
    exit_code = report["exit_code"]
    if report["timeout"]:
        error: str | None = f"timed out after {timeout} s"
    elif exit_code < 0:
        error = f"killed by {signal.Signals(-exit_code).name}"
    elif exit_code > 0:
        error = (stderr.strip() or f"exited with status {exit_code}").splitlines()[-1]
    else:
        error = None
    return ExecutionResult(error is None, stdout, stderr, error, report["timeout"], "MemoryError" in stderr)


@cache
def available_protections() -> Protections:
    """Find out, once a process, which layers this machine grants: start with all, leave out what is refused."""
    return _probe(frozenset())


def _probe(without: frozenset[str]) -> Protections:
    """`available_protections` of a kernel that would refuse the layers in `without`."""
    missing = dict.fromkeys(without, "left out")
    while True:
        layers = tuple(layer for layer in LAYERS if layer not in missing)
        report, _, _ = _launch("", START_SECONDS, 2**30, layers)
        if "refused" not in report:
            return Protections({layer: LAYERS[layer] for layer in layers}, missing)
        layer, reason = report["refused"]
        if layer not in layers:
            raise RuntimeError(f"the sandbox cannot start on this machine: {layer}: {reason}")
        missing[layer] = reason


def _launch(code: str, timeout: float, memory: int | None, layers: tuple[str, ...]) -> tuple[dict[str, Any], str, str]:
    """Run `code` behind `layers`: the report of `nanochat.execution_child.main`, stdout and stderr."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    bootstrap = f"import sys; sys.path.insert(0, {package_parent!r}); from nanochat.execution_child import main; main()"
    with contextlib.ExitStack() as cleanup:
        workdir = os.path.realpath(tempfile.mkdtemp(prefix="nanochat-"))
        cleanup.callback(shutil.rmtree, workdir, ignore_errors=True)  # usually done by the supervisor
        report_end, report_to = os.pipe()
        report_pipe = cleanup.enter_context(os.fdopen(report_end, "rb", buffering=0))
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", bootstrap],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": "/usr/bin:/bin", "LC_CTYPE": "C.UTF-8", "OMP_NUM_THREADS": "1"},
                cwd="/",
                pass_fds=(report_to,),
                start_new_session=True,
            )
        finally:
            os.close(report_to)
        cleanup.enter_context(process)
        request = {
            "code": code,
            "timeout": timeout,
            "memory": memory,
            "layers": layers,
            "workdir": workdir,
            "python_paths": [sys.prefix, sys.base_prefix],
            "site_packages": sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}),
            "report_to": report_to,
        }
        try:
            outputs = _converse(process, marshal.dumps(request), report_pipe, timeout)
        except BaseException:
            _stop(process)
            raise
    report = outputs[0]
    stdout, stderr = (output.decode(errors="replace") for output in outputs[1:])
    return marshal.loads(report) if report else {"refused": ("launcher", f"it died {stderr}")}, stdout, stderr


def _converse(
    process: subprocess.Popen[bytes], request: bytes, report_pipe: IO[bytes], timeout: float
) -> tuple[bytes, bytes, bytes]:
    """Send the request; collect report, stdout and stderr until the supervisor has reported or died."""
    assert process.stdin and process.stdout and process.stderr
    # Stdin itself stays open, as the supervisor's lifeline. If it died, the missing report will tell.
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(process.stdin.fileno()), "wb") as writer:
        writer.write(request)
    deadline = time.monotonic() + timeout + START_SECONDS
    kept: dict[IO[bytes], bytearray] = {pipe: bytearray() for pipe in (report_pipe, process.stdout, process.stderr)}

    def read(pipe: IO[bytes]) -> bool:
        """Keep what is there now, as far as there is room for it; False at the end of the stream."""
        chunk = os.read(pipe.fileno(), 2**16)
        kept[pipe] += chunk[: MAX_OUTPUT_BYTES - len(kept[pipe])]
        return bool(chunk)

    with selectors.DefaultSelector() as selector:
        for pipe in kept:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
        # Not until stdout ends: without namespaces something may survive that holds it open.
        while report_pipe in selector.get_map():
            for key, _ in selector.select(deadline - time.monotonic()):
                pipe = cast(IO[bytes], key.fileobj)
                if not read(pipe):
                    selector.unregister(pipe)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the sandbox did not answer {START_SECONDS} s after the program's time was up")
    for pipe in kept:
        with contextlib.suppress(BlockingIOError):
            while len(kept[pipe]) < MAX_OUTPUT_BYTES and read(pipe):
                pass
    report, stdout, stderr = (bytes(kept[pipe]) for pipe in kept)
    return report, stdout, stderr


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a supervisor, which ends its program first."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
