"""One module a puzzle. Each has `JUDGES`: a Judge for every part of the puzzle's metadata.

A judge makes cases, knows what the oracle (nanochat) says to them, and recognises the mistakes people make.
"""

import importlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from puzzles.catalog import Puzzle
from puzzles.compare import EXACT, Tolerance


@dataclass(frozen=True)
class Judge:
    """How one part is examined.

    cases: from a random generator, keyword arguments for the learner's function; smallest first, edge cases always
      among them, plain data only (see puzzles.wire).
    oracle: what nanochat answers to such arguments; an exception it raises is the expected outcome.
    mistakes: sentence -> what somebody who makes that mistake answers. A wrong answer that equals one is explained by
      the sentence, which is told to the learner as the likely mistake.
    examine: for answers that are not determined (random weights): (expected, got) -> None or what is wrong. Both are
      plain data. Default: `puzzles.compare.difference` under `tolerance`.
    """

    cases: Callable[[random.Random], list[dict[str, Any]]]
    oracle: Callable[..., Any]
    tolerance: Tolerance = EXACT
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    examine: Callable[[Any, Any], str | None] | None = None


def judges_of(puzzle: Puzzle) -> dict[str, Judge]:
    """The judges of a puzzle by part id."""
    return importlib.import_module(f"autograder.judges.{puzzle.name}").JUDGES
