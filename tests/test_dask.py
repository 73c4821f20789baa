"""The same class on a real cluster of processes, one of which dies in the middle."""

import os
import signal

import pytest

from autograder import gradebook
from autograder.course import Course
from autograder.grading import grade_course
from puzzles.catalog import UserError
from tests.test_crash import SEED, STUDENTS, assert_complete, course, expected

distributed = pytest.importorskip("distributed")
assert course  # a fixture


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_nobody_a_point(course: Course):
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        with distributed.Client(cluster) as client:
            workers = client.run(os.getpid)
        graded = grade_course(course, list(course.submissions()), SEED, dask=cluster.scheduler_address)
        scores = {}
        for number, each in enumerate(graded):
            scores[each.submission.student] = each.result.score
            assert each.result.isolated
            if number == 1:
                os.kill(next(iter(workers.values())), signal.SIGKILL)
    assert scores == {f"student_{n}": expected(n) for n in range(STUDENTS)}
    assert_complete(course)


def test_no_scheduler_is_one_sentence(course: Course):
    with pytest.raises(UserError, match="No dask scheduler answers at"):
        list(grade_course(course, list(course.submissions()), SEED, dask="tcp://127.0.0.1:9"))
    assert gradebook.recorded(course, next(course.submissions())) is None
