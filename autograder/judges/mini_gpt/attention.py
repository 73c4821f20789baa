"""Judges of attention: its map, which no kernel returns, and the call of the kernel."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from autograder.judges.mini_gpt.dissected import NEAR, UNTURNED, Names, as_view, attention, near_by_dtype, randn
from nanochat.engine import KVCache
from nanochat.flash_attention import flash_attn, visible_mask

# the map


def map_cases(rng: Random) -> list[Case]:
    def drawn(B: int, Tq: int, Tk: int, H: int, H_kv: int, D: int, left: int) -> tuple:
        return randn(rng, B, Tq, H, D) * 2, randn(rng, B, Tk, H_kv, D), left

    def steep(number: float) -> tuple[Tensor, Tensor]:
        """Logits of 0 and `number`, whole numbers that are computed exactly."""
        k = torch.zeros(1, 4, 1, 4)
        k[0, 1::2, 0, 0] = number
        return torch.full((1, 4, 1, 4), 2.0), k

    rows = [
        drawn(1, 1, 1, 1, 1, 2, -1),
        drawn(1, 3, 3, 1, 1, 3, -1),
        drawn(1, 4, 4, 1, 1, 4, 0),
        drawn(1, 5, 5, 1, 1, 4, 2),
        drawn(2, 4, 4, 4, 2, 3, -1),
        drawn(1, 5, 5, 6, 2, 8, 1),
        drawn(2, 3, 3, 6, 3, 2, 9),
        drawn(2, 3, 7, 2, 2, 5, -1),
        drawn(1, 2, 9, 4, 2, 6, 3),
        drawn(3, 1, 6, 2, 1, 4, 2),
        drawn(1, 1, 6, 3, 3, 4, 0),
        (*steep(1000.0), -1),
        (*steep(-1000.0), 1),
        (torch.full((1, 3, 1, 4), 2.0), torch.full((1, 3, 1, 4), -250.0), -1),
        (as_view(randn(rng, 2, 4, 6, 5)), as_view(randn(rng, 2, 6, 3, 5)), 2),
    ]
    for _ in range(5):
        H_kv, Tk = rng.randint(1, 3), rng.randint(2, 20)
        H, Tq = H_kv * rng.randint(1, 4), rng.randint(1, Tk)
        rows.append(drawn(rng.randint(1, 3), Tq, Tk, H, H_kv, rng.randint(2, 16), rng.randint(-1, Tk)))
    return asked("q k left", *rows)


def map_of(q: Tensor, k: Tensor, left: int) -> Tensor:
    """nanochat's attention over values that are unit vectors: what it adds up are then its weights."""
    (B, Tk, H_kv, _) = k.shape
    units = torch.eye(Tk)[None, :, None].expand(B, Tk, H_kv, Tk)
    return flash_attn.flash_attn_func(q, k, units, causal=True, window_size=(left, 0)).transpose(1, 2)


