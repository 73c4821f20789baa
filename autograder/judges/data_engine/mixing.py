"""Judge of the mixture of tasks."""

import random
from collections.abc import Callable
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat.tasks.common import Task, TaskMixture


class Ready(Task):
    """A task of ready examples."""

    def __init__(self, examples: list[str]) -> None:
        super().__init__()
        self.examples = examples

    def num_examples(self) -> int:
        return len(self.examples)

    def get_example(self, index: int) -> str:  # type: ignore[override]
        return self.examples[index]


def mixture_cases(rng: Random) -> list[Case]:
    def tasks(*sizes: int) -> list[list[str]]:
        return [[f"{task}.{i}" for i in range(size)] for task, size in enumerate(sizes)]

    fixed = [
        (tasks(1), [0], [0, 0]),
        (tasks(4, 5), [0, 1], list(range(9))),
        (tasks(6), [0], [5, 4, 3, 2, 1, 0]),
        (tasks(3, 5), [1, 0], [0, 3, 7, 3, 1, 2]),
        (tasks(2, 3), [0, 1, 1], list(range(8))),
        (tasks(4, 2), [0, 1, 0], [*range(10), 10]),
        (tasks(3, 0, 2), [0, 1, 2], [0, 4, 2, 5, 1]),
        (tasks(2), [0], [-1, -2, 2, 1, 5]),
        (tasks(0), [0], [0, -1]),
        (tasks(), [], [0]),
    ]
    drawn = []
    for _ in range(6):
        sizes = [rng.randint(1, 60) for _ in range(rng.randint(1, 5))]
        listed = [rng.randrange(len(sizes)) for _ in range(rng.randint(1, 6))]
        length = sum(sizes[number] for number in listed)
        drawn.append((tasks(*sizes), listed, [rng.randint(0, length) for _ in range(20)]))
    keys = "tasks listed indices"
    return asked(keys, *fixed, *drawn)


def answer(length: int, examples: list[Any], made: int = 0, untouched: bool = True) -> dict[str, Any]:
    return {
        "length": length,
        "examples": examples,
        "made before anybody asked": made,
        "global random state untouched": untouched,
    }


def task_mixture(tasks: list[list[str]], listed: list[int], indices: list[int]) -> dict[str, Any]:
    ready = [Ready(examples) for examples in tasks]
    mixture = TaskMixture([ready[number] for number in listed])
    examples: list[Any] = []
    for index in indices:
        try:
            examples.append(mixture[index])
        except ValueError:
            examples.append("ValueError")
    return answer(len(mixture), examples)


def mistaken_mixture(order: Callable[[list[list[str]]], list[str]]) -> Callable[..., dict[str, Any]]:
    """A mixture whose order is `order(the tasks as listed)`."""

    def mistake(tasks: list[list[str]], listed: list[int], indices: list[int]) -> dict[str, Any]:
        examples = order([tasks[number] for number in listed])
        found = [examples[i] if 0 <= i < len(examples) else "ValueError" for i in indices]
        return answer(len(examples), found)

    return mistake


def concatenated(tasks: list[list[str]]) -> list[str]:
    return [example for task in tasks for example in task]


def shuffled(examples: list, generator: Random) -> list:
    copy = list(examples)
    generator.shuffle(copy)
    return copy


def sampled(tasks: list[list[str]]) -> list[str]:
    examples = concatenated(tasks)
    return random.Random(42).sample(examples, len(examples))


def without_repeats(tasks: list[list[str]]) -> list[str]:
    return shuffled(list(dict.fromkeys(concatenated(tasks))), random.Random(42))


def interleaved(tasks: list[list[str]]) -> list[str]:
    longest = max(map(len, tasks), default=0)
    return [task[i] for i in range(longest) for task in tasks if i < len(task)]


def with_any_index(change: Callable[[int, int], int]) -> Callable[..., dict[str, Any]]:
    """The right mixture asked for `change(index, length)` instead of each index."""

    def mistake(tasks: list[list[str]], listed: list[int], indices: list[int]) -> dict[str, Any]:
        length = sum(len(tasks[number]) for number in listed)
        return task_mixture(tasks, listed, [change(index, length) for index in indices])

    return mistake


TASK_MIXTURE = Judge(
    mixture_cases,
    task_mixture,
    mistakes={
        "all examples are made when the mixture is; an example must be made when it is asked for": (
            lambda tasks, listed, indices: (
                (right := task_mixture(tasks, listed, indices)) | {"made before anybody asked": right["length"]}
            )
        ),
        "the global random generator is seeded or used; take a random.Random(42) of your own": (
            lambda **case: task_mixture(**case) | {"global random state untouched": False}
        ),
        "nothing is shuffled: the tasks come one after the other": mistaken_mixture(concatenated),
        "the tasks take turns; all pairs are shuffled together": mistaken_mixture(interleaved),
        "the tasks are shuffled, each as a block; all pairs are shuffled together": (
            mistaken_mixture(lambda tasks: concatenated(shuffled(tasks, random.Random(42))))
        ),
        "each task is shuffled by itself; all pairs are shuffled together": (
            mistaken_mixture(lambda tasks: concatenated([shuffled(task, random.Random(42)) for task in tasks]))
        ),
        "the order is drawn with sample; random.Random(42).shuffle puts the list of pairs in another order": (
            mistaken_mixture(sampled)
        ),
        "the seed is 0; it is 42": mistaken_mixture(lambda tasks: shuffled(concatenated(tasks), random.Random(0))),
        "the seed is 1337; it is 42": (
            mistaken_mixture(lambda tasks: shuffled(concatenated(tasks), random.Random(1337)))
        ),
        "the pairs are listed with the last task first; they are listed in the order of the tasks": (
            mistaken_mixture(lambda tasks: shuffled(concatenated(tasks[::-1]), random.Random(42)))
        ),
        "a task that is listed twice is taken once; each listing counts": mistaken_mixture(without_repeats),
        "a negative index counts from the end; it must raise ValueError": (
            with_any_index(lambda index, length: index + length if -length <= index < 0 else index)
        ),
        "an index beyond the end goes round; it must raise ValueError": (
            with_any_index(lambda index, length: index % length if length else index)
        ),
    },
)
