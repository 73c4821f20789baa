"""Curves of a run's metrics as PNG pictures, each with its alt text in a file beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.common import write_atomically

# Okabe and Ito's colours, told apart with any common colour blindness; markers and line styles repeat them.
STYLES = (("#0072B2", "-", "o"), ("#E69F00", "--", "s"), ("#009E73", "-.", "^"))


def plot_metrics(
    metrics: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]], title: str, path: Path
) -> str:
    """Draw metrics (lines of `nanochat.metrics.read_metrics`) by step and write them to `path`, a .png.

    `panels`: label of the vertical axis, with its unit -> {name of a metric: what to call it}. Returns the alt text,
    which is also written beside the picture with the suffix .txt.
    """
    from matplotlib.figure import Figure  # here, because importing it makes directories

    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    told = []
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (metric, name), (colour, line, marker) in zip(names.items(), STYLES, strict=False):
            points = [(entry["step"], entry[metric]) for entry in metrics if metric in entry]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            is_sparse = len(points) < 40
            axes.plot(steps, values, color=colour, linestyle=line, marker=marker if is_sparse else None, label=name)
            told.append(f"{name} goes from {values[0]:.3g} at step {steps[0]} to {values[-1]:.3g} at step {steps[-1]}")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    alt = f"{title}, by optimizer step: {'; '.join(told)}."
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    write_atomically(path.with_suffix(".txt"), lambda temporary: temporary.write_text(alt + "\n"))
    return alt
