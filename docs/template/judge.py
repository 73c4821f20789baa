"""Judges of puzzle 9, the batch size. The oracle is nanochat.recipe."""

import random

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat.recipe import grad_accum_steps, optimal_batch_size


def _runs(rng: random.Random) -> list[Case]:
    fixed = [(1.0, 1.0), (20e9, 1e9), (1e9, 20e9), (2.82e9, 1.32e9), (1.525e10, 1e9)]
    references = [1.0, 1.32e9, rng.uniform(1e8, 1e10)] * 4
    drawn = [(reference * 2 ** rng.uniform(-8, 8), reference) for reference in references]
    return asked("target_tokens reference_tokens", *fixed, *drawn)


def _machines(rng: random.Random) -> list[Case]:
    fixed = [(1, 1, 1, 1), (2**19, 32, 2048, 8), (2**16, 32, 2048, 8), (2**19 + 1, 1, 2, 1), (60, 2, 3, 5)]
    drawn = []
    for spare in (0, 0, 0, 1):
        rows, length, ranks = (rng.randint(2, 9) for _ in range(3))
        drawn.append((rows * length * ranks * rng.randint(2, 9) + spare, rows, length, ranks))
    return asked("total_batch_size device_batch_size sequence_len world_size", *fixed, *drawn)


JUDGES = {
    "optimal_batch_size": Judge(
        cases=_runs,
        oracle=optimal_batch_size,
        mistakes={
            "the ratio is upside down: a longer run has a larger batch": lambda target_tokens, reference_tokens: (
                optimal_batch_size(reference_tokens, target_tokens)
            ),
            "it is rounded down: take the power of two whose exponent is nearest": lambda **case: (
                optimal_batch_size(**case) // 2
            ),
            "it is rounded up: take the power of two whose exponent is nearest": lambda **case: (
                optimal_batch_size(**case) * 2
            ),
        },
    ),
    "grad_accum_steps": Judge(
        cases=_machines,
        oracle=plain_value_error(grad_accum_steps),
        mistakes={
            "the ranks are not counted: they all work at the same time": lambda **case: grad_accum_steps(
                **case | {"world_size": 1}
            ),
        },
    ),
}
