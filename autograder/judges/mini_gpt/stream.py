"""Judge of `hidden_states`: nanochat's forward pass with toys for all it calls, and a log of how they are called."""

from collections.abc import Callable
from copy import copy
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from autograder.judges.mini_gpt.dissected import Given, model, near_by_dtype, new_cache, randn
from nanochat.engine import KVCache
from puzzles.compare import FLOAT32

F32, BF16 = torch.float32, torch.bfloat16


def eighths(rng: Random, *shape: int, low: int = -8, high: int = 8) -> Tensor:
    """Multiples of 1/8, which even bfloat16 holds exactly."""
    count = torch.Size(shape).numel()
    return torch.tensor([rng.randint(low, high) / 8 for _ in range(count)]).view(shape)


def stream_cases(rng: Random) -> list[Case]:
    def drawn(
        n_layer: int,
        calls: list[int],
        room: int | None = None,
        ve_layers: tuple[int, ...] = (),
        B: int = 1,
        C: int = 3,
        N: int = 40,
        dtype: torch.dtype = F32,
        lefts: list[int] | None = None,
    ) -> tuple:
        weights = {
            "wte": randn(rng, 9, C) * 2,
            "ve": randn(rng, 9, 4),
            "scale": eighths(rng, n_layer, C, low=3, high=12),
            "shift": eighths(rng, n_layer, C),
            "resid": eighths(rng, n_layer, low=5, high=11),
            "x0": eighths(rng, n_layer, low=2, high=7),
            "backout": eighths(rng, 1, low=1, high=3),
            "cos": randn(rng, 1, N, 1, 2),
            "sin": randn(rng, 1, N, 1, 2),
        }
        idx = [torch.tensor([[rng.randrange(9) for _ in range(T)] for _ in range(B)]) for T in calls]
        lefts = lefts or [rng.randint(1, 99) for _ in range(n_layer)]
        return weights, list(ve_layers), lefts, dtype, idx, room

    rows = [
        drawn(1, [2]),
        drawn(2, [3]),
        drawn(3, [4], B=2),
        drawn(4, [2], ve_layers=(1, 3)),
        drawn(5, [3], ve_layers=(0, 2, 4), B=3, C=5),
        drawn(4, [3], ve_layers=(0, 1)),
        drawn(3, [5], room=5, ve_layers=(2,)),
        drawn(3, [3, 1, 1], room=8, ve_layers=(0, 2)),
        drawn(2, [1, 1, 3], room=8, ve_layers=(1,), B=2),
        drawn(6, [4, 2, 1], room=9, ve_layers=(1, 3, 5), B=2, C=4),
        drawn(3, [4], ve_layers=(0, 2), dtype=BF16),
        drawn(2, [2, 1], room=4, ve_layers=(1,), dtype=BF16),
        drawn(2, [1]),
        drawn(2, [1, 2], B=3),
        drawn(2, [7, 6], N=6),
        drawn(2, [4, 3, 2, 1], room=40, N=6),
        drawn(3, [4, 3, 2, 1], room=6, ve_layers=(0, 2)),
        drawn(2, [7, 3], room=6),
    ]
    for _ in range(5):
        n_layer = rng.randint(1, 8)
        calls = [rng.randint(2, 6), *(rng.randint(1, 3) for _ in range(rng.randint(0, 3)))]
        room = rng.choice((None, 12, 20))
        with_ve = tuple(i for i in range(n_layer) if (n_layer - 1 - i) % 2 == 0)
        calls = calls if room else [max(T, 2) for T in calls]
        rows.append(drawn(n_layer, calls, room, with_ve, B=rng.randint(1, 3), C=rng.randint(1, 6)))
    return [case | {"device": "cpu"} for case in asked("weights ve_layers lefts dtype calls room", *rows)]


def said_of(kv_cache: KVCache | None) -> str:
    return "no cache" if kv_cache is None else f"cache at {kv_cache.get_pos()}"


def halved(x: Tensor) -> Tensor:
    return x / 2


