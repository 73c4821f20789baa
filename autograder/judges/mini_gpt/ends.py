"""Judges of the two ends of the model: the smear, and logits with their loss."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from autograder.judges.mini_gpt.dissected import NEAR, Given, as_view, model, near_by_dtype, new_cache, randn, same
from nanochat import gpt
from nanochat.engine import KVCache

F32, BF16 = torch.float32, torch.bfloat16

# the smear


def smear_cases(rng: Random) -> list[Case]:
    def drawn(B: int, lengths: list[int], C: int, cached: bool, dtype: torch.dtype = F32) -> tuple:
        pieces = [randn(rng, B, T, C, dtype=dtype) for T in lengths]
        return pieces, randn(rng, 1, 24) / 4, torch.tensor([rng.choice((-1, 1)) * rng.uniform(0.5, 2)]), cached

    rows = [
        drawn(1, [2], 24, False),
        drawn(1, [1], 26, True),
        drawn(1, [5], 30, False),
        drawn(2, [4], 28, True),
        drawn(2, [3, 1, 1], 26, True),
        drawn(3, [1, 1, 4, 2], 40, True),
        drawn(2, [6, 3], 26, False),
        drawn(2, [5], 24, False, BF16),
        drawn(1, [2, 1, 3], 32, True, BF16),
        ([as_view(randn(rng, 2, 4, 26)), as_view(randn(rng, 2, 2, 26))], randn(rng, 1, 24), torch.tensor([0.7]), True),
        ([randn(rng, 1, 3, 24)], randn(rng, 1, 24), torch.tensor([0.0]), True),
    ]
    for _ in range(4):
        lengths = [rng.randint(2, 6), *(rng.randint(1, 3) for _ in range(rng.randint(0, 4)))]
        rows.append(drawn(rng.randint(1, 4), lengths, 2 * rng.randint(12, 25), rng.random() < 0.8))
    # without a cache nanochat refuses a single token, before it comes to the smear
    rows = [(p, gate, scale, cached or any(x.size(1) == 1 for x in p)) for p, gate, scale, cached in rows]
    return [case | {"device": "cpu"} for case in asked("pieces gate smear_lambda cached", *rows)]


Around = Callable[[KVCache | None, Tensor | None], None]


def smeared(
    smear: Callable[..., Tensor] | None = None, around: Around = lambda cache, smeared: None
) -> Callable[..., list]:
    """What nanochat's forward has before layer 0. `smear(model, x, previous)` stands in for GPT.smear; `around` is
    called before each piece with None and after it with the result."""

    @torch.no_grad()
    def report(pieces: list, gate: Tensor, smear_lambda: Tensor, cached: bool, device: Any = "cpu") -> list:
        (B, _, C), dtype = pieces[0].shape, pieces[0].dtype
        whole = model(1, C, dtype, norm=same)
        whole.smear_gate.weight, whole.smear_lambda = nn.Parameter(gate), nn.Parameter(smear_lambda)
        if smear:
            whole.smear = lambda x, previous=None: smear(whole, x, previous)
        cache = new_cache(B, 64, dtype) if cached else None
        told = []
        for piece in pieces:
            whole.transformer.wte = Given(piece)
            around(cache, None)
            whole(torch.zeros(piece.shape[:2], dtype=torch.long), kv_cache=cache)
            around(cache, whole.seen)
            told.append({"smeared": whole.seen, "kept": cache.prev_embedding if cache else None})
        return told

    return report


def recursive(self: Any, x: Tensor, previous: Tensor | None) -> Tensor:
    """Token by token, each from what the one before has become."""
    for t in range(x.size(1)):
        previous = gpt.GPT.smear(self, x[:, t : t + 1], previous)
        x = torch.cat([x[:, :t], previous, x[:, t + 1 :]], dim=1)
    return x


def by_the_one_before(self: Any, x: Tensor, previous: Tensor | None) -> Tensor:
    """The gate reads the token whose embedding is added."""
    before = torch.zeros_like(x[:, :1]) if previous is None else previous
    shifted = torch.cat([before, x[:, :-1]], dim=1)
    return x + self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(shifted[..., :24])) * shifted


def forgets(cache: KVCache | None, smeared: Tensor | None) -> None:
    if cache and smeared is None:
        cache.prev_embedding = None


def keeps_smeared(cache: KVCache | None, smeared: Tensor | None) -> None:
    if cache and smeared is not None:
        cache.prev_embedding = smeared[:, -1:]


def backwards(self: Any, x: Tensor, previous: Tensor | None) -> Tensor:
    return gpt.GPT.smear(self, x.flip(1), previous).flip(1)


SMEAR = Judge(
    smear_cases,
    smeared(),
    tolerance=NEAR,
    examine=near_by_dtype,
    mistakes={
        "what is added was smeared itself; everything on the right is from before the smear": smeared(recursive),
        "the gate reads the token before; it reads the token itself": smeared(by_the_one_before),
        "the token after is mixed in; it must be the one before": smeared(backwards),
        "the embedding kept in the cache is not used for a piece's first token": smeared(
            lambda self, x, previous: gpt.GPT.smear(self, x)
        ),
        "the cache keeps the embedding after the smear; keep it from before": smeared(around=keeps_smeared),
        "nothing is mixed in": smeared(lambda self, x, previous: x),
        "the gate has no sigmoid": smeared(
            lambda self, x, previous: (
                x
                + self.smear_lambda.to(x.dtype)
                * self.smear_gate(x[..., :24])
                * (gpt.F.pad(x[:, :-1], (0, 0, 1, 0)) if previous is None else torch.cat([previous, x[:, :-1]], dim=1))
            )
        ),
    },
)

# logits and loss


def head_cases(rng: Random) -> list[Case]:
    def drawn(B: int, T: int, C: int, rows: int, vocab_size: int, size: float = 8.0) -> tuple:
        return randn(rng, B, T, C) * size / C**0.5, randn(rng, rows, C), vocab_size

    def whole_numbers(B: int, T: int, C: int, rows: int, vocab_size: int) -> tuple:
        """A bfloat16 stream whose logits are whole numbers below 256, so that any order of sums gives the same."""
        x = torch.tensor([[[rng.randint(-4, 4) for _ in range(C)] for _ in range(T)] for _ in range(B)])
        weight = torch.tensor([[rng.randint(-3, 3) for _ in range(C)] for _ in range(rows)])
        return x.to(BF16), weight.float(), vocab_size

    def targets(B: int, T: int, vocab_size: int, ignored: float = 0.4) -> Tensor:
        drawn_ids = [-1 if rng.random() < ignored else rng.randrange(vocab_size) for _ in range(B * T - 2)]
        return torch.tensor([-1, 0, *drawn_ids]).view(B, T)

    rows: list[tuple] = [
        (*drawn(1, 2, 1, 2, 2), None, "mean"),
        (*drawn(1, 3, 4, 8, 5), None, "mean"),
        (*drawn(2, 3, 5, 64, 64), None, "mean"),
        (*drawn(2, 3, 5, 128, 97, size=60.0), None, "mean"),
        (*whole_numbers(2, 9, 4, 64, 50), None, "mean"),
        (*whole_numbers(3, 7, 5, 64, 33), None, "sum"),
        (*drawn(1, 4, 3, 8, 5), targets(1, 4, 5, 0), "none"),
        (*drawn(2, 3, 4, 16, 9), targets(2, 3, 9), "none"),
        (*drawn(2, 3, 4, 16, 9), targets(2, 3, 9), "mean"),
        (*drawn(3, 5, 4, 16, 9, size=50.0), targets(3, 5, 9), "sum"),
        (*drawn(2, 2, 4, 16, 9), torch.full((2, 2), -1), "mean"),
        (*drawn(2, 2, 4, 16, 9), torch.full((2, 2), -1), "sum"),
        (*drawn(2, 2, 4, 16, 9), torch.full((2, 2), -1), "none"),
        (*whole_numbers(2, 9, 4, 64, 50), targets(2, 9, 50), "mean"),
        (as_view(randn(rng, 2, 3, 8)), as_view(randn(rng, 20, 8)), 11, targets(2, 3, 11), "mean"),
    ]
    for _ in range(5):
        B, T, vocab_size = rng.randint(1, 3), rng.randint(2, 6), rng.randint(2, 40)
        size = drawn(B, T, rng.randint(1, 12), vocab_size + rng.randint(0, 30), vocab_size, rng.uniform(2, 40))
        rows.append((*size, rng.choice((None, targets(B, T, vocab_size))), rng.choice(("mean", "sum", "none"))))
    return asked("x lm_head vocab_size targets reduction", *rows)


@torch.no_grad()
def head(
    x: Tensor,
    lm_head: Tensor,
    vocab_size: int,
    targets: Tensor | None = None,
    reduction: str = "mean",
    cropped: bool = True,
    **pieces: Any,
) -> Case:
    """Logits or loss of nanochat's forward, from a stream that comes through unchanged."""
    whole = model(1, 2 * x.size(-1), x.dtype, norm=same, **pieces)
    whole.transformer.wte = Given(x)
    whole.smear = same
    whole.lm_head.weight, whole.config.vocab_size = nn.Parameter(lm_head), vocab_size
    answer = whole(torch.zeros(x.shape[:2], dtype=torch.long), targets=targets, loss_reduction=reduction)
    return {"answer": answer, "cropped first": cropped}


