"""The numbers of a run by step: a file of JSON lines beside its checkpoints, and Weights & Biases where asked for."""

import json
from pathlib import Path
from typing import Any

from nanochat.common import DummyWandb, InputError, get_dist_info, write_atomically

FILE_NAME = "metrics.jsonl"


def start_wandb(run: str, project: str, config: dict[str, Any]) -> Any:
    """A Weights & Biases run named `run`; a stand-in that ignores everything for "dummy" and on ranks other than 0.

    Raises InputError if the optional `wandb` package is not installed.
    """
    if run == "dummy" or get_dist_info()[1] != 0:
        return DummyWandb()
    try:
        import wandb
    except ImportError as error:
        raise InputError(f"--run {run} logs to Weights & Biases: `pip install wandb`, or leave --run out.") from error
    return wandb.init(project=project, name=run, config=config)


class MetricsLog:
    """Appends to metrics.jsonl in `folder` (made if missing), on rank 0 only, and passes everything on to `wandb_run`.

    A run that starts at `first_step` keeps what is there of the steps before and drops the rest, so that after an
    interruption the file reads as if there had been none.
    """

    def __init__(self, folder: Path, first_step: int, wandb_run: Any) -> None:
        self.wandb_run = wandb_run
        self.path = folder / FILE_NAME if get_dist_info()[1] == 0 else None
        if self.path is not None:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_metrics(folder) if line["step"] < first_step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(self.path, lambda path: path.write_text(text))

    def log(self, step: int, **values: float) -> None:
        """Add a line of values measured at `step`."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.wandb_run.log({"step": step, **values})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in `folder`, in order; none if it is not there. A line cut short at the end is left
    out: a run that was killed may leave one."""
    path = folder / FILE_NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
