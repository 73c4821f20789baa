"""Other right solutions, for who has earned their part: those that the course tests itself with, in tests/right/."""

from puzzles import catalog
from puzzles.catalog import Part, Puzzle, UserError
from puzzles.progress import Progress


def alternatives(puzzle_id: str, part_id: str | None = None) -> list[tuple[str, str]]:
    """The name and the code of every alternative to a part, or to the whole puzzle; none where tests/ is not."""
    from autograder.variants import right_variants  # here: it brings the whole grader, torch included

    wanted = [part.id for part in catalog.puzzle(puzzle_id).parts if part_id in (None, part.id)]
    return [
        (variant.name.replace("_", " "), "\n\n\n".join(variant.cells[each] for each in wanted))
        for variant in right_variants(puzzle_id)
    ]


def earned_parts(puzzle: Puzzle, progress: Progress, part_id: str) -> list[Part]:
    """The parts whose alternatives may be shown: the one called `part_id`, or all that are earned. UserError if that is
    none."""
    parts = [puzzle.part(part_id)] if part_id else list(puzzle.parts)
    earned = [part for part in parts if progress.solved(part)]
    if not earned:
        what = f"the part '{part_id}'" if part_id else "a part"
        raise UserError(f"Alternatives open once you have earned {what}: run python -m puzzles.{puzzle.id} --verify.")
    return earned
