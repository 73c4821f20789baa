"""Judges of what is inside a layer: norm and MLP, queries and keys, the value residual."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from autograder.judges.mini_gpt.dissected import NEAR, Names, altered, as_view, attention, near_by_dtype, randn, same
from nanochat import gpt

F32, BF16 = torch.float32, torch.bfloat16

# norm and MLP


def norm_and_mlp_cases(rng: Random) -> list[Case]:
    def matrices(C: int, hidden: int) -> tuple[Tensor, Tensor]:
        return randn(rng, hidden, C) / C**0.5, randn(rng, C, hidden) / hidden**0.5

    rows = [
        (torch.tensor([[3.0, -4.0]]), *matrices(2, 3)),
        (torch.zeros(2, 3), *matrices(3, 5)),
        (torch.full((1, 5), 2e-4), *matrices(5, 2)),
        (randn(rng, 2, 3, 6) + 2, *matrices(6, 24)),
        (randn(rng, 3, 4, 5) * 1e-3, *matrices(5, 7)),
        (as_view(randn(rng, 2, 5, 8)), *(as_view(each) for each in matrices(8, 32))),
        (randn(rng, 2, 3, 6, dtype=BF16), *matrices(6, 24)),
        (randn(rng, 4, dtype=BF16) * 100, *matrices(4, 9)),
    ]
    for _ in range(5):
        C = rng.randint(1, 20)
        x = randn(rng, *(rng.randint(1, 5) for _ in range(rng.randint(0, 3))), C) * 10 ** rng.uniform(-4, 2)
        rows.append((x, *matrices(C, rng.randint(1, 40))))
    return asked("x c_fc c_proj", *rows)


@torch.no_grad()
def norm_and_mlp(x: Tensor, c_fc: Tensor, c_proj: Tensor, **pieces: Any) -> Case:
    module = altered(**pieces)
    mlp = module.MLP(module.GPTConfig(n_embd=2))
    mlp.c_fc.weight, mlp.c_proj.weight = nn.Parameter(c_fc), nn.Parameter(c_proj)
    return {"norm": module.norm(x), "mlp": mlp(x)}


def normed_by(norm: Callable[[Tensor], Tensor]) -> Callable[..., Case]:
    return lambda **case: norm_and_mlp(norm=norm, **case)


def fed_by(mlp: Callable[..., Tensor]) -> Callable[..., Case]:
    """The right norm, and another MLP."""
    return lambda **case: norm_and_mlp(**case) | {"mlp": mlp(**case)}


def activated_by(relu: Callable[[Tensor], Tensor]) -> Callable[..., Case]:
    """nanochat's MLP, which squares what `relu` gives."""
    functional = Names(relu=relu, linear=gpt.F.linear, rms_norm=gpt.F.rms_norm)
    return lambda **case: norm_and_mlp(F=functional, **case)


NORM_AND_MLP = Judge(
    norm_and_mlp_cases,
    norm_and_mlp,
    tolerance=NEAR,
    examine=near_by_dtype,
    mistakes={
        "the squares are summed, not averaged; a vector of ones must stay as it is": normed_by(
            lambda x: gpt.norm(x) / x.size(-1) ** 0.5
        ),
        "the norm centres the vector; RMS norm only divides": normed_by(lambda x: gpt.norm(x - x.mean(-1, True))),
        "eps is not 2^-23 inside the root; vectors must shrink towards 0 from an RMS of about 3e-4 down": normed_by(
            lambda x: x * torch.rsqrt(x.square().mean(-1, True) + 1e-5)
        ),
        "the ReLU is not squared": activated_by(lambda x: torch.relu(x).sqrt()),
        "negative hidden values are squared too; the ReLU comes before the square": activated_by(lambda x: x),
        "the MLP norms its input; the block around it does that": fed_by(
            lambda x, c_fc, c_proj: norm_and_mlp(gpt.norm(x), c_fc, c_proj)["mlp"]
        ),
        "the MLP adds its input; the block around it does that": fed_by(
            lambda x, c_fc, c_proj: x + norm_and_mlp(x, c_fc, c_proj)["mlp"]
        ),
    },
)

# queries and keys