def capped_by(cap: Callable[[Tensor], Tensor]) -> Callable[..., Case]:
    return lambda **case: head(**case, soft_cap=cap)


def counted_all(**case: Any) -> Case:
    """Ignored targets are in the number that the sum is divided by."""
    answer = head(**case)
    if case["targets"] is not None and case["reduction"] == "mean":
        answer["answer"] = head(**case | {"reduction": "sum"})["answer"] / case["targets"].numel()
    return answer


def in_shape(**case: Any) -> Case:
    answer = head(**case)
    if case["targets"] is not None and case["reduction"] == "none":
        answer["answer"] = answer["answer"].view(case["targets"].shape)
    return answer


def uncropped(**case: Any) -> Case:
    return head(**case | {"vocab_size": case["lm_head"].size(0)}, cropped=case["x"].dtype == F32)


def coarsely(z: Tensor) -> Tensor:
    return gpt.soft_cap(z.to(BF16)).float()


LOGITS_AND_LOSS = Judge(
    head_cases,
    head,
    tolerance=NEAR,
    mistakes={
        "the logits are not capped": capped_by(same),
        "the cap is 30; it is 15": capped_by(lambda z: gpt.soft_cap(z, 30.0)),
        "the logits are clipped at 15; the cap is a tanh": capped_by(lambda z: z.clamp(-15, 15)),
        "the logits are not multiplied by 15 again after the tanh": capped_by(lambda z: gpt.soft_cap(z) / 15),
        "the rows beyond the vocabulary are still there": uncropped,
        "the mean divides by all positions; divide by those that count": counted_all,
        "the losses keep the shape (B, T); they are flat": in_shape,
        "the cap is computed in bfloat16; make the logits float32 first": lambda **case: (
            capped_by(coarsely)(**case) if case["x"].dtype == BF16 else head(**case)
        ),
    },
)
