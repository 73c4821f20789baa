"""What the course consists of: one TOML file a puzzle beside this module, read into plain dataclasses."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent


class UserError(Exception):
    """A mistake of the user's: its text is one sentence saying what, where and what to do. Commands exit with 2."""


@dataclass(frozen=True)
class Part:
    """One graded hole of a puzzle. `peek` names nanochat's implementation as "module:attribute"."""

    id: str
    title: str
    points: int
    peek: tuple[str, ...]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Puzzle:
    """A puzzle's metadata. `hides` lists the nanochat modules that hold its answers, for a sandbox to withhold.
    `processes` is how many processes and threads a submission may have at once where its answers have to start
    processes; 0, which is usual: it may start none."""

    id: str
    title: str
    goal: str
    stars: int
    minutes: int
    builds_on: tuple[str, ...]
    hides: tuple[str, ...]
    commentary: str
    parts: tuple[Part, ...]
    processes: int = 0

    @property
    def name(self) -> str:
        """The id without its number, as the judge module is called: "transformer_blueprint"."""
        return self.id.split("_", 1)[1]

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def difficulty(self) -> str:
        return "⭐" * self.stars

    def part(self, part_id: str) -> Part:
        """The part called `part_id`; UserError names the parts there are."""
        for part in self.parts:
            if part.id == part_id:
                return part
        known = ", ".join(part.id for part in self.parts)
        raise UserError(f"{self.id} has no part '{part_id}': choose one of {known}.")


@cache
def puzzles() -> tuple[Puzzle, ...]:
    """Every puzzle of the course, in order."""
    return tuple(_read(path) for path in sorted(HERE.glob("[0-9][0-9]_*.toml")))


def puzzle(puzzle_id: str) -> Puzzle:
    """The puzzle called `puzzle_id`; UserError names the puzzles there are."""
    for candidate in puzzles():
        if candidate.id == puzzle_id:
            return candidate
    raise UserError(f"There is no puzzle '{puzzle_id}': choose one of {', '.join(p.id for p in puzzles())}.")


def source_notebook(puzzle_id: str, course: Path = ROOT) -> Path:
    """Where a course keeps the instructor's notebook of a puzzle."""
    return course / "source" / puzzle_id / f"{puzzle_id}.ipynb"


def release_notebook(puzzle_id: str, course: Path = ROOT) -> Path:
    """Where a course keeps the student version of a puzzle."""
    return course / "release" / puzzle_id / f"{puzzle_id}.ipynb"


def _read(path: Path) -> Puzzle:
    data = tomllib.loads(path.read_text())
    parts = tuple(
        Part(p["id"], p["title"], p["points"], tuple(p["peek"]), tuple(hint.strip() for hint in p["hints"]))
        for p in data["part"]
    )
    return Puzzle(
        id=path.stem,
        title=data["title"],
        goal=data["goal"],
        stars=data["stars"],
        minutes=data["minutes"],
        builds_on=tuple(data["builds_on"]),
        hides=tuple(data["hides"]),
        commentary=data["commentary"].strip(),
        parts=parts,
        processes=data.get("processes", 0),
    )
