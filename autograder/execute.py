"""Run a notebook in a sandbox: cells in, outputs out, deadlines kept from the outside."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

from autograder.outputs import clean
from autograder.sandbox import Limits, Process, Sandbox
from autograder.shown import ORACLE_TAG

# of everything a submission puts out, and of one cell: JSON swells to many times its size when it is read
MAX_BYTES = 32 * 2**20
MAX_FRAME_BYTES = 8 * 2**20
INTERRUPT_EVERY = 0.5

Serve = Callable[[socket.socket], None]


@dataclass(frozen=True)
class Run:
    """An executed notebook. `trouble` says in a sentence why it did not run to the end, "" if it did; `cpu_seconds` is
    what its process used, `missing` the protections this machine could not give it, `cell_seconds` how long each cell
    took that was run, by its id."""

    notebook: NotebookNode
    seconds: float
    trouble: str
    cpu_seconds: float
    missing: tuple[str, ...]
    cell_seconds: dict[str, float]


def execute(
    notebook: NotebookNode,
    limits: Limits,
    sandbox: Sandbox,
    serve: Serve | None = None,
    skip_tag: str = ORACLE_TAG,
) -> Run:
    """Run every code cell of `notebook` (changed in place) in a fresh child of `sandbox`. A cell that raises does not
    stop the run; one that takes too long is interrupted, and all ends at the notebook's deadline or when the process
    dies. Cells tagged `skip_tag` are left out. `serve` answers the submission's questions to the referee."""
    started = time.monotonic()
    took: dict[str, float] = {}
    cells = [c for c in notebook.cells if c.cell_type == "code" and skip_tag not in c.metadata.get("tags", [])]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    with sandbox.start(limits) as process, _served(process.referee, serve):
        trouble = _converse(process, cells, limits, took)
        ending = process.end()
    return Run(notebook, time.monotonic() - started, trouble, ending["cpu_seconds"], tuple(sandbox.missing), took)


def _converse(process: Process, cells: list[NotebookNode], limits: Limits, took: dict[str, float]) -> str:
    """Send the cells and take what comes back; what went wrong, in a sentence. Notes what each cell took."""
    frames = _Frames(process.link)
    body = json.dumps([cell.source for cell in cells]).encode()
    end = time.monotonic() + limits.notebook_seconds
    where = "the first cell"
    try:
        process.link.settimeout(limits.notebook_seconds)
        process.link.sendall(len(body).to_bytes(4, "big") + body)
        for cell in cells:
            where = f"cell '{cell.id}'"
            began = time.monotonic()
            stop_at = began + limits.cell_seconds
            if frames.next(stop_at).keys() != {"begin"}:
                raise ValueError("a cell ends before it begins")
            frame = _frame_of_cell(process, frames, stop_at, min(end, stop_at + limits.grace_seconds))
            took[cell.id] = time.monotonic() - began
            if frame is None:
                if time.monotonic() >= end:
                    return f"The notebook was stopped after {limits.notebook_seconds:g} s, in {where}."
                return (
                    f"The kernel was stopped in {where}, which took more than {limits.cell_seconds:g} s and did not "
                    "end when it was told to; nothing after it ran."
                )
            if "outputs" not in frame or not isinstance(frame.get("count"), int):
                raise ValueError("a cell does not end where it should")
            cell.outputs, cell.execution_count = clean(frame["outputs"]), frame["count"]
    except (EOFError, OSError):
        return f"The kernel died in {where}; nothing after it ran."
    except ValueError:
        return f"The kernel broke its protocol, or flooded it, in {where}; nothing after it counts."
    return ""


def _frame_of_cell(process: Process, frames: "_Frames", stop_at: float, kill_at: float) -> dict[str, Any] | None:
    """What a cell put out; None if it neither ends by `stop_at` nor, interrupted again and again, by `kill_at`."""
    until = min(stop_at, kill_at)
    while True:
        try:
            return frames.next(until)
        except TimeoutError:
            if time.monotonic() >= kill_at:
                return None
            process.interrupt()
            until = min(until + INTERRUPT_EVERY, kill_at)


class _Frames:
    """The frames that arrive on a link, at most MAX_BYTES of them. `next` raises TimeoutError at the deadline (and may
    be called again), EOFError at the end, ValueError for what is no frame."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = bytearray()
        self._left = MAX_BYTES

    def next(self, deadline: float) -> dict[str, Any]:
        while True:
            size = int.from_bytes(self._buffer[:4], "big") if len(self._buffer) >= 4 else 0
            if size > MAX_FRAME_BYTES:
                raise ValueError("a frame that is too long")
            if len(self._buffer) >= 4 + size and size:
                body = bytes(self._buffer[4 : 4 + size])
                del self._buffer[: 4 + size]
                return self._read(body)
            self._link.settimeout(max(deadline - time.monotonic(), 1e-3))
            chunk = self._link.recv(2**20)
            if not chunk:
                raise EOFError
            self._left -= len(chunk)
            if self._left < 0:
                raise ValueError("more output than a notebook may have")
            self._buffer += chunk

    @staticmethod
    def _read(body: bytes) -> dict[str, Any]:
        try:
            frame = json.loads(body)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        if not isinstance(frame, dict):
            raise ValueError("no dict")
        return frame


@contextlib.contextmanager
def _served(connection: socket.socket, serve: Serve | None) -> Any:
    """Answer on `connection` while the block runs."""
    if serve is None:
        yield
        return
    thread = threading.Thread(target=serve, args=(connection,), name="referee", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # shutdown wakes a blocked recv
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        thread.join()
