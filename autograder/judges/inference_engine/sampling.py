"""Judge of `sample_next_token`: token by token on the CPU; on any device where the answer leaves nothing to chance."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import engine

Sampler = Callable[[Tensor, torch.Generator, float, int | None], Tensor]


def random_logits(rng: Random, rows: int, vocab_size: int) -> list[list[float]]:
    """Logits of which no two are equal in a row, so that every order of sorting is the same."""
    values = [[rng.uniform(-4, 4) for _ in range(vocab_size)] for _ in range(rows)]
    return torch.tensor(values, dtype=torch.float32).tolist()


def sampling_cases(rng: Random) -> list[Case]:
    keys = "logits temperature top_k seed draws report"
    ladder, other = [0.5, 2.0, 1.0, -1.0], [3.0, 0.0, 2.5, 2.0]
    seed = rng.randrange(2**31)
    fixed = asked(
        keys,
        ([ladder], 1.0, None, seed, 20, "tokens"),
        ([ladder], 1.0, 2, seed, 20, "tokens"),
        ([ladder, other], 0.5, 0, seed, 20, "tokens"),
        ([ladder, other], 2.0, 3, seed, 20, "tokens"),
        ([ladder, other, ladder], 1.0, 1, seed, 5, "tokens"),
        ([ladder, other], 1.5, 4, seed, 20, "tokens"),
        ([ladder, other], 0.7, 50, seed, 20, "tokens"),
        ([[1e4, 9.999e3, -1e4], [-1e4, 0.0, 1.0]], 1.0, None, seed, 20, "tokens"),
        ([[1e4, 9.999e3, -1e4], [-1e4, 0.0, 1.0]], 2.0, 2, seed, 20, "tokens"),
        ([[-0.25]], 1.0, None, seed, 2, "tokens"),
        ([ladder], -0.1, None, seed, 1, "tokens"),
        ([ladder], -1.0, 2, seed, 1, "tokens"),
    )
    drawn = []
    for _ in range(8):
        vocab_size = rng.choice((7, 33, 130))
        top_k = rng.choice((None, 2, 5, vocab_size + 3))
        logits = random_logits(rng, rng.randint(1, 5), vocab_size)
        drawn.append((logits, rng.choice((0.3, 0.8, 1.0, 1.7)), top_k, rng.randrange(2**31), 12, "tokens"))
    # where the answer leaves nothing to chance it must be the same on any device
    anywhere = asked(
        keys,
        ([ladder, other], 0.0, None, seed, 1, "greedy"),
        ([ladder, other], 0.0, 2, seed, 2, "greedy"),
        ([[0.0, 4.0, 4.0, 1.0], [2.0, 2.0, 2.0, 2.0]], 0.0, None, seed, 2, "greedy"),
        (random_logits(rng, 4, 60), 0.0, 5, seed, 1, "greedy"),
        ([[0.0, 1.0, 1.0, 1.0, 1.0]], 1.0, 2, seed, 80, "variety"),
        ([[3.0, 3.0, 0.0], [0.0, 0.0, 0.0]], 0.1, 1, seed, 60, "variety"),
        ([[2.0, 1.0, 1.0, 1.0], [5.0, 4.5, 4.5, -9.0]], 1.5, 3, seed, 150, "variety"),
    )
    return fixed + asked(keys, *drawn) + [case | {"device": "cpu"} for case in anywhere]


def drawn_by(sampler: Sampler) -> Callable[..., Case]:
    """What the graded cell reports of a sampler."""

    @plain_value_error
    def report_of(
        logits: list, temperature: float, top_k: int | None, seed: int, draws: int, report: str, device: Any = "cpu"
    ) -> Case:
        z, rng = torch.tensor(logits), torch.Generator().manual_seed(seed)
        untouched, before = z.clone(), rng.get_state()
        tokens = torch.cat([sampler(z, rng, temperature, top_k) for _ in range(draws)], dim=1)
        if report == "variety":
            return {"variety": [len(set(row)) for row in tokens.tolist()]}
        if report == "greedy":
            return {"tokens": tokens, "generator untouched": torch.equal(rng.get_state(), before)}
        next_number = torch.randint(10**6, (1,), generator=rng).item()
        return {"tokens": tokens, "next": next_number, "logits unchanged": torch.equal(z, untouched)}

    return report_of


def hot_as(change: Callable[[Tensor, float], Tensor]) -> Callable[..., Case]:
    """Draws from logits changed beforehand, at temperature 1."""
    return drawn_by(
        lambda z, rng, temperature, top_k: engine.sample_next_token(
            change(z, temperature), rng, float(temperature > 0), top_k
        )
    )


def cut_off(z: Tensor, top_k: int | None) -> Tensor:
    """Logits below the k-th largest set to -inf: what equals the k-th stays."""
    k = min(top_k or z.size(-1), z.size(-1))
    return z.masked_fill(z < z.topk(k).values[:, -1:], -torch.inf)


def unmapped(z: Tensor, rng: torch.Generator, temperature: float, top_k: int | None) -> Tensor:
    if top_k and temperature:
        z = z.topk(min(top_k, z.size(-1))).values
    return engine.sample_next_token(z, rng, temperature)


def in_place(z: Tensor, rng: torch.Generator, temperature: float, top_k: int | None) -> Tensor:
    tokens = engine.sample_next_token(z, rng, temperature, top_k)
    z /= temperature or 1.0
    return tokens


def drawing_anyway(z: Tensor, rng: torch.Generator, temperature: float, top_k: int | None) -> Tensor:
    tokens = engine.sample_next_token(z, rng, temperature, top_k)
    if temperature == 0:
        engine.sample_next_token(z, rng)
    return tokens


def once_for_all(z: Tensor, rng: torch.Generator, temperature: float, top_k: int | None) -> Tensor:
    return engine.sample_next_token(z[:1], rng, temperature, top_k).expand(len(z), 1)


SAMPLE_NEXT_TOKEN = Judge(
    sampling_cases,
    drawn_by(engine.sample_next_token),
    mistakes={
        "the place among the k largest is returned; it must be mapped back to the token's id": drawn_by(unmapped),
        "the logits are changed in place; whoever called still needs them": drawn_by(in_place),
        "temperature 0 draws from the generator; the largest logit is taken without it": drawn_by(drawing_anyway),
        "a negative temperature is taken as it is; it must raise ValueError": (
            drawn_by(lambda z, rng, temperature, top_k: engine.sample_next_token(z, rng, abs(temperature), top_k))
        ),
        "top_k is ignored": drawn_by(lambda z, rng, temperature, top_k: engine.sample_next_token(z, rng, temperature)),
        "the temperature has no effect; it must divide the logits, before the softmax": hot_as(
            lambda z, temperature: z
        ),
        "the logits are multiplied by the temperature; they are divided by it": hot_as(
            lambda z, temperature: z * (temperature or 1.0)
        ),
        "with top_k the draw is among the whole vocabulary, the rest at -inf; it must be among the k, largest first": (
            drawn_by(
                lambda z, rng, temperature, top_k: engine.sample_next_token(
                    cut_off(z, top_k) if temperature else z, rng, temperature
                )
            )
        ),
        "one token is drawn for all rows; every row has a draw of its own": drawn_by(once_for_all),
    },
)
