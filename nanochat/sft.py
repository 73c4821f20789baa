"""Supervised fine-tuning: conversations packed into padded rows, and the settings inherited from the checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from nanochat.common import InputError
from nanochat.packing import BestFitBuffer

# Settings that the command line may leave out, with what they are if the checkpoint does not say either.
RUN_DEFAULTS = {"max_seq_len": 2048, "device_batch_size": 32, "total_batch_size": 524288}
LR_DEFAULTS = {"embedding_lr": 0.3, "unembedding_lr": 0.004, "matrix_lr": 0.02}


def resolve_hyperparameters(cli: Mapping[str, Any], checkpoint_meta: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an SFT run: the command line's, else those the checkpoint was trained with, else the defaults.

    The checkpoint keeps the sizes at the top of its meta data and the learning rates under `user_config`.
    None counts as absent.
    """
    resolved = {}
    for defaults, trained_with in (
        (RUN_DEFAULTS, checkpoint_meta),
        (LR_DEFAULTS, checkpoint_meta.get("user_config") or {}),
    ):
        for name, default in defaults.items():
            given = (cli.get(name), trained_with.get(name), default)
            resolved[name] = next(value for value in given if value is not None)
    return resolved


class SFTState(NamedTuple):
    """Where a rank stands when it receives a batch.

    Ranks pack different conversations, so they see `last_step` at different batches: take the maximum over ranks.
    """

    last_step: bool  # this is the last batch wanted; the generator itself goes on
    progress: float  # 0 to 1, of the iterations asked for or else of one pass over the conversations
    epoch: int  # pass (from 1) that the next conversation to be read belongs to


def pack_row(
    buffer: BestFitBuffer[np.ndarray], capacity: int, refill: Callable[[], None], bos: int
) -> tuple[np.ndarray, int]:
    """Fill one row of exactly `capacity` tokens with whole conversations while one fits, then pad with BOS.

    A conversation is a (2, n) array: token ids, and a mask with 1 where the model is to learn to say the token.
    `refill` tops the buffer up before each choice. Returns the row, (2, capacity) with mask 0 on the padding, and the
    number of conversations in it.
    """
    row = np.zeros((2, capacity), dtype=np.int32)
    row[0] = bos
    end = count = 0
    while end < capacity:
        refill()
        conversation = buffer.pop_largest(capacity - end)
        if conversation is None:
            break
        length = conversation.shape[1]
        row[:, end : end + length] = conversation
        end += length
        count += 1
    return row, count


class SFTLoader:
    """Yields (inputs, targets, state) for ever: (B, T) int32 and int64 on `device`.

    Rows of T + 1 tokens are packed best-fit from `buffer_size` waiting conversations (`pack_row`), read in order:
    rank, rank + world_size, ... and round again. A target is -1, ignored, where its token has mask 0.
    `last_step` turns true at batch `num_iterations` (if positive) or once all conversations are in a row, counted per
    rank in steps of world_size. `conversations` has len() and [index]; `tokenizer` offers get_bos_token_id() and
    render_conversation(conversation) -> (ids, mask).
    Raises ValueError for an empty set of conversations, or one that is longer than a row.
    """

    def __init__(
        self,
        conversations: Any,
        tokenizer: Any,
        B: int,
        T: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_iterations: int = -1,
        buffer_size: int = 100,
        device: str | torch.device = "cpu",
    ) -> None:
        if len(conversations) == 0:
            raise InputError("There are no conversations to train on: the data set is empty.")
        if buffer_size < 1:
            raise InputError(f"`buffer_size` is {buffer_size}: at least one conversation must wait to be packed.")
        self.conversations, self.tokenizer, self.B, self.T = conversations, tokenizer, B, T
        self.world_size, self.num_iterations, self.buffer_size = world_size, num_iterations, buffer_size
        self.device = torch.device(device)
        self.waiting: BestFitBuffer[np.ndarray] = BestFitBuffer()
        self.fetched = self.consumed = rank
        self.iteration = 0
        self.before = self.waiting.copy(), self.fetched, self.consumed, self.iteration

    def __iter__(self) -> "SFTLoader":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, SFTState]:
        self.before = self.waiting.copy(), self.fetched, self.consumed, self.iteration
        bos = self.tokenizer.get_bos_token_id()
        rows, counts = zip(*(pack_row(self.waiting, self.T + 1, self.refill, bos) for _ in range(self.B)), strict=True)
        self.consumed += self.world_size * sum(counts)
        self.iteration += 1
        tokens, trained = torch.from_numpy(np.stack(rows, axis=1))
        inputs = tokens[:, :-1].contiguous()
        targets = tokens[:, 1:].masked_fill(trained[:, 1:] == 0, -1).to(torch.int64)
        if cuda := self.device.type == "cuda":
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return inputs.to(self.device, non_blocking=cuda), targets.to(self.device, non_blocking=cuda), self.state()

    def state(self) -> SFTState:
        size, limit = len(self.conversations), self.num_iterations
        return SFTState(
            last_step=0 < limit <= self.iteration or self.consumed >= size,
            progress=min(1.0, self.iteration / limit if limit > 0 else self.consumed / size),
            epoch=1 + self.fetched // size,
        )

    def refill(self) -> None:
        """Render and add conversations until `buffer_size` are waiting."""
        while len(self.waiting) < self.buffer_size:
            index = self.fetched % len(self.conversations)
            ids, mask = self.tokenizer.render_conversation(self.conversations[index])
            if len(ids) > self.T + 1:
                raise ValueError(
                    f"Conversation {index} has {len(ids)} tokens and a row holds {self.T + 1}, so it can never be "
                    f"placed: raise the sequence length to {len(ids) - 1} or more, or shorten or drop the conversation."
                )
            self.waiting.add(np.array([ids, mask], dtype=np.int32), len(ids))
            self.fetched += self.world_size

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to yield the last batch again and go on from there, as a training loop that
        fetches a batch ahead must."""
        waiting, fetched, consumed, iteration = self.before
        tensors = [torch.from_numpy(conversation) for conversation in waiting]
        return {"fetched": fetched, "consumed": consumed, "iteration": iteration, "waiting": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where a loader of the same conversations, rank and world size was saved."""
        self.fetched, self.consumed, self.iteration = state["fetched"], state["consumed"], state["iteration"]
        self.waiting = BestFitBuffer()
        for conversation in state["waiting"]:
            self.waiting.add(conversation.numpy(), conversation.shape[1])
