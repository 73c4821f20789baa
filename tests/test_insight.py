"""What the dashboard tells about the sample class, against what is known of who is in it."""

import hashlib

import pytest

from autograder import insight
from autograder.report import graded_rows, summaries
from autograder.sandbox import Limits
from puzzles import catalog
from puzzles.show import LOOKS
from tests.conftest import PUZZLE, SEED


@pytest.fixture(scope="module")
def rows(sample):
    return graded_rows(sample.course, PUZZLE)


def test_every_lost_part_is_one_mistake_of_one_student(rows):
    found = insight.mistakes(rows)
    lost = [(row.submission.student, v.title) for row in rows for v in row.result.verdicts if v.status != "passed"]
    assert sorted((student, each.part) for each in found for student in each.students) == sorted(lost)
    counts = [len(each.students) for each in found]
    assert counts == sorted(counts, reverse=True)
    plain = {word for _, word, _ in LOOKS.values()}
    recognised = [each for each in found if each.reason not in plain]
    assert any("dan_plausible" in each.students for each in recognised), "dan's mistakes are well known"
    first_of_equal = [each.reason in plain for each in found if len(each.students) == 1]
    assert first_of_equal == sorted(first_of_equal)


def test_the_time_of_a_part_is_known_to_those_who_reached_it(rows):
    took = insight.part_seconds(rows)
    assert list(took) == [part.title for part in catalog.puzzle(PUZZLE).parts]
    assert all(0 < seconds < 5 for seconds in took.values()), "a median does not see the one endless loop"
    endless = next(row.result for row in rows if row.submission.student == "gus_never_ending")
    first = catalog.puzzle(PUZZLE).parts[0].id
    assert endless.part_seconds[first] > 10
    assert sum(endless.part_seconds.values()) < endless.seconds
    refused = next(row.result for row in rows if row.submission.student == "hal_damaged")
    assert refused.part_seconds == {}
    assert insight.part_seconds([]) == {}


def test_stuck_is_who_tried_and_lacks_what_most_have(rows):
    found = {each.student: each for each in insight.stuck(rows)}
    easy = {part.title for part in summaries([row.result for row in rows]) if part.share > insight.MOST}
    assert easy, "most of the sample class has something"
    assert not {"ada_reference", "ben_blank"} & found.keys(), "one lacks nothing, the other has not begun"
    assert "eve_cheating" in found
    for each in found.values():
        assert each.verdicts and {verdict.title for verdict in each.verdicts} <= easy
    assert insight.stuck([]) == []


def test_aliases_give_nobody_away_and_do_not_change():
    names = ["ada", "ben", "cleo", "dan", "eve", "finn"]
    found = insight.aliases(names)
    assert sorted(found.values()) == [f"student {i}" for i in range(1, 7)]
    assert found == insight.aliases(reversed(names * 2))
    assert list(found) != names, "the order of the names would give them away"


def test_a_preview_says_what_regrading_would_and_records_nothing(sample, rows):
    def fingerprint() -> dict[str, str]:
        files = [path for path in sample.course.root.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = fingerprint()
    by_student = {row.submission.student: row for row in rows}
    for student, seed in (("dan_plausible", SEED), ("cleo_half_done", SEED + 1)):
        row = by_student[student]
        again = insight.preview(sample.course, row.submission, seed, Limits(cell_seconds=15))
        assert again.score == row.result.score
        assert [v.status for v in again.verdicts] == [v.status for v in row.result.verdicts]
        assert f"seed {seed}" in again.verdicts[0].message
    damaged = insight.preview(sample.course, by_student["hal_damaged"].submission, 0)
    assert damaged.status == "refused" and damaged.score == 0
    assert fingerprint() == before
