"""Judge of `pass_at_k`, in both of its ways."""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case
from nanochat import rl
from puzzles.compare import FLOAT32


def outcome_cases(rng: Random) -> list[Case]:
    def table(*rows: str) -> Tensor:
        return torch.tensor([[digit == "1" for digit in row] for row in rows])

    tables = [
        table("0110", "1000"),
        table("1"),
        table("0"),
        table("01"),
        table("10"),
        table("0001", "1000"),
        table("111", "000", "010"),
        table("00000", "00000"),
        table("0110100", "0000001", "1111111", "0000000", "1000000"),
    ]
    for _ in range(6):
        chance = rng.choice((0.1, 0.4, 0.8))
        N, K = rng.randint(1, 20), rng.choice((2, 5, 16, 64, 100))
        tables.append(torch.tensor([[rng.random() < chance for _ in range(K)] for _ in range(N)]))
    return [{"outcomes": each, "over_subsets": over_subsets} for each in tables for over_subsets in (False, True)]


PassAtK = Callable[[Tensor], Tensor]


def either(first: PassAtK | None = None, subsets: PassAtK | None = None) -> Callable[..., Tensor]:
    """nanochat's pass@k, with another way for one of the two."""

    def pass_at_k(outcomes: Tensor, over_subsets: bool) -> Tensor:
        other = subsets if over_subsets else first
        return other(outcomes) if other else rl.pass_at_k(outcomes, over_subsets)

    return pass_at_k


def with_replacement(outcomes: Tensor) -> Tensor:
    K = outcomes.size(1)
    wrong = 1 - outcomes.float().mean(dim=1, keepdim=True)
    return (1 - wrong ** torch.arange(1, K + 1)).mean(dim=0)


def of_all_questions_together(outcomes: Tensor) -> Tensor:
    """The formula for the mean number of right answers."""
    N, K = outcomes.shape
    wrong = (~outcomes).sum() / N - torch.arange(K)
    return 1 - (wrong.clamp(min=0) / (K - torch.arange(K))).cumprod(dim=0)


def one_factor(outcomes: Tensor) -> Tensor:
    """The chance that the k-th is right if those before it were not."""
    taken = torch.arange(outcomes.size(1))
    return 1 - (((~outcomes).sum(dim=1, keepdim=True) - taken).clamp(min=0) / (len(taken) - taken)).mean(dim=0)


def one_fewer(outcomes: Tensor) -> Tensor:
    """k counted from 0."""
    return torch.cat([torch.zeros(1), rl.pass_at_k(outcomes)[:-1]])


PASS_AT_K = Judge(
    outcome_cases,
    rl.pass_at_k,
    FLOAT32,
    mistakes={
        "all of the first k must be right; one is enough": either(
            first=lambda outcomes: (outcomes.int().cumprod(dim=1) > 0).float().mean(dim=0)
        ),
        "that is the share of right answers among the first k, not whether one is right": either(
            first=lambda outcomes: (outcomes.cumsum(dim=1) / torch.arange(1, outcomes.size(1) + 1)).mean(dim=0)
        ),
        "that is the accuracy of the k-th answer alone": either(first=lambda outcomes: outcomes.float().mean(dim=0)),
        "k is counted from 0; the first entry is pass@1": either(first=one_fewer),
        "that is over all subsets, where the first k were asked for": either(
            first=lambda outcomes: rl.pass_at_k(outcomes, True)
        ),
        "that is of the first k, where all subsets were asked for": either(subsets=rl.pass_at_k),
        "that draws with replacement, 1 - (1 - c/K)^k, which is too low": either(subsets=with_replacement),
        "the formula is for one question: take the mean of its results, not of the right answers": either(
            subsets=of_all_questions_together
        ),
        "that is one factor; the chance that all k are wrong is the product of the first k": either(subsets=one_factor),
        "that is the chance that all k are wrong": either(subsets=lambda outcomes: 1 - rl.pass_at_k(outcomes, True)),
        "right and wrong are exchanged": either(subsets=lambda outcomes: rl.pass_at_k(~outcomes, True)),
        "it should be float32": lambda outcomes, over_subsets: rl.pass_at_k(outcomes, over_subsets).double(),
    },
)
