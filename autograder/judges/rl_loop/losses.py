"""Judges of advantages, loss and penalty: values, and the gradients that autograd finds for them."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import rl
from puzzles.compare import FLOAT32

# advantages


def advantage_cases(rng: Random) -> list[Case]:
    fixed = [
        ([1.0], False, 1e-6),
        ([1.0], True, 1e-6),
        ([0.0, 0.0, 1.0], False, 1e-6),
        ([0.0, 1.0], True, 1e-6),
        ([1.0, 0.0, 0.0], True, 0.5),
        ([-3.0, 5.0, 0.25, 2.0, 2.0], False, 1e-6),
        ([-3.0, 5.0, 0.25, 2.0, 2.0], True, 1e-6),
        ([1.0, 1.0, 1.0, 1.0], False, 1e-6),
        ([0.7] * 8, True, 1e-6),
        ([0.0] * 5, True, 1e-6),
        ([100.1] * 11, True, 1e-6),
        ([0.3] * 7 + [0.4], True, 1e-6),
        ([1.0] * 15 + [0.0], True, 1e-3),
    ]
    drawn = []
    for _ in range(8):
        choices = rng.choice(((0.0, 1.0), (0.0, 0.5, 1.0), (-1.0, 0.1, 3.0)))
        rewards = [rng.choice(choices) for _ in range(rng.randint(2, 24))]
        drawn.append((rewards, rng.random() < 0.6, rng.choice((1e-6, 1e-3, 0.25))))
    equal = [([rng.choice((0.1, 0.3, 0.7, 5.1))] * rng.randint(9, 14), True, 1e-6) for _ in range(3)]
    return [
        {"rewards": torch.tensor(rewards), "normalize": normalize, "eps": eps}
        for rewards, normalize, eps in [*fixed, *drawn, *equal]
    ]


Advantages = Callable[[Tensor, bool, float], Tensor]


def weighed_by(advantages_of: Advantages, changes: bool = False) -> Callable[..., Case]:
    """What the graded cell reports of a function of rewards."""

    def judged(rewards: Tensor, normalize: bool, eps: float) -> Case:
        advantages = advantages_of(rewards.clone(), normalize, eps)
        return {"advantages": advantages, "rewards unchanged": not changes}

    return judged


def divided_by(std: Callable[[Tensor, float], Tensor]) -> Callable[..., Case]:
    """Full advantages divided by `std(rewards, eps)`, equal rewards or not."""

    def advantages_of(rewards: Tensor, normalize: bool, eps: float) -> Tensor:
        simple = rl.compute_advantages(rewards)
        return simple / std(rewards, eps) if normalize else simple

    return weighed_by(advantages_of)


def unless_equal(std: Callable[[Tensor, float], Tensor]) -> Callable[..., Case]:
    def advantages_of(rewards: Tensor, normalize: bool, eps: float) -> Tensor:
        right = rl.compute_advantages(rewards, normalize, eps)
        varied = normalize and bool((right != 0).any())
        return rl.compute_advantages(rewards) / std(rewards, eps) if varied else right

    return weighed_by(advantages_of)


ADVANTAGES = Judge(
    advantage_cases,
    weighed_by(rl.compute_advantages),
    FLOAT32,
    mistakes={
        "the standard deviation is the one over K - 1; it should be over K": unless_equal(lambda r, eps: r.std() + eps),
        "eps is left out": unless_equal(lambda r, eps: r.std(correction=0)),
        "eps is inside of the root; it is added to the standard deviation": unless_equal(
            lambda r, eps: (r.var(correction=0) + eps).sqrt()
        ),
        "eps is a lower bound of the standard deviation; it is added to it": unless_equal(
            lambda r, eps: r.std(correction=0).clamp(min=eps)
        ),
        "it is divided by the variance; it should be the standard deviation": unless_equal(
            lambda r, eps: r.var(correction=0) + eps
        ),
        "rewards that are all equal give 0/0, which is NaN; their advantages are zero": (
            divided_by(lambda r, eps: r.std(correction=0))
        ),
        "rewards that are all equal: what rounding leaves of the mean is blown up; the advantages are exactly zero": (
            divided_by(lambda r, eps: r.std(correction=0) + eps)
        ),
        "it is always divided by the standard deviation; only with `normalize`": (
            weighed_by(lambda r, normalize, eps: rl.compute_advantages(r, True, eps))
        ),
        "`normalize` has no effect": weighed_by(lambda r, normalize, eps: rl.compute_advantages(r)),
        "the mean is not subtracted": weighed_by(
            lambda r, normalize, eps: r / (r.std(correction=0) + eps) if normalize else r
        ),
        "the sign is wrong: better than the mean is positive": (
            weighed_by(lambda r, normalize, eps: -rl.compute_advantages(r, normalize, eps))
        ),
        "the rewards are changed in place": weighed_by(rl.compute_advantages, changes=True),
    },
)

# the loss


def batch_cases(rng: Random, num_rows_of: str) -> list[Case]:
    """Log-probabilities, targets that are partly ignored, and a third tensor: an advantage a row, or another (B, T).

    What stands at ignored targets is as large as anywhere else.
    """
    shapes = [(3, 4), (1, 1), (1, 3), (2, 1), (2, 2), (3, 3), (3, 5), (2, 7)]
    shapes += [(rng.randint(1, 6), rng.randint(1, 12)) for _ in range(8)]
    cases: list[tuple[Tensor, ...]] = []
    for B, T in shapes:
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        logprobs = -3 * torch.rand(B, T, generator=generator)
        # of the first batch 4, 2 and 1 targets count
        ignored = (
            torch.rand(B, T, generator=generator) < 0.4 if cases else torch.arange(4) >= torch.tensor([[4], [2], [1]])
        )
        targets = torch.randint(0, 5, (B, T), generator=generator).masked_fill(ignored, -1)
        if num_rows_of == "advantages":
            third = torch.randn(B, generator=generator)
        else:
            third = logprobs + torch.randn(B, T, generator=generator)
        cases.append((logprobs, targets, third))
    logprobs, targets, third = cases[6]
    cases.append((logprobs, torch.full_like(targets, -1), third))
    cases.append((logprobs, torch.zeros_like(targets), third))
    cases.append((logprobs, targets.where(torch.arange(3).unsqueeze(1) > 0, -1), third))
    return asked(f"logprobs targets {num_rows_of}", *cases)


Values = Callable[[Tensor, Tensor, Tensor], Tensor]


def differentiated(value: Values, names: tuple[str, str, str]) -> Callable[..., Case]:
    """What the graded cells report of a scalar function of logprobs and a second tensor: `names` are the report's keys.
    `value` takes (logprobs, targets, second)."""

    def report(logprobs: Tensor, targets: Tensor, **second: Tensor) -> Case:
        logprobs, other = (each.clone().requires_grad_() for each in (logprobs, *second.values()))
        result = value(logprobs, targets, other)
        result.backward()
        return dict(zip(names, (result, logprobs.grad, other.grad), strict=True))

    return report


LOSS_NAMES = ("loss", "gradient", "gradient of the advantages")


def loss_as(value: Values) -> Callable[..., Case]:
    return differentiated(value, LOSS_NAMES)


def sized(per: Callable[[Tensor], Any]) -> Callable[..., Case]:
    """nanochat's loss times the number of counted tokens, divided by `per(targets)`."""
    return loss_as(lambda logp, y, adv: rl.policy_gradient_loss(logp, y, adv) * (y >= 0).sum().clamp(min=1) / per(y))


