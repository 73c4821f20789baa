"""A course folder as nbgrader lays it out, and the nbgrader settings the course needs."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nbgrader.apps import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config, PyFileConfigLoader

from autograder.rebuild import MAX_BYTES
from autograder.template import STUB
from puzzles import catalog
from puzzles.catalog import Puzzle, UserError


def configure(config: Config, course: Path = catalog.ROOT) -> None:
    """Set what stock nbgrader needs to know; a course's nbgrader_config.py calls this. See docs/architecture.md."""
    config.CourseDirectory.course_id = "nanochat_puzzles"
    # the percent scripts hold the solutions: nbgrader would copy them to the students
    config.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "*.py"]
    config.ClearSolutions.code_stub = {"python": STUB}
    # Rebuild does the work of ClearOutput, DeduplicateIds, OverwriteKernelspec and OverwriteCells, and survives damage
    config.Autograde.sanitize_preprocessors = [
        "autograder.preprocessors.Rebuild",
        "nbgrader.preprocessors.CheckCellMetadata",
    ]
    # nbgrader's own, but the notebook runs in a sandbox before a referee
    config.Autograde.autograde_preprocessors = [
        "autograder.preprocessors.Execute",
        "nbgrader.preprocessors.LimitOutput",
        "nbgrader.preprocessors.SaveAutoGrades",
        "nbgrader.preprocessors.AssignLatePenalties",
        "nbgrader.preprocessors.CheckCellMetadata",
        "autograder.rubric.ShowRubrics",
    ]
    if percent := catalog.settings(course).late_percent_per_day:
        config.AssignLatePenalties.plugin_class = "autograder.late.PercentPerDay"
        config.PercentPerDay.percent = percent
    config.GenerateFeedback.preprocessors = [
        "autograder.rubric.HideRubrics",
        "nbgrader.preprocessors.GetGrades",
        "nbgrader.preprocessors.ClearHiddenTests",
        "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
    ]


@dataclass(frozen=True)
class Submission:
    """What one student handed in for one assignment: a folder."""

    student: str
    assignment: str
    folder: Path

    def read(self) -> bytes:
        """The notebook's bytes. UserError if there is not exactly one notebook to take."""
        named = self.folder / f"{self.assignment}.ipynb"
        found = [named] if named.is_file() else sorted(each for each in self.folder.glob("*.ipynb") if each.is_file())
        if len(found) != 1:
            what = "no notebook" if not found else f"{len(found)} notebooks, none of them called {named.name}"
            raise UserError(f"The submission has {what}: hand in one file, {named.name}.")
        if found[0].is_symlink() or self.folder.is_symlink():
            raise UserError(f"The submission is a link: hand in the file itself, {named.name}.")
        try:
            with found[0].open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"The submitted file {found[0].name} cannot be read: {error.strerror}.") from None

    def timestamp(self) -> list[bytes]:
        """What nbgrader's timestamp.txt says; nothing if there is none."""
        file = self.folder / "timestamp.txt"
        return [file.read_bytes()] if file.is_file() else []


class Course:
    """A course folder: source/, release/, submitted/<student>/<assignment>/, autograded/, gradebook.db."""

    def __init__(self, root: Path = catalog.ROOT) -> None:
        self.root = root.resolve()
        if not (self.root / "source").is_dir() and not (self.root / catalog.COURSE_FILE).is_file():
            raise UserError(
                f"{root} is no course folder: it has neither source/ nor {catalog.COURSE_FILE}. "
                "Name one with --course DIR."
            )
        if not shutil.which("alembic"):
            # nbgrader runs alembic by name, and a virtual environment need not be activated to be used
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

    @cached_property
    def config(self) -> Config:
        """The settings of the course's own nbgrader_config.py; without one, the course's defaults."""
        if (self.root / "nbgrader_config.py").exists():
            return PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config()
        config = Config()
        configure(config, self.root)
        return config

    @cached_property
    def nbgrader(self) -> NbGraderAPI:
        """nbgrader's own API over this folder."""
        directory = CourseDirectory(config=self.config, root=str(self.root))
        return NbGraderAPI(directory, config=self.config)

    @property
    def db_url(self) -> str:
        return self.nbgrader.coursedir.db_url

    def assignments(self) -> list[str]:
        """The puzzles this course gives: what its course.toml says; without one, those it has a source notebook of."""
        says_so = (self.root / catalog.COURSE_FILE).exists()
        chosen = [puzzle.id for puzzle in catalog.puzzles(self.root)]
        return [name for name in chosen if says_so or catalog.source_notebook(name, self.root).exists()]

    def puzzle(self, assignment: str) -> Puzzle:
        """A puzzle with the points it has in this course."""
        return catalog.puzzle(assignment, self.root)

    def require_success(self, outcome: dict[str, Any], purpose: str) -> None:
        """Raise UserError if a call of nbgrader's API failed, with the reason from its log."""
        if not outcome["success"]:
            log = f"{outcome.get('log') or ''}\n{outcome.get('error') or ''}"
            reasons = re.findall(r"^\s*(?:\w+\.)*\w+(?:Error|Exception): .+$", log, re.MULTILINE)
            raise UserError(f"nbgrader could not {purpose}: {reasons[0].strip() if reasons else log.strip()[-300:]}")

    def submissions(self, assignment: str | None = None, student: str | None = None) -> Iterator[Submission]:
        """What has been handed in, in the order of names."""
        known = set(self.assignments())
        for folder in catalog.submission_folders(self.root, assignment, student):
            if folder.name in known:
                yield Submission(folder.parent.name, folder.name, folder)

    def autograded(self, submission: Submission) -> Path:
        """Where the graded notebook of a submission lies."""
        return self.root / "autograded" / submission.student / submission.assignment / f"{submission.assignment}.ipynb"


def digest(*parts: bytes) -> str:
    """A name for exactly these bytes."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()
