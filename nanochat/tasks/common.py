"""A task is a data set of conversations; an evaluation task can also tell whether an answer is right."""

import random
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from nanochat.common import InputError
from nanochat.tasks.hub import HubDataset, load_hub_dataset

__all__ = [
    "HubDataset",
    "Task",
    "TaskMixture",
    "TaskSequence",
    "check_one_of",
    "is_right_letter",
    "load_hub_dataset",
    "render_mc",
]

Conversation = Mapping[str, Any]


class Task:
    """A view of a data set: its examples start, start + step, ... before `stop` (None: to the end).

    A subclass says how many examples the data set has and builds one of them; `evaluate` and `eval_type` only make
    sense for a task with right answers. Nothing keeps `stop` within the data set: it sets the length on trust.
    """

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        if start < 0 or step < 1 or (stop is not None and stop < start):
            raise InputError(
                f"a task needs 0 <= start <= stop and step >= 1, got start={start} stop={stop} step={step}"
            )
        self.start = start
        self.stop = stop
        self.step = step

    @property
    def eval_type(self) -> str:
        """How answers are found: "generative" (the model writes one) or "categorical" (it picks a letter)."""
        raise NotImplementedError(f"{type(self).__name__} has no eval_type, it is not an evaluation task")

    def num_examples(self) -> int:
        """Number of examples in the whole data set."""
        raise NotImplementedError(f"{type(self).__name__} must define num_examples")

    def get_example(self, index: int) -> dict[str, Any]:
        """The conversation at `index` of the whole data set."""
        raise NotImplementedError(f"{type(self).__name__} must define get_example")

    def evaluate(self, conversation: Conversation, assistant_response: str) -> bool | int:
        """Whether `assistant_response` is a right answer to the conversation."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate to be an evaluation task")

    def __len__(self) -> int:
        stop = self.num_examples() if self.stop is None else self.stop
        length = (stop - self.start + self.step - 1) // self.step
        if length < 0:
            raise InputError(f"the task starts at example {self.start} but its data set has only {stop}")
        return length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not isinstance(index, int):
            raise InputError(f"a task is indexed by an int, not by {type(index).__name__}")
        return self.get_example(self.start + index * self.step)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class TaskMixture(Task):
    """All examples of several tasks in one order, shuffled once and the same on every rank and in every run.

    A task listed twice contributes each example twice, which is how to oversample it.
    """

    def __init__(self, tasks: Sequence[Task], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = list(tasks)
        self.index_map = [(t, i) for t, task in enumerate(self.tasks) for i in range(len(task))]
        random.Random(42).shuffle(self.index_map)

    def num_examples(self) -> int:
        return len(self.index_map)

    def get_example(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.index_map):
            raise InputError(f"the mixture has {len(self.index_map)} examples, no number {index}")
        task, local_index = self.index_map[index]
        return self.tasks[task][local_index]


class TaskSequence(Task):
    """The examples of several tasks one task after the other: a curriculum."""

    def __init__(self, tasks: Sequence[Task], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = list(tasks)
        self.starts = list(accumulate((len(task) for task in self.tasks), initial=0))

    def num_examples(self) -> int:
        return self.starts[-1]

    def get_example(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.num_examples():
            raise InputError(f"the sequence has {self.num_examples()} examples, no number {index}")
        task = bisect_right(self.starts, index) - 1
        return self.tasks[task][index - self.starts[task]]


def render_mc(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """The prompt of a multiple-choice question.

    Each letter follows its choice, right after "=": with a space before it, it would be another token than the one
    the model has to answer with.
    """
    listed = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=False))
    return f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."


def check_one_of(what: str, value: str, allowed: Collection[str]) -> None:
    """Raise InputError unless `value` is one of the `allowed`."""
    if value not in allowed:
        raise InputError(f"the {what} is {value!r}: it must be one of {', '.join(allowed)}")


def is_right_letter(conversation: Conversation, letter: str) -> bool:
    """Whether the last message of a multiple-choice conversation is `letter`. InputError if no choice has it."""
    check_one_of("answer", letter, conversation["letters"])
    return letter == conversation["messages"][-1]["content"]