def row_by_row(value: Values) -> Values:
    """The mean over the rows of what each gives alone."""
    return lambda logp, y, other: torch.stack([value(*row) for row in _rows(logp, y, other)]).mean()


def _rows(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(each.split(1) for each in tensors), strict=True))


def everywhere(value: Values) -> Values:
    """`value` as if every target counted."""
    return lambda logp, y, other: value(logp, torch.zeros_like(y), other)


def positive_only(value: Values) -> Values:
    """`value` as if token 0 did not count."""
    return lambda logp, y, other: value(logp, y.masked_fill(y == 0, -1), other)


POLICY_GRADIENT_LOSS = Judge(
    lambda rng: batch_cases(rng, "advantages"),
    loss_as(rl.policy_gradient_loss),
    FLOAT32,
    mistakes={
        "the sign is wrong: the loss goes down where log-probability times advantage goes up": (
            loss_as(lambda logp, y, adv: -rl.policy_gradient_loss(logp, y, adv))
        ),
        "it is the mean of each answer first, then over the answers; every token should weigh the same": (
            loss_as(row_by_row(rl.policy_gradient_loss))
        ),
        "the mean is over all positions; only targets that count should be in the divisor": sized(lambda y: y.numel()),
        "the sum is divided by the number of rows; it should be the number of targets that count": sized(len),
        "the sum is not divided at all": sized(lambda y: 1),
        "nothing counts, and 0 is divided by 0; the loss is 0": sized(lambda y: (y >= 0).sum()),
        "ignored targets are in the sum and in the mean": loss_as(everywhere(rl.policy_gradient_loss)),
        "ignored targets are in the sum": loss_as(
            lambda logp, y, adv: (
                everywhere(rl.policy_gradient_loss)(logp, y, adv) * y.numel() / (y >= 0).sum().clamp(min=1)
            )
        ),
        "a target of 0 is ignored; 0 is a token, only -1 is not": loss_as(positive_only(rl.policy_gradient_loss)),
        "gradient flows into the advantages; detach them": loss_as(
            lambda logp, y, adv: -rl._mean_over_counted(logp * adv.unsqueeze(-1), y)
        ),
        "probabilities are taken in place of log-probabilities": (
            loss_as(lambda logp, y, adv: rl.policy_gradient_loss(logp.exp(), y, adv))
        ),
        "the advantages have no effect": (
            loss_as(lambda logp, y, adv: rl.policy_gradient_loss(logp, y, torch.ones_like(adv)))
        ),
        "the advantages are normalised once more; they are taken as they are": loss_as(
            lambda logp, y, adv: rl.policy_gradient_loss(logp, y, rl.compute_advantages(adv))
        ),
    },
)

