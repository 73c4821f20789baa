"""nanochat's loaders fed with token ids, and with another way to choose: what the judges of packing share."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nanochat.packing import BestFitBuffer


class Ids:
    """A tokenizer for documents that are token ids already."""

    def __init__(self, bos: int, wrap: Callable[[int, list[int]], list[int]] = lambda bos, ids: [bos, *ids]) -> None:
        self.bos, self.wrap = bos, wrap

    def get_bos_token_id(self) -> int:
        return self.bos

    def encode(self, documents: list[list[int]], prepend: int, num_threads: int) -> list[list[int]]:
        return [self.wrap(prepend, ids) for ids in documents]

    def render_conversation(self, conversation: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        return conversation


class Altered(BestFitBuffer[np.ndarray]):
    """nanochat's buffer with another way to choose: `largest` and `shortest` are given the buffer."""

    def __init__(self, largest: Callable[..., Any] | None = None, shortest: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.largest, self.shortest = largest, shortest

    def pop_largest(self, room: int) -> np.ndarray | None:
        return self.largest(self, room) if self.largest else super().pop_largest(room)

    def pop_shortest(self) -> np.ndarray:
        return self.shortest(self) if self.shortest else super().pop_shortest()

    def copy(self) -> "Altered":
        return self  # the loader keeps one for saving only

    def take(self, place: int) -> np.ndarray:
        """Take out what stands at `place` in the order of arrival."""
        entry = sorted(self._entries, key=lambda entry: -entry[1])[place]
        self._entries.remove(entry)
        return entry[2]


def first_fit(buffer: Altered, room: int) -> np.ndarray | None:
    place = next((i for i, document in enumerate(buffer) if document.shape[-1] <= room), None)
    return None if place is None else buffer.take(place)


def shortest_fit(buffer: Altered, room: int) -> np.ndarray | None:
    return BestFitBuffer.pop_shortest(buffer) if any(document.shape[-1] <= room for document in buffer) else None
