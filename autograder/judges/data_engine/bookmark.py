"""Judge of the bookmark that resumes exactly."""

from collections.abc import Callable
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case
from autograder.judges.data_engine.dealing import deal_documents, numbered


def rank_batches(sizes: list[list[int]], rank: int, world_size: int, batch_size: int, n: int) -> list:
    return deal_documents(
        shards=numbered(sizes), rank=rank, world_size=world_size, batch_size=batch_size, resume=None, n=n
    )


def resume_cases(rng: Random) -> list[Case]:
    few = rank_batches([[6, 8, 3], [2]], 0, 1, 2, 12)
    ranked = rank_batches([[5, 4, 7, 1], [3, 6]], 1, 2, 2, 14)
    alone = rank_batches([[6]], 0, 1, 2, 8)
    cases = [{"batches": few, "stop": stop} for stop in (0, 5, 1, 2, 3, 4, 6, 7, 10, 12)]
    cases += [{"batches": ranked, "stop": stop} for stop in (1, 4, 5, 8, 11)]
    cases += [{"batches": alone, "stop": stop} for stop in (2, 3, 4, 7)]
    for _ in range(6):
        world_size = rng.randint(1, 3)
        sizes = [[rng.randint(1, 12) for _ in range(rng.randint(world_size, 7))] for _ in range(rng.randint(1, 3))]
        batches = rank_batches(sizes, rng.randrange(world_size), world_size, rng.randint(1, 5), rng.randint(2, 30))
        cases.append({"batches": batches, "stop": rng.randint(0, len(batches))})
    return cases


def resume_state(batches: list, stop: int) -> dict[str, Any]:
    """A resumed reader reads what an uninterrupted one (`deal_documents`) would read next."""
    return {"then": batches[stop:], "read_again": []}


def group_start(batches: list, stop: int) -> int:
    """Index of the first batch of the row group that batch `stop - 1` belongs to."""
    return next(i for i, (_, where) in enumerate(batches) if where == batches[stop - 1][1]) if stop else 0


def group_end(batches: list, stop: int) -> int:
    """Index behind the last batch of that row group."""
    return max(i for i, (_, where) in enumerate(batches) if where == batches[stop - 1][1]) + 1 if stop else 0


def mistaken_resume(go_on: Callable[[list, int], int], read_again: bool = False) -> Callable[..., dict[str, Any]]:
    """A reader that goes on at batch `go_on(batches, stop)`, and may have read everything before once more."""

    def mistake(batches: list, stop: int) -> dict[str, Any]:
        again = [where for _, where in batches[: group_start(batches, stop)]] if read_again else []
        return {"then": batches[go_on(batches, stop) :], "read_again": again}

    return mistake


RESUME_STATE = Judge(
    resume_cases,
    resume_state,
    mistakes={
        "nothing is taken up: the stream starts all over again": mistaken_resume(lambda batches, stop: 0),
        "the last batch that was read comes again": mistaken_resume(lambda batches, stop: max(0, stop - 1)),
        "a batch is skipped": mistaken_resume(lambda batches, stop: stop + 1),
        "the rest of the row group is skipped: the position alone does not say how many of its batches were read": (
            mistaken_resume(group_end)
        ),
        "the row group is read again from its start: count how many of its batches were read": (
            mistaken_resume(group_start)
        ),
        "all that was read before is read again and skipped; open the stream at the row group that was being read": (
            mistaken_resume(lambda batches, stop: stop, read_again=True)
        ),
    },
)