def tables(rng: Random, T: int, D: int, dtype: torch.dtype = F32, start: int = 0, scale: float = 1.0) -> tuple:
    cos, sin = gpt.precompute_rotary(start + T, D, base=rng.choice((100, 10_000)), dtype=F32)
    return (cos[:, start:] * scale).to(dtype), (sin[:, start:] * scale).to(dtype)


def rotary_cases(rng: Random) -> list[Case]:
    rows = [
        (randn(rng, 1, 1, 1, 2), *tables(rng, 1, 2, start=1)),
        (randn(rng, 1, 1, 1, 4), *tables(rng, 1, 4)),
        (randn(rng, 1, 3, 2, 4) * 5, *tables(rng, 3, 4)),
        (randn(rng, 2, 5, 3, 8), *tables(rng, 5, 8, start=11)),
        (randn(rng, 2, 5, 3, 6) * 0.01, *tables(rng, 5, 6, scale=1.3)),
        (as_view(randn(rng, 3, 4, 2, 10)), *tables(rng, 4, 10, start=900, scale=0.5)),
        # what is normed first here is far from what is normed last
        (randn(rng, 1, 4, 2, 6) * 1e-3, *tables(rng, 4, 6, scale=20.0)),
        (randn(rng, 2, 6, 1, 8, dtype=BF16), *tables(rng, 6, 8, BF16)),
        (randn(rng, 2, 3, 4, 4, dtype=BF16), *tables(rng, 3, 4, BF16, start=50, scale=1.5)),
    ]
    for _ in range(5):
        B, T, heads, D = rng.randint(1, 3), rng.randint(1, 9), rng.randint(1, 5), 2 * rng.randint(1, 12)
        scale = rng.choice((1.0, 1.2, 0.7))
        rows.append((randn(rng, B, T, heads, D), *tables(rng, T, D, start=rng.randint(0, 400), scale=scale)))
    return asked("x cos sin", *rows)


# an attention that gives back what it is asked with
QUERIES_ONLY = Names(flash_attn_func=lambda q, k, v, **_: q)


def queries_of(x: Tensor, cos: Tensor, sin: Tensor, **pieces: Any) -> Tensor:
    return attention(x, x, x, cos=cos, sin=sin, flash_attn=QUERIES_ONLY, **pieces).view(x.shape)


