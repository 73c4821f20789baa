"""Settings for stock nbgrader in this folder: `nbgrader generate_assignment`, `autograde`, Formgrader and the rest."""

from pathlib import Path

from autograder.course import configure

configure(get_config(), Path(__file__).parent)  # noqa: F821  (nbgrader defines get_config)
