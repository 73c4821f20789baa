"""The pretraining loader: documents dealt out to ranks, tokenized, and packed into rows that all begin with BOS."""

from collections.abc import Callable, Iterator
from itertools import count
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


def tokenizing_distributed_data_loader_with_state_bos_bestfit(
    tokenizer: Any,
    B: int,
    T: int,
    split: str,
    tokenizer_threads: int = 4,
    tokenizer_batch_size: int = 128,
    device: str | torch.device = "cuda",
    resume_state_dict: LoaderState | None = None,
    buffer_size: int = 1000,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, LoaderState]]:
    """Yield (inputs, targets, state) for ever: (B, T) int64 on `device`, targets one token ahead of inputs.

    Rows of T + 1 tokens are packed best-fit from at least `buffer_size` waiting documents (`pack_row`). `state` is the
    last position read (`document_batches`); resuming from it loses the documents that were waiting.
    The tensors share their storage with the next batch's: copy what must outlive the next step.
    `tokenizer` offers get_bos_token_id() and encode(texts, prepend=, num_threads=). Rank and world size come from the
    environment. Raises as `split_files`, `read_row_groups` and `document_batches` do.
    """
    if buffer_size < 1:
        raise InputError(f"`buffer_size` is {buffer_size}: at least one document must wait to be packed.")
    _, rank, _, world_size = get_dist_info()
    bos = tokenizer.get_bos_token_id()
    batches = document_batches(split, rank, world_size, tokenizer_batch_size, resume_state_dict)
    buffer: BestFitBuffer[np.ndarray] = BestFitBuffer()
    state: LoaderState = {}

    def refill() -> None:
        nonlocal state
        while len(buffer) < buffer_size:
            texts, state = next(batches)
            for tokens in tokenizer.encode(texts, prepend=bos, num_threads=tokenizer_threads):
                buffer.add(np.array(tokens, dtype=np.int32), len(tokens))

    cuda = torch.device(device).type == "cuda"
    staging = torch.empty((2, B, T), dtype=torch.int64, pin_memory=cuda)
    batch = torch.empty_like(staging, device=device)
    inputs, targets = batch
    copied = torch.cuda.Event() if cuda else None
    while True:
        rows = torch.from_numpy(np.stack([pack_row(buffer, T + 1, refill) for _ in range(B)]))
        if copied is not None:
            copied.synchronize()  # the device may be so far behind that it has yet to read the last batch
        staging[0], staging[1] = rows[:, :-1], rows[:, 1:]
        batch.copy_(staging, non_blocking=cuda)
        if copied is not None:
            copied.record(torch.cuda.current_stream(batch.device))
        yield inputs, targets, state


def tokenizing_distributed_data_loader_bos_bestfit(
    *args: Any, **kwargs: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, targets): the loader above, same arguments, without the state."""
    for inputs, targets, _ in tokenizing_distributed_data_loader_with_state_bos_bestfit(*args, **kwargs):
        yield inputs, targets
