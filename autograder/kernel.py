"""Run a learner's own notebook in a plain Jupyter kernel, as JupyterLab would: everything can be imported, nothing is
isolated. Submissions run in a sandbox instead, see execute.py.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_async
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from autograder.execute import Run
from autograder.sandbox import LAYERS, Limits
from autograder.shown import ORACLE_TAG

MAX_OUTPUT_CHARACTERS = 200_000
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "LD_LIBRARY_PATH")


class _Client(NotebookClient):
    """A notebook client that remembers where it is and stops collecting the output of a cell that floods."""

    cell_name = ""
    _collected = 0

    def remember(self, cell: NotebookNode, **_: Any) -> None:
        self.cell_name = cell.id
        self._collected = 0

    def output(
        self, outs: list[NotebookNode], msg: dict, display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        self._collected += len(str(msg.get("content", "")))
        if self._collected > MAX_OUTPUT_CHARACTERS and msg["msg_type"] == "stream":
            return None
        return super().output(outs, msg, display_id, cell_index)


def execute(notebook: NotebookNode, limits: Limits) -> Run:
    """Run every code cell of `notebook` (changed in place) in a fresh kernel. A cell that raises does not stop the run;
    one that takes too long is interrupted, and all ends at the notebook's deadline or when the kernel dies.
    Cells that meet the oracle are left out."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="notebook-", ignore_cleanup_errors=True) as folder:
        client = _Client(
            notebook,
            timeout=limits.cell_seconds,
            interrupt_on_timeout=True,
            error_on_timeout=_timeout_reply(limits.cell_seconds),
            allow_errors=True,
            skip_cells_with_tag=ORACLE_TAG,
            kernel_manager_class=AsyncKernelManager,
            kernel_name="python3",
            # ipykernel warns of unencrypted TCP, which here never leaves the machine and is signed
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            shutdown_kernel="immediate",
            resources={"metadata": {"path": folder}},
        )
        client.on_cell_start = client.remember
        trouble = asyncio.run(_run(client, limits, _environment(folder, limits)))
    return Run(notebook, time.monotonic() - started, trouble, 0.0, tuple(LAYERS), {})


async def _run(client: _Client, limits: Limits, environment: dict[str, str]) -> str:
    try:
        await asyncio.wait_for(client.async_execute(env=environment), limits.notebook_seconds)
    except TimeoutError:
        return f"The notebook was stopped after {limits.notebook_seconds:g} s, in cell '{client.cell_name}'."
    except DeadKernelError:
        return f"The kernel died in cell '{client.cell_name}'; nothing after it ran."
    finally:
        # a cancelled run leaves its kernel: end it, whatever state it is in
        if client.km is not None and await ensure_async(client.km.is_alive()):
            with contextlib.suppress(RuntimeError):
                await ensure_async(client.km.shutdown_kernel(now=True))
    return ""


def _timeout_reply(seconds: float) -> dict[str, Any]:
    text = f"the cell was stopped after {seconds:g} s"
    return {
        "content": {"status": "error", "ename": "CellTimeoutError", "evalue": text, "traceback": [text]},
        "msg_type": "execute_reply",
        "parent_header": {},
        "header": {},
        "metadata": {},
        "buffers": [],
    }


def _environment(folder: str, limits: Limits) -> dict[str, str]:
    """The kernel's whole environment: nothing of the grader's beyond what finding Python takes."""
    import matplotlib

    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment |= {
        "HOME": folder,
        "IPYTHONDIR": str(Path(folder) / ".ipython"),
        # shared: building the font cache takes seconds, and a fresh home would build it each time
        "MPLCONFIGDIR": matplotlib.get_configdir(),
        "OMP_NUM_THREADS": str(limits.threads),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return environment
