"""A class of real notebooks from submission to gradebook, page and table."""

import csv
import io
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from autograder import gradebook
from autograder.course import Course
from autograder.export import FORMATS, export
from autograder.grading import grade_course
from autograder.pipeline import Result
from autograder.report import write_report
from puzzles import catalog
from tests.conftest import PUZZLE, SEED, Command, SampleClass

PARTS = catalog.puzzle(PUZZLE).parts


def result_of(sample: SampleClass, student: str) -> Result:
    return sample.graded[student].result


def lost(result: Result) -> set[str]:
    return {verdict.part for verdict in result.verdicts if verdict.status != "passed"}


def test_the_reference_earns_everything_and_a_blank_nothing(sample):
    assert result_of(sample, "ada_reference").score == 100
    blank = result_of(sample, "ben_blank")
    assert blank.score == 0
    assert {verdict.status for verdict in blank.verdicts} == {"unsolved"}


def test_half_done_earns_its_half(sample):
    done = PARTS[: len(PARTS) // 2]
    assert result_of(sample, "cleo_half_done").score == sum(part.points for part in done)


def test_a_plausible_mistake_costs_its_part_and_is_explained(sample):
    result = result_of(sample, "dan_plausible")
    assert len(lost(result)) == 2
    for verdict in result.verdicts:
        if verdict.part in lost(result):
            assert f"seed {SEED}" in verdict.message
            assert "expected" in verdict.message


def test_cheating_earns_nothing(sample):
    result = result_of(sample, "eve_cheating")
    assert result.score == 0
    assert any("Agreeable" in verdict.message for verdict in result.verdicts)


def test_a_crash_costs_what_comes_after_it_and_says_where(sample):
    result = result_of(sample, "finn_crashing")
    before = PARTS[: len(PARTS) // 2]
    assert result.score == sum(part.points for part in before)
    assert f"The kernel died in cell '{PARTS[len(PARTS) // 2].id}'" in result.notes[0]


def test_an_endless_loop_costs_only_its_part(sample):
    result = result_of(sample, "gus_never_ending")
    assert lost(result) == {PARTS[0].id}
    assert "stopped after" in result.verdicts[0].message


def test_a_damaged_file_is_refused_in_one_sentence(sample):
    result = result_of(sample, "hal_damaged")
    assert (result.status, result.score) == ("refused", 0)
    assert "not JSON" in result.notes[0]
    assert all(verdict.message == result.notes[0] for verdict in result.verdicts)


def test_the_gradebook_says_the_same(sample):
    with Gradebook(sample.course.db_url) as book:
        for student, graded in sample.graded.items():
            submission = book.find_submission(PUZZLE, student)
            assert submission.score == graded.result.score
            assert submission.max_score == 100


def test_the_written_answer_waits_for_a_person(sample):
    scores = gradebook.scores(sample.course, PUZZLE)
    assert scores["ada_reference"]["needs_manual_grade"]
    assert not scores["ben_blank"]["needs_manual_grade"]


def test_graded_notebooks_hold_the_referees_report(sample):
    path = sample.course.autograded(sample.graded["eve_cheating"].submission)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.id.startswith("test-")]
    assert len(cells) == len(PARTS)
    for cell in cells:
        text, score = cell.outputs
        assert score.data["text/plain"] == "0.0"
        assert "0 of" in text.text


def test_every_submission_has_a_log(sample):
    for student, graded in sample.graded.items():
        text = (sample.course.root / "logs" / student / f"{PUZZLE}.log").read_text()
        assert f"{graded.result.status}: {graded.result.score:g} of 100 points" in text
        assert f"seed {SEED}" in text
        assert all(verdict.message in text for verdict in graded.result.verdicts)
        assert all(note in text for note in graded.result.notes)
    log = (sample.course.root / "logs" / "gus_never_ending" / f"{PUZZLE}.log").read_text()
    first = PARTS[0]
    seconds = float(next(line for line in log.splitlines() if first.title in line).split(", ")[-1].removesuffix(" s"))
    assert seconds > 10, "the log says where the time went"


def test_a_rerun_grades_nothing_twice_and_a_changed_file_again(sample, tmp_path):
    course = copy_of(sample, tmp_path, "ada_reference", "ben_blank")
    again = list(grade_course(course, list(course.submissions()), SEED + 1))
    assert [each.fresh for each in again] == [False, False]
    assert [each.result.score for each in again] == [100, 0]
    folder = course.root / "submitted" / "ben_blank" / PUZZLE
    shutil.copy(course.root / "submitted" / "ada_reference" / PUZZLE / f"{PUZZLE}.ipynb", folder)
    again = list(grade_course(course, list(course.submissions()), SEED))
    assert {each.submission.student: (each.fresh, each.result.score) for each in again} == {
        "ada_reference": (False, 100),
        "ben_blank": (True, 100),
    }


@pytest.mark.slow
def test_damage_of_every_kind_gives_a_grade_or_a_sentence(sample, tmp_path):
    """Renamed, stripped, doubled and reordered submissions keep their points; the neighbours keep theirs."""
    course = copy_of(sample, tmp_path, "ada_reference")
    reference = (course.root / "submitted" / "ada_reference" / PUZZLE / f"{PUZZLE}.ipynb").read_text()

    def submit(student: str, text: str, name: str = f"{PUZZLE}.ipynb") -> None:
        folder = course.root / "submitted" / student / PUZZLE
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    submit("renamed", reference, "final (2).ipynb")
    stripped = json.loads(reference)
    for cell in stripped["cells"]:
        cell["metadata"] = {}
    submit("stripped", json.dumps(stripped))
    doubled = json.loads(reference)
    doubled["cells"] = [copy for cell in doubled["cells"] for copy in (cell, cell)]
    submit("doubled", json.dumps(doubled))
    (course.root / "submitted" / "empty" / PUZZLE).mkdir(parents=True)
    submit("two_files", reference, "a.ipynb")
    submit("two_files", reference, "b.ipynb")
    (course.root / "submitted" / "a_folder" / PUZZLE / f"{PUZZLE}.ipynb").mkdir(parents=True)

    graded = grade_course(course, list(course.submissions()), SEED, jobs=2)
    outcome = {each.submission.student: (each.result.score, " ".join(each.result.notes)) for each in graded}
    assert outcome["ada_reference"] == (100, "")
    assert outcome["renamed"] == (100, "")
    assert outcome["stripped"] == (100, "")
    assert outcome["doubled"][0] == 100
    assert "more than once" in outcome["doubled"][1]
    assert outcome["empty"] == (0, f"The submission has no notebook: hand in one file, {PUZZLE}.ipynb.")
    assert "2 notebooks" in outcome["two_files"][1]
    assert "no notebook" in outcome["a_folder"][1]


def test_a_late_submission_is_recorded_with_its_timestamp(sample, tmp_path):
    course = copy_of(sample, tmp_path, "hal_damaged")
    folder = course.root / "submitted" / "hal_damaged" / PUZZLE
    (folder / "timestamp.txt").write_text("2026-01-02 03:04:05 UTC")
    (folder / "submission_secret.txt").write_text("secret")
    list(grade_course(course, list(course.submissions()), SEED, force=True))
    with Gradebook(course.db_url) as book:
        assert str(book.find_submission(PUZZLE, "hal_damaged").timestamp) == "2026-01-02 03:04:05"
    kept = {path.name for path in course.autograded(next(course.submissions())).parent.iterdir()}
    assert {"timestamp.txt", "submission_secret.txt"} <= kept, "nbgrader's exchange needs both"


def test_the_report_shows_everyone_and_escapes_what_they_wrote(sample, tmp_path):
    course = copy_of(sample, tmp_path, "eve_cheating")
    hostile = course.root / "submitted" / "<img src=x onerror=alert(1)>" / PUZZLE
    shutil.copytree(course.root / "submitted" / "eve_cheating" / PUZZLE, hostile)
    (hostile / f"{PUZZLE}.ipynb").write_text("damaged")
    list(grade_course(course, list(course.submissions()), SEED))
    page = write_report(course, [PUZZLE]).read_text()
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "not JSON" in page
    whole = write_report(sample.course, [PUZZLE]).read_text()
    for student in sample.graded:
        assert student in whole
    assert "Likely mistake" in whole


@pytest.mark.parametrize("form", FORMATS)
def test_exports_carry_every_score(sample, form):
    text = export(sample.course, [PUZZLE], form)
    if form == "json":
        assert json.loads(text)[PUZZLE]["ada_reference"]["score"] == 100
        return
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1
    row = next(row for row in rows if "ada_reference" in row)
    assert "100" in row


def test_the_grade_command_prints_one_json_object(sample, tmp_path, run: Command):
    course = copy_of(sample, tmp_path, "ben_blank", "hal_damaged")
    done = run("autograder", "grade", "--course", course.root, "--json", "--seed", SEED, "--force")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["seed"] == SEED
    assert [(s["student"], s["score"], s["max"], s["status"]) for s in document["submissions"]] == [
        ("ben_blank", 0, 100, "graded"),
        ("hal_damaged", 0, 100, "refused"),
    ]
    assert [part["id"] for part in document["submissions"][0]["parts"]] == [part.id for part in PARTS]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grade", "--course", "/nowhere"], "no course folder"),
        (["grade", "--assignment", "99_none"], "no assignment '99_none'"),
        (["grade", "--jobs", "0"], "--jobs 0"),
        (["release", "99_none"], "no assignment '99_none'"),
        (["export", "--format", "xml"], "invalid choice"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words, run: Command):
    done = run("autograder", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def copy_of(sample: SampleClass, target: Path, *students: str) -> Course:
    """A copy of the graded course with only these students' submissions, to do things to."""
    root = target / "course"
    shutil.copytree(sample.course.root, root)
    for folder in (root / "submitted").iterdir():
        if folder.name not in students:
            shutil.rmtree(folder)
    return Course(root)
