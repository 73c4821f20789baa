"""The course's check of itself notices what it is there to notice."""

import shutil

import nbformat
import pytest

from autograder import check
from autograder.course import Course
from autograder.exam import Exam
from autograder.mutants import mutants
from autograder.source import notebook_from_script, sync
from autograder.variants import right_variants, source, try_variant, wrong_variants
from puzzles import catalog
from puzzles.catalog import UserError
from tests.conftest import PUZZLE, SampleClass
from tests.test_grading import copy_of

ALL = [puzzle.id for puzzle in catalog.puzzles()]


def test_every_puzzle_has_all_its_files():
    for puzzle_id in ALL:
        for path in (
            catalog.HERE / f"{puzzle_id}.py",
            catalog.source_notebook(puzzle_id),
            catalog.source_notebook(puzzle_id).with_suffix(".py"),
            catalog.release_notebook(puzzle_id),
            catalog.ROOT / "tests" / "wrong" / f"{puzzle_id}.toml",
        ):
            assert path.exists(), path


def test_notebooks_agree_with_their_scripts():
    assert sync(write=False) == []


@pytest.mark.parametrize("puzzle_id", ALL)
def test_hidden_tests_hold_no_answer(puzzle_id):
    """A graded cell is a driver: it never imports the oracle or the judges."""
    for cell in source(puzzle_id).cells:
        if cell.id.startswith("test-"):
            assert "nanochat" not in cell.source.replace("nanochat_puzzles", "")
            assert "autograder" not in cell.source


@pytest.mark.parametrize("puzzle_id", ALL)
def test_releases_carry_no_outputs_and_valid_cells(puzzle_id):
    released = nbformat.read(catalog.release_notebook(puzzle_id), as_version=4)
    nbformat.validate(released)
    assert not any(cell.get("outputs") for cell in released.cells)


@pytest.mark.part
@pytest.mark.parametrize("puzzle_id", ALL)
def test_a_wrong_solution_loses_its_part_and_a_right_one_nothing(puzzle_id):
    """A sample here; `python -m autograder check` tries them all."""
    exam, notebook = Exam(puzzle_id, seed=1), source(puzzle_id)
    wrong = next(wrong_variants(puzzle_id))
    assert try_variant(notebook, exam, wrong.cells).lost == wrong.loses
    right = next(right_variants(puzzle_id))
    assert try_variant(notebook, exam, right.cells).lost == frozenset()


def test_a_leaked_solution_is_found(sample: SampleClass, tmp_path):
    course = copy_of(sample, tmp_path)
    assert check._no_secrets(course, PUZZLE).trouble == ""
    path = catalog.release_notebook(PUZZLE, course.root)
    shutil.copy(catalog.source_notebook(PUZZLE), path)
    assert "hidden tests" in check._no_secrets(course, PUZZLE).trouble
    (path.parent / "notes.txt").write_text("x")


def test_a_stray_file_in_a_release_is_found(sample: SampleClass, tmp_path):
    course = copy_of(sample, tmp_path)
    (catalog.release_notebook(PUZZLE, course.root).parent / f"{PUZZLE}.py").write_text("answers")
    assert "other files" in check._no_secrets(course, PUZZLE).trouble


def test_an_edited_script_makes_the_notebook_stale(sample: SampleClass, tmp_path):
    course = copy_of(sample, tmp_path)
    script = course.root / "source" / PUZZLE / f"{PUZZLE}.py"
    shutil.copy(catalog.ROOT / "source" / PUZZLE / script.name, script)
    assert check._in_sync(course, PUZZLE).trouble == ""
    script.write_text(script.read_text().replace("# # Puzzle", "# # A puzzle", 1))
    assert check._in_sync(course, PUZZLE).trouble


def test_a_patch_that_no_longer_fits_is_told(tmp_path):
    for folder in ("source", "tests/wrong"):
        shutil.copytree(catalog.ROOT / folder, tmp_path / folder)
    path = tmp_path / "tests" / "wrong" / f"{PUZZLE}.toml"
    path.write_text('[[wrong]]\npart = "widths"\nname = "x"\nold = "no such code"\nnew = ""\n')
    with pytest.raises(UserError, match="is not there"):
        list(wrong_variants(PUZZLE, tmp_path))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("# %%\nx = 1\n", "has no role"),
        ('# %% given="a"\nx = 1\n\n# %% given="a"\ny = 1\n', "two cells called 'a'"),
        ('# %% graded="nothing"\nx = 1\n', "no part 'nothing'"),
    ],
)
def test_a_script_with_a_wrong_role_is_told(tmp_path, script, words):
    path = tmp_path / f"{PUZZLE}.py"
    path.write_text(script)
    with pytest.raises(UserError, match=words):
        notebook_from_script(path)


def test_mutants_change_the_solution_in_one_spot_each():
    made = list(mutants(PUZZLE))
    assert len({mutant.cells[next(iter(mutant.cells))] for mutant in made}) == len(made)
    for mutant in made:
        (code,) = mutant.cells.values()
        compile(code, "mutant", "exec")


def test_a_course_without_sources_is_refused(tmp_path):
    with pytest.raises(UserError, match="no course folder"):
        Course(tmp_path)
