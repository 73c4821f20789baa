"""Do once, before any fork, what every submission would do again: import, make the shell, make first calls.

Everything here stays on one thread and off CUDA, since neither survives a fork.
"""

from __future__ import annotations

import importlib
import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .shell import Shell


def shell(imports: list[str]) -> Shell:
    """A shell that has run nothing, in a process that has imported what the notebook will import."""
    import torch
    from traitlets.config import Config

    torch.set_num_threads(1)  # before the first operation, so that no pool of threads is started
    from . import confine, shell

    # a history would be a file, and a thread that writes it
    without_history = Config({"HistoryManager": {"enabled": False, "hist_file": ":memory:"}})
    made = shell.Shell.instance(colors="nocolor", xmode="Context", config=without_history)
    for name in imports:
        try:
            importlib.import_module(name)
        except ImportError:  # the notebook will say so itself
            continue
    _first_calls()
    assert confine
    return made


def _first_calls() -> None:
    """Call what is slow the first time: plots, autograd, attention, modules leaving meta, what shows a result."""
    import matplotlib.pyplot as plt
    import torch
    import torch.nn.functional as F
    from IPython.core.formatters import format_display_data
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot([0, 1], [1, 10], label="$x$")
        axes.set(title="title", xlabel="x", ylabel="y", yscale="log")
        axes.legend()
        figure.savefig(io.BytesIO(), format="png")
        plt.close(plt.figure())
        weight = torch.zeros(1, 1, 4, 4, requires_grad=True)
        loss = F.scaled_dot_product_attention(weight, weight, weight).sum()
        loss.backward()
        torch.nn.Linear(1, 1, device="meta").to_empty(device="cpu")
        format_display_data(weight)
