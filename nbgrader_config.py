"""Settings for stock nbgrader in this folder: `nbgrader generate_assignment`, `autograde`, Formgrader and the rest."""

from autograder.course import configure

configure(get_config())  # noqa: F821  (nbgrader defines get_config)
