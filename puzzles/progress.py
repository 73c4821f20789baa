"""What a learner has achieved: a small JSON file in work/, readable by anyone. The commands write it, and the visible
checks in the learner's own notebooks."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from puzzles import catalog, files
from puzzles.catalog import Puzzle

LOCK_SECONDS = 10


@dataclass
class Progress:
    """One learner's state in one puzzle: points earned by part (the best so far), how many hints of a part were read,
    and the parts whose visible check passed when it last ran."""

    earned: dict[str, float] = field(default_factory=dict)
    hints_read: dict[str, int] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)

    def score(self, puzzle: Puzzle) -> float:
        return sum(self.earned.get(part.id, 0.0) for part in puzzle.parts)

    def solved(self, part: catalog.Part) -> bool:
        """Whether the part has its points."""
        return self.earned.get(part.id, 0.0) >= part.points

    def next_part(self, puzzle: Puzzle) -> str | None:
        """The first part without its points, or None when all are solved."""
        return next((part.id for part in puzzle.parts if not self.solved(part)), None)

    def earn(self, points: Mapping[str, float]) -> None:
        """Count the points of a run of the hidden tests, by part."""
        self.earned |= {part: max(score, self.earned.get(part, 0.0)) for part, score in points.items()}

    def check(self, passed: Mapping[str, bool]) -> None:
        """Remember how visible checks have just ended, by part."""
        kept = [part for part in self.checked if passed.get(part, True)]
        self.checked = kept + [part for part, right in passed.items() if right and part not in kept]


def work_folder() -> Path:
    """Where a learner's copies and progress lie: work/ in the repository, or the folder NANOCHAT_WORK names."""
    return Path(os.environ.get("NANOCHAT_WORK") or catalog.ROOT / "work")


def in_own_notebook(puzzle_id: str) -> bool:
    """Whether this process is the kernel of the learner's notebook of a puzzle. Jupyter starts a kernel in the folder
    of its notebook; a sandbox, a grader and a test run elsewhere, and what happens there is nobody's progress."""
    try:
        return Path.cwd() == (work_folder() / puzzle_id).resolve()
    except OSError:  # the folder we are in may be gone
        return False


def load(puzzle_id: str) -> Progress:
    """The saved progress in a puzzle; fresh if there is none. UserError if the file is damaged."""
    return _read().get(puzzle_id, Progress())


@contextmanager
def changing(puzzle_id: str) -> Iterator[Progress]:
    """The progress in a puzzle, to be changed in the block and saved at its end; the other puzzles' is left alone, and
    whoever else writes waits. UserError if the file is damaged or the disk refuses."""
    from filelock import FileLock  # here: a sandboxed submission imports this module and never writes

    path = _path()
    lock = FileLock(path.with_name(".progress.lock"), timeout=LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise files.unwritable(path, error) from None
    try:
        everything = _read()
        before = asdict(everything.setdefault(puzzle_id, Progress()))
        yield everything[puzzle_id]
        if asdict(everything[puzzle_id]) != before:
            files.write(path, json.dumps({key: asdict(value) for key, value in everything.items()}, indent=2) + "\n")
    finally:
        lock.release()


def _path() -> Path:
    return work_folder() / "progress.json"


def _read() -> dict[str, Progress]:
    path = _path()
    try:
        return {key: _checked(Progress(**value)) for key, value in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise catalog.UserError(f"{path} cannot be read ({error.strerror}): make it readable for you.") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise catalog.UserError(
            f"{path} is damaged: delete it to start counting anew; notebooks are not touched."
        ) from None


def _checked(found: Progress) -> Progress:
    """TypeError unless every field holds what it should."""
    numbers = [*found.earned.values(), *found.hints_read.values()]
    if not (all(isinstance(n, int | float) for n in numbers) and isinstance(found.checked, list)):
        raise TypeError
    return found
