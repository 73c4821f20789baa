"""`check`: the course tests itself. The source earns everything, the release nothing, every wrong solution loses its
part and nothing else, every right one keeps full marks, and nothing secret is in a release."""

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from rich.progress import Progress

from autograder import variants
from autograder.course import Course
from autograder.exam import Exam
from autograder.mutants import mutants
from autograder.pipeline import Result, grade, graded_part
from autograder.sandbox import Limits, Sandbox
from autograder.source import sync
from autograder.template import solution_cells, solution_lines, template
from autograder.warmth import sandbox_for
from puzzles import catalog

# The visible checks alone must catch this share of the wrong solutions.
VISIBLE_SHARE = 0.7
# A line of a solution this long gives it away wherever it stands in a release; a shorter one only inside a hole.
TELLING_LENGTH = 40
# The hidden tests must catch this share of the automatic mutants that are not equivalent.
MUTANT_SHARE = 0.95


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what is wrong with it ("" if nothing)."""

    subject: str
    trouble: str


def check(course: Course, assignment: str, seed: int, progress: Progress | None = None) -> Iterator[Finding]:
    """Look at everything about one puzzle; a Finding for each thing looked at."""
    exam = Exam(course.puzzle(assignment), seed)
    yield _metadata(course, assignment)
    yield _in_sync(course, assignment)
    with sandbox_for(assignment, course.root) as sandbox:
        yield _whole_run(course, assignment, exam, sandbox, "source", exam.puzzle.points)
        yield _whole_run(course, assignment, exam, sandbox, "release", 0)
    yield _no_secrets(course, assignment)
    yield from _variants(course, assignment, exam, progress)


def _metadata(course: Course, assignment: str) -> Finding:
    puzzle = course.puzzle(assignment)
    notebook = variants.source(assignment, course.root)
    graded = [part for cell in notebook.cells if (part := graded_part(cell))]
    holes = [name for name, cell in solution_cells(notebook).items() if cell.cell_type == "code"]
    parts = [part.id for part in puzzle.parts]
    trouble = ""
    if graded != parts or holes != parts:
        trouble = f"holes {holes} and graded cells {graded} must both be the parts {parts}"
    elif puzzle.points != 100 and assignment not in catalog.settings(course.root).points:
        trouble = f"the parts are worth {puzzle.points} points, not 100"
    elif few := [part.id for part in puzzle.parts if len(part.hints) != 3]:
        trouble = f"three hints are wanted, not so in {few}"
    return Finding("metadata and notebook name the same parts, 100 points, three hints each", trouble)


def _in_sync(course: Course, assignment: str) -> Finding:
    stale = sync(course.root, (assignment,), write=False)
    return Finding("the notebook is what its script says", "run `make release`" if stale else "")


def _whole_run(course: Course, assignment: str, exam: Exam, sandbox: Sandbox, which: str, wanted: int) -> Finding:
    """Run a notebook down the whole grading road; also nothing on stderr and, unsolved or solved, no traceback."""
    path = catalog.source_notebook if which == "source" else catalog.release_notebook
    result = grade(
        template(assignment, course.root), path(assignment, course.root).read_bytes(), exam, Limits(), sandbox
    )
    trouble = "; ".join(noise(result))
    if result.score != wanted:
        trouble = f"it earns {result.score:g}; {trouble} " + " ".join(v.message for v in result.verdicts if v.message)
    return Finding(f"the {which}, run as it is, earns {wanted} and is quiet", trouble)


def noise(result: Result) -> list[str]:
    """What a graded notebook put on stderr or raised, but for NotImplementedError, by cell."""
    return [
        f"cell '{cell.id}': {output.get('ename', 'stderr')} {output.get('evalue', output.get('text', ''))[:200]}"
        for cell in result.notebook.cells
        for output in cell.get("outputs", [])
        if (output.output_type == "error" and output.ename != "NotImplementedError") or output.get("name") == "stderr"
    ]


def _no_secrets(course: Course, assignment: str) -> Finding:
    """No hidden test, no line of a solution, no output and no other file in the release folder."""
    path = catalog.release_notebook(assignment, course.root)
    released = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in released.cells)
    holes = {line.strip() for cell in solution_cells(released).values() for line in cell.source.split("\n")}
    given = {line.strip() for line in text.split("\n")}
    found = [
        line
        for line in _solution_lines(course.root, assignment)
        if line in holes or (len(line) >= TELLING_LENGTH and line in given)
    ]
    extra = [each.name for each in path.parent.iterdir() if each != path]
    trouble = ""
    if "HIDDEN TESTS" in text or "puzzles.submit" in text or "BEGIN SOLUTION" in text:
        trouble = "it contains hidden tests or solution markers"
    elif found:
        trouble = f"it contains lines of the solution: {found[:3]}"
    elif extra:
        trouble = f"other files lie beside it: {extra}"
    elif any(cell.get("outputs") for cell in released.cells):
        trouble = "it contains outputs"
    return Finding("nothing secret is in the release", trouble)


def _solution_lines(course: Path, assignment: str) -> Iterator[str]:
    for cell in solution_cells(variants.source(assignment, course)).values():
        yield from filter(None, (line.strip() for _, line in solution_lines(cell.source)))


def _variants(course: Course, assignment: str, exam: Exam, progress: Progress | None) -> Iterator[Finding]:
    notebook = variants.source(assignment, course.root)
    wrong = list(variants.wrong_variants(assignment, course.root))
    right = list(variants.right_variants(assignment, course.root))
    advance = _advancing(progress, len(wrong) + len(right))
    seen_by_eye = 0
    for variant, outcome in variants.try_all(notebook, exam, [*wrong, *right]):
        advance()
        trouble = ""
        if outcome.lost != variant.loses:
            trouble = f"loses {sorted(outcome.lost) or 'nothing'}, should lose {sorted(variant.loses) or 'nothing'}"
            trouble += "".join(f"; {outcome.verdicts[part].message}" for part in outcome.lost - variant.loses)
        seen_by_eye += bool(variant.loses) and not variant.loses <= outcome.visible
        yield Finding(f"{'wrong' if variant.loses else 'right'}: {variant.name}", trouble)
    share = seen_by_eye / len(wrong) if wrong else 0.0
    yield Finding(
        f"visible checks alone catch {seen_by_eye} of {len(wrong)} wrong solutions ({share:.0%})",
        "" if share >= VISIBLE_SHARE else f"at least {VISIBLE_SHARE:.0%} are wanted",
    )


def mutation(course: Course, assignment: str, seed: int, progress: Progress | None = None) -> Iterator[Finding]:
    """Try every automatic mutant; a Finding for each survivor nobody has argued for, and one for the share caught.

    An argument stands in tests/wrong/<id>.toml as `[[equivalent]]` with `mutant` (its name as printed) and `why`."""
    notebook, exam = variants.source(assignment, course.root), Exam(assignment, seed)
    wrong = tomllib.loads((course.root / "tests" / "wrong" / f"{assignment}.toml").read_text())
    argued = {entry["mutant"]: entry["why"] for entry in wrong.get("equivalent", [])}
    tried = list(mutants(assignment, course.root))
    advance = _advancing(progress, len(tried))
    survivors = []
    for mutant, outcome in variants.try_all(notebook, exam, tried, whole=False):
        if not mutant.loses & outcome.lost:
            survivors.append(mutant.name)
        advance()
    for name in survivors:
        if name not in argued:
            yield Finding(f"mutant survives: {name}", "")
    counted = len(tried) - sum(name in argued for name in survivors)
    caught = len(tried) - len(survivors)
    share = caught / counted
    yield Finding(
        f"{caught} of {len(tried)} mutants caught, {len(tried) - counted} argued equivalent: {share:.1%} of the rest",
        "" if share >= MUTANT_SHARE else f"at least {MUTANT_SHARE:.0%} are wanted",
    )


def _advancing(progress: Progress | None, total: int) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    task = progress.add_task("trying solutions", total=total)
    return lambda: progress.advance(task)
