"""Cells run in IPython's shell in this very process, their outputs collected in the notebook format."""

from __future__ import annotations

import base64
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type

MAX_CHARACTERS = 200_000


class CellTimeoutError(KeyboardInterrupt):
    """Raised in a cell that has run for too long."""


class Outputs:
    """What one cell has put out so far. Text beyond MAX_CHARACTERS is dropped, with a word about it."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything: a new cell starts."""
        self.list: list[dict[str, Any]] = []
        self._left = MAX_CHARACTERS
        self._clear_first = False

    def stream(self, name: str, text: str) -> None:
        """Text on stdout or stderr, joined to what came just before on the same one."""
        self._clear_if_asked()
        if self._left <= 0:
            return
        kept = text[: self._left]
        self._left -= len(text)
        if self._left <= 0:
            kept += f"\n[more than {MAX_CHARACTERS:,} characters: the rest is left out]\n"
        last = self.list[-1] if self.list else {}
        if last.get("output_type") == "stream" and last["name"] == name:
            last["text"] += kept
        else:
            self.list.append({"output_type": "stream", "name": name, "text": kept})

    def add(self, output: dict[str, Any]) -> None:
        """An output that stands for itself."""
        self._clear_if_asked()
        self.list.append(output)

    def clear(self, wait: bool) -> None:
        """Take back what there is: now, or when the next output comes."""
        self._clear_first = wait
        if not wait:
            self.list.clear()

    def _clear_if_asked(self) -> None:
        if self._clear_first:
            self.list.clear()
            self._clear_first = False


OUTPUTS = Outputs()


class _Stream(io.TextIOBase):
    """Stands for sys.stdout or sys.stderr."""

    encoding = "utf-8"

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> int:
        OUTPUTS.stream(self.name, str(text))
        return len(text)

    def writable(self) -> bool:
        return True


class _Publisher(DisplayPublisher):
    """Collects what is displayed; updates of a display replace it where it stands in the same cell."""

    def publish(  # type: ignore[override]
        self, data: dict, metadata: dict | None = None, *, transient: dict | None = None, update: bool = False, **_: Any
    ) -> None:
        name = (transient or {}).get("display_id")
        shown = _bundle("display_data", data, metadata)
        if update:
            for output in OUTPUTS.list:
                if name is not None and output.get("transient") == name:
                    output |= shown
            return
        OUTPUTS.add(shown | ({"transient": name} if name is not None else {}))

    def clear_output(self, wait: bool = False) -> None:
        OUTPUTS.clear(wait)


class _Hook(DisplayHook):
    """Collects the value of a cell's last expression."""

    def write_output_prompt(self) -> None:
        return

    def write_format_data(self, format_dict: dict, md_dict: dict | None = None) -> None:
        OUTPUTS.add(_bundle("execute_result", format_dict, md_dict) | {"execution_count": self.prompt_count})

    def finish_displayhook(self) -> None:
        return


class Shell(InteractiveShell):
    """IPython's shell, without a terminal or a kernel."""

    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)

    def _showtraceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        OUTPUTS.add({"output_type": "error", "ename": etype.__name__, "evalue": str(evalue), "traceback": list(stb)})

    def ask_exit(self) -> None:
        """Nothing: a notebook ends with its last cell."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Nothing: there is no event loop to join."""


def run_cells(shell: Shell, cells: list[str], cell_seconds: float, send: Callable[[dict[str, Any]], None]) -> None:
    """Run one cell after the other; one that raises does not stop the rest. Sends {"begin": number} before and
    {"end": number, "count", "outputs"} after each, and {"done": true} at last. SIGINT stops the cell that runs."""
    sys.stdout, sys.stderr = _Stream("stdout"), _Stream("stderr")
    running, notebook = False, os.getpid()

    def stop(signal_number: int, frame: FrameType | None) -> None:
        if running:
            raise CellTimeoutError(f"the cell was stopped after {cell_seconds:g} s")

    signal.signal(signal.SIGINT, stop)
    for number, code in enumerate(cells):
        OUTPUTS.begin()
        send({"begin": number})
        try:
            running = True
            shell.run_cell(code, store_history=True)
            running = False
        except KeyboardInterrupt as late:  # just after the cell's last line
            running = False
            shell._showtraceback(type(late), late, [str(late)])
        if os.getpid() != notebook:  # forked by the cell, and fallen out of it
            os._exit(1)
        send({"end": number, "count": shell.execution_count - 1, "outputs": OUTPUTS.list})
    send({"done": True})


def _bundle(kind: str, data: dict, metadata: dict | None) -> dict[str, Any]:
    return {
        "output_type": kind,
        "data": {mime: _text(value) for mime, value in data.items()},
        "metadata": metadata or {},
    }


def _text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
