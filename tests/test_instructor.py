"""An instructor's way, from an empty folder to released grades: docs/instructor.md run from top to bottom."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from autograder import demo
from autograder.collect import Collected, collect
from autograder.course import Course
from autograder.export import export
from autograder.late import PercentPerDay
from autograder.report import write_report
from autograder.roster import Outcome, enrol, students
from autograder.sandbox import Limits
from autograder.source import notebook_from_script
from autograder.workplace import Unit, Workplace
from puzzles import catalog
from puzzles.catalog import UserError
from tests.conftest import PUZZLE, Command

DOC = (catalog.ROOT / "docs" / "instructor.md").read_text()
BLOCK = re.compile(r"^```(sh|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = catalog.puzzle(PUZZLE).title
PART = catalog.puzzle(PUZZLE).parts[0].id
POINTS = catalog.puzzle(PUZZLE).points + 10  # the course of the page gives the first part 10 more

CANVAS_ROSTER = '''Student,ID,SIS User ID,SIS Login ID,Section
    Points Possible,,,,
"Lovelace, Ada",1001,,ada,Monday
"O'Brien, ""Ben""",1002,,ben,Monday
"Müller, Cléo",1003,,cleo,Tuesday
"Gone, Dan",1004,,dan,Tuesday
"Student, Test",1999,,x,Monday
'''


def as_zip(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# ----- the page


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A course taught by the page: its folder, and what the commands said."""
    clone = tmp_path_factory.mktemp("teaching") / "clone"
    clone.mkdir()
    work = clone.parent / "spring"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(catalog.ROOT),
        "COLUMNS": "200",
    }
    said = []
    for kind, block in BLOCK.findall(DOC):
        if kind == "toml":
            (work / catalog.COURSE_FILE).write_text(block)
            hand_in(work)
            continue
        for command in block.splitlines():
            done = subprocess.run(
                ["bash", "-c", command], cwd=clone if not work.exists() or command.startswith("cd") else work,
                env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            # the first collecting leaves a file that is nobody's, which is what the page tells
            assert done.returncode in (0, 1), f"{command}: {done.stderr}"
            assert "Traceback" not in done.stderr
            said.append(f"{command}\n{done.stdout}")
    return work, said


def hand_in(folder: Path) -> None:
    """What the page takes for granted: the class list, what the LMS exports, and whose the odd file is."""
    (folder / "students.csv").write_text(CANVAS_ROSTER)
    reference, blank = (demo.STUDENTS[name](PUZZLE) for name in ("ada_reference", "ben_blank"))
    as_zip(
        folder / "canvas.zip",
        {
            "lovelaceada_1001_501_01_transformer_blueprint.ipynb": blank,
            "lovelaceada_1001_502_01_transformer_blueprint-1.ipynb": reference,
            "obrienben_1002_503_01_transformer_blueprint.ipynb": blank,
            "somebody_7777_504_homework.ipynb": reference,
        },
    )
    odd = "somebody_7777_504_homework.ipynb"
    (folder / "whose.csv").write_text(f"file;id;submitted\n{odd};cleo;2026-10-03T23:58:00+02:00\n")


@pytest.fixture
def course(taught: tuple[Path, list[str]]) -> Course:
    return Course(taught[0])


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.slow
def test_the_page_ends_with_grades_for_the_lms(taught, course: Course):
    """Points of course.toml, two days late at ten percent a day, and nothing for whom there is nothing."""
    rows = rows_of((course.root / "grades.csv").read_text())
    assert rows == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", TITLE],
        ["Points Possible", "", "", "", "", str(POINTS)],
        ["Gone, Dan", "1004", "", "dan", "", ""],
        ["Lovelace, Ada", "1001", "", "ada", "", str(POINTS)],
        ["Müller, Cléo", "1003", "", "cleo", "", f"{POINTS * 0.8:g}"],
        ['O\'Brien, "Ben"', "1002", "", "ben", "", "0"],
    ]


@pytest.mark.slow
def test_points_are_the_same_wherever_they_are_written(taught, course: Course):
    released = nbformat.read(catalog.release_notebook(PUZZLE, course.root), as_version=4)
    text = "\n".join(cell.source for cell in released.cells)
    assert f"· {POINTS} points in" in text
    assert "(20 points, 5 minutes)" in text
    assert "# 20 points." in text
    with Gradebook(course.db_url) as book:
        assert book.find_assignment(PUZZLE).max_score == POINTS
        assert book.find_assignment(PUZZLE).duedate == datetime(2026, 10, 1, 21, 59)
    assert course.puzzle(PUZZLE).points == POINTS
    scores = json.loads(export(course, [PUZZLE], "json"))[PUZZLE]
    assert {entry["max_score"] for entry in scores.values()} == {POINTS}
    assert f"{POINTS} points in" in (course.root / "reports" / "index.html").read_text()


@pytest.mark.slow
def test_every_command_says_what_it_did(taught, course: Course):
    said = {block.split("\n", 1)[0]: block for block in taught[1]}
    assert "4 new, 0 changed" in said["python -m autograder roster students.csv"]
    collected = f"python -m autograder collect canvas.zip --assignment {PUZZLE}"
    assert "somebody_7777_504_homework.ipynb: it fits nobody" in said[collected]
    assert "lovelaceada_1001_501_01_transformer_blueprint.ipynb: ada has a later one" in said[collected]
    assert "(by LMS id, new)" in said[collected]
    mapped = said[f"{collected} --map whose.csv"]
    assert "2 as before, 1 new" in mapped
    assert "Nothing from 1 on the class list: dan." in mapped


@pytest.mark.slow
def test_the_report_lists_who_handed_in_nothing(taught, course: Course):
    page = (course.root / "reports" / "index.html").read_text()
    assert "Handed in nothing: dan (Dan Gone)." in page
    assert page.count("<h1>") == 1
    assert page.count("<table>") == page.count("<caption>")


@pytest.mark.slow
def test_the_mark_scheme_reaches_the_marker_and_nobody_else(taught, course: Course):
    """Ben has answered nothing, so what he could see of it would come from us. (Ada's answer is the scheme.)"""
    scheme, heading = "one point each for (a), (b) and (c)", "For the marker only"
    assert scheme in catalog.source_notebook(PUZZLE, course.root).read_text()
    graded = (course.root / "autograded" / "ben" / PUZZLE / f"{PUZZLE}.ipynb").read_text()
    assert scheme in graded and heading in graded
    assert scheme not in catalog.release_notebook(PUZZLE, course.root).read_text()
    assert scheme not in (course.root / "feedback" / "ben" / PUZZLE / f"{PUZZLE}.html").read_text()
    assert not [page for page in (course.root / "feedback").rglob("*.html") if heading in page.read_text()]


@pytest.mark.slow
def test_feedback_has_messages_and_plots_and_nothing_hidden_or_of_others(taught, course: Course):
    pages = {page.parent.parent.name: page.read_text() for page in (course.root / "feedback").rglob("*.html")}
    assert pages.keys() == {"ada", "ben", "cleo"}
    assert f"not solved yet (0 of {course.puzzle(PUZZLE).parts[0].points} points)" in pages["ben"]
    assert "data:image/png;base64" in pages["ada"]
    for student, page in pages.items():
        assert "HIDDEN TESTS" not in page and "puzzles.submit" not in page
        others = {"ada": ("cleo", "Müller"), "ben": ("Lovelace", "cleo"), "cleo": ("Lovelace", "O'Brien")}
        assert not [name for name in others[student] if name in page]


@pytest.mark.slow
def test_changed_points_and_a_fixed_puzzle_are_graded_again_and_marks_by_hand_stay(
    taught, course: Course, tmp_path: Path, run: Command
):
    root = tmp_path / "spring"
    shutil.copytree(course.root, root)
    with Gradebook(Course(root).db_url) as book:
        grade = next(
            g for g in book.find_submission_notebook(PUZZLE, PUZZLE, "ada").grades if g.cell.name == "why_windows"
        )
        grade.manual_score, grade.needs_manual_grade = 3.0, False
        comments = book.find_submission_notebook(PUZZLE, PUZZLE, "ada").comments
        next(c for c in comments if c.cell.name == "why_windows").manual_comment = "Well argued."
        book.db.commit()
    settings = (root / catalog.COURSE_FILE).read_text().replace("widths = 20", "widths = 0")
    (root / catalog.COURSE_FILE).write_text(settings)
    stale = run("autograder", "grade", cwd=root)
    assert stale.returncode == 2
    assert f"run `python -m autograder release {PUZZLE}`" in " ".join(stale.stderr.split())
    script = root / "source" / PUZZLE / f"{PUZZLE}.py"
    script.write_text(
        (catalog.ROOT / "source" / PUZZLE / script.name).read_text().replace("## Why it matters", "## Why it counts")
    )
    assert run("autograder", "release", cwd=root).returncode == 0
    assert "## Why it counts" in catalog.release_notebook(PUZZLE, root).read_text()
    done = run("autograder", "grade", "--student", "ada", "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["submissions"][0]["max"] == POINTS - 20
    with Gradebook(Course(root).db_url) as book:
        assert book.find_submission(PUZZLE, "ada").score == POINTS - 20 + 3
    done = run("autograder", "feedback", PUZZLE, "--student", "ada", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "Well argued." in (root / "feedback" / "ada" / PUZZLE / f"{PUZZLE}.html").read_text()


# ----- the class list


@pytest.fixture(scope="module")
def new_course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course folder with a new gradebook, which takes nbgrader seconds to make."""
    root = tmp_path_factory.mktemp("new")
    (root / "source" / PUZZLE).mkdir(parents=True)
    shutil.copy(catalog.source_notebook(PUZZLE), root / "source" / PUZZLE)
    assert students(Course(root)) == []
    return root


@pytest.fixture
def empty(new_course: Path, tmp_path: Path) -> Course:
    """A course folder in which nothing has happened yet."""
    return Course(Path(shutil.copytree(new_course, tmp_path / "empty")))


def roster(course: Course, text: str | bytes) -> Outcome:
    file = course.root / "students.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return enrol(course, file)


ROSTERS = {
    "nbgrader": "id,first_name,last_name,email,lms_user_id\nada,Ada,Lovelace,ada@uni.edu,1001\n",
    "canvas": 'Student,ID,SIS User ID,SIS Login ID,Section\n,,,,\n"Lovelace, Ada",1001,S1,ada,Monday\n',
    "moodle": "First name;Surname;Username;ID number;Email address\nAda;Lovelace;ada;1001;ada@uni.edu\n",
    "gradescope": "Name\tSID\tEmail\tRole\nAda Lovelace\tada\tada@uni.edu\tStudent\n",
}


@pytest.mark.parametrize("form", ROSTERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_lists_of_every_system_are_read(form: str, encoding: str, empty: Course):
    assert roster(empty, ROSTERS[form].encode(encoding)) == Outcome(1, 0, 0, 0)
    [ada] = students(empty)
    assert (ada.id, ada.name) == ("ada", "Ada Lovelace")
    assert ada.lms_user_id == ("" if form == "gradescope" else "1001")
    assert ada.email == ("" if form == "canvas" else "ada@uni.edu")


def test_a_class_list_again_changes_what_has_changed(empty: Course):
    roster(empty, "id,email,last_name\nada,,Byron\nben,b@uni.edu,B\ncleo,,C\n")
    again = "id,email,last_name\nada,,Lovelace\nben,,B\ndan,,D\n"
    assert roster(empty, again) == Outcome(new=1, changed=1, same=1, others=1)
    assert roster(empty, again) == Outcome(0, 0, 3, 1)
    assert {each.id: each.email for each in students(empty)}["ben"] == "b@uni.edu", "an empty cell erases nothing"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,email\nada,a@b\n,x@y\n", "line 3: no id"),
        ("id\nada\nben\nada\n", "line 4: the id 'ada' once more"),
        ("id\nada\n../../etc\n", "line 3: the id '../../etc' cannot name a folder"),
        ("id\n" + "x" * 200 + "\n", "line 2: more than 128 characters"),
        ("", "lists nobody"),
        (b"id\nm\xfcller\n", "is not UTF-8"),
    ],
)
def test_a_bad_class_list_changes_nothing_and_says_where(text: str | bytes, words: str, empty: Course):
    with pytest.raises(UserError, match=re.escape(words)):
        roster(empty, text)
    assert students(empty) == []


# ----- collecting

CLASS = """id,first_name,last_name,email,lms_user_id
ada,Ada,Lovelace,ada@uni.edu,1001
ben,Ben,O'Brien,ben@uni.edu,1002
s12345,Cléo,Müller,cleo@uni.edu,1003
twin1,Kim,Lee,kim1@uni.edu,1004
twin2,Kim,Lee,kim2@uni.edu,1005
"""
NOTEBOOK = "{}"
GRADESCOPE = """
submission_501:
  :submitters:
  - :name: Ada Lovelace
    :sid: ada
    :email: ada@uni.edu
  - :name: Ben O'Brien
    :sid:
    :email: ben@uni.edu
  :created_at: 2026-10-02 08:30:00.000000000 Z
"""


@pytest.fixture
def listed(empty: Course) -> Course:
    roster(empty, CLASS)
    return empty


def collected(course: Course, files: Mapping[str, str | bytes], mapping: str = "") -> Collected:
    """Collect a zip with these files."""
    (course.root / "map.csv").write_text(mapping)
    source = as_zip(course.root / "export.zip", files)
    return collect(course, source, PUZZLE, course.root / "map.csv" if mapping else None)


def whose(done: Collected) -> dict[str, str]:
    return {file: student for student, (file, _, _) in done.taken.items()}


def submitted(course: Course, student: str) -> str:
    return (course.root / "submitted" / student / PUZZLE / f"{PUZZLE}.ipynb").read_text()


@pytest.mark.parametrize(
    ("name", "student"),
    [
        (f"lovelaceada_1001_502_{PUZZLE}-2.ipynb", "ada"),
        ("lovelaceada_LATE_9_502_x.ipynb", "ada"),
        ("mullercleo_1003_503_Untitled.ipynb", "s12345"),
        ("Ada Lovelace_77_assignsubmission_file_/x.ipynb", "ada"),
        ("Cléo Müller_77_assignsubmission_file_my work.ipynb", "s12345"),
        (f"ben/{PUZZLE}/{PUZZLE}.ipynb", "ben"),
        (f"submitted/ben/{PUZZLE}/{PUZZLE}.ipynb", "ben"),
        ("puzzle one - s12345 (final).ipynb", "s12345"),
        ("Lovelace, Ada (2).ipynb", "ada"),
        ("o'brien_ben.IPYNB", "ben"),
        ("cleo@uni.edu.ipynb", "s12345"),
    ],
)
def test_an_author_is_recognised(name: str, student: str, listed: Course):
    done = collected(listed, {name: NOTEBOOK})
    assert whose(done) == {name: student}
    assert submitted(listed, student) == NOTEBOOK


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("homework.ipynb", "it fits nobody"),
        ("leekim_9_502_x.ipynb", "it fits twin1, twin2 by name"),
        ("Kim Lee_77_assignsubmission_file_/x.ipynb", "it fits twin1, twin2 by name"),
        ("ada and ben.ipynb", "it fits ada, ben by id in the file name"),
        ("canada.ipynb", "it fits nobody"),
    ],
)
def test_nobody_is_guessed_and_the_map_decides(name: str, why: str, listed: Course):
    done = collected(listed, {name: NOTEBOOK})
    assert (done.taken, done.unknown) == ({}, [(name, why)])
    assert not (listed.root / "submitted").exists()
    told = collected(listed, {name: NOTEBOOK}, f"file,id,submitted\n{name},twin2,2026-10-02T10:00+02:00\n")
    assert whose(told) == {name: "twin2"}
    stamp = listed.root / "submitted" / "twin2" / PUZZLE / "timestamp.txt"
    assert stamp.read_text() == "2026-10-02 08:00:00 UTC"


def test_gradescope_tells_the_time_and_the_group(listed: Course):
    files = {"a_1_export/submission_metadata.yml": GRADESCOPE, "a_1_export/submission_501/hw.ipynb": NOTEBOOK}
    done = collected(listed, files)
    assert done.taken.keys() == {"ada", "ben"}
    for student in done.taken:
        stamp = listed.root / "submitted" / student / PUZZLE / "timestamp.txt"
        assert stamp.read_text() == "2026-10-02 08:30:00 UTC"
    assert listed.nbgrader.get_submitted_timestamp(PUZZLE, "ada") == datetime(2026, 10, 2, 8, 30)


def test_a_map_may_give_a_file_to_a_group_and_a_bare_name_only_where_it_is_the_only_one(listed: Course):
    files = {"a_1/submission_metadata.yml": GRADESCOPE, "a_1/submission_501/hw.ipynb": NOTEBOOK}
    told = "file,id\na_1/submission_501/hw.ipynb,twin1\na_1/submission_501/hw.ipynb,twin2\n"
    assert collected(listed, files, told).taken.keys() == {"twin1", "twin2"}
    files = {f"{who}_77_assignsubmission_file_/hw.ipynb": NOTEBOOK for who in ("Ada Lovelace", "Some Body")}
    done = collected(listed, files, "file,id\nhw.ipynb,ben\n")
    assert done.taken.keys() == {"ada"}
    assert done.unknown == [("Some Body_77_assignsubmission_file_/hw.ipynb", "it fits nobody")]


def test_the_latest_attempt_counts_and_what_it_replaces_is_kept(listed: Course):
    first = f"lovelaceada_1001_501_{PUZZLE}.ipynb"
    second = f"lovelaceada_1001_502_{PUZZLE}-1.ipynb"
    done = collected(listed, {first: '{"n": 1}'})
    assert done.taken["ada"][2] == "new"
    done = collected(listed, {first: '{"n": 1}', second: '{"n": 2}'})
    assert done.taken["ada"] == (second, "LMS id", "newer")
    assert done.left_out == [(first, f"ada has a later one, {second}")]
    assert submitted(listed, "ada") == '{"n": 2}'
    assert (listed.root / "replaced" / "ada" / f"{PUZZLE}-1.ipynb").read_text() == '{"n": 1}'
    assert collected(listed, {second: '{"n": 2}'}).taken["ada"][2] == "as before"
    told = collected(listed, {first: "{}"}, f"file,id,submitted\n{first},ada,2020-01-01T00:00Z\n")
    assert told.taken["ada"][2] == "newer", "what lies there has no time"
    told = collected(listed, {second: "{}"}, f"file,id,submitted\n{second},ada,2019-01-01T00:00Z\n")
    assert told.taken["ada"][2] == "older"
    assert submitted(listed, "ada") == "{}"


def test_two_files_of_equal_rank_are_left_to_the_instructor(listed: Course):
    done = collected(listed, {"ada.ipynb": "1", "work of ada.ipynb": "2"})
    assert done.taken == {}
    assert {why for _, why in done.unknown} == {"ada has 2 of them and nothing tells which is the latest"}
    done = collected(listed, {"ada.ipynb": "1", f"ada/{PUZZLE}.ipynb": "2"})
    assert whose(done) == {f"ada/{PUZZLE}.ipynb": "ada"}, "the one that is called like the puzzle"


def test_late_without_a_time_and_nothing_at_all_are_said(listed: Course):
    done = collected(listed, {"lovelaceada_LATE_1001_502_x.ipynb": NOTEBOOK})
    assert done.late == ["ada"]
    assert done.absent == ["ben", "s12345", "twin1", "twin2"]


def test_an_export_is_not_trusted(listed: Course, tmp_path: Path):
    """Names that lead out, links, zips within, other files and foreign alphabets: a sentence each, and no harm."""
    other = next(puzzle.id for puzzle in catalog.puzzles() if puzzle.id != PUZZLE)
    source = as_zip(
        tmp_path / "bad.zip",
        {
            "../../ada.ipynb": "1", "/tmp/ada.ipynb": "1", "ada/work.zip": "PK", "ada/notes.pdf": "1",
            f"ada/{other}.ipynb": "1", "__MACOSX/._ada.ipynb": "1", "ben/ben.ipynb": "fine",
        },
    )  # fmt: skip
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("ada/link.ipynb")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        big = zipfile.ZipInfo("ada/big.ipynb")
        with archive.open(big, "w", force_zip64=True) as file:
            for _ in range(65):
                file.write(bytes(2**20))
    before = {path for path in tmp_path.rglob("*") if "empty" not in path.parts}
    done = collect(listed, source, PUZZLE)
    why = dict(done.left_out)
    assert "leads out" in why["../../ada.ipynb"] and "leads out" in why["/tmp/ada.ipynb"]
    assert "a link" in why["ada/link.ipynb"]
    assert "65 MiB" in why["ada/big.ipynb"]
    assert "zip within" in why["ada/work.zip"]
    assert "no notebook" in why["ada/notes.pdf"]
    assert other in why[f"ada/{other}.ipynb"]
    assert whose(done) == {"ben/ben.ipynb": "ben"}
    assert {path for path in tmp_path.rglob("*") if "empty" not in path.parts} == before


def test_a_folder_is_not_trusted_either(listed: Course, tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "ben").mkdir(parents=True)
    (folder / "ben" / "x.ipynb").write_text(NOTEBOOK)
    (folder / "ada.ipynb").symlink_to("/etc/passwd")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.ipynb")).write_text(NOTEBOOK)
    done = collect(listed, folder, PUZZLE)
    assert whose(done) == {"ben/x.ipynb": "ben"}
    assert sorted(why.split(":")[0] for _, why in done.left_out) == ["it is a link", "its name is not UTF-8"]


def test_a_damaged_member_costs_only_itself(listed: Course):
    source = as_zip(listed.root / "cut.zip", {"ada.ipynb": "a" * 1000, "ben.ipynb": "fine"})
    source.write_bytes(source.read_bytes().replace(b"a" * 1000, b"b" * 1000))
    done = collect(listed, source, PUZZLE)
    assert whose(done) == {"ben.ipynb": "ben"}
    assert "cannot be read" in dict(done.left_out)["ada.ipynb"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_text("no zip"), "no zip that can be read"),
        (lambda path: as_zip(path, {"submission_metadata.yml": "a: [", "x.ipynb": "1"}), "export the submissions"),
    ],
)
def test_what_cannot_be_collected_is_one_sentence(make, words: str, listed: Course, tmp_path: Path):
    make(tmp_path / "export.zip")
    with pytest.raises(UserError, match=words):
        collect(listed, tmp_path / "export.zip", PUZZLE)


def test_collecting_wants_a_class_list(empty: Course, tmp_path: Path):
    with pytest.raises(UserError, match="autograder roster"):
        collect(empty, as_zip(tmp_path / "x.zip", {"ada.ipynb": "1"}), PUZZLE)


# ----- exports


def test_hostile_names_come_out_as_they_went_in(empty: Course):
    """Commas, quotes and newlines are quoted; what a spreadsheet would run as a formula is text."""
    roster(empty, 'id,first_name,last_name,email\nx1,"A ""B"", C","two\nlines",a@b\nx2,=1+1,@sum,+49\n')
    with Gradebook(empty.db_url) as book:
        book.update_or_create_assignment(PUZZLE)
    rows = {form: rows_of(export(empty, [PUZZLE], form)) for form in ("csv", "canvas", "moodle", "gradescope")}
    for table in rows.values():
        assert len({len(row) for row in table}) == 1
        assert not [cell for row in table for cell in row if cell[:1] in "=+-@" and cell]
    assert next(row for row in rows["csv"] if row[0] == "x1")[:4] == ["x1", 'A "B", C', "two\nlines", "a@b"]
    assert next(row for row in rows["gradescope"] if row[2] == "x2")[:4] == ["'=1+1", "'@sum", "x2", "'+49"]
    assert rows["moodle"][0][:5] == ["First name", "Last name", "Username", "ID number", "Email address"]
    entry = json.loads(export(empty, [PUZZLE], "json"))[PUZZLE]["x2"]
    assert (entry["first_name"], entry["score"], entry["handed_in"]) == ("=1+1", 0, False)


def test_a_report_before_any_grade_is_a_page(empty: Course):
    assert "Nothing has been graded yet" in write_report(empty, [PUZZLE]).read_text()


# ----- late, and a course of one's own


@pytest.mark.parametrize(("days", "lost"), [(0.001, 8), (1, 8), (1.1, 16), (9.5, 80), (99, 80)])
def test_each_day_begun_costs_its_share(days: float, lost: float):
    assert PercentPerDay(percent=10.0).late_submission_penalty("ada", 80.0, days * 86400) == pytest.approx(lost)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def test_a_course_gives_what_its_file_says(own: Path):
    (own / "course.toml").write_text(f'puzzles = ["06_evaluator", "{PUZZLE}"]\n[points.{PUZZLE}]\n{PART} = 0\n')
    course = Course(own)
    assert course.assignments() == ["06_evaluator", PUZZLE]
    assert course.puzzle(PUZZLE).points == 90
    assert catalog.puzzle(PUZZLE).points == 100, "the repository's course is another"
    assert catalog.settings(own).repository == catalog.settings().repository
    script = catalog.source_notebook(PUZZLE).with_suffix(".py")
    cells = {cell.id: cell for cell in notebook_from_script(script, own).cells}
    assert cells[f"test-{PART}"].metadata.nbgrader.points == 0
    other = catalog.puzzle(PUZZLE).parts[1]
    assert cells[f"test-{other.id}"].source.startswith(f"# {other.points} points.")
    assert [cell for cell in cells.values() if "· 90 points in" in cell.source]


def test_points_travel_with_the_work(own: Path):
    """A worker on another machine, whose clone has another course.toml, marks with this course's points."""
    (own / "course.toml").write_text(f"[points.{PUZZLE}]\n{PART} = 0\n")
    notebook = notebook_from_script(catalog.source_notebook(PUZZLE).with_suffix(".py"), own)
    unit = Unit(PUZZLE, nbformat.writes(notebook), None, "There is no file.", 1, Limits(), False)
    with Workplace() as workplace:
        assert workplace.grade(unit).max == 90


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('puzzles = ["99_none"]', "there is no puzzle '99_none' (puzzles)"),
        ("puzzles = []", "puzzles must be a list of ids"),
        ("puzzles = [[1]]", "there is no puzzle '[1]' (puzzles)"),
        (f'puzzles = ["{PUZZLE}", "{PUZZLE}"]', "each once"),
        ("puzzle = 1", "'puzzle' means nothing here"),
        ("[points.99_none]\nx = 1", "there is no puzzle '99_none' (points)"),
        (f"[points.{PUZZLE}]\nwidth = 1", f"{PUZZLE} has no part 'width'"),
        (f"[points.{PUZZLE}]\n{PART} = -1", "make it a whole number, 0 or more"),
        (f"[points.{PUZZLE}]\n{PART} = true", "make it a whole number, 0 or more"),
        (f"[points]\n{PUZZLE} = 5", f"{PUZZLE} has no part '5'"),
        (f"[due]\n{PUZZLE} = 2026-10-01T23:59:00", "with its time zone"),
        ("late_percent_per_day = 200", "a number from 0 to 100"),
        ("repository = 1", "repository must be text"),
        ("puzzles = [", "is not TOML"),
    ],
)
def test_a_course_file_that_cannot_be_meant_is_one_sentence(text: str, words: str, own: Path):
    (own / "course.toml").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        catalog.settings(own)


def test_the_sentence_reaches_the_terminal(own: Path, run: Command):
    (own / "course.toml").write_text("puzzles = 1")
    done = run("autograder", "export", cwd=own)
    assert done.returncode == 2
    assert "puzzles must be a list of ids" in done.stderr
    assert "Traceback" not in done.stderr
