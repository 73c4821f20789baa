"""Supervised fine-tuning: conversations packed into padded rows, and the settings inherited from the checkpoint."""

from collections.abc import Callable, Iterator, Mapping
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


def sft_data_generator(
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
) -> Iterator[tuple[torch.Tensor, torch.Tensor, SFTState]]:
    """Yield (inputs, targets, state) for ever: (B, T) int32 and int64 on `device`.

    Rows of T + 1 tokens are packed best-fit from `buffer_size` waiting conversations (`pack_row`), read in order:
    rank, rank + world_size, ... and round again. A target is -1, ignored, where its token has mask 0.
    `last_step` turns true at batch `num_iterations` (if positive) or once all conversations are in a row, counted per
    rank in steps of world_size. `conversations` has len() and [index]; `tokenizer` offers get_bos_token_id() and
    render_conversation(conversation) -> (ids, mask).
    Raises ValueError for an empty set of conversations, or one that is longer than a row.
    """
    size = len(conversations)
    if size == 0:
        raise InputError("There are no conversations to train on: the data set is empty.")
    if buffer_size < 1:
        raise InputError(f"`buffer_size` is {buffer_size}: at least one conversation must wait to be packed.")
    bos = tokenizer.get_bos_token_id()
    buffer: BestFitBuffer[np.ndarray] = BestFitBuffer()
    fetched = consumed = rank

    def refill() -> None:
        nonlocal fetched
        while len(buffer) < buffer_size:
            index = fetched % size
            ids, mask = tokenizer.render_conversation(conversations[index])
            if len(ids) > T + 1:
                raise ValueError(
                    f"Conversation {index} has {len(ids)} tokens and a row holds {T + 1}, so it can never be placed: "
                    f"raise the sequence length to at least {len(ids) - 1}, or shorten or drop the conversation."
                )
            buffer.add(np.array([ids, mask], dtype=np.int32), len(ids))
            fetched += world_size

    cuda = torch.device(device).type == "cuda"
    iteration = 0
    while True:
        iteration += 1
        rows, counts = zip(*(pack_row(buffer, T + 1, refill, bos) for _ in range(B)), strict=True)
        consumed += world_size * sum(counts)
        tokens, trained = torch.from_numpy(np.stack(rows, axis=1))
        inputs = tokens[:, :-1].contiguous()
        targets = tokens[:, 1:].masked_fill(trained[:, 1:] == 0, -1).to(torch.int64)
        if cuda:
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        done = iteration / num_iterations if num_iterations > 0 else consumed / size
        state = SFTState(
            last_step=0 < num_iterations <= iteration or consumed >= size,
            progress=min(1.0, done),
            epoch=1 + fetched // size,
        )
        yield inputs.to(device, non_blocking=cuda), targets.to(device, non_blocking=cuda), state
