"""Judge of `train_step`: nanochat's accumulation of gradients on toys, with a log of all that happens."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error, private_copy
from nanochat import rl
from nanochat.rl import RolloutBatch
from puzzles.compare import FLOAT32

LEARNING_RATE = 0.5

Question = list[Tensor]  # inputs, targets, advantages
Batches = list[RolloutBatch]


def toy_loss(logprobs: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    return ((logprobs - advantages.unsqueeze(-1)) ** 2 * (targets + 2)).mean()


def toy_kl(logprobs: Tensor, reference_logprobs: Tensor, targets: Tensor) -> Tensor:
    return ((logprobs - 3 * reference_logprobs) ** 2 * (targets + 2)).mean()


def stand_ins(loss: Callable = toy_loss, kl: Callable = toy_kl) -> Any:
    """nanochat.rl, with toys for its loss and its penalty."""
    module = private_copy(rl)
    module.policy_gradient_loss, module.kl_penalty = loss, kl
    return module


class ToyModel(torch.nn.Module):
    """Says by a table which token follows which. Notes its passes in a log."""

    def __init__(self, table: Tensor, log: list[str]) -> None:
        super().__init__()
        self.table, self.log = torch.nn.Parameter(table.clone()), log

    def forward(self, idx: Tensor, targets: Tensor, loss_reduction: str) -> Tensor:
        self.log.append(f"forward {tuple(idx.shape)}")
        result = F.cross_entropy(
            self.table[idx].flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=loss_reduction
        )
        if result.requires_grad:
            result.register_hook(lambda _: self.log.append("backward"))
        return result


# cases


def question_of(rng: Random, K: int, T: int, vocab_size: int) -> Question:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    ids = torch.randint(0, vocab_size, (K, T + 1), generator=generator)
    ignored = torch.rand(K, T, generator=generator) < 0.3
    return [ids[:, :-1].clone(), ids[:, 1:].masked_fill(ignored, -1), torch.randn(K, generator=generator)]


def table_of(rng: Random, vocab_size: int) -> Tensor:
    return torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


def step_cases(rng: Random) -> list[Case]:
    keys = "shapes device_batch_size steps kl_coef"
    plans = asked(
        keys,
        ([(4, 3), (2, 5)], 2, 1, None),
        ([(1, 1)], 1, 1, None),
        ([(2, 3)], 2, 1, None),
        ([(2, 3)], 1, 1, None),
        ([(6, 3)], 2, 2, None),
        ([(4, 3), (4, 5)], 4, 1, None),
        ([(4, 3), (2, 5), (6, 2)], 2, 2, None),
        ([(4, 3), (2, 5)], 2, 1, 0.2),
        ([(3, 4), (3, 2), (6, 1)], 3, 2, 1.5),
        ([(4, 3), (2, 5)], 1, 2, 0.0),
        ([(3, 2)], 2, 1, None),
        ([(4, 2), (3, 2)], 2, 1, None),
        ([(2, 2)], 4, 1, 0.1),
    )
    for _ in range(6):
        rows = rng.randint(1, 4)
        shapes = [(rows * rng.randint(1, 3), rng.randint(1, 7)) for _ in range(rng.randint(1, 4))]
        plans += asked(keys, (shapes, rows, rng.randint(1, 2), rng.choice((None, 0.05, 0.7))))
    cases = []
    for plan in plans:
        vocab_size = rng.randint(3, 9)
        cases.append(
            {
                "table": table_of(rng, vocab_size),
                "questions": [question_of(rng, K, T, vocab_size) for K, T in plan["shapes"]],
                "device_batch_size": plan["device_batch_size"],
                "steps": plan["steps"],
                "reference_table": None if plan["kl_coef"] is None else table_of(rng, vocab_size),
                "kl_coef": plan["kl_coef"] or 0.0,
            }
        )
    return cases


# the oracle, and steps that make a mistake

Accumulate = Callable[..., list[float]]
toys = stand_ins()


def stepped(
    accumulate: Accumulate = toys.accumulate_gradients,
    arrange: Callable[[Batches, int], Iterator[tuple[Batches, int, int]]] | None = None,
    clear: bool = True,
    edit: Callable[[list[str]], list[str]] = lambda log: log,
    scale: Callable[[float, int], float] = lambda loss, divisor: loss,
    untouched: bool = True,
) -> Callable[..., Case]:
    """What the graded cell reports of a step: nanochat's, with `accumulate` for its gradients.

    arrange: (batches, device_batch_size) -> for each optimizer step (batches, device_batch_size, number of questions)
    """

    @plain_value_error
    def take_steps(
        table: Tensor,
        questions: list[Question],
        device_batch_size: int,
        steps: int,
        reference_table: Tensor | None,
        kl_coef: float,
    ) -> Case:
        log: list[str] = []
        model = ToyModel(table, log)
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        reference = None if reference_table is None else ToyModel(reference_table, [])
        batches = [RolloutBatch([], x, y, torch.zeros(len(x)), a) for x, y, a in questions]
        losses, gradients = [], []
        for _ in range(steps):
            told: list[float] = []
            plan = arrange(batches, device_batch_size) if arrange else [(batches, device_batch_size, len(batches))]
            for some, rows, count in plan:
                for batch in some:
                    divisor = len(batch.inputs) // rows * count
                    more = accumulate(model, batch, rows, count, reference, kl_coef)
                    told += [scale(loss, divisor) for loss in more]
                log.append("step")
                grad = model.table.grad
                assert grad is not None
                gradients.append(grad.clone())
                optimizer.step()
                if clear:
                    optimizer.zero_grad()
            losses.append(told)
        return {
            "log": edit(log),
            "losses": losses,
            "gradients": gradients,
            "table": model.table.detach(),
            "reference untouched": untouched or reference is None,
        }

    return take_steps


def times(factor: Callable[[RolloutBatch, int, int], float]) -> Callable[..., Case]:
    """Every pass's loss times a factor of (batch, passes, questions)."""

    def accumulate(model: Any, batch: RolloutBatch, rows: int, count: int, *more: Any) -> list[float]:
        by = factor(batch, rl.num_passes(len(batch.inputs), rows), count)
        scaled = stand_ins(lambda *each: by * toy_loss(*each), lambda *each: by * toy_kl(*each))
        return scaled.accumulate_gradients(model, batch, rows, count, *more)

    return stepped(accumulate)