def with_other(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    return lambda **case: map_of(**case | {name: change(case[name]) for name, change in changes.items()})


def interleaved(q: Tensor, k: Tensor, left: int) -> Tensor:
    """Query head h on key head h modulo H_kv."""
    return map_of(q, k[:, :, torch.arange(q.size(2)) % k.size(2)], left)


def cut_afterwards(q: Tensor, k: Tensor, left: int) -> Tensor:
    return map_of(q, k, -1) * visible_mask(q.size(1), k.size(1), left)


def from_the_start(q: Tensor, k: Tensor, left: int) -> Tensor:
    """The queries taken for the first positions."""
    behind = q.new_zeros(q.size(0), k.size(1) - q.size(1), *q.shape[2:])
    return map_of(torch.cat([q, behind], dim=1), k, left)[:, :, : q.size(1)]


ATTENTION_MAP = Judge(
    map_cases,
    map_of,
    tolerance=NEAR,
    mistakes={
        "the heads are behind the queries; the map is (B, H, Tq, Tk)": lambda **case: map_of(**case).transpose(1, 2),
        "the logits are not divided by the root of D": with_other(q=lambda q: q * q.size(-1) ** 0.5),
        "the logits are divided by D; divide by its root": with_other(q=lambda q: q / q.size(-1) ** 0.5),
        "query heads take turns with the key heads; those that share one lie side by side": interleaved,
        "the window is one key short; a query sees itself and `left` before it": with_other(
            left=lambda left: max(left - 1, -(left < 0))
        ),
        "the window is one key too long; a query sees itself and `left` before it": with_other(
            left=lambda left: left + (left >= 0)
        ),
        "the window is ignored": with_other(left=lambda left: -1),
        "the window is applied after the softmax; hide first, so that what is seen sums to 1": cut_afterwards,
        "the queries are taken for the first positions; they are the last": from_the_start,
    },
)

# the kernel's door


def size_of(batch_size: int, num_heads: int, seq_len: int, head_dim: int, num_layers: int) -> dict[str, int]:
    return {
        "batch_size": batch_size,
        "num_heads": num_heads,
        "seq_len": seq_len,
        "head_dim": head_dim,
        "num_layers": num_layers,
    }


def attend_cases(rng: Random) -> list[Case]:
    def step(
        layer: int, B: int, T: int, H: int, H_kv: int, D: int, left: int, dtype: torch.dtype = torch.float32
    ) -> tuple:
        q, k, v = (randn(rng, B, T, heads, D, dtype=dtype) for heads in (H, H_kv, H_kv))
        return "attend", layer, q, k, v, (left, 0)

    def passes(size: dict, H: int, lefts: list[int], pieces: list[int], dtype: torch.dtype = torch.float32) -> list:
        """Forward passes of these lengths through all layers of a cache."""
        steps: list[tuple] = []
        for T in pieces:
            for layer, left in enumerate(lefts):
                steps.append(step(layer, size["batch_size"], T, H, size["num_heads"], size["head_dim"], left, dtype))
            steps.append(("advance", T))
        return steps

    small, wide = size_of(1, 1, 6, 2, 2), size_of(2, 2, 14, 4, 3)
    viewed = ("attend", 0, *(as_view(randn(rng, 2, 5, heads, 6)) for heads in (4, 2, 2)), (2, 0))
    rows: list[tuple] = [
        ([step(0, 1, 1, 1, 1, 2, 4)], None),
        ([step(0, 1, 3, 1, 1, 2, 3)], None),
        ([step(2, 1, 5, 1, 1, 2, 1), step(1, 1, 4, 2, 2, 4, 0)], None),
        ([step(0, 2, 6, 4, 2, 4, 2)], None),
        ([step(5, 3, 4, 6, 1, 2, 100)], None),
        ([viewed], None),
        ([step(0, 2, 3, 4, 2, 8, 1, torch.bfloat16)], None),
        (passes(small, 1, [6, 6], [2]), small),
        (passes(small, 2, [6, 1], [2, 1, 1]), small),
        (passes(small, 2, [1, 6], [1, 1, 1, 3]), small),
        (passes(wide, 4, [2, 3, 14], [5, 1, 4, 1]), wide),
        (passes(wide, 6, [0, 14, 4], [3, 1, 1], torch.bfloat16), wide),
        ([step(1, 1, 2, 2, 1, 2, 6), ("advance", 2), step(1, 1, 1, 2, 1, 2, 6)], small),
    ]
    for _ in range(3):
        H_kv, n_layer = rng.randint(1, 3), rng.randint(1, 3)
        pieces = [rng.randint(1, 6), 1, rng.randint(1, 4)]
        size = size_of(rng.randint(1, 3), H_kv, sum(pieces) + rng.randint(0, 3), 2 * rng.randint(1, 4), n_layer)
        rows.append(
            (passes(size, H_kv * rng.randint(1, 3), [rng.randint(0, 12) for _ in range(n_layer)], pieces), size)
        )
    return [case | {"device": "cpu"} for case in asked("steps cache_size", *rows)]


NAMES = ("flash_attn_func", "flash_attn_with_kvcache")


def attended(
    shape: Callable[[Tensor, int], Tensor] = lambda y, H: y,
    before: Callable[..., tuple] = lambda *arguments: arguments,
    after: Callable[[KVCache | None, int], None] = lambda cache, T: None,
    causal: bool = True,
) -> Callable[..., Case]:
    """What the graded cell reports of nanochat's attention, `before` and `after` which something may be done."""

    def report(steps: list, cache_size: dict | None, device: Any = "cpu") -> Case:
        cache = KVCache(**cache_size, device="cpu", dtype=steps[0][2].dtype) if cache_size else None
        calls: list[list] = []

        def door(name: str) -> Callable[..., Tensor]:
            def call(*arguments: Any, causal: bool, window_size: tuple[int, int], **keywords: Any) -> Tensor:
                calls.append([name, causal_said(causal), list(window_size)])
                return getattr(flash_attn, name)(*arguments, causal=causal, window_size=window_size, **keywords)

            return call

        def causal_said(said: bool) -> bool:
            return said and causal

        doors = Names(**{name: door(name) for name in NAMES})
        results = []
        for what, *arguments in steps:
            if what == "advance":
                assert cache is not None
                cache.advance(*arguments)
                continue
            layer, q, k, v, window = before(*arguments)
            through: dict[str, Any] = {"layer_idx": layer, "window": window, "kv_cache": cache, "flash_attn": doors}
            results.append(shape(attention(q, k, v, **through, **UNTURNED), q.size(2)))
            after(cache, q.size(1))
        state = [cache.k_cache, cache.v_cache, cache.cache_seqlens] if cache else None
        return {"results": results, "calls": calls, "cache": state}

    return report


def advance_each(cache: KVCache | None, T: int) -> None:
    if cache is not None and cache.get_pos() + T <= cache.max_seq_len:
        cache.advance(T)


def split(y: Tensor, H: int) -> Tensor:
    return y.unflatten(-1, (H, -1))


ATTEND = Judge(
    attend_cases,
    attended(),
    tolerance=NEAR,
    examine=near_by_dtype,
    mistakes={
        "the heads are still apart; the result is (B, T, H * D)": attended(split),
        "the channels come before the heads; the result holds the heads one after the other": attended(
            lambda y, H: split(y, H).transpose(-1, -2).flatten(-2)
        ),
        "causal=True is not passed; FlashAttention would look into the future": attended(causal=False),
        "the window is not passed on": attended(before=lambda layer, q, k, v, window: (layer, q, k, v, (-1, 0))),
        "every layer moves the position; whoever runs the layers does so, once": attended(after=advance_each),
        "every layer uses the cache of layer 0": attended(before=lambda layer, *rest: (0, *rest)),
        "keys and values are swapped": attended(before=lambda layer, q, k, v, window: (layer, q, v, k, window)),
    },
)
