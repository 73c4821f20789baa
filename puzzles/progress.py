"""What a learner has achieved: a small JSON file in work/, written by the commands, readable by anyone."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from puzzles import catalog
from puzzles.catalog import Puzzle


@dataclass
class Progress:
    """One learner's state in one puzzle: points earned by part (the best so far), and how many hints of a part were
    read."""

    earned: dict[str, float] = field(default_factory=dict)
    hints_read: dict[str, int] = field(default_factory=dict)

    def score(self, puzzle: Puzzle) -> float:
        return sum(self.earned.get(part.id, 0.0) for part in puzzle.parts)

    def next_part(self, puzzle: Puzzle) -> str | None:
        """The first part without its points, or None when all are solved."""
        return next((part.id for part in puzzle.parts if self.earned.get(part.id, 0.0) < part.points), None)


def work_folder() -> Path:
    """Where a learner's copies and progress lie: work/ in the repository, or the folder NANOCHAT_WORK names."""
    return Path(os.environ.get("NANOCHAT_WORK") or catalog.ROOT / "work")


def load(puzzle_id: str) -> Progress:
    """The saved progress in a puzzle; fresh if there is none. UserError if the file is damaged."""
    return _read().get(puzzle_id, Progress())


def save(puzzle_id: str, progress: Progress) -> None:
    """Save the progress in a puzzle and leave the others' alone."""
    everything = _read() | {puzzle_id: progress}
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({key: asdict(value) for key, value in everything.items()}, indent=2) + "\n")
    os.replace(temporary, path)


def _path() -> Path:
    return work_folder() / "progress.json"


def _read() -> dict[str, Progress]:
    path = _path()
    if not path.exists():
        return {}
    try:
        return {key: Progress(**value) for key, value in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise catalog.UserError(
            f"{path} is damaged: delete it to start counting anew; notebooks are not touched."
        ) from None
