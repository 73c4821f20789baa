"""What the course consists of: one TOML file a puzzle beside this module, read into plain dataclasses; and what an
instructor has chosen of it, in `course.toml`."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
COURSE_FILE = "course.toml"


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


@dataclass(frozen=True)
class Settings:
    """What `course.toml` says: where learners find the course, the puzzles that are given (none: all), by puzzle the
    points of its parts and the moment it is due, and what a submission loses of its score for each day begun late."""

    repository: str = ""
    branch: str = "main"
    puzzles: tuple[str, ...] = ()
    points: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    due: Mapping[str, datetime] = field(default_factory=dict)
    late_percent_per_day: float = 0.0


def settings(course: Path = ROOT) -> Settings:
    """The settings of a course folder; one without a `course.toml` of its own has those of the repository, one that
    does not say where the course is found, the repository's word on that. Read anew each time: a server that lives for
    weeks follows an edit. UserError for whatever cannot be meant."""
    path = course / COURSE_FILE
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings() if course == ROOT else settings()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable for you.") from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}. Put that right.") from None
    if problem := _problem(data):
        raise UserError(f"{path}: {problem}.")
    place = Settings() if course == ROOT else Settings(settings().repository, settings().branch)
    return replace(place, **data | {"puzzles": tuple(data.get("puzzles", ()))})


def puzzles(course: Path = ROOT) -> tuple[Puzzle, ...]:
    """The puzzles a course gives, in its order, with its points."""
    chosen = settings(course)
    names = chosen.puzzles or [each.id for each in _every_puzzle()]
    return tuple(with_points(_puzzle(name), chosen.points.get(name, {})) for name in names)


def puzzle(puzzle_id: str, course: Path = ROOT) -> Puzzle:
    """The puzzle called `puzzle_id`, given in the course or not, with the course's points; UserError names the puzzles
    there are."""
    return with_points(_puzzle(puzzle_id), settings(course).points.get(puzzle_id, {}))


def with_points(puzzle: Puzzle, points: Mapping[str, int]) -> Puzzle:
    """The puzzle with these points, by part; a part that is not named keeps its own."""
    return replace(puzzle, parts=tuple(replace(part, points=points.get(part.id, part.points)) for part in puzzle.parts))


@cache
def _every_puzzle() -> tuple[Puzzle, ...]:
    return tuple(_read(path) for path in sorted(HERE.glob("[0-9][0-9]_*.toml")))


def _puzzle(puzzle_id: str) -> Puzzle:
    for candidate in _every_puzzle():
        if candidate.id == puzzle_id:
            return candidate
    raise UserError(f"There is no puzzle '{puzzle_id}': choose one of {', '.join(p.id for p in _every_puzzle())}.")


def _problem(data: dict[str, Any]) -> str:
    """What is wrong with the content of a course.toml and what to do, in a sentence; "" if nothing is."""
    known, parts = list(Settings.__dataclass_fields__), {p.id: [part.id for part in p.parts] for p in _every_puzzle()}
    for key, value in data.items():
        if key not in known:
            return f"'{key}' means nothing here: choose from {', '.join(known)}"
        if key in ("repository", "branch") and not isinstance(value, str):
            return f"{key} must be text in quotes"
        if key in ("points", "due") and not isinstance(value, dict):
            return f"'{key}' must be a table, one line or section a puzzle"
        if key == "puzzles" and not (isinstance(value, list) and value and len(set(map(str, value))) == len(value)):
            return 'puzzles must be a list of ids like ["01_transformer_blueprint"], each once'
        if key in ("puzzles", "points", "due") and (
            strangers := [each for each in map(str, value) if each not in parts]
        ):
            return f"there is no puzzle '{strangers[0]}' ({key}): choose from {', '.join(parts)}"
    for name, points in data.get("points", {}).items():
        for part, number in points.items() if isinstance(points, dict) else [(str(points), 0)]:
            if part not in parts[name]:
                return f"{name} has no part '{part}' (points): choose from {', '.join(parts[name])}"
            if type(number) is not int or number < 0:
                return f"{name} gives the part '{part}' {number!r} points: make it a whole number, 0 or more"
    for name, moment in data.get("due", {}).items():
        if not isinstance(moment, datetime) or moment.tzinfo is None:
            return f"{name} is due at {moment}: write a moment with its time zone, like 2026-10-01T23:59:00+02:00"
    percent = data.get("late_percent_per_day", 0)
    if type(percent) not in (int, float) or not 0 <= percent <= 100:
        return f"late_percent_per_day is {percent!r}: make it a number from 0 to 100"
    return ""


def source_notebook(puzzle_id: str, course: Path = ROOT) -> Path:
    """Where a course keeps the instructor's notebook of a puzzle."""
    return course / "source" / puzzle_id / f"{puzzle_id}.ipynb"


def release_notebook(puzzle_id: str, course: Path = ROOT) -> Path:
    """Where a course keeps the student version of a puzzle."""
    return course / "release" / puzzle_id / f"{puzzle_id}.ipynb"


def submission_folders(course: Path, assignment: str | None = None, student: str | None = None) -> Iterator[Path]:
    """Where a course keeps what has been handed in for its puzzles: submitted/<student>/<puzzle>, in order of names."""
    for folder in sorted((course / "submitted").glob(f"{student or '*'}/{assignment or '*'}")):
        if folder.is_dir() and source_notebook(folder.name, course).exists():
            yield folder


def labs() -> tuple[Path, ...]:
    """The notebooks of the ungraded labs, in order."""
    return tuple(path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.stem != "START")


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
