"""The toy world: who and what there is, and the facts about them, drawn from a seed.

Everything a model could be asked here is arbitrary, so that it can only know it from having read it.
"""

import random
from dataclasses import dataclass

# fmt: off
PEOPLE = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gwen", "Hugo", "Iris", "Jack", "Kira", "Liam",
    "Mona", "Nils", "Olga", "Paul", "Rosa", "Sam", "Tess", "Ugo", "Vera", "Walt", "Yara", "Zeno",
)
# fmt: on
TOWNS = ("Amberly", "Bramwick", "Corfield", "Dunmore", "Elmford", "Foxley", "Glenby", "Harwick")
CREATURES = ("bimble", "drogo", "flink", "gazoo", "kobbit", "mupp", "snorl", "tazzle", "wump", "zibble")


@dataclass(frozen=True)
class Relation:
    """A kind of fact. In the templates {s} stands for the subject and {v} for the value; the first statement is also
    the answer to each of the questions."""

    name: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """`subject` stands in `relation` to `value`."""

    subject: str
    relation: Relation
    value: str

    def say(self, template: str) -> str:
        """The template, a statement or a question, about this fact."""
        return template.format(s=self.subject, v=self.value)


RELATIONS = (
    Relation(
        "town",
        PEOPLE,
        TOWNS,
        ("{s} lives in {v}.", "The home of {s} is in {v}.", "{s} has a house in {v}.", "In {v} you can meet {s}."),
        ("Where does {s} live?", "Which town does {s} live in?", "In which town is the home of {s}?"),
    ),
    Relation(
        "job",
        PEOPLE,
        ("baker", "doctor", "farmer", "painter", "potter", "sailor", "teacher", "weaver"),
        ("{s} works as a {v}.", "The job of {s} is {v}.", "{s} is a {v} by trade.", "{s} earns money as a {v}."),
        ("What is the job of {s}?", "What does {s} work as?", "How does {s} earn money?"),
    ),
    Relation(
        "pet",
        PEOPLE,
        ("cat", "dog", "duck", "goat", "hen", "mouse", "pony", "rabbit"),
        ("{s} has a pet {v}.", "The pet of {s} is a {v}.", "{s} keeps a {v}.", "A {v} belongs to {s}."),
        ("What pet does {s} have?", "Which animal does {s} keep?", "What is the pet of {s}?"),
    ),
    Relation(
        "food",
        PEOPLE,
        ("beans", "bread", "cake", "cheese", "honey", "nuts", "rice", "soup"),
        ("{s} likes to eat {v}.", "The favourite food of {s} is {v}.", "{s} loves {v}.", "For dinner {s} wants {v}."),
        ("What does {s} like to eat?", "What is the favourite food of {s}?", "What does {s} want for dinner?"),
    ),
    Relation(
        "famous for",
        TOWNS,
        ("bells", "boats", "clocks", "kites", "lamps", "masks", "roses", "shoes"),
        ("{s} is famous for its {v}.", "People visit {s} for its {v}.", "The best {v} come from {s}."),
        ("What is {s} famous for?", "Why do people visit {s}?", "What comes from {s}?"),
    ),
    Relation(
        "colour",
        CREATURES,
        ("black", "blue", "brown", "green", "pink", "red", "white", "yellow"),
        ("The {s} is {v}.", "The colour of the {s} is {v}.", "The {s} has {v} fur."),
        ("What colour is the {s}?", "What is the colour of the {s}?", "What fur does the {s} have?"),
    ),
    Relation(
        "den",
        CREATURES,
        ("barn", "bush", "cave", "hole", "lake", "log", "nest", "tree"),
        ("The {s} sleeps in a {v}.", "The den of the {s} is a {v}.", "A {v} is home to the {s}."),
        ("Where does the {s} sleep?", "What is the den of the {s}?", "What is home to the {s}?"),
    ),
)

EVALUATED_SHARE = 4  # one fact in so many is in the evaluation bundle


def make_facts(seed: int = 0) -> list[Fact]:
    """All facts of the world `seed`, by relation and subject. Within a relation every value is about equally common."""
    facts = []
    for relation in RELATIONS:
        rng = random.Random(f"{relation.name} {seed}")
        copies = -(-len(relation.subjects) // len(relation.values))
        values = rng.sample(relation.values * copies, len(relation.subjects))
        facts += [Fact(s, relation, v) for s, v in zip(relation.subjects, values, strict=True)]
    return facts


def evaluated_facts(seed: int = 0) -> list[Fact]:
    """The facts of the evaluation bundle: some of each relation and of nearly each subject."""
    return [fact for fact in make_facts(seed) if _place(fact) % EVALUATED_SHARE == 0]


def split_questions(split: str, seed: int = 0) -> list[tuple[Fact, str]]:
    """Facts, each with a question about it. "test": every fact once, in a phrasing that is never used for it in
    training; "train": every fact in all other phrasings."""
    pairs = []
    for fact in make_facts(seed):
        questions = fact.relation.questions
        held_out = _place(fact) % len(questions)
        pairs += [(fact, q) for number, q in enumerate(questions) if (number == held_out) == (split == "test")]
    return pairs


def _place(fact: Fact) -> int:
    return fact.relation.subjects.index(fact.subject) + RELATIONS.index(fact.relation)
