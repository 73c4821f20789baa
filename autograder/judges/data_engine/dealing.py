"""Judge of the row groups dealt to ranks."""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import dataloader, dataset

Position = dict[str, int]
Shards = list[list[list[str]]]

# nanochat finds its data in one place; while it is shown another one, no second thread may look.
_elsewhere = threading.Lock()


def numbered(sizes: list[list[int]]) -> Shards:
    """Shards with so many documents in each row group: document 1.2.3 is number 3 of row group 2 of shard 1."""
    return [
        [[f"{shard}.{row_group}.{i}" for i in range(size)] for row_group, size in enumerate(row_groups)]
        for shard, row_groups in enumerate(sizes)
    ]


def position(pq_idx: int, rg_idx: int, epoch: int) -> Position:
    return {"pq_idx": pq_idx, "rg_idx": rg_idx, "epoch": epoch}


def deal_cases(rng: Random) -> list[Case]:
    fixed = [
        ([[1, 1]], 0, 1, 9, None, 3),
        ([[2, 1, 1], [1, 3]], 0, 1, 9, None, 7),
        ([[1, 1, 1, 1], [1, 1]], 1, 2, 9, None, 5),
        ([[1, 1, 1, 1, 1], [1, 1], [1, 1, 1, 1]], 1, 3, 9, None, 8),
        ([[1, 1, 1], [1, 1, 1], [1, 1]], 0, 2, 9, None, 8),
        ([[5, 2], [4]], 0, 1, 2, None, 9),
        ([[1, 1, 1, 1], [1, 1, 1]], 0, 1, 9, position(0, 1, 1), 9),
        ([[1, 1, 1, 1, 1], [1, 1, 1]], 0, 2, 9, position(0, 0, 1), 6),
        ([[1] * 6, [1] * 4], 1, 2, 9, position(0, 2, 1), 6),
        ([[1] * 6, [1] * 4], 0, 2, 9, position(0, 1, 4), 6),
        ([[1] * 5, [1] * 4], 1, 2, 9, position(0, 2, 1), 4),
        ([[1] * 3, [1] * 7, [1] * 3], 2, 3, 2, position(1, 1, 2), 6),
        ([[1] * 3, [1] * 3], 0, 1, 9, position(1, 2, 5), 3),
        ([[3] * 4, [3] * 4], 1, 2, 2, position(0, 1, 1), 9),
        # the checkpoint was written with another number of ranks
        ([[1] * 12, [1] * 5], 1, 4, 9, position(0, 5, 1), 4),
        ([[1, 1], [1, 1, 1]], 2, 3, 9, None, 3),
        ([[1, 1], [1, 1]], 2, 3, 9, None, 1),
        ([[1, 1], [1, 1]], 0, 1, 9, position(2, 0, 1), 1),
        ([[1, 1], [1, 1]], 3, 4, 9, position(0, 0, 2), 1),
    ]
    drawn = []
    for _ in range(8):
        world_size = rng.randint(1, 4)
        sizes = [[rng.randint(1, 7) for _ in range(rng.randint(world_size, 9))] for _ in range(rng.randint(1, 4))]
        shard = rng.randrange(len(sizes))
        place = position(shard, rng.randrange(len(sizes[shard])), rng.randint(1, 3))
        resume = rng.choice((None, place, place))
        drawn.append((sizes, rng.randrange(world_size), world_size, rng.randint(1, 8), resume, rng.randint(5, 25)))
    rows = [(numbered(sizes), *rest) for sizes, *rest in fixed + drawn]
    return asked("shards rank world_size batch_size resume n", *rows)


def write_shards(folder: str, shards: Shards) -> list[str]:
    paths = []
    for number, row_groups in enumerate(shards):
        paths.append(str(Path(folder, dataset.index_to_filename(number))))
        with pq.ParquetWriter(paths[-1], pa.schema([("text", pa.string())])) as writer:
            for documents in row_groups:
                writer.write_table(pa.table({"text": documents}))
    return paths


@plain_value_error
def deal_documents(
    shards: Shards, rank: int, world_size: int, batch_size: int, resume: Position | None, n: int
) -> list[tuple[list[str], Position]]:
    with TemporaryDirectory() as folder:
        paths = write_shards(folder, shards)
        with _elsewhere, patch.object(dataloader, "split_files", lambda split: paths):
            return list(islice(dataloader.document_batches("train", rank, world_size, batch_size, resume), n))


def mistaken_deal(plan: Callable[..., Iterator[Position]]) -> Callable[..., list[tuple[list[str], Position]]]:
    """The documents of the row groups that `plan(sizes, rank, world_size, resume)` visits, in batches.

    `sizes` are the numbers of row groups of the shards.
    """

    def mistake(
        shards: Shards, rank: int, world_size: int, batch_size: int, resume: Position | None, n: int
    ) -> list[tuple[list[str], Position]]:
        sizes = [len(row_groups) for row_groups in shards]
        if max(sizes) <= rank or (resume and resume["pq_idx"] >= len(shards)):
            raise ValueError
        found: list[tuple[list[str], Position]] = []
        for where in plan(sizes, rank, world_size, resume):
            documents = shards[where["pq_idx"]][where["rg_idx"]]
            found += [(documents[i : i + batch_size], where) for i in range(0, len(documents), batch_size)]
            if len(found) >= n:
                break
        return found[:n]

    return mistake


def passes(sizes: list[int], start: Position, taken: Callable[[int, int], bool]) -> Iterator[Position]:
    """Row groups from `start` on that are `taken(shard, row group)`, in more passes than any case asks for, but not
    endlessly many: a mistaken rank may find none."""
    for epoch in range(start["epoch"], start["epoch"] + 30):
        for shard, size in enumerate(sizes):
            for row_group in range(size):
                here = (epoch, shard, row_group)
                if here >= (start["epoch"], start["pq_idx"], start["rg_idx"]) and taken(shard, row_group):
                    yield position(shard, row_group, epoch)