def a_step_a_question(batches: Batches, rows: int) -> Iterator[tuple[Batches, int, int]]:
    for batch in batches:
        yield [batch], rows, len(batches)


def cut(batch: RolloutBatch, rows: int) -> list[RolloutBatch]:
    parts = zip(batch.inputs.split(rows), batch.targets.split(rows), batch.advantages.split(rows), strict=True)
    return [RolloutBatch([], x, y, torch.zeros(len(x)), a) for x, y, a in parts]


def a_step_a_pass(batches: Batches, rows: int) -> Iterator[tuple[Batches, int, int]]:
    for batch in batches:
        pieces = cut(batch, rows)
        for piece in pieces:
            yield [piece], rows, len(batches) * len(pieces)


def in_one_piece(model: Any, batch: RolloutBatch, rows: int, count: int, *more: Any) -> list[float]:
    rl.num_passes(len(batch.inputs), rows)
    return toys.accumulate_gradients(model, batch, len(batch.inputs), count, *more)


def one_backward(log: list[str]) -> list[str]:
    """All forward passes of a step, then all backward."""
    arranged: list[str] = []
    waiting = 0
    for line in log:
        if line == "backward":
            waiting += 1
            continue
        arranged += ["backward"] * waiting + [line] if line == "step" else [line]
        waiting = 0 if line == "step" else waiting
    return arranged


def first_rows_advantages(model: Any, batch: RolloutBatch, rows: int, *more: Any) -> list[float]:
    rl.num_passes(len(batch.inputs), rows)
    repeated = batch.advantages[:rows].repeat(len(batch.inputs) // rows)
    changed = RolloutBatch([], batch.inputs, batch.targets, batch.rewards, repeated)
    return toys.accumulate_gradients(model, changed, rows, *more)


def without_reference(model: Any, batch: RolloutBatch, rows: int, count: int, *more: Any) -> list[float]:
    return toys.accumulate_gradients(model, batch, rows, count)


def as_if(kl_coef: float) -> Accumulate:
    return lambda model, batch, rows, count, reference, _: toys.accumulate_gradients(
        model, batch, rows, count, reference, kl_coef
    )


def only_the_last_pass(model: Any, batch: RolloutBatch, rows: int, count: int, *more: Any) -> list[float]:
    """Gradients are cleared before every pass."""
    losses = []
    passes = rl.num_passes(len(batch.inputs), rows)
    for piece in cut(batch, rows):
        model.zero_grad()
        losses += toys.accumulate_gradients(model, piece, rows, count * passes, *more)
    return losses


negated = stand_ins(
    lambda logprobs, *more: toy_loss(-logprobs, *more), lambda new, old, targets: toy_kl(-new, -old, targets)
)
exchanged = stand_ins(kl=lambda new, old, targets: toy_kl(old, new, targets))

TRAIN_STEP = Judge(
    step_cases,
    stepped(),
    FLOAT32,
    mistakes={
        "the losses are not divided by the number of passes of the question": times(
            lambda batch, passes, count: passes
        ),
        "the losses are not divided by the number of questions": times(lambda batch, passes, count: count),
        "the losses are not divided at all": times(lambda batch, passes, count: passes * count),
        "the losses are divided by the number of rows in place of passes": times(
            lambda batch, passes, count: passes / len(batch.inputs)
        ),
        "the gradients of a step still count in the next; clear them": stepped(clear=False),
        "gradients are cleared before every pass, so that only the last one counts": stepped(only_the_last_pass),
        "there is an optimizer step for every question; there should be one for all": stepped(
            arrange=a_step_a_question
        ),
        "there is an optimizer step for every pass; there should be one for all": stepped(arrange=a_step_a_pass),
        "all answers of a question go through the model at once; device_batch_size rows was asked for": (
            stepped(in_one_piece)
        ),
        "all forward passes come before the first backward pass, so that memory holds them all": (
            stepped(edit=one_backward)
        ),
        "the losses are returned as they were before the division": stepped(scale=lambda loss, by: loss * by),
        "the model's losses are taken for log-probabilities; those are minus the losses": (
            stepped(negated.accumulate_gradients)
        ),
        "every pass uses the advantages of the first": stepped(first_rows_advantages),
        "the reference has no effect": stepped(without_reference),
        "kl_coef has no effect": stepped(as_if(1.0)),
        "policy and reference are exchanged in the penalty": stepped(exchanged.accumulate_gradients),
        "the reference gets gradient, or changes": stepped(untouched=False),
    },
)
