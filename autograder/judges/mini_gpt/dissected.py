"""nanochat's GPT with all but one piece taken out, so that what the piece does can be seen from outside.

nanochat writes its forward in one go: there is no function that is "the value residual". So each oracle runs nanochat's
own lines on a private copy of nanochat.gpt in which the other pieces let everything through.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from autograder.judges.cases import private_copy
from nanochat import gpt
from nanochat.engine import KVCache
from puzzles.compare import Tolerance, difference

# float32 sums in another order, on another device
NEAR = Tolerance(rtol=1e-4, atol=1e-5)
# bfloat16 rounds to 8 bits: the sums of up to 24 numbers of order 1 that are made here, added up one by one in it, are
# off by up to 24 * 2^-9. What such a case is for is the dtype; values are looked at closely in float32.
COARSE = Tolerance(rtol=0.05, atol=0.1)


def near_by_dtype(expected: Any, got: Any) -> str | None:
    """How answers are compared: as coarsely as their dtype is."""
    return difference(expected, got, COARSE if torch.bfloat16 in dtypes_in(expected) else NEAR)


def dtypes_in(value: Any) -> set[torch.dtype]:
    if isinstance(value, Tensor):
        return {value.dtype}
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(dtypes_in, nested))


def randn(rng: Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that follow from `rng`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31))).to(dtype)


def as_view(x: Tensor) -> Tensor:
    """The same numbers, with the last two dimensions the other way round in memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


class Given(nn.Module):
    """Answers with `answer(*arguments)`, or with `answer` itself if it is a tensor."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *arguments: Any) -> Any:
        return self.answer if isinstance(self.answer, Tensor) else self.answer(*arguments)


class Names:
    """A bundle of names. Unlike a SimpleNamespace it can be looked up by, for what it is and not for what it holds."""

    def __init__(self, **names: Any) -> None:
        vars(self).update(names)


def altered(**pieces: Any) -> Any:
    """A copy of nanochat.gpt in which these names mean something else, for reading only: the same is made once."""
    return _altered(tuple(sorted(pieces.items())))


@lru_cache(maxsize=256)
def _altered(pieces: tuple[tuple[str, Any], ...]) -> Any:
    module = private_copy(gpt)
    vars(module).update(pieces)
    return module


@cache
def computing_in(dtype: torch.dtype) -> Names:
    """A stand-in for nanochat.common."""
    return Names(COMPUTE_DTYPE=dtype)


def same(x: Tensor, *_: Any) -> Tensor:
    """A piece that lets through what it is given."""
    return x


@torch.no_grad()
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None = None,
    ve: Tensor | None = None,
    gate: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
    layer_idx: int = 0,
    kv_cache: KVCache | None = None,
    **pieces: Any,
) -> Tensor:
    """What nanochat's CausalSelfAttention makes of these queries, keys and values (B, T, heads, D): (B, T, H * D)."""
    (B, T, H, D), H_kv = q.shape, k.size(2)
    module = altered(**pieces)
    config = module.GPTConfig(n_layer=1, n_head=H, n_kv_head=H_kv, n_embd=H * D)
    layer = module.CausalSelfAttention(config, 0)
    layer.layer_idx = layer_idx
    layer.c_q, layer.c_k, layer.c_v = (Given(each.contiguous()) for each in (q, k, v))
    layer.c_proj = nn.Identity()
    if gate is not None:
        layer.ve_gate.weight = nn.Parameter(gate)
    x = q.new_zeros(B, T, 12) if x is None else x
    return layer(x, ve, cos, sin, tuple(window), kv_cache)


# for `attention`: queries and keys as they come
UNTURNED: dict[str, Any] = {"apply_rotary_emb": same, "norm": same, "QK_SCALE": 1}


def model(
    n_layer: int, n_embd: int, dtype: torch.dtype, base: Callable = lambda module: module.GPT, **pieces: Any
) -> Any:
    """nanochat's GPT that computes in `dtype`, with parameters of value 0 and `n_layer` blocks that do nothing.

    `base` picks the class from the altered module; what reaches lm_head is also put into `model.seen`.
    """
    module = altered(common=computing_in(dtype), **pieces)
    config = module.GPTConfig(n_layer=n_layer, n_head=1, n_kv_head=1, n_embd=n_embd, vocab_size=64, sequence_len=16)
    instance = base(module)(config)
    for parameter in instance.parameters():
        parameter.detach().zero_()
    instance.resid_lambdas.data.fill_(1)
    instance.transformer.h = nn.ModuleList(Given(same) for _ in range(n_layer))
    instance.lm_head.register_forward_pre_hook(lambda _, inputs: setattr(instance, "seen", inputs[0]))
    return instance


def new_cache(batch_size: int, room: int, dtype: torch.dtype, n_layer: int = 1) -> KVCache:
    """A cache for a model without attention, which only counts positions and keeps an embedding."""
    return KVCache(
        batch_size=batch_size,
        num_heads=1,
        seq_len=room,
        head_dim=1,
        num_layers=n_layer,
        device="cpu",
        dtype=dtype,
    )