def after(resume: Position | None, change: Callable[[Position], Position]) -> Position:
    return change(resume) if resume else position(0, 0, 1)


def next_round(resume: Position, world_size: int, rounds: int = 1) -> Position:
    return resume | {"rg_idx": (resume["rg_idx"] // world_size + rounds) * world_size}


def by_rank(taken: Callable[[int, int, int, int], bool]) -> Callable[..., Iterator[Position]]:
    """A plan that resumes rightly and takes the row groups that are `taken(shard, row group, rank, world_size)`."""

    def plan(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
        start = after(resume, lambda r: next_round(r, world_size))
        return passes(sizes, start, lambda shard, row_group: taken(shard, row_group, rank, world_size))

    return plan


def resuming(change: Callable[[Position, int, int], Position]) -> Callable[..., Iterator[Position]]:
    """A plan that deals rightly and starts at `change(resume, rank, world_size)`."""

    def plan(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
        start = after(resume, lambda r: change(r, rank, world_size))
        return passes(sizes, start, lambda shard, row_group: row_group % world_size == rank)

    return plan


def blocks(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
    start = after(resume, lambda r: next_round(r, world_size))
    return passes(sizes, start, lambda shard, row_group: row_group * world_size // sizes[shard] == rank)


def dealing_goes_on(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
    start = after(resume, lambda r: next_round(r, world_size))
    return passes(sizes, start, lambda shard, row_group: (sum(sizes[:shard]) + row_group) % world_size == rank)


def start_kept(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
    start = after(resume, lambda r: next_round(r, world_size))

    def taken(shard: int, row_group: int) -> bool:
        return row_group % world_size == rank and row_group >= start["rg_idx"]

    return passes(sizes, start, taken)


def shards_dropped(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
    start = after(resume, lambda r: next_round(r, world_size))

    def taken(shard: int, row_group: int) -> bool:
        return row_group % world_size == rank and shard >= start["pq_idx"]

    return passes(sizes, start, taken)


def one_pass(sizes: list[int], rank: int, world_size: int, resume: Position | None) -> Iterator[Position]:
    for where in by_rank(lambda shard, row_group, r, w: row_group % w == r)(sizes, rank, world_size, resume):
        if where["epoch"] > (resume["epoch"] if resume else 1):
            return
        yield where


def renamed(change: Callable[[Position], Position]) -> Callable[..., list[tuple[list[str], Position]]]:
    """The right documents with changed positions."""
    return lambda **case: [(documents, change(where)) for documents, where in deal_documents(**case)]


def unbatched(batch_size: int, **case: Any) -> list[tuple[list[str], Position]]:
    return deal_documents(batch_size=10**6, **case)


def only_full_batches(batch_size: int, n: int, **case: Any) -> list[tuple[list[str], Position]]:
    return [b for b in deal_documents(batch_size=batch_size, n=9 * n, **case) if len(b[0]) == batch_size][:n]


DEAL_DOCUMENTS = Judge(
    deal_cases,
    deal_documents,
    mistakes={
        "epochs are counted from 0; the first pass is epoch 1": renamed(lambda p: p | {"epoch": p["epoch"] - 1}),
        "the epoch does not count on: each new pass over the shards is one epoch more": (
            renamed(lambda p: p | {"epoch": 1})
        ),
        "the reading stops after one pass; it goes on with the next epoch, for ever": mistaken_deal(one_pass),
        "every rank reads every row group; a rank reads those whose number is rank modulo world_size": (
            mistaken_deal(by_rank(lambda shard, row_group, rank, world_size: True))
        ),
        "whole shards are dealt to ranks; each rank reads its own row groups of every shard": (
            mistaken_deal(by_rank(lambda shard, row_group, rank, world_size: shard % world_size == rank))
        ),
        "each rank reads a block of neighbouring row groups; they are dealt round robin": mistaken_deal(blocks),
        "the dealing goes on from one shard to the next; it starts anew in each, with row group 0 for rank 0": (
            mistaken_deal(dealing_goes_on)
        ),
        "the documents of a row group come all at once; at most batch_size at a time": unbatched,
        "what is left of a row group after its last full batch is dropped; it makes a smaller batch": only_full_batches,
        "`resume` is ignored; reading goes on in the round after the position": (
            lambda resume, **case: deal_documents(resume=None, **case)
        ),
        "the epoch of `resume` is ignored; reading goes on in the same epoch": (
            mistaken_deal(resuming(lambda resume, rank, w: next_round(resume, w) | {"epoch": 1}))
        ),
        "resuming goes on right after the position's row group; its whole round counts as read": (
            mistaken_deal(resuming(lambda resume, rank, w: resume | {"rg_idx": resume["rg_idx"] + 1}))
        ),
        "resuming goes on world_size row groups after the position; that is right only if the position is this rank's "
        "own and as many ranks read as before": (
            mistaken_deal(resuming(lambda resume, rank, w: resume | {"rg_idx": resume["rg_idx"] + w}))
        ),
        "resuming repeats the round of the position; that round counts as read": (
            mistaken_deal(resuming(lambda resume, rank, w: next_round(resume, w, 0)))
        ),
        "resuming skips a round; it goes on with the one right after the position's": (
            mistaken_deal(resuming(lambda resume, rank, w: next_round(resume, w, 2)))
        ),
        "the row group to resume at is kept for later shards; those are read from their start": (
            mistaken_deal(start_kept)
        ),
        "the shard to resume at is kept for later epochs; those begin with the first shard": (
            mistaken_deal(shards_dropped)
        ),
    },
)
