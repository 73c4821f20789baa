"""The pretraining loader: documents dealt out to ranks, tokenized, and packed into rows that all begin with BOS."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from nanochat.common import InputError, get_dist_info
from nanochat.dataset import read_row_groups, split_files
from nanochat.packing import BestFitBuffer

LoaderState = dict[str, int]


def document_batches(
    split: str, rank: int, world_size: int, batch_size: int, resume: LoaderState | None = None
) -> Iterator[tuple[list[str], LoaderState]]:
    """Yield this rank's documents for ever, at most `batch_size` at a time, each batch with its position.

    Row groups of a shard go round robin: rank, rank + world_size, ... The position {pq_idx, rg_idx, epoch} names the
    shard, the row group and the pass (from 1); `resume` continues with this rank's next row group after it.
    Raises ValueError if the rank has nothing to read or `resume` names a shard that is not there.
    """
    files = split_files(split)
    first_shard, first_row_group, first_epoch = 0, rank, 1
    if resume is not None:
        first_shard, first_epoch = resume["pq_idx"], resume.get("epoch", 1)
        first_row_group = (resume["rg_idx"] // world_size + 1) * world_size + rank
        if first_shard >= len(files):
            raise ValueError(
                f"Cannot resume from shard number {first_shard} of the {split} split: there are only {len(files)}; "
                "bring back the shards that the checkpoint was trained on."
            )

    for epoch in count(first_epoch):
        whole_pass = (first_shard, first_row_group) == (0, rank)
        found = False
        for pq_idx in range(first_shard, len(files)):
            for rg_idx, documents in read_row_groups(files[pq_idx], first_row_group, world_size):
                for i in range(0, len(documents), batch_size):
                    found = True
                    yield documents[i : i + batch_size], {"pq_idx": pq_idx, "rg_idx": rg_idx, "epoch": epoch}
            first_row_group = rank
        first_shard = 0
        if whole_pass and not found:
            raise ValueError(
                f"Rank {rank} of {world_size} has no documents in the {split} split: no shard has a row group number "
                f"{rank}; use fewer ranks, or write shards with at least {world_size} row groups."
            )


def pack_row(buffer: BestFitBuffer[np.ndarray], capacity: int, refill: Callable[[], None]) -> np.ndarray:
    """Fill one row of exactly `capacity` tokens: whole documents while one fits, then part of the shortest.

    `refill` tops the buffer up before each choice. What is cut off a document is dropped, so every document in every
    row starts at its BOS.
    """
    row = []
    room = capacity
    while room > 0:
        refill()
        document = buffer.pop_largest(room)
        if document is None:
            document = buffer.pop_shortest()[:room]
        row.append(document)
        room -= len(document)
    return np.concatenate(row)


class BestFitLoader:
    """Yields (inputs, targets, state) for ever: (B, T) int64 on `device`, targets one token ahead of inputs.

    Rows of T + 1 tokens are packed best-fit from at least `buffer_size` waiting documents (`pack_row`). `state` is the
    last position read (`document_batches`); `resume_state_dict`, such a state, continues after it without the documents
    that were waiting. `state_dict` has those too, and continues exactly.
    The tensors share their storage with the next batch's: copy what must outlive the next step.
    `tokenizer` offers get_bos_token_id() and encode(texts, prepend=, num_threads=). Rank and world size come from the
    environment. Raises as `split_files`, `read_row_groups` and `document_batches` do.
    """

    def __init__(
        self,
        tokenizer: Any,
        B: int,
        T: int,
        split: str,
        tokenizer_threads: int = 4,
        tokenizer_batch_size: int = 128,
        device: str | torch.device = "cuda",
        resume_state_dict: LoaderState | None = None,
        buffer_size: int = 1000,
    ) -> None:
        if buffer_size < 1:
            raise InputError(f"`buffer_size` is {buffer_size}: at least one document must wait to be packed.")
        _, self.rank, _, self.world_size = get_dist_info()
        self.tokenizer, self.threads, self.batch_size = tokenizer, tokenizer_threads, tokenizer_batch_size
        self.B, self.T, self.split, self.buffer_size = B, T, split, buffer_size
        self.cuda = torch.device(device).type == "cuda"
        self.staging = torch.empty((2, B, T), dtype=torch.int64, pin_memory=self.cuda)
        self.batch = torch.empty_like(self.staging, device=device)
        self.copied = torch.cuda.Event() if self.cuda else None

        self.documents = self.read_from(resume_state_dict)
        self.waiting: BestFitBuffer[np.ndarray] = BestFitBuffer()
        self.position: LoaderState = {}
        self.num_read = 0  # batches of documents read of the row group at the position
        self.before = self.waiting.copy(), self.position, self.num_read

    def read_from(self, state: LoaderState | None) -> Iterator[tuple[list[str], LoaderState]]:
        return document_batches(self.split, self.rank, self.world_size, self.batch_size, state)

    def __iter__(self) -> "BestFitLoader":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, LoaderState]:
        self.before = self.waiting.copy(), self.position, self.num_read
        rows = torch.from_numpy(np.stack([pack_row(self.waiting, self.T + 1, self.refill) for _ in range(self.B)]))
        if self.copied is not None:
            self.copied.synchronize()  # the device may be so far behind that it has yet to read the last batch
        self.staging[0], self.staging[1] = rows[:, :-1], rows[:, 1:]
        self.batch.copy_(self.staging, non_blocking=self.cuda)
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(self.batch.device))
        inputs, targets = self.batch
        return inputs, targets, self.position

    def refill(self) -> None:
        """Read, tokenize and add documents until `buffer_size` are waiting."""
        while len(self.waiting) < self.buffer_size:
            texts, position = next(self.documents)
            self.num_read = self.num_read + 1 if position == self.position else 1
            self.position = position
            bos = self.tokenizer.get_bos_token_id()
            for tokens in self.tokenizer.encode(texts, prepend=bos, num_threads=self.threads):
                self.waiting.add(np.array(tokens, dtype=np.int32), len(tokens))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to yield the last batch again and go on from there.

        Again, because a training loop fetches a batch ahead: when it saves, it has yet to train on the last one.
        """
        waiting, position, num_read = self.before
        return {"position": position, "num_read": num_read, "waiting": [torch.from_numpy(tokens) for tokens in waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where a loader of the same data, rank and world size was saved."""
        self.position, self.num_read = state["position"], state["num_read"]
        self.waiting = BestFitBuffer()
        for tokens in state["waiting"]:
            self.waiting.add(tokens.numpy(), len(tokens))
        if self.position:
            row_group_before = self.position | {"rg_idx": self.position["rg_idx"] - self.world_size}
            self.documents = islice(self.read_from(row_group_before), self.num_read, None)


# The name under which nanochat has it, there a generator.
tokenizing_distributed_data_loader_with_state_bos_bestfit = BestFitLoader


def tokenizing_distributed_data_loader_bos_bestfit(
    *args: Any, **kwargs: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, targets): the loader above, same arguments, without the state."""
    for inputs, targets, _ in BestFitLoader(*args, **kwargs):
        yield inputs, targets
