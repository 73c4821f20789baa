"""Best-fit packing by binary search against a plain scan of the whole buffer: the same rows, how much faster?

`python -m benchmarks.packing [--buffer-size 1000] [--rows 1000]` packs the same documents both ways in one run, checks
that the rows are equal, and prints the time per row and the ratio. Exit code 1 if the rows differ.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np

from nanochat import dataloader, sft
from nanochat.packing import BestFitBuffer

T = TypeVar("T")
CAPACITY = 2049  # tokens in a row: a sequence of 2048 and the target of its last token
ITEMS_PER_ROW = 10  # generous: the documents below pack into rows two or three at a time


class LinearScanBuffer(Generic[T]):
    """The plain way, the reference for `BestFitBuffer`: a list in order of arrival, scanned from end to end."""

    def __init__(self) -> None:
        self._items: list[tuple[int, T]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, length: int) -> None:
        self._items.append((length, item))

    def pop_largest(self, room: int) -> T | None:
        best, best_length = -1, -1
        for i, (length, _) in enumerate(self._items):
            if best_length < length <= room:
                best, best_length = i, length
        return self._items.pop(best)[1] if best >= 0 else None

    def pop_shortest(self) -> T:
        best, best_length = 0, self._items[0][0]
        for i, (length, _) in enumerate(self._items):
            if length < best_length:
                best, best_length = i, length
        return self._items.pop(best)[1]


def document(rng: np.random.Generator) -> np.ndarray:
    """A pretraining document: BOS and log-normally many tokens, a fifth of the documents longer than a row."""
    return rng.integers(32768, size=max(2, int(rng.lognormal(6.8, 1.0))), dtype=np.int32)


def conversation(rng: np.random.Generator) -> np.ndarray:
    """A rendered conversation, (2, n) ids and mask, at most as long as a row."""
    length = min(CAPACITY, max(4, int(rng.lognormal(6.0, 0.8))))
    ids = rng.integers(32768, size=length, dtype=np.int32)
    return np.stack([ids, ids % 2])


def pack(
    make_buffer: Callable[[], Any], pack_row: Callable[..., np.ndarray], items: list[np.ndarray], args: Any
) -> Iterator[np.ndarray]:
    """Yield `args.rows` rows of `items`, packed by `pack_row` through a new buffer of `args.buffer_size` items."""
    buffer, waiting = make_buffer(), iter(items)

    def refill() -> None:
        while len(buffer) < args.buffer_size:
            item = next(waiting)
            buffer.add(item, item.shape[-1])

    for _ in range(args.rows):
        yield pack_row(buffer, CAPACITY, refill)


def fastest(make_rows: Callable[[], Iterator[np.ndarray]], repeats: int = 5) -> float:
    """Seconds that making all rows takes, the fastest of `repeats` runs. Rows are dropped, as a loader drops them."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        for _ in make_rows():
            pass
        times.append(perf_counter() - start)
    return min(times)


def sft_row(buffer: Any, capacity: int, refill: Callable[[], None]) -> np.ndarray:
    """A row of the fine-tuning loader without the count."""
    return sft.pack_row(buffer, capacity, refill, bos=0)[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--buffer-size", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    same = True
    print(f"{args.rows} rows of {CAPACITY} tokens, {args.buffer_size} documents waiting; microseconds per row")
    print(f"{'':<12}{'scan':>10}{'best fit':>10}{'ratio':>8}  rows")
    for name, pack_row, make_item in (
        ("pretraining", dataloader.pack_row, document),
        ("fine-tuning", sft_row, conversation),
    ):
        rng = np.random.default_rng(args.seed)
        items = [make_item(rng) for _ in range(args.buffer_size + ITEMS_PER_ROW * args.rows)]
        by_scan, by_fit = (partial(pack, buffer, pack_row, items, args) for buffer in (LinearScanBuffer, BestFitBuffer))
        equal = all(map(np.array_equal, by_scan(), by_fit()))
        same = same and equal
        scan, fit = (1e6 * fastest(make_rows) / args.rows for make_rows in (by_scan, by_fit))
        print(f"{name:<12}{scan:>10.1f}{fit:>10.1f}{scan / fit:>7.1f}x  {'equal' if equal else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
