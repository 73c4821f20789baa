"""Run a learner's notebook for its visible checks or its hidden tests; how it looks is others' business."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzles import catalog, progress, workspace
from puzzles.catalog import Puzzle, UserError
from puzzles.show import MIME

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from autograder.execute import Run
    from autograder.sandbox import Limits, Sandbox

Execute = Callable[["NotebookNode"], "Run"]


@dataclass(frozen=True)
class Checked:
    """How the visible checks of a notebook ended: by part what the check displayed, and notes for the learner."""

    shown: dict[str, dict[str, Any]]
    notes: tuple[str, ...]

    @property
    def passed(self) -> dict[str, bool]:
        return {part: data["status"] == "passed" for part, data in self.shown.items()}


def visible_checks(puzzle: Puzzle, notebook: Path, execute: Execute) -> Checked:
    """Run a notebook with `execute` and see what its visible checks say. UserError if it is no notebook."""
    import nbformat

    from autograder.rebuild import Refused, rebuild

    raw = workspace.read(notebook)
    frame = nbformat.reads(workspace.read(catalog.release_notebook(puzzle.id)).decode(), as_version=4)
    try:
        rebuilt, notes = rebuild(frame, raw)
    except Refused as refusal:
        raise UserError(f"{notebook}: {refusal}") from None
    run = execute(rebuilt)
    shown = {data["part"]: data for cell in run.notebook.cells if (data := _outcome(cell))}
    if run.trouble:
        notes.append(f"{run.trouble} Look there for what ends the process, never ends, or takes too much memory.")
    silent = {"status": "missing", "message": ""}
    return Checked({part.id: shown.get(part.id, silent) for part in puzzle.parts}, tuple(notes))


def _outcome(cell: NotebookNode) -> dict[str, Any] | None:
    """What a visible check displayed in this cell, or None."""
    for output in cell.get("outputs", []):
        data = output.get("data", {}).get(MIME)
        if data and "max" not in data:
            return data
    return None


def in_kernel(notebook: NotebookNode) -> Run:
    """Run as JupyterLab would: everything can be imported, nothing is isolated."""
    from autograder.kernel import execute

    return execute(notebook, limits())


class Verifier:
    """The hidden tests of a puzzle, in a warm sandbox. Use it in a `with`. The same cases are used for every run; they
    come from `seed`, a fresh one if it is None."""

    def __init__(self, puzzle: Puzzle, seed: int | None = None) -> None:
        from autograder.warmth import sandbox_for

        # it warms up in a process of its own while this one imports the oracle
        self.sandbox: Sandbox = sandbox_for(puzzle.id)
        from autograder.exam import Exam, fresh_seed
        from autograder.template import template

        self.puzzle = puzzle
        self.exam = Exam(puzzle.id, fresh_seed() if seed is None else seed)
        self.template = template(puzzle.id)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.sandbox.close()

    @cached_property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def verify(self, notebook: Path) -> dict[str, Any]:
        """The verdicts on a notebook, as `--verify --json` prints them. UserError if it is no notebook."""
        from autograder.pipeline import grade, verdict_json

        result = grade(self.template, workspace.read(notebook), self.exam, limits(), self.sandbox)
        if result.status == "refused":
            raise UserError(f"{notebook}: {result.notes[0]}")
        return {
            "puzzle": self.puzzle.id,
            "seed": self.exam.seed,
            "device": self.device,
            "isolated": result.isolated,
            "missing": list(result.missing),
            "score": result.score,
            "max": result.max,
            "parts": [verdict_json(verdict) for verdict in result.verdicts],
            "notes": list(result.notes),
        }

    def without_plots(self, notebook: NotebookNode) -> Run:
        """Run for the visible checks alone, in the warm sandbox."""
        from autograder.execute import execute
        from autograder.variants import PLOT_TAG

        notebook.cells = [cell for cell in notebook.cells if PLOT_TAG not in cell.metadata.get("tags", [])]
        return execute(notebook, limits(), self.sandbox)


def limits() -> Limits:
    """What a learner's own run may use: every core."""
    from autograder.sandbox import Limits

    return Limits(threads=os.cpu_count() or 1)


def remember(puzzle: Puzzle, notebook: Path, found: Checked | dict[str, Any]) -> None:
    """Save how visible checks or hidden tests ended, if the notebook is the learner's own. UserError if that fails."""
    if notebook != workspace.own_notebook(puzzle):
        return
    with progress.changing(puzzle.id) as state:
        if isinstance(found, Checked):
            state.check(found.passed)
        else:
            state.earn({part["id"]: part["points"] for part in found["parts"]})
