"""Hostile submissions, by class. Each is graded by the real engine beside an honest neighbour in tests/test_attacks.py.

An attack is the code in the hole `widths` of puzzle 1 (it knows no right answer), or a change to the whole notebook. It
prints LOOT only if it got what it was after. These names in its code are filled in: ROOT (the repository), HOME (the
grader's), COURSE (a course folder with gradebook, source and another submission), GRADER (the grader's process id).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attack:
    """`code`: what stands in the hole. `tamper`: what is then done to the notebook's JSON document."""

    name: str
    code: str = ""
    tamper: Callable[[dict[str, Any]], Any] | None = None


# what most attacks answer with, when it matters that the hole is filled at all
STUB = "def widths(depth, aspect_ratio, head_dim, n_kv_head=None): return {}"
