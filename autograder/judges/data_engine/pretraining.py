"""Judge of pretraining rows."""

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from autograder.judges.data_engine.altered import Altered, Ids, first_fit, shortest_fit
from nanochat.dataloader import BestFitLoader
from nanochat.packing import BestFitBuffer


def pretraining_cases(rng: Random) -> list[Case]:
    def documents(*lengths: int) -> list[list[int]]:
        """Document k of n tokens is k1, k2, ... so that any mix-up shows."""
        return [[100 * k + i for i in range(1, n + 1)] for k, n in enumerate(lengths, 1)]

    fixed: list[tuple] = [
        (documents(3), 1, 99, 1, 3, 1, 1),
        (documents(1), 1, 7, 1, 1, 1, 2),
        (documents(9), 1, 0, 1, 3, 1, 2),
        (documents(2, 5, 1), 1, 0, 1, 7, 3, 1),
        (documents(6, 4), 1, 0, 2, 3, 2, 2),
        (documents(3, 3, 3, 2), 1, 0, 2, 9, 4, 2),
        (documents(4, 2, 1, 5, 3), 1, 0, 2, 7, 3, 2),
        (documents(4, 2, 1, 5, 3), 3, 50, 3, 8, 4, 3),
        (documents(0, 4, 0, 2), 2, 5, 2, 6, 3, 3),
        (documents(20, 3, 17, 5, 40), 2, 1, 2, 12, 5, 3),
    ]
    for _ in range(8):
        longest = rng.choice((6, 25, 60))
        lengths = [rng.randint(0, longest) for _ in range(rng.randint(2, 30))]
        sizes = (rng.randint(1, 4), rng.randint(1, 40), rng.randint(1, 20), rng.randint(1, 4))
        fixed.append((documents(*lengths), rng.randint(1, 6), rng.randint(0, 99), *sizes))
    keys = "documents batch_size bos B T buffer_size n"
    return asked(keys, *fixed)


def pretraining_rows(
    documents: list,
    batch_size: int,
    bos: int,
    B: int,
    T: int,
    buffer_size: int,
    n: int,
    wrap: Callable[[int, list[int]], list[int]] = lambda bos, ids: [bos, *ids],
    waiting: Any = None,
) -> list[list]:
    """What nanochat's loader makes of the documents; `wrap` and `waiting` alter it for the mistakes."""
    loader = BestFitLoader(Ids(bos, wrap), B, T, "train", device="cpu", buffer_size=buffer_size)
    chunks = itertools.cycle([documents[i : i + batch_size] for i in range(0, len(documents), batch_size)])
    loader.documents = ((chunk, {"read": read}) for read, chunk in enumerate(chunks, 1))
    if waiting is not None:
        loader.waiting = waiting
    return [[inputs.clone(), targets.clone(), state["read"]] for inputs, targets, state in itertools.islice(loader, n)]


def longest(buffer: Altered) -> np.ndarray:
    return BestFitBuffer.pop_largest(buffer, 10**9)  # type: ignore[return-value]


def with_choice(**choice: Callable[..., Any]) -> Callable[..., list[list]]:
    return lambda **case: pretraining_rows(**case, waiting=Altered(**choice))


def altered_rows(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., list[list]]:
    """The right rows, of which `change(inputs, targets)` makes other tensors."""
    return lambda **case: [[*change(inputs, targets), read] for inputs, targets, read in pretraining_rows(**case)]


def without_refill(buffer_size: int, **case: Any) -> list[list]:
    return pretraining_rows(buffer_size=max(1, buffer_size - 1), **case)


PACK_PRETRAINING = Judge(
    pretraining_cases,
    pretraining_rows,
    mistakes={
        "inputs and targets are int32; both must be int64": altered_rows(lambda x, y: (x.int(), y.int())),
        "targets are the inputs, not shifted; a target is the token after": altered_rows(lambda x, y: (x, x)),
        "inputs and targets are swapped": altered_rows(lambda x, y: (y, x)),
        "BOS is missing: each document must begin with it": lambda **case: pretraining_rows(
            **case, wrap=lambda bos, ids: ids or [bos]
        ),
        "BOS stands at the end of each document; it must stand at the beginning": (
            lambda **case: pretraining_rows(**case, wrap=lambda bos, ids: [*ids, bos])
        ),
        "each document has BOS at both ends; one at the beginning is enough": (
            lambda **case: pretraining_rows(**case, wrap=lambda bos, ids: [bos, *ids, bos])
        ),
        "targets are the inputs rolled: the last one must be token T of the row, not its first": (
            altered_rows(lambda x, y: (x, x.roll(-1, 1)))
        ),
        "one document too few is waiting when the choice is made: read until buffer_size wait": without_refill,
        "one document too many is waiting when the choice is made: read only while fewer than buffer_size wait": (
            lambda buffer_size, **case: pretraining_rows(buffer_size=buffer_size + 1, **case)
        ),
        "the first document that fits is taken; take the longest that fits": with_choice(largest=first_fit),
        "the shortest document that fits is taken; take the longest that fits": with_choice(largest=shortest_fit),
        "when none fits, the longest is cut; cutting the shortest loses the least": with_choice(shortest=longest),
    },
)
