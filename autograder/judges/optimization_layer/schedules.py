"""How the rates move over a run: part schedules."""

from collections.abc import Callable
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import asked
from nanochat import schedules as oracle
from puzzles.compare import Tolerance

Case = dict[str, Any]
Values = dict[str, float]


def schedule_cases(rng: Random) -> list[Case]:
    keys = "it num_iterations weight_decay warmup_steps warmdown_ratio final_lr_frac"
    fixed = [(it, 1000, 0.28, 40, 0.65, 0.05) for it in (0, 1, 39, 40, 41, 350, 675, 351, 399, 400, 401, 999, 1000)]
    fixed += [(it, 5000, 0.1, 40, 0.65, 0.05) for it in (0, 200, 399, 400, 401, 1750, 1751, 3333, 4999, 5000)]
    fixed += [
        (0, 1, 0.2, 40, 0.65, 0.05),
        (1, 1, 0.2, 0, 0.65, 0.05),
        (0, 700, 0.2, 0, 0.5, 0.1),
        (0, 700, 0.2, 1, 0.5, 0.1),
        (700, 700, 0.2, 10, 0.0, 0.1),
        (699, 700, 0.0, 10, 0.0, 0.1),
        (500, 500, 0.2, 10, 0.002, 0.3),  # the warmdown is one step long
        (499, 500, 0.2, 10, 0.002, 0.3),
        (15, 20, 0.2, 18, 0.8, 0.0),
        (18, 20, 0.2, 18, 0.8, 0.0),
        (600, 601, 0.2, 40, 1.0, 0.2),
        (0, 601, 0.2, 0, 1.0, 0.2),
        (4, 5, 0.2, 1, 0.5, 0.2),  # round(2.5) is 2
        (6, 7, 0.2, 1, 0.5, 0.2),  # round(3.5) is 4
        (450, 905, 0.2, 1, 0.5, 0.2),
    ]
    for _ in range(12):
        n = rng.randint(400, 4000)
        it = rng.randint(0, n)
        drawn = rng.uniform(0.01, 0.5), rng.randint(1, 100), rng.choice((0.3, 0.5, 0.65, 0.9)), rng.uniform(0, 0.5)
        fixed.append((it, n, *drawn))
    return asked(keys, *fixed)


def schedules(
    it: int, num_iterations: int, weight_decay: float, warmup_steps: int, warmdown_ratio: float, final_lr_frac: float
) -> Values:
    return {
        "lr_multiplier": oracle.lr_multiplier(it, num_iterations, warmup_steps, warmdown_ratio, final_lr_frac),
        "muon_momentum": oracle.muon_momentum(it, num_iterations, warmdown_ratio),
        "muon_weight_decay": oracle.muon_weight_decay(it, num_iterations, weight_decay),
    }


def mistaken(key: str, value: Callable[..., float]) -> Callable[..., Values]:
    """The right values, but under `key` stands value(right value, **case)."""

    def mistake(**case: Any) -> Values:
        right = schedules(**case)
        return right | {key: value(right[key], **case)}

    return mistake


def at_another_step(key: str, step: Callable[..., int], where: Callable[..., bool] = lambda **_: True) -> Callable:
    """The right values, but the one under `key` is that of step(**case), where `where(**case)` holds."""
    return mistaken(
        key, lambda right, **case: schedules(**case | {"it": step(**case)})[key] if where(**case) else right
    )


def with_settings(key: str, **settings: float) -> Callable[..., Values]:
    """The right values, but the one under `key` is that of other settings."""
    return mistaken(key, lambda right, **case: schedules(**case | settings)[key])


def warms_up(it: int, warmup_steps: int, **_: Any) -> bool:
    return it < warmup_steps


def in_warmdown(it: int, num_iterations: int, warmdown_ratio: float, **_: Any) -> bool:
    return it > num_iterations - round(warmdown_ratio * num_iterations)


def warmdown_first(right: float, **case: Any) -> float:
    return schedules(**case | {"warmup_steps": 0})["lr_multiplier"] if in_warmdown(**case) else right


def down_to_the_last_step(right: float, **case: Any) -> float:
    """The line as if the run ended with step N - 1."""
    it, n, ratio, end = (case[key] for key in ("it", "num_iterations", "warmdown_ratio", "final_lr_frac"))
    if not in_warmdown(**case) or warms_up(**case):
        return right
    steps = round(ratio * n)
    return 1 - (1 - end) * (it - (n - steps)) / max(1, steps - 1)