# the penalty

KL_NAMES = ("kl", "gradient", "gradient of the reference")


def kl_as(value: Values) -> Callable[..., Case]:
    """`value` takes (logprobs, targets, reference_logprobs)."""
    return differentiated(value, KL_NAMES)


def nanochats_kl(logp: Tensor, y: Tensor, ref: Tensor) -> Tensor:
    return rl.kl_penalty(logp, ref, y)


def estimated(per_token: Callable[[Tensor], Tensor]) -> Callable[..., Case]:
    """The mean of a function of log(policy / reference) over the targets that count."""
    return kl_as(lambda logp, y, ref: rl._mean_over_counted(per_token(logp - ref.detach()), y))


KL_PENALTY = Judge(
    lambda rng: batch_cases(rng, "reference_logprobs"),
    kl_as(nanochats_kl),
    FLOAT32,
    mistakes={
        "the direction is wrong: the ratio is reference over policy": estimated(lambda x: x.exp() - 1 - x),
        "that is k1, the difference of the logs; k3 was asked for": estimated(lambda x: x),
        "that is k2, half of the squared log ratio; k3 was asked for": estimated(lambda x: x.square() / 2),
        "the sign is wrong: k3 is never negative": kl_as(lambda *batch: -nanochats_kl(*batch)),
        "the 1 is not subtracted": estimated(lambda x: (-x).exp() + x),
        "that is the size of k1": estimated(lambda x: x.abs()),
        "ignored targets are in the sum and in the mean": kl_as(everywhere(nanochats_kl)),
        "ignored targets are in the sum": kl_as(
            lambda logp, y, ref: everywhere(nanochats_kl)(logp, y, ref) * y.numel() / (y >= 0).sum().clamp(min=1)
        ),
        "the mean is over all positions; only targets that count should be in the divisor": kl_as(
            lambda logp, y, ref: nanochats_kl(logp, y, ref) * (y >= 0).sum() / y.numel()
        ),
        "it is the mean of each answer first, then over the answers; it should be one mean over all tokens": (
            kl_as(row_by_row(nanochats_kl))
        ),
        "the sum is not divided by how many targets count": kl_as(
            lambda logp, y, ref: nanochats_kl(logp, y, ref) * (y >= 0).sum()
        ),
        "a target of 0 is ignored; 0 is a token, only -1 is not": kl_as(positive_only(nanochats_kl)),
        "gradient flows into the reference; detach it": kl_as(
            lambda logp, y, ref: rl._mean_over_counted((ref - logp).exp() - 1 - (ref - logp), y)
        ),
        "nothing counts, and 0 is divided by 0; the penalty is 0": kl_as(
            lambda logp, y, ref: nanochats_kl(logp, y, ref) * (y >= 0).sum() / (y >= 0).sum()
        ),
    },
)
