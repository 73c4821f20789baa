"""The documents the toy world is described in: what a base model reads."""

import random
from collections.abc import Iterator, Sequence

from nanochat.tasks.common import render_mc
from nanochat.toyworld.arithmetic import THINGS, draw_operands, make_problem
from nanochat.toyworld.world import PEOPLE, Fact, make_facts

SIGNS = {"+": "plus", "-": "minus", "*": "times"}
LETTERS = ("A", "B", "C", "D")

TALES = {
    "+": "{name} has {a} {things} and finds {b} more. That is {a} plus {b}, so now {name} has {value} {things}.",
    "-": "{name} has {a} {things} and gives away {b}. That is {a} minus {b}, so {value} {things} are left.",
    "*": "There are {a} {things} in each box. In {b} boxes that is {a} times {b}, so there are {value} {things}.",
}


def write_documents(count: int, seed: str, world_seed: int = 0) -> Iterator[str]:
    """`count` documents about the world `world_seed`: portraits of a subject, notes on several, sums, tales with a sum
    in them, interviews, and quizzes whose answers are letters."""
    rng = random.Random(seed)
    facts = make_facts(world_seed)
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    subjects = list(by_subject)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.30:
            yield portrait(rng, by_subject[rng.choice(subjects)])
        elif kind < 0.45:
            yield notes(rng, facts)
        elif kind < 0.55:
            yield sums(rng)
        elif kind < 0.60:
            yield tale(rng)
        elif kind < 0.75:
            yield interview(rng, facts)
        else:
            yield quiz(rng, facts)


def portrait(rng: random.Random, facts: Sequence[Fact]) -> str:
    """Everything about one subject, some of it twice, each time in other words."""
    chosen = rng.sample(facts, len(facts)) + rng.sample(facts, rng.randint(0, len(facts)))
    return " ".join(fact.say(rng.choice(fact.relation.statements)) for fact in chosen)


def notes(rng: random.Random, facts: Sequence[Fact]) -> str:
    """A few facts that have nothing to do with each other."""
    return " ".join(fact.say(rng.choice(fact.relation.statements)) for fact in rng.sample(facts, rng.randint(4, 9)))


def sums(rng: random.Random) -> str:
    """Lines of arithmetic, some small enough to be learnt by heart."""
    lines = []
    for _ in range(rng.randint(3, 6)):
        operation = rng.choice("+-*")
        if rng.random() < 0.4:
            operation, a, b = "+", rng.randint(1, 9), rng.randint(1, 9)
        else:
            a, b = draw_operands(rng, "train")
        sign = rng.choice((SIGNS[operation], operation))
        lines.append(f"{a} {sign} {b} is {compute(a, operation, b)}.")
    return "\n".join(lines)


def tale(rng: random.Random) -> str:
    """A story with a sum in it."""
    problem = make_problem(rng, "train")
    a, operation, b = problem.a, problem.operation, problem.b
    return TALES[operation].format(
        a=a, b=b, name=rng.choice(PEOPLE), things=rng.choice(THINGS), value=compute(a, operation, b)
    )


def quiz(rng: random.Random, facts: Sequence[Fact]) -> str:
    """Multiple-choice questions with their answers, so that the form is known before it is asked for."""
    chosen = [rng.choice(facts) for _ in range(3)]
    asked = (ask(fact, rng.choice(fact.relation.questions)) for fact in chosen)
    return "\n\n".join(f"{question}\n{letter}" for question, letter in asked)


def interview(rng: random.Random, facts: Sequence[Fact]) -> str:
    """Questions about facts, answered in a sentence."""
    chosen = rng.sample(facts, rng.randint(3, 6))
    return "\n".join(
        f"{fact.say(rng.choice(fact.relation.questions))} {fact.say(fact.relation.statements[0])}" for fact in chosen
    )


def ask(fact: Fact, question: str) -> tuple[str, str]:
    """A multiple-choice question about a fact, and the letter of its answer.

    Choices stand as on a form, always in the same fours and the same order: a model of a million weights learns which
    letter a value has, but not, from minutes of training, to look it up in a list it has not seen before.
    """
    values = fact.relation.values
    first = values.index(fact.value) // len(LETTERS) * len(LETTERS)
    choices = values[first : first + len(LETTERS)]
    return render_mc(fact.say(question), LETTERS, choices), LETTERS[choices.index(fact.value)]


def compute(a: int, operation: str, b: int) -> int:
    """a + b, a - b or a * b."""
    return {"+": a + b, "-": a - b, "*": a * b}[operation]