def base_with(log: list[str], state: dict[str, Any]) -> Callable[[Any], type]:
    """nanochat's GPT with the toy's smear."""

    def base(module: Any) -> type:
        class Toy(module.GPT):
            def smear(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
                log.append("smear, " + said_of(state["cache"]))
                state["x0"] = x + 1
                return state["x0"]

        return Toy

    return base


def run_with(
    mixed: Callable[..., Tensor] = lambda i, x, x0, weights: x,
    middle: Callable[[int], int] = lambda n_layer: n_layer,
    rows: Callable[..., Tensor] = lambda table, whole: table,
    after_block: Callable[[KVCache | None, int], object] = lambda cache, T: None,
    ending: Callable[[Tensor], Tensor] = lambda x: x,
    **changes: Callable[[Any], Any],
) -> Callable[..., list]:
    """What the graded cell reports of nanochat's forward. Mistakes: `mixed` changes what a block gets, `middle` the
    number of layers by which the middle is found, `rows` the tables' rows; `changes` are to arguments."""

    @torch.no_grad()
    def report(device: Any = "cpu", **case: Any) -> list:
        case |= {name: change(case[name]) for name, change in changes.items()}
        weights, lefts, dtype, calls, room = (case[name] for name in ("weights", "lefts", "dtype", "calls", "room"))
        log: list[str] = []
        state: dict[str, Any] = {"cache": None}
        n_layer = len(lefts)
        whole = model(n_layer, 2, dtype, base_with(log, state), norm=halved)
        cos, sin = (weights[name].to(dtype) for name in ("cos", "sin"))

        def block_of(i: int) -> Callable[..., Tensor]:
            def block(x: Tensor, ve: Any, cos_: Tensor, sin_: Tensor, window: tuple, kv_cache: Any) -> Tensor:
                x = mixed(i, x, state["x0"], weights)
                cos_, sin_ = rows(cos_, cos), rows(sin_, sin)
                looked_up = "no ve" if ve is None else f"ve {ve.dtype}"
                log.append(f"block {i}, {looked_up}, window {tuple(window)}, {said_of(kv_cache)}")
                scale, shift = (weights[name][i].to(x.dtype) for name in ("scale", "shift"))
                y = x * scale + shift + cos_[:, :, 0, :1] - 2 * sin_[:, :, 0, :1]
                after_block(kv_cache, x.size(1))
                return y if ve is None else y + ve.mean(dim=-1, keepdim=True)

            return block

        whole.transformer.wte = Given(lambda idx: weights["wte"][idx])
        whole.transformer.h = nn.ModuleList(Given(block_of(i)) for i in range(n_layer))
        whole.value_embeds = nn.ModuleDict({str(i): Given(lambda idx: weights["ve"][idx]) for i in case["ve_layers"]})
        whole.cos, whole.sin, whole.window_sizes = cos, sin, [(left, 0) for left in lefts]
        for name in ("resid", "x0"):
            setattr(whole, f"{name}_lambdas", nn.Parameter(weights[name]))
        whole.backout_lambda = nn.Parameter(weights["backout"])
        whole.config = copy(whole.config)
        whole.config.n_layer = middle(n_layer)
        whole.lm_head = Given(lambda x: x)
        whole.lm_head.register_forward_pre_hook(lambda _, inputs: state.update(seen=inputs[0]))
        state["cache"] = None if room is None else new_cache(calls[0].size(0), room, dtype, n_layer)
        told = []
        for idx in calls:
            try:
                whole(idx, kv_cache=state["cache"])
                answer: Any = ending(state["seen"])
            except ValueError:
                answer = "ValueError"
            cache = state["cache"]
            told.append({"x": answer, "log": list(log), "position": None if cache is None else cache.get_pos()})
            log.clear()
        return told

    return report


def less_x0(share: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    """The block gets the mixture with `share` of x0 less in x0's place."""
    return lambda i, x, x0, weights: x - weights["x0"][i] * share(x0)


def other_weights(**changes: Callable[[dict], Tensor]) -> Callable[[dict], dict]:
    return lambda weights: weights | {name: change(weights) for name, change in changes.items()}


def advance_each(cache: KVCache | None, T: int) -> None:
    if cache is not None:
        cache.advance(T)


HIDDEN_STATES = Judge(
    stream_cases,
    run_with(),
    tolerance=FLOAT32,
    examine=near_by_dtype,
    mistakes={
        "x0 is taken before the smear; it is what the smear returns": run_with(less_x0(lambda x0: 1)),
        "x0 is taken before the norm; it is what the smear returns": run_with(less_x0(lambda x0: 2 - x0)),
        "x0 is never mixed in": run_with(weights=other_weights(x0=lambda weights: 0 * weights["x0"])),
        "the residual lambdas are not used": run_with(
            weights=other_weights(resid=lambda weights: 1 + 0 * weights["resid"])
        ),
        "resid_lambdas and x0_lambdas are swapped": run_with(
            weights=other_weights(resid=lambda weights: weights["x0"], x0=lambda weights: weights["resid"])
        ),
        "nothing is backed out": run_with(weights=other_weights(backout=lambda weights: 0 * weights["backout"])),
        "the middle is added at the end; it is taken out": run_with(
            weights=other_weights(backout=lambda weights: -weights["backout"])
        ),
        "the stream that is backed out is that after the layer before n_layer // 2": run_with(
            middle=lambda n_layer: n_layer - 2
        ),
        "the last norm is missing": run_with(ending=lambda x: 2 * x),
        "the positions start at 0 in every call; they go on from the cache's": run_with(
            rows=lambda table, whole: whole[:, : table.size(1)]
        ),
        "every layer gets the first layer's window": run_with(lefts=lambda lefts: [lefts[0]] * len(lefts)),
        "no layer gets its value embeddings": run_with(ve_layers=lambda layers: []),
        "the cache is advanced by every layer; once, after the last": run_with(after_block=advance_each),
    },
)
