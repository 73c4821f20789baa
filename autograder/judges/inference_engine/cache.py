"""Judge of `kv_cache`: a cache at work, step by step, against nanochat's cache and what its attention writes."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat.engine import KVCache
from nanochat.flash_attention import flash_attn


def size_of(
    batch_size: int = 1, num_heads: int = 2, seq_len: int = 6, head_dim: int = 3, num_layers: int = 2
) -> dict[str, int]:
    return {
        "batch_size": batch_size,
        "num_heads": num_heads,
        "seq_len": seq_len,
        "head_dim": head_dim,
        "num_layers": num_layers,
    }


def forward_of(rng: Random, size: Mapping[str, int], n: int, dtype: torch.dtype) -> list[tuple]:
    """A forward pass of n tokens: every layer writes, then the position advances."""
    shape = (2, size["batch_size"], n, size["num_heads"], size["head_dim"])
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    written = [torch.randn(shape, generator=generator).to(dtype) for _ in range(size["num_layers"])]
    return [*(("write", layer, k, v) for layer, (k, v) in enumerate(written)), ("advance", n)]


def embedding_of(rng: Random, rows: int, channels: int) -> Tensor:
    return torch.tensor([[[rng.uniform(-1, 1) for _ in range(channels)]] for _ in range(rows)])


def prompt_of(rng: Random, size: Mapping[str, int], n: int, dtype: torch.dtype, channels: int = 4) -> list[tuple]:
    """The steps of a cache through which a prompt has gone; with 0 channels it leaves no embedding."""
    remembered = [("remember", embedding_of(rng, size["batch_size"], channels))] if channels else []
    return [*forward_of(rng, size, n, dtype), *remembered]


def cache_cases(rng: Random) -> list[Case]:
    f32, f16 = torch.float32, torch.bfloat16
    size, wide = size_of(), size_of(3, 2, 9, 3, 2)
    grid = size_of(2, 3, 10, 4, 5)
    two = {**size, "batch_size": 2}
    prompt = prompt_of(rng, size, 4, f32)
    late = forward_of(rng, size, 3, f32)
    later = [forward_of(rng, wide, n, f32) for n in (1, 2, 1)]
    stray = torch.ones(1, 1, 2, 3)
    steps: list[tuple[dict, torch.dtype, list[tuple]]] = [
        (size, f32, []),
        (grid, f16, [("advance", 4), ("state",), ("advance", 3)]),
        (size, f32, [*forward_of(rng, size, 2, f32), *forward_of(rng, size, 1, f32), *forward_of(rng, size, 3, f32)]),
        (grid, f16, [*forward_of(rng, grid, 3, f16), ("state",), *forward_of(rng, grid, 7, f16)]),
        (size, f32, [*forward_of(rng, size, 5, f32), ("write", 1, *late[0][2:]), ("write", 1, stray, -stray)]),
        (size, f32, [*forward_of(rng, size, 6, f32), ("write", 0, stray, stray), ("write", 0, *late[0][2:])]),
        (size, f32, [("poke", 1), ("advance", 2), ("poke", 0)]),
        (size, f32, [*prompt, ("reset",), ("state",), *late, ("state",), ("reset",)]),
        (wide, f32, [("prefill", size, prompt), *later[0], ("state",), *later[1], *later[2]]),
        (wide, f32, [("prefill", size, prompt), ("change",), ("state",)]),
        (size, f32, [("prefill", size, prompt), ("change",), ("poke", 0)]),
        (wide, f16, [("prefill", size, prompt_of(rng, size, 6, f16, channels=0)), ("state",)]),
        (wide, f32, [("prefill", size, [("remember", embedding_of(rng, 1, 5))]), ("change",)]),
        (wide, f32, [*later[0], ("prefill", size, prompt), ("reset",), ("prefill", size, prompt)]),
        (two, f32, [("prefill", two, prompt_of(rng, two, 2, f32)), ("prefill", size, prompt)]),
        (wide, f32, [("prefill", two, prompt_of(rng, two, 2, f32)), ("state",), ("prefill", size, prompt)]),
    ]
    for change in ({"seq_len": 10}, {"num_heads": 3}, {"head_dim": 4}, {"num_layers": 3}, {"num_layers": 1}):
        other = {**size, **change}
        steps.append((wide, f32, [("prefill", other, prompt_of(rng, other, 2, f32)), ("state",)]))
    steps.append((size_of(2, 1, 9, 3, 2), f32, [("prefill", size_of(1, 3, 9, 1, 2), [])]))
    for _ in range(4):
        one = size_of(1, rng.randint(1, 4), rng.randint(4, 12), rng.randint(1, 5), rng.randint(1, 4))
        many = {**one, "batch_size": rng.randint(2, 5), "seq_len": one["seq_len"] + rng.randint(3, 6)}
        dtype = rng.choice((f32, f16))
        said = prompt_of(rng, one, rng.randint(1, 4), dtype, rng.randint(1, 6))
        drawn: list[tuple] = [("prefill", one, said)]
        for n in (1, rng.randint(1, 2)):
            drawn += forward_of(rng, many, n, dtype)
        steps.append((many, dtype, drawn))
    return [case | {"device": "cpu"} for case in asked("size dtype steps", *steps)]


class WritingCache(KVCache):
    """nanochat's cache, with the notebook's `write`: what nanochat's attention does with it."""

    def write(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.get_layer_cache(layer_idx)
        attend = flash_attn.flash_attn_with_kvcache
        attend(torch.zeros_like(k), keys, values, k=k, v=v, cache_seqlens=self.cache_seqlens, causal=True)
        end = self.get_pos() + k.size(1)
        return keys[:, :end], values[:, :end]


def worked_through(make: type[WritingCache] = WritingCache) -> Callable[..., list]:
    """What the graded cell reports of a cache of the class `make`."""

    def work_through(size: dict, dtype: torch.dtype, steps: list, device: Any = "cpu") -> list:
        cache = make(**size, device="cpu", dtype=dtype)
        given: list[KVCache] = []
        results = [step_of(make, cache, given, dtype, *step) for step in steps]
        return [*results, *map(state_of, given), state_of(cache)]

    return work_through


def step_of(make: type[WritingCache], cache: Any, given: list, dtype: torch.dtype, what: str, *arguments: Any) -> Any:
    try:
        if what == "write":
            return dict(zip(("keys", "values"), (each.clone() for each in cache.write(*arguments)), strict=True))
        if what == "state":
            return state_of(cache)
        if what == "prefill":
            other = make(**arguments[0], device="cpu", dtype=dtype)
            for step in arguments[1]:
                step_of(make, other, given, dtype, *step)
            cache.prefill(other)
            given.append(other)
        elif what == "poke":
            for number, view in zip((7, -7), cache.get_layer_cache(*arguments), strict=True):
                view[:, 0] = number
        elif what == "remember":
            cache.prev_embedding = arguments[0].clone()
        elif what == "change":
            cache.prev_embedding[0] += 1
        else:
            getattr(cache, what)(*arguments)
    except ValueError:
        return "ValueError"
    return f"position {cache.get_pos()}"


def state_of(cache: Any) -> Case:
    pos = cache.get_pos()
    return {
        "sizes": [cache.batch_size, cache.max_seq_len, cache.n_layers, cache.n_heads, cache.head_dim],
        "shapes": [list(cache.k_cache.shape), list(cache.v_cache.shape)],
        "position": pos,
        "cache_seqlens": cache.cache_seqlens.clone(),
        "keys": cache.k_cache[:, :, :pos].clone(),
        "values": cache.v_cache[:, :, :pos].clone(),
        "prev_embedding": None if cache.prev_embedding is None else cache.prev_embedding.clone(),
    }


class LongPositions(WritingCache):
    def __init__(self, **size: Any) -> None:
        super().__init__(**size)
        self.cache_seqlens = self.cache_seqlens.long()


class AdvancingCache(WritingCache):
    def write(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        written = super().write(layer_idx, k, v)
        self.advance(k.size(1))
        return written


class NewOnly(WritingCache):
    def write(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().write(layer_idx, k, v)
        return keys[:, -k.size(1) :], values[:, -k.size(1) :]


class Forgetful(WritingCache):
    """Its reset and prefill leave the previous embedding as it was."""

    def reset(self) -> None:
        self.cache_seqlens.zero_()

    def prefill(self, other: KVCache) -> None:
        kept = self.prev_embedding
        super().prefill(other)
        self.prev_embedding = kept


class Trusting(WritingCache):
    """Its prefill does not mind what this cache holds."""

    def prefill(self, other: KVCache) -> None:
        self.cache_seqlens.zero_()
        super().prefill(other)


class HeadsFirst(WritingCache):
    """Reports what it would be with heads before positions."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value.transpose(2, 3) if name in ("k_cache", "v_cache") else value


KV_CACHE = Judge(
    cache_cases,
    worked_through(),
    mistakes={
        "the layout is (layers, rows, heads, positions, channels); positions come before heads": (
            worked_through(HeadsFirst)
        ),
        "cache_seqlens is int64; the attention kernel wants int32": worked_through(LongPositions),
        "every layer's write advances the position; only `advance` does, once a forward pass": (
            worked_through(AdvancingCache)
        ),
        "write returns the new keys and values only; the query looks at all up to them": worked_through(NewOnly),
        "the previous embedding is forgotten: prefill copies it to every row, reset drops it": worked_through(
            Forgetful
        ),
        "a cache that is not empty is prefilled; it must refuse": worked_through(Trusting),
    },
)
