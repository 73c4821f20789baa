"""Our steps inside stock nbgrader: `nbgrader autograde` and Formgrader use them through nbgrader_config.py."""

import atexit
import os
from functools import cache
from pathlib import Path

import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Float

from autograder.exam import Exam, fresh_seed
from autograder.pipeline import examine
from autograder.rebuild import rebuild
from autograder.sandbox import Limits, Sandbox, losses
from autograder.template import template
from autograder.warmth import sandbox_for
from puzzles import catalog
from puzzles.submit import SEED_VARIABLE


class Rebuild(NbGraderPreprocessor):
    """Lays the submitted code into the instructor's notebook, so that whatever happened to the rest of it is undone."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        """The rebuilt notebook; notes on what was put right go to the log."""
        # nbgrader changes into the course folder while it converts
        instructor = template(resources["nbgrader"]["assignment"], Path.cwd())
        rebuilt, notes = rebuild(instructor, nbformat.writes(nb).encode())
        for note in notes:
            self.log.warning(note)
        return rebuilt, resources


class Execute(NbGraderPreprocessor):
    """Runs the rebuilt notebook in a sandbox, examined by a referee outside of it, in place of nbgrader's own step."""

    cell_seconds = Float(60.0, help="Seconds a cell may take.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        """The executed notebook with the ledger's scores; what went wrong goes to the log."""
        assignment = resources["nbgrader"]["assignment"]
        sandbox = _sandbox(assignment, Path.cwd())
        result = examine(nb, _exam(assignment), Limits(cell_seconds=self.cell_seconds), sandbox)
        for note in result.notes:
            self.log.warning(note)
        if not result.isolated:
            self.log.warning("Submissions are not isolated on this machine: %s", losses(result.missing))
        return result.notebook, resources


@cache
def _exam(assignment: str) -> Exam:
    """The same cases for everyone this process grades."""
    seed = os.environ.get(SEED_VARIABLE)
    return Exam(catalog.puzzle(assignment, Path.cwd()), int(seed) if seed else fresh_seed())


@cache
def _sandbox(assignment: str, course: Path) -> Sandbox:
    """Kept warm for as long as this process, a command or Formgrader's server, lives."""
    sandbox = sandbox_for(assignment, course)
    atexit.register(sandbox.close)
    return sandbox
