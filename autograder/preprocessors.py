"""Our steps inside stock nbgrader: `nbgrader autograde` uses them through nbgrader_config.py."""

from pathlib import Path

import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from autograder.rebuild import rebuild
from autograder.template import template


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
