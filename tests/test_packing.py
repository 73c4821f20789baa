"""`BestFitBuffer` takes exactly what a scan of the whole buffer would take, in O(log n) comparisons."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import packing as benchmark
from benchmarks.packing import LinearScanBuffer
from nanochat import dataloader, sft
from nanochat.packing import BestFitBuffer

# Few distinct lengths, so that ties are common.
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 9)),
        st.tuples(st.just("largest"), st.integers(0, 11)),
        st.tuples(st.just("shortest"), st.just(0)),
    ),
    max_size=150,
)


def named(*lengths: int) -> BestFitBuffer[str]:
    """A buffer of items "a", "b", ... of these lengths, added in that order."""
    buffer: BestFitBuffer[str] = BestFitBuffer()
    for name, length in zip("abcdefghij", lengths, strict=False):
        buffer.add(name, length)
    return buffer


def test_largest_is_the_longest_that_fits_and_the_earliest_among_equals() -> None:
    buffer = named(3, 7, 5, 7, 5)
    assert [buffer.pop_largest(6) for _ in range(4)] == ["c", "e", "a", None]
    assert [buffer.pop_largest(7) for _ in range(3)] == ["b", "d", None]


def test_shortest_is_the_earliest_among_equals() -> None:
    buffer = named(4, 2, 3, 2)
    assert [buffer.pop_shortest() for _ in range(4)] == ["b", "d", "c", "a"]


def test_an_item_added_later_does_not_overtake_an_equal_one_after_removals() -> None:
    buffer = named(5, 5, 5)
    assert buffer.pop_largest(5) == "a"
    buffer.add("late", 5)
    assert [buffer.pop_largest(5) for _ in range(3)] == ["b", "c", "late"]


def test_an_item_may_be_anything_even_unorderable() -> None:
    """Equal lengths must never lead to comparing the items: comparing arrays raises."""
    buffer: BestFitBuffer[np.ndarray] = BestFitBuffer()
    arrays = [np.array([1, 2]), np.array([1, 3])]
    for array in arrays:
        buffer.add(array, 2)
    assert [buffer.pop_largest(2) is array for array in arrays] == [True, True]


def test_shortest_of_an_empty_buffer_is_an_error() -> None:
    with pytest.raises(IndexError):
        BestFitBuffer[str]().pop_shortest()


@given(OPERATIONS)
def test_any_sequence_of_operations_equals_the_linear_scan(operations: list[tuple[str, int]]) -> None:
    scan: LinearScanBuffer[int] = LinearScanBuffer()
    fit: BestFitBuffer[int] = BestFitBuffer()
    for i, (operation, value) in enumerate(operations):
        if operation == "add":
            scan.add(i, value)
            fit.add(i, value)
        elif operation == "largest":
            assert fit.pop_largest(value) == scan.pop_largest(value)
        elif len(scan):
            assert fit.pop_shortest() == scan.pop_shortest()
        assert len(fit) == len(scan)


def source(buffer: Any, lengths: list[int], shape: tuple[int, ...], size: int) -> Callable[[], None]:
    """A refill that adds items of `lengths`, over and over; every item's tokens are unlike any other's."""
    items: Iterator[int] = iter(range(10**9))

    def refill() -> None:
        while len(buffer) < size:
            n = next(items)
            length = lengths[n % len(lengths)]
            buffer.add(np.full((*shape, length), n), length)

    return refill


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 30), st.integers(1, 25))
def test_both_loaders_pack_the_same_rows_as_with_the_linear_scan(
    lengths: list[int], capacity: int, buffer_size: int
) -> None:
    scan: Any = LinearScanBuffer()
    fit: Any = BestFitBuffer()
    refill_scan, refill_fit = (source(buffer, lengths, (), buffer_size) for buffer in (scan, fit))
    for _ in range(6):
        expected = dataloader.pack_row(scan, capacity, refill_scan)
        assert expected.shape == (capacity,)
        np.testing.assert_array_equal(dataloader.pack_row(fit, capacity, refill_fit), expected)

    scan, fit = LinearScanBuffer(), BestFitBuffer()
    refill_scan, refill_fit = (source(buffer, lengths, (2,), buffer_size) for buffer in (scan, fit))
    for _ in range(6):
        expected, count = sft.pack_row(scan, capacity, refill_scan, bos=-5)
        row, fit_count = sft.pack_row(fit, capacity, refill_fit, bos=-5)
        assert (row.shape, fit_count) == ((2, capacity), count)
        np.testing.assert_array_equal(row, expected)


class Counted(int):
    """An int that counts the comparisons it takes part in."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) > int(other)

    def __le__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) <= int(other)

    def __ge__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) >= int(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return isinstance(other, int) and int(self) == int(other)

    __hash__ = int.__hash__


def most_comparisons(buffer: Any, waiting: int) -> int:
    """The most comparisons of lengths that one operation needs while about `waiting` items are in `buffer`."""
    rng = random.Random(0)
    most = 0

    def run(operation: Callable[..., Any], *args: Any) -> Any:
        nonlocal most
        Counted.comparisons = 0
        result = operation(*args)
        most = max(most, Counted.comparisons)
        return result

    for _ in range(waiting):
        buffer.add(None, Counted(rng.randint(1, 2 * waiting)))
    for _ in range(200):
        run(buffer.pop_largest, Counted(rng.randint(1, 2 * waiting)))
        run(buffer.pop_shortest)
        while len(buffer) < waiting:
            run(buffer.add, None, Counted(rng.randint(1, 2 * waiting)))
    return most


@pytest.mark.parametrize("waiting", [64, 1000, 16384])
def test_an_operation_needs_logarithmically_many_comparisons(waiting: int) -> None:
    """A binary search over n entries takes ceil(log2(n + 1)) steps of at most two comparisons (=, then <)."""
    assert most_comparisons(BestFitBuffer(), waiting) <= 2 * math.ceil(math.log2(waiting + 1))


def test_the_count_of_comparisons_tells_a_scan_from_a_search() -> None:
    assert most_comparisons(LinearScanBuffer(), 1000) >= 999


def test_benchmark_packs_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--buffer-size", "20", "--rows", "10"]) == 0
    assert capsys.readouterr().out.count("equal") == 2


def test_benchmark_fails_if_the_rows_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def pop_anything(self: BestFitBuffer[Any], room: int) -> Any:
        return self.pop_shortest() if self._entries[0][0] <= room else None

    def pop_shortest(self: BestFitBuffer[Any]) -> Any:
        return self._entries.pop(0)[2]

    monkeypatch.setattr(BestFitBuffer, "pop_largest", pop_anything)
    monkeypatch.setattr(BestFitBuffer, "pop_shortest", pop_shortest)
    assert benchmark.main(["--buffer-size", "20", "--rows", "10"]) == 1
