"""Bits per byte: a validation loss that does not depend on the tokenizer."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from nanochat.common import InputError, is_ddp_initialized


@torch.no_grad()
def evaluate_bpb(
    model: Any, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], steps: int, token_bytes: torch.Tensor
) -> float:
    """Bits per byte of `model` over the first `steps` batches, summed over all ranks under torch.distributed.

    The loss in nats of every counted target, divided by ln 2 and by the bytes those targets stand for, so that a
    larger vocabulary (fewer, harder tokens) is not penalised. Ignored targets (negative) and tokens of no bytes
    (special tokens) count neither as loss nor as bytes.

    Args:
        model: called as model(x, y, loss_reduction="none"), gives B·T losses in nats.
        batches: pairs (x, y) of token ids, each (B, T) int64.
        steps: how many batches to take; StopIteration if there are fewer.
        token_bytes: bytes of each token id, (vocab_size,) int, on the device of the batches.

    Returns:
        Bits per byte; inf if nothing was counted.
    """
    nats = torch.zeros((), dtype=torch.float32, device=token_bytes.device)
    num_bytes = torch.zeros((), dtype=torch.int64, device=token_bytes.device)
    iterator = iter(batches)
    for _ in range(steps):
        x, y = next(iterator)
        loss = model(x, y, loss_reduction="none").view(-1)
        y = y.view(-1)
        target_bytes = torch.where(y >= 0, token_bytes[y.clamp(min=0)], 0)
        nats += torch.where(target_bytes > 0, loss, 0.0).sum()
        num_bytes += target_bytes.sum()
    if is_ddp_initialized():
        dist.all_reduce(nats)
        dist.all_reduce(num_bytes)
    if num_bytes == 0:
        return math.inf
    return nats.item() / (math.log(2) * num_bytes.item())


def count_batches(num_tokens: int, B: int, T: int, world_size: int) -> int:
    """How many batches (B, T) on each rank make up at most `num_tokens`. InputError if not even one does."""
    tokens_at_once = B * T * world_size
    if num_tokens < tokens_at_once:
        raise InputError(
            f"evaluating on {num_tokens} tokens is less than one batch of {B} rows of {T} tokens on {world_size} "
            f"rank(s): make it {tokens_at_once} or more."
        )
    return num_tokens // tokens_at_once
