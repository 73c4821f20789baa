"""Rotary tables and attention masks. The oracle is nanochat.gpt and nanochat.flash_attention."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import gpt
from nanochat.flash_attention import visible_mask
from puzzles.compare import Tolerance, difference


def rotary_cases(rng: Random) -> list[Case]:
    keys = "seq_len head_dim dtype"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    fixed = asked(
        keys,
        (3, 4, torch.float32),
        (1, 2, torch.float32),
        (5, 6, torch.float32),
        (7, 16, torch.float32),
        (9, 8, torch.bfloat16),
        (300, 64, torch.bfloat16),
        (1000, 10, torch.float16),
        (2000, 32, torch.float32),
    )
    return fixed + asked(keys, *((rng.randint(2, 600), 2 * rng.randint(1, 64), rng.choice(dtypes)) for _ in range(6)))


def rotary(seq_len: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return gpt.precompute_rotary(seq_len, head_dim, dtype=dtype)


def mistaken_rotary(
    base: float = gpt.ROTARY_BASE,
    exponent: Callable[[Tensor, int], Tensor] = lambda pair, head_dim: 2 * pair / head_dim,
    first: int = 0,
    coarse: tuple[str, ...] = (),
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Tables of other frequencies, of positions from `first`, or with what `coarse` names cast to `dtype`."""

    def mistake(seq_len: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        def cast(name: str, numbers: Tensor) -> Tensor:
            return numbers.to(dtype) if name in coarse else numbers

        frequency = cast("frequency", base ** -exponent(torch.arange(head_dim // 2).float(), head_dim))
        position = cast("position", torch.arange(first, first + seq_len).float())
        angle = cast("angle", torch.outer(position, frequency))[None, :, None, :]
        return angle.cos().to(dtype), angle.sin().to(dtype)

    return mistake


def reshaped_rotary(change: Callable[[Tensor, Tensor], Any]) -> Callable[..., Any]:
    """The right tables, put into another form by `change(cos, sin)`."""
    return lambda **case: change(*rotary(**case))


def examine_rotary(expected: Any, got: Any) -> str | None:
    """cos and sin may be off by the rounding of the result's dtype, and of a float32 angle as large as the position."""
    cos = expected[0]
    atol = 1e-6 + torch.finfo(cos.dtype).eps + 2 * torch.finfo(torch.float32).eps * cos.size(1)
    return difference(expected, got, Tolerance(atol=atol))


ROTARY = Judge(
    rotary_cases,
    rotary,
    tolerance=Tolerance(atol=2e-6),
    examine=examine_rotary,
    mistakes={
        "cos and sin are swapped; cos comes first": reshaped_rotary(lambda cos, sin: (sin, cos)),
        "positions start at 1; they start at 0, where cos is 1 and sin is 0": mistaken_rotary(first=1),
        "the angles are negative; the table holds position times frequency, and its use turns backwards": (
            reshaped_rotary(lambda cos, sin: (cos, -sin))
        ),
        "each frequency stands twice, as for neighbouring channels; the table has one entry a pair, head_dim / 2": (
            reshaped_rotary(lambda cos, sin: (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)))
        ),
        "the table is repeated to head_dim channels; it has one entry a pair of channels, head_dim / 2": (
            reshaped_rotary(lambda cos, sin: (cos.repeat(1, 1, 1, 2), sin.repeat(1, 1, 1, 2)))
        ),
        "the axes for batch and heads are missing: the shape is (1, seq_len, 1, head_dim / 2)": (
            reshaped_rotary(lambda cos, sin: (cos[0, :, 0], sin[0, :, 0]))
        ),
        "time stands in the place of the heads: tensors are (batch, time, heads, channels)": (
            reshaped_rotary(lambda cos, sin: (cos.transpose(1, 2), sin.transpose(1, 2)))
        ),
        "the base is 10000, as in the first RoPE paper; nanochat's is 100000": mistaken_rotary(base=10_000),
        "the exponent lacks its factor 2: pair c turns by base^(-2c / head_dim)": (
            mistaken_rotary(exponent=lambda pair, head_dim: pair / head_dim)
        ),
        "the exponent runs to 1 inclusive: it is 2c / head_dim, which stays below 1": (
            mistaken_rotary(exponent=lambda pair, head_dim: pair / max(1, head_dim // 2 - 1))
        ),
        "positions and frequencies are cast to the dtype of the result; only cos and sin may be": (
            mistaken_rotary(coarse=("position", "frequency"))
        ),
        "the positions are cast to the dtype of the result; only cos and sin may be": (
            mistaken_rotary(coarse=("position",))
        ),
        "the angles are cast to the dtype of the result; only cos and sin may be": mistaken_rotary(coarse=("angle",)),
        "the result is not cast to the dtype asked for": (
            lambda seq_len, head_dim, dtype: rotary(seq_len, head_dim, torch.float32)
        ),
    },
)


def mask_cases(rng: Random) -> list[Case]:
    keys = "Tq Tk left"
    fixed = asked(
        keys,
        (4, 4, 1),
        (3, 3, -1),
        (2, 5, 1),
        (1, 1, 0),
        (1, 1, -1),
        (3, 3, 0),
        (1, 5, 2),
        (4, 11, 3),
        (3, 7, 6),
        (5, 5, 5),
        (2, 6, -1),
        (6, 6, 100),
    )
    drawn = []
    for _ in range(10):
        Tk = rng.randint(1, 60)
        drawn.append((rng.randint(1, Tk), Tk, rng.randint(-1, Tk + 2)))
    return fixed + asked(keys, *drawn)


def attention_mask(Tq: int, Tk: int, left: int) -> Tensor:
    return visible_mask(Tq, Tk, left)


def mistaken_mask(visible: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """The mask of `visible(position of the query, of the key, left)`, with left large for an unlimited window."""

    def mistake(Tq: int, Tk: int, left: int) -> Tensor:
        return visible(torch.arange(Tk - Tq, Tk)[:, None], torch.arange(Tk)[None, :], Tk if left < 0 else left)

    return mistake


ATTENTION_MASK = Judge(
    mask_cases,
    attention_mask,
    mistakes={
        "True and False are swapped: True marks a key that the query may see": (
            lambda **case: attention_mask(**case).logical_not()
        ),
        "the mask is one to add to the scores (0 and -inf); it must be boolean": (
            lambda **case: torch.zeros(case["Tq"], case["Tk"]).masked_fill(~attention_mask(**case), -torch.inf)
        ),
        "left = -1 is taken for a window; it means that all earlier keys are visible": (
            lambda Tq, Tk, left: (
                attention_mask(Tq, Tk, left) & (torch.arange(Tk) >= torch.arange(Tk - Tq, Tk)[:, None] - left)
            )
        ),
        "queries see keys of later positions; attention is causal": mistaken_mask(lambda q, k, left: k >= q - left),
        "a query does not see its own position; it sees itself and `left` keys before": (
            mistaken_mask(lambda q, k, left: (k < q) & (k >= q - left))
        ),
        "the window is one key short: a query sees itself and `left` keys before, left + 1 in all": (
            mistaken_mask(lambda q, k, left: (k <= q) & (k > q - left))
        ),
        "the window is one key too long: a query sees itself and `left` keys before, left + 1 in all": (
            mistaken_mask(lambda q, k, left: (k <= q) & (k >= q - left - 1))
        ),
        "the window is ignored: keys more than `left` positions back are not visible": (
            mistaken_mask(lambda q, k, left: k <= q)
        ),
        "the queries are put at the first positions; they are the last Tq of the Tk positions": (
            lambda Tq, Tk, left: attention_mask(Tk, Tk, left)[:Tq]
        ),
        "the axes are swapped: rows are queries, columns are keys": lambda **case: attention_mask(**case).T,
    },
)
