"""What a submission may see of the course: nanochat but for what a puzzle hides, and the learner's side."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from puzzles.catalog import HERE, ROOT, Puzzle

GUEST = Path(__file__).parent / "guest"
# Cells that show the learner's work beside the oracle's: the oracle is out of reach while a submission is graded.
ORACLE_TAG = "oracle"
_IGNORED = ("__pycache__", "*.pyc", ".*")


def lay_out(folder: Path, puzzle: Puzzle) -> None:
    """Copy into `folder` the packages nanochat (without the modules `puzzle` hides), puzzles and guest. No compiled
    files: those of hidden modules would be among them."""
    nanochat = find_spec("nanochat")
    assert nanochat is not None and nanochat.submodule_search_locations
    packages = {"nanochat": Path(nanochat.submodule_search_locations[0]), "puzzles": HERE, "guest": GUEST}
    for name, source in packages.items():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*_IGNORED))
    for module in puzzle.hides:
        path = folder.joinpath(*module.split("."))
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".py").unlink(missing_ok=True)


def secret_places(readable: list[str]) -> list[str]:
    """Those of the course's own folders that lie inside a path a submission may read, so that hiding them fails."""
    roots = [Path(path).resolve() for path in readable]
    own = [ROOT / name for name in ("nanochat", "autograder", "source", "tests")]
    return [str(place) for place in own if place.exists() and any(place.is_relative_to(root) for root in roots)]
