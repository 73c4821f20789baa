"""Judge of `loss_choice`: scores of options from logits, and verdicts on items from scores."""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import core_eval
from puzzles.compare import FLOAT32

NAN = float("nan")
Scores = list[tuple[float, bool]]
Item = tuple[str, Scores, int | None]


def logits_of(rng: Random, B: int, T: int, V: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return scale * torch.randn(B, T, V, generator=generator)


def ids_after(rng: Random, logits: Tensor, likely: float) -> Tensor:
    """Token ids of which a share `likely` is what the logits before it say."""
    B, T, V = logits.shape
    said = logits.argmax(dim=-1)
    rows = [[rng.randrange(V) for _ in range(T)] for _ in range(B)]
    for b in range(B):
        for t in range(1, T):
            if rng.random() < likely:
                rows[b][t] = int(said[b, t - 1])
    return torch.tensor(rows)


def forward_of(rng: Random, B: int, T: int, V: int, likely: float, scale: float = 3.0) -> tuple:
    """Logits, token ids, starts and ends."""
    logits = logits_of(rng, B, T, V, scale)
    starts = [rng.randint(1, T - 1) for _ in range(B)]
    ends = [rng.randint(start + 1, T) for start in starts]
    return logits, ids_after(rng, logits, likely), starts, ends


def fixed_verdicts() -> list[Item]:
    def item(task_type: str, losses: list[float], gold: int | None, greedy: bool = False) -> Item:
        return task_type, [(loss, greedy) for loss in losses], gold

    mc, schema, lm = "multiple_choice", "schema", "language_modeling"
    return [
        item(mc, [1.5, 0.5], 1),
        item(mc, [1.5, 0.5], 0, True),
        item(schema, [0.25, 3.0, 2.0], 0),
        item(schema, [0.75, 0.75], 0),
        item(mc, [0.75, 0.75], 1),
        item(mc, [2.0, 0.5, 0.5, 0.5], 3),
        item(mc, [NAN, 0.5], 0),
        item(mc, [NAN, 0.5], 1),
        item(schema, [1.0, NAN], 0),
        item(schema, [1.0, NAN], 1),
        item(mc, [1.0, NAN, 0.5], 2),
        item(mc, [NAN, NAN], 0),
        item(lm, [0.01], None),
        item(lm, [8.0], None, True),
    ]


def some_verdicts(rng: Random) -> list[Item]:
    items: list[Item] = []
    for _ in range(rng.randint(2, 6)):
        task_type = rng.choice(("multiple_choice", "schema", "language_modeling"))
        if task_type == "language_modeling":
            items.append((task_type, [(rng.uniform(0, 4), rng.random() < 0.5)], None))
        else:
            losses = [rng.choice((0.5, 1.25, 2.0, 2.75)) for _ in range(rng.randint(2, 5))]
            items.append((task_type, [(loss, rng.random() < 0.5) for loss in losses], rng.randrange(len(losses))))
    return items


def choice_cases(rng: Random) -> list[Case]:
    logits = logits_of(rng, 2, 5, 6)
    said = ids_after(rng, logits, 1.0)
    rows: list[tuple] = [
        (logits[:1, :3], said[:1, :3], [1], [3], []),
        (logits, said, [1, 2], [5, 4], fixed_verdicts()),
        (logits, said, [2, 3], [2, 4], []),
        (200 * logits, ids_after(rng, -logits, 1.0), [1, 2], [4, 5], []),
        (*forward_of(rng, 3, 9, 7, 0.0), some_verdicts(rng)),
        (*forward_of(rng, 1, 4, 11, 0.5, scale=90.0), []),
    ]
    almost = said.clone()
    almost[0, 4] = (almost[0, 4] + 1) % 6
    almost[1, 1] = (almost[1, 1] + 1) % 6
    rows += [(logits, almost, [1, 1], [5, 4], []), (logits, almost, [1, 2], [4, 5], [])]
    for _ in range(8):
        shape = rng.randint(1, 6), rng.randint(3, 14), rng.choice((3, 17, 64))
        rows.append((*forward_of(rng, *shape, rng.choice((0.2, 0.8, 0.95))), some_verdicts(rng)))
    return asked("logits input_ids starts ends verdicts", *rows)


Score = Callable[[Tensor, Tensor, list[int], list[int]], Scores]
Judged = Callable[[str, Scores, int | None], bool]


def nanochat_scores(logits: Tensor, input_ids: Tensor, starts: list[int], ends: list[int]) -> Scores:
    """nanochat scores options with a model: one that says these logits, an option at a time."""
    scores: Scores = []
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        said = logits[row : row + 1, :end].cpu()
        option = core_eval.Option(input_ids[row, :end].tolist(), start, end)
        scores += core_eval._score([option], lambda ids, said=said: said, 0, "cpu", 1)
    return scores


def nanochat_verdict(task_type: str, scores: Scores, gold: int | None) -> bool:
    return core_eval._is_right({"gold": gold}, [core_eval.Score(*score) for score in scores], task_type)


def scored_by(score: Score = nanochat_scores, is_right: Judged = nanochat_verdict) -> Callable[..., Case]:
    """What the graded cell reports of a way to score and to judge."""

    def scored(logits: Tensor, input_ids: Tensor, starts: list[int], ends: list[int], verdicts: list) -> Case:
        return {
            "scores": score(logits, input_ids, starts, ends),
            "tensors unchanged": True,
            "right": [is_right(*item) for item in verdicts],
        }

    return scored


def spans_as(change: Callable[[int, int, int], tuple[int, int]]) -> Callable[..., Case]:
    """Losses and greedy marks of a span changed by (start, end, T)."""

    def score(logits: Tensor, input_ids: Tensor, starts: list[int], ends: list[int]) -> Scores:
        pairs = zip(starts, ends, strict=True)
        changed = [change(start, end, input_ids.size(1)) for start, end in pairs]
        return nanochat_scores(logits, input_ids, [start for start, _ in changed], [end for _, end in changed])

    return scored_by(score)


def losses_as(change: Callable[[float, bool, int], float]) -> Callable[..., Case]:
    def score(logits: Tensor, input_ids: Tensor, starts: list[int], ends: list[int]) -> Scores:
        scores = nanochat_scores(logits, input_ids, starts, ends)
        return [
            (change(loss, greedy, end - start), greedy)
            for (loss, greedy), start, end in zip(scores, starts, ends, strict=True)
        ]

    return scored_by(score)


def one_late(logits: Tensor, input_ids: Tensor, starts: list[int], ends: list[int]) -> Scores:
    """The losses and predictions at the answer's own positions: they are about the tokens one further on."""
    losses, predictions = core_eval.forward_model(lambda ids: logits.cpu(), input_ids.cpu())
    spans = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    return [
        (losses[row, span].mean().item(), predictions[row, span].tolist() == input_ids[row, span].tolist())
        for row, span in enumerate(spans)
    ]


def any_greedy(logits: Tensor, input_ids: Tensor, starts: list[int], ends: list[int]) -> Scores:
    scores = nanochat_scores(logits, input_ids, starts, ends)
    return [
        (
            loss,
            any(
                nanochat_scores(logits[r : r + 1], input_ids[r : r + 1], [t], [t + 1])[0][1] for t in range(start, end)
            ),
        )
        for r, ((loss, _), start, end) in enumerate(zip(scores, starts, ends, strict=True))
    ]


def last_of_equals(task_type: str, scores: Scores, gold: int | None) -> bool:
    if task_type == "language_modeling":
        return nanochat_verdict(task_type, scores, gold)
    flipped = None if gold is None else len(scores) - 1 - gold
    return nanochat_verdict(task_type, scores[::-1], flipped)


def highest(task_type: str, scores: Scores, gold: int | None) -> bool:
    turned = [(-loss, greedy) for loss, greedy in scores]
    return nanochat_verdict(task_type, turned, gold)


def nan_last(task_type: str, scores: Scores, gold: int | None) -> bool:
    known = [(float("inf") if loss != loss else loss, greedy) for loss, greedy in scores]
    return nanochat_verdict(task_type, known, gold)


LOSS_CHOICE = Judge(
    choice_cases,
    scored_by(),
    tolerance=FLOAT32,
    mistakes={
        "losses are read at the answer's own positions; that of a token stands one before it": scored_by(one_late),
        "tokens are compared with the logits at their own positions; those one before are about them": scored_by(
            lambda logits, *rest: nanochat_scores(logits.roll(-1, dims=1), *rest)
        ),
        "the losses are summed; it is their mean over the answer's tokens": losses_as(lambda loss, greedy, n: loss * n),
        "an empty answer has the loss 0; it has no mean, so NaN": losses_as(lambda loss, greedy, n: loss if n else 0.0),
        "what stands behind the answer is counted too; it ends at `end`": spans_as(lambda start, end, T: (start, T)),
        "what stands before the answer is counted too; it begins at `start`": spans_as(lambda start, end, T: (1, end)),
        "the answer's first token is left out": spans_as(lambda start, end, T: (min(start + 1, end), end)),
        "the answer's last token is left out": spans_as(lambda start, end, T: (start, max(start, end - 1))),
        "one likeliest token makes the answer greedy; all must be": scored_by(any_greedy),
        "the last of equal options is chosen; it is the first": scored_by(is_right=last_of_equals),
        "the option with the highest loss is chosen; it is the lowest": scored_by(is_right=highest),
        "NaN is taken for the highest loss; in first place it is never beaten": scored_by(is_right=nan_last),
        "language modeling is judged by its loss; the answer must be greedily decoded": scored_by(
            is_right=lambda task_type, scores, gold: (
                task_type == "language_modeling" or nanochat_verdict(task_type, scores, gold)
            )
        ),
    },
)