def momentum_warmdown_first(right: float, it: int, num_iterations: int, warmdown_ratio: float, **case: Any) -> float:
    start = num_iterations - round(warmdown_ratio * num_iterations)
    if it < 400 and it > start:
        return 0.97 - 0.07 * (it - start) / (num_iterations - start)
    return right


def truncated(right: float, **case: Any) -> float:
    steps = int(case["warmdown_ratio"] * case["num_iterations"])
    return schedules(**case | {"warmdown_ratio": steps / case["num_iterations"]})["lr_multiplier"]


def half_up(right: float, **case: Any) -> float:
    steps = int(case["warmdown_ratio"] * case["num_iterations"] + 0.5)
    return schedules(**case | {"warmdown_ratio": steps / case["num_iterations"]})["lr_multiplier"]


SCHEDULES = Judge(
    schedule_cases,
    schedules,
    tolerance=Tolerance(rtol=1e-9, atol=1e-12),
    mistakes={
        "the warmup starts at 0; the first step has 1 / warmup_steps, that is (it + 1) / warmup_steps": (
            mistaken(
                "lr_multiplier",
                lambda right, **case: case["it"] / case["warmup_steps"] if warms_up(**case) else right,
            )
        ),
        "where warmup and warmdown overlap, the warmdown has its way; it is the warmup": (
            mistaken("lr_multiplier", warmdown_first)
        ),
        "w is cut off to a whole number; it is rounded": mistaken("lr_multiplier", truncated),
        "there is no warmup of the learning rate": with_settings("lr_multiplier", warmup_steps=0),
        "the warmdown of the learning rate ends at 0; it ends at final_lr_frac": (
            with_settings("lr_multiplier", final_lr_frac=0.0)
        ),
        "the warmdown ends with step N - 1; its line reaches final_lr_frac at N": (
            mistaken("lr_multiplier", down_to_the_last_step)
        ),
        "the warmdown is one step early: step N - w still has the full rate": (
            at_another_step(
                "lr_multiplier",
                lambda it, **_: it + 1,
                lambda **case: not warms_up(**case) and in_warmdown(**case | {"it": case["it"] + 1}),
            )
        ),
        "the warmdown is one step late: step N - w + 1 is already on the line": (
            at_another_step(
                "lr_multiplier",
                lambda it, **_: it - 1,
                lambda **case: in_warmdown(**case) and not warms_up(**case),
            )
        ),
        "there is no warmdown of the learning rate": with_settings("lr_multiplier", warmdown_ratio=0.0),
        "the momentum does not come down in the warmdown: it ends at 0.90": (
            with_settings("muon_momentum", warmdown_ratio=0.0)
        ),
        "in the first 400 steps the momentum warms up, even in the warmdown": (
            mistaken("muon_momentum", momentum_warmdown_first)
        ),
        "the momentum is multiplied by the learning rate's multiplier; it has a schedule of its own": (
            mistaken("muon_momentum", lambda right, **case: 0.97 * schedules(**case)["lr_multiplier"])
        ),
        "the momentum does not warm up from 0.85": (
            at_another_step("muon_momentum", lambda it, **_: 400, lambda it, **_: it < 400)
        ),
        "the momentum's warmup starts one step late: 0.85 + 0.12 * it / 400, from it = 0": (
            at_another_step("muon_momentum", lambda it, **_: it + 1, lambda it, **_: it < 399)
        ),
        "the weight decay stays; it falls along half a cosine to 0": (
            mistaken("muon_weight_decay", lambda right, weight_decay, **_: weight_decay)
        ),
        "the weight decay falls on a straight line; it is half a cosine": (
            mistaken(
                "muon_weight_decay",
                lambda right, it, num_iterations, weight_decay, **_: weight_decay * (1 - it / num_iterations),
            )
        ),
        "the weight decay starts at twice its value: half of 1 + cos": (
            mistaken("muon_weight_decay", lambda right, **_: 2 * right)
        ),
        "the weight decay follows the learning rate's multiplier; it has a schedule of its own": (
            mistaken(
                "muon_weight_decay",
                lambda right, **case: case["weight_decay"] * schedules(**case)["lr_multiplier"],
            )
        ),
        "a half is rounded up; Python's round takes 2.5 to 2": mistaken("lr_multiplier", half_up),
    },
)
