"""Best-fit packing: which of the waiting documents goes into a row next, found by binary search."""

from bisect import bisect_right, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class BestFitBuffer(Generic[T]):
    """Documents waiting for a place in a row, longest-that-fits first; ties go to the one that has waited longest.

    One sorted list holds (length, -arrival, item): by length, and within a length the newest first. So the best fit
    is always the last entry that is not too long. Adding or taking an item costs O(log n) comparisons; the shift
    inside the list is a single memmove of pointers.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, T]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """The items, earliest added first: added in this order to an empty buffer they make an equal one."""
        return (item for _, _, item in sorted(self._entries, key=lambda entry: -entry[1]))

    def copy(self) -> "BestFitBuffer[T]":
        """A buffer of the same items."""
        twin = BestFitBuffer[T]()
        twin._entries, twin._arrivals = self._entries.copy(), self._arrivals
        return twin

    def add(self, item: T, length: int) -> None:
        """Append `item`, which takes `length` tokens of a row."""
        insort(self._entries, (length, -self._arrivals, item))
        self._arrivals += 1

    def pop_largest(self, room: int) -> T | None:
        """Take out the longest item of at most `room` tokens (ties: earliest added), or None if nothing fits."""
        fitting = self._count_fitting(room)
        return self._entries.pop(fitting - 1)[2] if fitting else None

    def pop_shortest(self) -> T:
        """Take out the shortest item (ties: earliest added); IndexError if the buffer is empty."""
        shortest = self._entries[0][0]
        return self._entries.pop(self._count_fitting(shortest) - 1)[2]

    def _count_fitting(self, room: int) -> int:
        # -arrival is never above 0, so (room, 1) sorts just after the items of exactly `room` tokens.
        return bisect_right(self._entries, (room, 1))
