"""The late penalty of `late_percent_per_day` in course.toml, as a plugin of nbgrader's."""

import math

from nbgrader.plugins import LateSubmissionPlugin
from traitlets import Float

SECONDS_PER_DAY = 86_400


class PercentPerDay(LateSubmissionPlugin):
    """Takes a share of the score for each day begun after the due date; nobody ends below 0."""

    percent = Float(0.0, help="Percent of the score, for each day begun.").tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float:
        """The points taken off."""
        days = math.ceil(total_seconds_late / SECONDS_PER_DAY)
        return score * min(1.0, days * self.percent / 100)
