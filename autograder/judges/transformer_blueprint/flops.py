"""What a token costs. The oracle is nanochat.counts."""

from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import counts


def flops_cases(rng: Random) -> list[Case]:
    keys = "matmul_params n_head head_dim window_sizes sequence_len"
    fixed = asked(
        keys,
        (1000, 1, 2, [(4, 0)], 4),
        (0, 5, 16, [(8, 0), (32, 0)], 32),
        (5000, 5, 16, [(128, 0), (24, 0)], 24),
        (110_100_936, 6, 128, [(512, 0), (512, 0), (512, 0), (2048, 0)] * 3, 2048),
    )
    drawn = []
    for _ in range(6):
        sequence_len = rng.randint(1, 4000)
        windows = [(rng.choice((128, 256, sequence_len)), 0) for _ in range(rng.randint(1, 12))]
        drawn.append((rng.randint(1, 10**10), rng.randint(1, 16), 2 * rng.randint(4, 64), windows, sequence_len))
    return fixed + asked(keys, *drawn)


def flops_per_token(
    matmul_params: int, n_head: int, head_dim: int, window_sizes: list[tuple[int, int]], sequence_len: int
) -> int:
    """nanochat counts the FLOPs of a model: give it as much of one as it looks at."""
    model: Any = nn.Module()
    model.config = SimpleNamespace(n_head=n_head, sequence_len=sequence_len)
    model.head_dim, model.window_sizes = head_dim, window_sizes
    with torch.device("meta"):
        blocks = nn.Module()
        blocks.register_parameter("weights", nn.Parameter(torch.empty(matmul_params)))
        model.transformer = nn.ModuleDict({"wte": nn.Identity(), "h": blocks})
        model.smear_gate = nn.Linear(1, 1, bias=False)
        model.smear_gate.weight = nn.Parameter(torch.empty(0))
    model.value_embeds = model.lm_head = nn.Identity()
    return counts.estimate_flops(model)


def with_windows(change: Callable[[int, int], int]) -> Callable[..., int]:
    """FLOPs when a layer with the window `left` reads `change(left, sequence_len)` keys."""

    def mistake(window_sizes: list[tuple[int, int]], sequence_len: int, **case: int) -> int:
        keys = [(change(left, sequence_len), 0) for left, _ in window_sizes]
        unlimited = max(left for left, _ in keys)
        return flops_per_token(window_sizes=keys, sequence_len=unlimited, **case)

    return mistake


FLOPS_PER_TOKEN = Judge(
    flops_cases,
    flops_per_token,
    mistakes={
        "every layer is counted as long; a short layer reads only its window": with_windows(lambda left, t: t),
        "a window is counted as left + 1 keys; nanochat's count takes it as `left`": (
            with_windows(lambda left, t: min(left, t) + 1)
        ),
        "a window longer than the context is counted whole; no query can read more than sequence_len keys": (
            with_windows(lambda left, t: left)
        ),
        "only the forward pass is counted; the backward pass costs twice as much again": (
            lambda **case: flops_per_token(**case) // 3
        ),
        "the backward pass is counted as one forward pass; it costs two": (
            lambda **case: flops_per_token(**case) // 3 * 2
        ),
        "attention is left out: the scores and the weighted sum of values cost FLOPs too": (
            with_windows(lambda left, t: 0)
        ),
        "attention is counted for one head; every query head does it": (
            lambda n_head, **case: flops_per_token(n_head=1, **case)
        ),
        "attention counts the scores only; the weighted sum of values costs as much again": (
            lambda n_head, head_dim, **case: flops_per_token(n_head=n_head, head_dim=head_dim // 2, **case)
        ),
        "attention's backward pass is missing": (
            lambda **case: (
                flops_per_token(**case) - 2 * (flops_per_token(**case) - flops_per_token(**case | {"n_head": 0})) // 3
            )
        ),
    },
)
