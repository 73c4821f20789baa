"""Judges of fine-tuning: rows of whole conversations, and how far a run is."""

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from autograder.judges.data_engine.altered import Altered, Ids, first_fit, shortest_fit
from nanochat.sft import SFTLoader
from puzzles.compare import FLOAT32

# pack_sft


def conversation_cases(rng: Random) -> list[Case]:
    def conversation(k: int, length: int, trained: float, bos: int) -> tuple[list[int], list[int]]:
        ids = [bos, *(100 * k + i for i in range(1, length))]
        return ids, [0, *(int(rng.random() < trained) for _ in ids[1:])]

    def case(lengths: list[int], bos: int, *sizes: int, trained: float = 0.6) -> tuple:
        return ([conversation(k, n, trained, bos) for k, n in enumerate(lengths, 1)], bos, *sizes)

    answer_at_the_end = ([7, 1, 2, 3], [0, 0, 1, 1])
    fixed = [
        ([answer_at_the_end], 7, 1, 6, 1, 2),
        ([([5, 9], [0, 1])], 5, 1, 1, 1, 1),
        case([4], 3, 1, 3, 1, 1, trained=1),
        case([3, 5, 2], 9, 1, 7, 3, 1),
        case([5, 4, 3], 0, 2, 6, 2, 2),
        case([2, 2, 3, 3, 2], 8, 2, 10, 4, 2),
        case([6, 3, 7, 2, 5], 1, 3, 8, 3, 2),
        case([8, 1, 4], 6, 2, 7, 2, 2),
        ([([5, 9, 8], [0, 1, 1])], 5, 1, 1, 1, 1),
        (
            [([5, 9], [0, 1]), ([5, 6], [0, 1]), ([5, 9, 8, 7, 6, 4], [0, 1, 1, 0, 0, 0])],
            5,
            1,
            4,
            1,
            3,
        ),
        case([4, 4, 4], 2, 2, 11, 5, 2, trained=0),
    ]
    for _ in range(8):
        T = rng.randint(4, 50)
        lengths = [rng.randint(1, rng.choice((T + 1, T // 2 + 1))) for _ in range(rng.randint(2, 25))]
        fixed.append(case(lengths, rng.randint(0, 99), rng.randint(1, 4), T, rng.randint(1, 15), rng.randint(1, 4)))
    keys = "conversations bos B T buffer_size n"
    return asked(keys, *fixed)


@plain_value_error
def sft_batches(conversations: list, bos: int, B: int, T: int, buffer_size: int, n: int, waiting: Any = None) -> list:
    """What nanochat's loader makes of the conversations; `waiting` alters it for the mistakes."""
    loader = SFTLoader(conversations, Ids(bos), B, T, buffer_size=buffer_size)
    if waiting is not None:
        loader.waiting = waiting
    batches, placed = [], 0
    for inputs, targets, _ in itertools.islice(loader, n):
        batches.append([inputs, targets, loader.consumed - placed, loader.fetched])
        placed = loader.consumed
    return batches


def altered_batches(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., list]:
    return lambda **case: [[*change(x, y), *counts] for x, y, *counts in sft_batches(**case)]


def targets_by(rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., list]:
    """The right rows with targets by `rule(tokens, trained, padding)`, each (B, T + 1), for B rows of T targets."""

    def mistake(conversations: list, bos: int, B: int, T: int, buffer_size: int, n: int) -> list:
        # a loader whose conversations are numbered instead of tokenized says which token stands where
        pairs = [(ids, mask) for ids, mask in conversations]
        flat_ids = torch.tensor([token for ids, _ in pairs for token in ids] + [bos])
        flat_mask = torch.tensor([bit for _, mask in pairs for bit in mask] + [0])
        starts = itertools.accumulate((len(ids) for ids, _ in pairs), initial=0)
        numbered = [(list(range(s, s + len(ids))), [1] * len(ids)) for s, (ids, _) in zip(starts, pairs, strict=False)]
        padding_number = len(flat_ids) - 1
        batches = []
        for inputs, targets, *counts in sft_batches(
            conversations=numbered, bos=padding_number, B=B, T=T, buffer_size=buffer_size, n=n
        ):
            last = targets[:, -1:].masked_fill(targets[:, -1:] < 0, padding_number)
            where = torch.cat([inputs.long(), last], 1)
            rows = flat_ids[where]
            wrong = rule(rows, flat_mask[where] == 1, where == padding_number)
            batches.append([rows[:, :-1].int(), wrong, *counts])
        return batches

    return mistake


def counted_from_the_first(**case: Any) -> list:
    batches = sft_batches(**case)
    totals = itertools.accumulate(placed for _, _, placed, _ in batches)
    return [[x, y, total, read] for (x, y, _, read), total in zip(batches, totals, strict=True)]


def unrefused(conversations: list, T: int, **case: Any) -> list:
    """Conversations that are too long are left out without a word."""
    return sft_batches(conversations=[c for c in conversations if len(c[0]) <= T + 1], T=T, **case)


PACK_SFT = Judge(
    conversation_cases,
    sft_batches,
    mistakes={
        "inputs are int64; they must be int32": altered_batches(lambda x, y: (x.long(), y)),
        "targets are int32; they must be int64": altered_batches(lambda x, y: (x, y.int())),
        "what is not trained on is -100; nanochat's loss ignores -1": (
            altered_batches(lambda x, y: (x, y.masked_fill(y == -1, -100)))
        ),
        "the mask is not shifted: it belongs to the token that is the target, not to the one that is read": (
            targets_by(lambda rows, trained, padding: rows[:, 1:].masked_fill(~trained[:, :-1], -1))
        ),
        "the mask is taken for its opposite: 1 marks what the assistant has to say": (
            targets_by(lambda rows, trained, padding: rows[:, 1:].masked_fill(trained[:, 1:] | padding[:, 1:], -1))
        ),
        "the mask is ignored: only tokens with mask 1 are targets": (
            targets_by(lambda rows, trained, padding: rows[:, 1:].masked_fill(padding[:, 1:], -1))
        ),
        "padding is trained on: its targets must be -1": (
            targets_by(lambda rows, trained, padding: rows[:, 1:].masked_fill(~trained[:, 1:] & ~padding[:, 1:], -1))
        ),
        "targets are not shifted; a target is the token after": (
            targets_by(lambda rows, trained, padding: rows[:, :-1].masked_fill(~trained[:, :-1], -1))
        ),
        "the rows that went into the batch are counted; it must be the conversations": (
            lambda **case: [[x, y, case["B"], read] for x, y, placed, read in sft_batches(**case)]
        ),
        "the conversations are counted from the first batch on; it must be those of this batch": (
            counted_from_the_first
        ),
        "one conversation too few is waiting when the choice is made: read until buffer_size wait": (
            lambda buffer_size, **case: sft_batches(buffer_size=max(1, buffer_size - 1), **case)
        ),
        "the first conversation that fits is taken; take the longest that fits": (
            lambda **case: sft_batches(**case, waiting=Altered(largest=first_fit))
        ),
        "the shortest conversation that fits is taken; take the longest that fits": (
            lambda **case: sft_batches(**case, waiting=Altered(largest=shortest_fit))
        ),
        "a conversation that is longer than a row is passed over; it must raise ValueError": unrefused,
    },
)

# sft_progress


def progress_cases(rng: Random) -> list[Case]:
    fixed = [
        (1, 2, 3, 10, 0, 1, -1),
        (1, 2, 0, 10, 1, 2, -1),
        (4, 9, 1, 10, 0, 1, 0),
        (4, 10, 1, 10, 0, 1, -1),
        (4, 11, 5, 10, 0, 1, -1),
        (2, 3, 4, 40, 3, 4, -1),
        (7, 3, 4, 40, 3, 4, 8),
        (8, 3, 4, 40, 3, 4, 8),
        (9, 3, 4, 40, 3, 4, 8),
        (2, 10, 4, 40, 0, 4, 8),
        (1, 2, 3, 40, 0, 1, 1),
        (6, 9, 5, 37, 2, 4, -1),
        (6, 9, 5, 38, 2, 4, -1),
        (6, 9, 5, 39, 2, 4, -1),
        (5, 4, 0, 20, 3, 4, 0),
        (9, 30, 40, 50, 3, 4, -1),
    ]
    drawn = []
    for _ in range(12):
        world_size = rng.randint(1, 8)
        batches, placed, waiting = rng.randint(1, 50), rng.randint(0, 300), rng.randint(0, 120)
        limit = rng.choice((-1, 0, rng.randint(1, 60)))
        drawn.append((batches, placed, waiting, rng.randint(1, 900), rng.randrange(world_size), world_size, limit))
    keys = "batches placed waiting size rank world_size num_iterations"
    return asked(keys, *fixed, *drawn)


def sft_progress(
    batches: int, placed: int, waiting: int, size: int, rank: int, world_size: int, num_iterations: int
) -> dict[str, Any]:
    """nanochat's loader keeps these counters itself: put them where so many conversations would have brought them."""
    loader = SFTLoader(
        range(size), None, 1, 1, rank=rank, world_size=world_size, num_iterations=num_iterations, buffer_size=1
    )
    loader.iteration = batches
    loader.consumed += world_size * placed
    loader.fetched += world_size * (placed + waiting)
    return loader.state()._asdict()


def unclamped(**case: int) -> dict[str, Any]:
    done = case["batches"] if case["num_iterations"] > 0 else case["rank"] + case["world_size"] * case["placed"]
    limit = case["num_iterations"] if case["num_iterations"] > 0 else case["size"]
    return sft_progress(**case) | {"progress": done / limit}


def read_for_placed(waiting: int, **case: int) -> dict[str, Any]:
    """`last_step` and `progress` by what has been read."""
    read = case | {"placed": case["placed"] + waiting}
    return sft_progress(waiting=0, **read)


def only_limit(num_iterations: int, batches: int, **case: int) -> dict[str, Any]:
    state = sft_progress(num_iterations=num_iterations, batches=batches, **case)
    return state | {"last_step": batches >= num_iterations} if num_iterations > 0 else state


SFT_PROGRESS = Judge(
    progress_cases,
    sft_progress,
    tolerance=FLOAT32,
    mistakes={
        "the epoch goes by what was placed; the next conversation to be read is as far as what was fetched": (
            lambda **case: sft_progress(**case) | {"epoch": sft_progress(**case | {"waiting": 0})["epoch"]}
        ),
        "epochs are counted from 0; the first pass is epoch 1": (
            lambda **case: (state := sft_progress(**case)) | {"epoch": state["epoch"] - 1}
        ),
        "last_step and progress go by what was read; they go by what was placed in rows": read_for_placed,
        "the counters start at 0; they start at rank": lambda **case: sft_progress(**case | {"rank": 0}),
        "the counters move by 1; they move by world_size for each conversation, to count for all ranks": (
            lambda **case: sft_progress(**case | {"world_size": 1})
        ),
        "the run ends one batch late: num_iterations batches include the present one": (
            lambda batches, **case: (
                sft_progress(batches=batches, **case)
                | {"last_step": sft_progress(batches=batches - 1, **case)["last_step"]}
            )
        ),
        "with a limit, the end of the conversations does not end the run; whichever comes first does": only_limit,
        "without a limit nothing ends the run; one pass over the conversations does": (
            lambda **case: sft_progress(**case) | ({"last_step": False} if case["num_iterations"] <= 0 else {})
        ),
        "progress goes by the conversations although there is a limit; it is the share of the batches then": (
            lambda **case: (
                sft_progress(**case) | {"progress": sft_progress(**case | {"num_iterations": -1})["progress"]}
            )
        ),
        "progress goes beyond 1; it must stop there": unclamped,
    },
)
