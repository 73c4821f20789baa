"""Judges of `reduce_accuracy`, on simulated ranks, and of `core_metric`."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import base_eval, core_eval
from puzzles.compare import FLOAT32, Tolerance

# accuracy over ranks


def rank_cases(rng: Random) -> list[Case]:
    fixed = [
        ("1", 1),
        ("0111", 3),
        ("0", 2),
        ("0110", 1),
        ("0110", 2),
        ("10", 3),
        ("1110", 3),
        ("11100", 4),
        ("0" * 6, 4),
    ]
    drawn = []
    for _ in range(8):
        share = rng.uniform(0.2, 0.9)
        right = "".join("1" if rng.random() < share else "0" for _ in range(rng.randint(2, 60)))
        drawn.append((right, rng.randint(2, 9)))
    many = [("1" * (2049 + 2 * rng.randrange(100)) + "0" * rng.randint(1, 500), 2)]
    return [case | {"device": "cpu"} for case in asked("right world_size", *fixed, *drawn, *many)]


def byte_tokens(prompts: list[str], prepend: int) -> list[list[int]]:
    return [[prepend, *prompt.encode()] for prompt in prompts]


byte_tokens.get_bos_token_id = lambda: 0  # type: ignore[attr-defined]


def indifferent(ids: Tensor) -> Tensor:
    """A model to which all tokens are equally likely: it chooses the first option."""
    return torch.zeros(*ids.shape, 128)


@cache
def nanochat_accuracy(right: str) -> float:
    """Of a model that chooses the first option, on items whose gold is the first or the second."""
    data = [{"query": "q", "choices": ["a", "b"], "gold": 1 - int(each)} for each in right]
    task_meta = {"task_type": "multiple_choice", "num_fewshot": 0, "continuation_delimiter": " "}
    return core_eval.evaluate_task(indifferent, byte_tokens, data, "cpu", task_meta)


def on_all_ranks(right: str, world_size: int, device: Any = "cpu") -> list[Case]:
    accuracy = nanochat_accuracy(right)
    return [{"accuracy": accuracy, "items": list(range(r, len(right), world_size))} for r in range(world_size)]


def accuracies_as(of: Callable[[list[str], int], float]) -> Callable[..., list[Case]]:
    """Each rank says what `of` makes of the verdicts by rank and its own number."""

    def ranks(right: str, world_size: int, device: Any = "cpu") -> list[Case]:
        shares = [right[rank::world_size] for rank in range(world_size)]
        told = on_all_ranks(right, world_size)
        return [each | {"accuracy": of(shares, rank)} for rank, each in enumerate(told)]

    return ranks


def own(share: str) -> float:
    return share.count("1") / max(1, len(share))


def items_as(of: Callable[[int, int, int], list[int]]) -> Callable[..., list[Case]]:
    def ranks(right: str, world_size: int, device: Any = "cpu") -> list[Case]:
        told = on_all_ranks(right, world_size)
        return [each | {"items": of(rank, len(right), world_size)} for rank, each in enumerate(told)]

    return ranks


def block(rank: int, num_items: int, world_size: int) -> list[int]:
    size = -(-num_items // world_size)
    return list(range(rank * size, min(num_items, (rank + 1) * size)))


REDUCE_ACCURACY = Judge(
    rank_cases,
    on_all_ranks,
    tolerance=FLOAT32,
    mistakes={
        "each rank says its own accuracy; it must be that of all items": accuracies_as(
            lambda shares, rank: own(shares[rank])
        ),
        "the ranks' accuracies are averaged; add up what is right, then divide by the number of items": accuracies_as(
            lambda shares, rank: fmean(map(own, shares))
        ),
        "the ranks' accuracies are summed": accuracies_as(lambda shares, rank: sum(map(own, shares))),
        "the number of right items of this rank is divided by the number of all items": accuracies_as(
            lambda shares, rank: shares[rank].count("1") / sum(map(len, shares))
        ),
        "the sum is divided by this rank's number of items": accuracies_as(
            lambda shares, rank: sum(s.count("1") for s in shares) / max(1, len(shares[rank]))
        ),
        "every rank evaluates all items": items_as(lambda rank, num_items, world_size: list(range(num_items))),
        "items are dealt in blocks; rank r takes r, r + world_size, ...": items_as(block),
    },
)

# CORE

HEADER = ("Eval Task", "Task Category", "Random baseline")
CATEGORIES = ("reading", "symbols", "world knowledge, hard", "commonsense")


def table(rows: Sequence[tuple[str, float]], header: tuple[str, ...] = HEADER, category: str = "reading") -> str:
    """The text of a file of baselines."""

    def quoted(value: object) -> str:
        return f'"{value}"' if "," in str(value) else str(value)

    lines = [header]
    for task, baseline in rows:
        fields = {"Eval Task": task, "Random baseline": str(baseline)}
        lines.append(tuple(fields.get(name, category) for name in header))
    return "".join(",".join(map(quoted, line)) + "\n" for line in lines)


def core_cases(rng: Random) -> list[Case]:
    two = [("easy", 25), ("hard, long", 50.0)]
    reordered = ("Random baseline", "Task Category", "Eval Task", "Notes")
    cases: list[tuple] = [
        ({"easy": 0.25}, table(two)),
        ({"easy": 1.0, "hard, long": 0.5}, table(two)),
        ({"hard, long": 0.4}, table(two, category="a, b")),
        ({"easy": 0.1, "hard, long": 0.9}, table(two, reordered)),
        ({"free": 0.0, "easy": 0.0}, table([("free", 0), *two])),
        ({"easy": 0.5, "other": 0.5}, table(two)),
    ]
    for _ in range(8):
        names = rng.sample([f"task {i}" for i in range(40)], rng.randint(2, 9))
        rows = [(name, rng.choice((0, 10, 25, 33.3, 50, 62.5))) for name in names]
        header = rng.choice((HEADER, reordered))
        evaluated = rng.sample(names, rng.randint(1, len(names)))
        accuracies = {name: round(rng.random(), 4) for name in evaluated}
        cases.append((accuracies, table(rows, header, rng.choice(CATEGORIES))))
    return asked("accuracies baselines_csv", *cases)


def read(baselines_csv: str) -> dict[str, float]:
    """nanochat reads a path: this stands in for one."""
    path = SimpleNamespace(open=lambda newline: io.StringIO(baselines_csv))
    return base_eval.read_baselines(path)  # type: ignore[arg-type]


def core_with(
    center: Callable[[float, float], float] = base_eval.center,
    mean: Callable[[dict[str, float], dict[str, float]], float] = lambda centred, baselines: fmean(centred.values()),
) -> Callable[..., Case]:
    def core(accuracies: dict[str, float], baselines_csv: str) -> Case:
        baselines = read(baselines_csv)
        centred = {task: center(accuracy, baselines[task]) for task, accuracy in accuracies.items()}
        return {"centred": centred, "CORE": mean(centred, baselines)}

    return core


def of_the_mean(accuracies: dict[str, float], baselines_csv: str) -> Case:
    baselines = read(baselines_csv)
    right = core_with()(accuracies, baselines_csv)
    mean_baseline = fmean(baselines[task] for task in accuracies)
    return right | {"CORE": base_eval.center(fmean(accuracies.values()), mean_baseline)}


def uncentred_mean(accuracies: dict[str, float], baselines_csv: str) -> Case:
    return core_with()(accuracies, baselines_csv) | {"CORE": fmean(accuracies.values())}


CORE_METRIC = Judge(
    core_cases,
    core_with(),
    tolerance=Tolerance(rtol=1e-9, atol=1e-9),
    mistakes={
        "accuracies are not centred": core_with(lambda accuracy, baseline: accuracy),
        "the baseline is subtracted, but the rest not stretched: divide by 1 - baseline": core_with(
            lambda accuracy, baseline: accuracy - baseline
        ),
        "it is divided by the baseline; it must be by 1 - baseline": core_with(
            lambda accuracy, baseline: (accuracy - baseline) / baseline if baseline else accuracy
        ),
        "the baseline is taken as a probability; the file has percentages": core_with(
            lambda accuracy, baseline: base_eval.center(accuracy, 100 * baseline)
        ),
        "what is below the baseline is cut at 0; it counts": core_with(
            lambda accuracy, baseline: max(0.0, base_eval.center(accuracy, baseline))
        ),
        "CORE is the mean of the accuracies; it is the mean of the centred ones": uncentred_mean,
        "the mean is centred; each task must be, before the mean": of_the_mean,
        "tasks that were not evaluated are counted": core_with(
            mean=lambda centred, baselines: sum(centred.values()) / len(baselines)
        ),
        "CORE is a sum; it is the mean over the tasks": core_with(mean=lambda centred, _: sum(centred.values())),
    },
)