def turned_by(turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda **case: queries_of(**case, apply_rotary_emb=turn)


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels 2c and 2c + 1 as pairs."""
    order = torch.cat([torch.arange(0, x.size(-1), 2), torch.arange(1, x.size(-1), 2)])
    return gpt.apply_rotary_emb(x[..., order], cos, sin)[..., order.argsort()]


def norm_then_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return gpt.apply_rotary_emb(gpt.norm(x), cos, sin)


def norm_of_all_heads(x: Tensor) -> Tensor:
    return gpt.norm(x.flatten(2)).view(x.shape)


ROTARY_QK_NORM = Judge(
    rotary_cases,
    queries_of,
    tolerance=NEAR,
    examine=near_by_dtype,
    mistakes={
        "the factor 1.2 is missing": lambda **case: queries_of(**case, QK_SCALE=1),
        "there is no norm": lambda **case: queries_of(**case, norm=same),
        "the rotation is the wrong way round; y1 = x1 cos + x2 sin and y2 = x2 cos - x1 sin": turned_by(
            lambda x, cos, sin: gpt.apply_rotary_emb(x, cos, -sin)
        ),
        "cos and sin are swapped": turned_by(lambda x, cos, sin: gpt.apply_rotary_emb(x, sin, cos)),
        "neighbouring channels are paired; channel c belongs to channel c + D/2": turned_by(neighbours),
        "nothing is rotated": turned_by(same),
        "the norm comes before the rotation; after it, lengths are exact whatever the table": (
            lambda **case: queries_of(**case, apply_rotary_emb=norm_then_turn, norm=same)
        ),
        "all heads of a token are normed together; each head is normed by itself": (
            lambda **case: queries_of(**case, norm=norm_of_all_heads)
        ),
        "the factor is applied twice; queries and keys get 1.2 each": lambda **case: queries_of(**case, QK_SCALE=1.44),
    },
)

# value residual


def value_cases(rng: Random) -> list[Case]:
    def drawn(n_layer: int, B: int, T: int, H_kv: int, D: int, C: int, dtype: torch.dtype = F32) -> tuple:
        v, ve = randn(rng, B, T, H_kv, D, dtype=dtype), randn(rng, B, T, H_kv * D, dtype=dtype)
        return n_layer, v, randn(rng, B, T, C, dtype=dtype), ve, randn(rng, H_kv, 12) / 2

    n_layer, v, x, ve, gate = drawn(4, 1, 2, 1, 2, 12)
    rows = [
        (3, v, x, None, None),
        (n_layer, v, x, ve, gate),
        (n_layer, v, x, ve, gate * 0),
        drawn(1, 1, 1, 1, 2, 13),
        drawn(2, 2, 3, 2, 4, 24),
        drawn(3, 1, 4, 3, 2, 40),
        drawn(7, 2, 5, 3, 6, 36, BF16),
        (12, randn(rng, 2, 3, 2, 4), randn(rng, 2, 3, 14), None, None),
    ]
    for _ in range(4):
        n_layer, B, T, H_kv = (rng.randint(1, high) for high in (33, 3, 7, 5))
        rows.append(drawn(n_layer, B, T, H_kv, 8, 50))
    rows.append((6, as_view(randn(rng, 2, 3, 2, 4)), as_view(randn(rng, 2, 3, 20)), *drawn(6, 2, 3, 2, 4, 20)[3:]))
    return asked("n_layer v x ve gate", *rows)


VALUES_ONLY = Names(flash_attn_func=lambda q, k, v, **_: v)


def values_of(
    n_layer: int,
    v: Tensor,
    x: Tensor,
    ve: Tensor | None,
    gate: Tensor | None,
    has_ve: Callable = gpt.has_ve,
    **pieces: Any,
) -> Case:
    pieces |= {
        "flash_attn": VALUES_ONLY,
        # what happens to queries and keys has no say here
        "apply_rotary_emb": same,
    }
    values = attention(v, v, v, x=x, ve=ve, gate=gate, **pieces).view(v.shape)
    return {"layers": [i for i in range(n_layer) if has_ve(i, n_layer)], "values": values}


def opened_by(change: Callable[[Tensor], Tensor]) -> Callable[..., Case]:
    """The gate after `change`, in place of 3 * sigmoid."""
    maths = Names(sigmoid=lambda z: change(z) / 3)
    return lambda **case: values_of(**case, torch=maths)


def with_changed(**changes: Callable[[Tensor], Tensor]) -> Callable[..., Case]:
    """Arguments changed, where they are there."""

    def mistake(**case: Any) -> Case:
        changed = {name: change(case[name]) for name, change in changes.items() if case[name] is not None}
        return values_of(**case | changed)

    return mistake


def interleaved(**case: Any) -> Case:
    """ve with its heads as the inner dimension."""
    if case["ve"] is not None:
        case["ve"] = case["ve"].unflatten(-1, (-1, case["v"].size(2))).transpose(-1, -2).flatten(-2)
    return values_of(**case)


VALUE_RESIDUAL = Judge(
    value_cases,
    values_of,
    tolerance=NEAR,
    examine=near_by_dtype,
    mistakes={
        "the gate is 2 times the sigmoid; it is 3 times": opened_by(lambda z: 2 * torch.sigmoid(z)),
        "the gate is the sigmoid alone; it is 3 times that": opened_by(torch.sigmoid),
        "there is no sigmoid": opened_by(lambda z: 3 * z),
        "the value embeddings are added without the gate": opened_by(torch.ones_like),
        "the gate reads the last 12 channels; it reads the first": with_changed(
            x=lambda x: x.flip(-1)[..., :12].flip(-1)
        ),
        "value embeddings are on layers 0, 2, 4, ...; count back from the last": (
            lambda **case: values_of(**case, has_ve=lambda i, n_layer: i % 2 == 0)
        ),
        "value embeddings are on the other layers; the last layer always has one": (
            lambda **case: values_of(**case, has_ve=lambda i, n_layer: not gpt.has_ve(i, n_layer))
        ),
        "value embeddings are on every layer; only every other one has them": (
            lambda **case: values_of(**case, has_ve=lambda i, n_layer: True)
        ),
        "ve holds its heads one after the other, D channels each": interleaved,
    },
)
