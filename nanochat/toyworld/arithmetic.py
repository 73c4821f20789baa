"""Arithmetic questions: operands, phrasings, and solutions that call the calculator for what is too hard to do in one's
head."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanochat.calculator import use_calculator
from nanochat.toyworld.world import PEOPLE

PLAIN = {
    "+": ("What is {a} plus {b}?", "How much is {a} + {b}?", "Please add {a} and {b}.", "{a} + {b} = ?"),
    "-": ("What is {a} minus {b}?", "How much is {a} - {b}?", "Please subtract {b} from {a}.", "{a} - {b} = ?"),
    "*": ("What is {a} times {b}?", "How much is {a} * {b}?", "Please multiply {a} by {b}.", "{a} * {b} = ?"),
}
STORIES = {
    "+": (
        "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
        "There are {a} {things} on the table and {b} in the box. How many {things} are there in all?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
        "Of {a} {things} {name} lost {b}. How many {things} does {name} still have?",
    ),
    "*": (
        "There are {a} {things} in each box. How many {things} are in {b} boxes?",
        "{name} buys {b} bags with {a} {things} in each. How many {things} is that?",
    ),
}
PHRASINGS: dict[str, Mapping[str, Sequence[str]]] = {"plain": PLAIN, "stories": STORIES}
THINGS = ("buttons", "coins", "nuts", "pears", "plums", "shells")
LARGEST = 999
HELD_OUT_SHARE = 11
ANSWER = re.compile(r"That makes (-?\d+)\.")


@dataclass(frozen=True)
class Problem:
    """`a` `operation` `b`, and the question that asks for it."""

    a: int
    operation: str
    b: int
    question: str

    @property
    def expression(self) -> str:
        """What the calculator is given."""
        return f"{self.a}{self.operation}{self.b}"

    @property
    def answer(self) -> int:
        return use_calculator(self.expression)

    @property
    def is_easy(self) -> bool:
        """Whether it is answered without the calculator."""
        return self.a < 10 and self.b < 10


def is_held_out(a: int, b: int) -> bool:
    """Whether these two operands are only ever used in the test split, in either order."""
    return (a + b) % HELD_OUT_SHARE == 0


def draw_operands(rng: random.Random, split: str, smallest: int = 10) -> tuple[int, int]:
    """Two numbers from `smallest` to LARGEST that belong to the split, the larger first."""
    while True:
        a, b = rng.randint(smallest, LARGEST), rng.randint(smallest, LARGEST)
        if is_held_out(a, b) == (split == "test"):
            return max(a, b), min(a, b)


def make_problem(rng: random.Random, split: str, subset: str = "plain") -> Problem:
    """A question that needs the calculator. `subset` is "plain" or "stories"."""
    operation = rng.choice("+-*")
    a, b = draw_operands(rng, split)
    template = rng.choice(PHRASINGS[subset][operation])
    question = template.format(a=a, b=b, name=rng.choice(PEOPLE), things=rng.choice(THINGS))
    return Problem(a, operation, b, question)


def make_easy_problem(rng: random.Random) -> Problem:
    """A sum of two digits, small enough to be known by heart."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return Problem(a, "+", b, rng.choice(PLAIN["+"]).format(a=a, b=b))


def solve(problem: Problem) -> list[dict[str, str]]:
    """The assistant's answer, in parts."""
    text = {"type": "text", "text": f"That makes {problem.answer}."}
    if problem.is_easy:
        return [text]
    return [
        {"type": "python", "text": problem.expression},
        {"type": "python_output", "text": str(problem.answer)},
        text,
    ]


def extract_answer(response: str) -> int | None:
    """The number that a response ends up with, None if it names none."""
    match = ANSWER.search(response)
    return int(match[1]) if match else None
