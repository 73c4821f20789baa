"""Judges of `generate` and `generate_batch`: nanochat's engine on a toy model, with a log of all that happens."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error, private_copy
from nanochat import engine
from nanochat.engine import Engine

Columns = list[tuple[list[int], list[int]]]

# Its engine draws with what it is given as temperature: a function of the logits.
toys = private_copy(engine)
toys.sample_next_token = lambda logits, rng, temperature, top_k: temperature(logits)


class ToyModel:
    """After token t any of after[t] is equally likely, or t + 1 where nothing is said. Writes a log."""

    def __init__(self, after: dict[int, list[int]], vocab_size: int, sequence_len: int) -> None:
        self.after, self.vocab_size, self.log = after, vocab_size, list[str]()
        self.config = SimpleNamespace(sequence_len=sequence_len, n_kv_head=1, n_head=1, n_embd=1, n_layer=1)

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, ids: Tensor, kv_cache: engine.KVCache) -> Tensor:
        self.log.append(f"forward {ids.tolist()} at {kv_cache.get_pos()}")
        kv_cache.advance(ids.size(1))
        logits = torch.zeros(*ids.shape, self.vocab_size)
        for b, row in enumerate(ids.tolist()):
            for t, token in enumerate(row):
                logits[b, t, self.after.get(token, [(token + 1) % self.vocab_size])] = 9.0
        return logits

    def sample(self, logits: Tensor) -> Tensor:
        """In row b, the b-th of the likeliest tokens."""
        self.log.append(f"sample from {tuple(logits.shape)}")
        best = logits == logits.max(dim=-1, keepdim=True).values
        return torch.stack([row.nonzero()[b % int(row.sum())] for b, row in enumerate(best)])


ToyBase: Any = toys.Engine


class ToyEngine(ToyBase):
    """nanochat's loop with rows that force the tokens of their scripts {column: token}."""

    def __init__(self, model: ToyModel, forced: Sequence[dict[int, int]], ends: Sequence[int]) -> None:
        self.model, self.scripts, self.ends = model, iter(forced), ends
        self.rows: dict[int, SimpleNamespace] = {}

    def emit(self, row: Any, sampled: int) -> tuple[int, int]:
        if id(row) not in self.rows:
            self.rows[id(row)] = SimpleNamespace(script=next(self.scripts, {}), column=0)
        toy = self.rows[id(row)]
        token, mask = toy.script.get(toy.column, sampled), int(toy.column not in toy.script)
        toy.column += 1
        row.completed = row.completed or token in self.ends
        return token, mask


# cases


def loop_cases(rng: Random) -> list[Case]:
    keys = "tokens num_samples max_tokens after forced ends vocab_size sequence_len"
    said = {9: [5, 6], 5: [7], 6: [7], 7: [0]}
    fixed = asked(
        keys,
        ([3], 1, 2, {}, [], [0], 8, 32),
        ([8, 9], 2, 3, said, [], [0], 12, 32),
        ([8, 9], 3, 9, said, [], [0], 12, 32),
        ([8, 9], 3, 4, said, [], [0], 12, 32),
        ([8, 9], 4, 20, said, [{}, {0: 1, 1: 4}, {1: 9}, {2: 1}], [0], 12, 40),
        ([1, 2, 9], 2, 20, {9: [0, 1]}, [{}, {}], [0], 12, 32),
        ([1, 2, 9], 2, 20, {9: [0, 1], 0: [0]}, [{}, {3: 0}], [0], 12, 32),
        ([0, 3, 0], 2, 6, {3: [3], 0: [3, 5]}, [], [0, 7], 12, 32),
        ([8, 9], 1, 0, said, [], [0], 12, 32),
        ([8, 9], 2, 1, said, [{0: 3}], [0], 12, 32),
        ([1, 2, 3], 2, None, {}, [], [], 20, 11),
        ([1, 2, 3], 2, None, {}, [], [6], 20, 11),
        ([1, 2, 3], 2, None, {}, [], [0], 20, 3),
        ([1, 2, 3], 2, None, {}, [], [0], 20, 2),
        ([1, 2, 3], 2, 4, {}, [], [0], 20, 2),
        ([], 1, 3, {}, [], [0], 8, 32),
        ([], 1, None, {}, [], [0], 8, 32),
        ("12", 1, 3, {}, [], [0], 8, 32),
        ({1: 1, 2: 2}, 1, 3, {}, [], [0], 8, 32),  # goes through as ints, and is no list
        (torch.tensor([1, 2]), 1, 3, {}, [], [0], 8, 32),
        ([1, "2"], 1, 3, {}, [], [0], 8, 32),
        ([1, 2.0], 1, 3, {}, [], [0], 8, 32),
        ([[1, 2]], 1, 3, {}, [], [0], 8, 32),
    )
    return [case | {"device": "cpu"} for case in [*fixed, *asked(keys, *(random_loop(rng) for _ in range(10)))]]


def random_loop(rng: Random) -> tuple:
    vocab_size, num_samples = rng.randint(8, 30), rng.randint(1, 6)
    tokens = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 7))]
    after = {token: rng.sample(range(vocab_size), rng.randint(1, 3)) for token in range(vocab_size)}
    columns = rng.randint(3, 30)
    forced = [
        {column: rng.randrange(vocab_size) for column in range(columns) if rng.random() < 0.15}
        for _ in range(num_samples)
    ]
    sequence_len = len(tokens) + columns
    max_tokens = rng.choice((columns, columns, None))
    return tokens, num_samples, max_tokens, after, forced, rng.sample(range(vocab_size), 2), vocab_size, sequence_len


# the oracle, and loops that make a mistake

Edit = Callable[[list[str], list[int], int], list[str]]


def run_with(
    make_engine: type[ToyEngine] = ToyEngine,
    make_model: type[ToyModel] = ToyModel,
    edit: Edit = lambda log, tokens, num_samples: log,
    more: int = 0,
) -> Callable[..., Case]:
    """What the graded cell reports of a loop: `more` columns than asked for, its log changed by `edit`."""

    @plain_value_error
    def run_toy(
        tokens: Any,
        num_samples: int,
        max_tokens: int | None,
        after: dict[int, list[int]],
        forced: Sequence[dict[int, int]],
        ends: Sequence[int],
        vocab_size: int,
        sequence_len: int,
        device: Any = "cpu",
    ) -> Case:
        model = make_model(after, vocab_size, sequence_len + (more if max_tokens is None else 0))
        max_tokens = max_tokens if max_tokens is None else max(0, max_tokens + more)
        columns: Columns = []
        run = make_engine(model, forced, ends).generate(tokens, num_samples, max_tokens, temperature=model.sample)
        for token_column, mask_column in run:
            model.log.append(f"column {token_column} mask {mask_column}")
            columns.append((token_column, mask_column))
        return {"columns": columns, "log": edit(model.log, tokens, num_samples) if columns else []}

    return run_toy


class NeverDone(ToyEngine):
    def emit(self, row: Any, sampled: int) -> tuple[int, int]:
        emitted = super().emit(row, sampled)
        row.completed = False
        return emitted


class DoneWithTheFirst(ToyEngine):
    """All rows are completed when one is."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[Any] = []

    def emit(self, row: Any, sampled: int) -> tuple[int, int]:
        emitted = super().emit(row, sampled)
        self.seen.append(row)
        if any(each.completed for each in self.seen):
            for each in self.seen:
                each.completed = True
        return emitted


class FeedingTheSampled(ToyModel):
    """Reads what was sampled in place of what was emitted."""

    def forward(self, ids: Tensor, kv_cache: engine.KVCache) -> Tensor:
        return super().forward(ids if kv_cache.get_pos() == 0 else self.sampled, kv_cache)

    def sample(self, logits: Tensor) -> Tensor:
        self.sampled = super().sample(logits)
        return self.sampled


class OneDrawForAll(ToyModel):
    """Of the prompt's logits one token is drawn for all rows."""

    def sample(self, logits: Tensor) -> Tensor:
        is_first = len(self.log) == 1
        return super().sample(logits[:1]).expand(len(logits), 1) if is_first else super().sample(logits)


class LikeliestOnly(ToyModel):
    """The sampler is not asked: the largest logit is taken."""

    def sample(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1, keepdim=True)


def column_after(log: list[str], tokens: list[int]) -> str:
    """The forward pass of the last column, which leads to nothing."""
    emitted = [int(token) for token in log[-1].removeprefix("column [").partition("]")[0].split(",")]
    position = len(tokens) + sum(line.startswith("column") for line in log) - 1
    return f"forward {[[token] for token in emitted]} at {position}"


def stepping_before_yielding(log: list[str], tokens: list[int], num_samples: int) -> list[str]:
    passes = [*(line for line in log[1:] if line.startswith("forward")), column_after(log, tokens)]
    others = [line for line in log[1:] if not line.startswith("forward")]
    for at, line in enumerate(passes):
        others.insert(3 * at + 1, line)  # between the draw and the column
    return [log[0], *others]


GENERATE = Judge(
    loop_cases,
    run_with(),
    mistakes={
        "the prompt is computed as num_samples rows; it is the same in all, so one row is enough": (
            run_with(edit=lambda log, tokens, n: [f"forward {[tokens] * n} at 0", *log[1:]])
        ),
        "the prompt is computed again for every row; once is enough, prefill copies it": (
            run_with(edit=lambda log, tokens, n: [log[0]] * n + log[1:])
        ),
        "of the prompt's logits one token is drawn for all rows; expand them, so that each row has a draw of its own": (
            run_with(make_model=OneDrawForAll)
        ),
        "the likeliest token is taken; `sample` decides which": run_with(make_model=LikeliestOnly),
        "the model is fed what was sampled; it must read what was emitted": run_with(make_model=FeedingTheSampled),
        "there is a forward pass after the last column, whose logits nobody uses": (
            run_with(edit=lambda log, tokens, n: [*log, column_after(log, tokens)])
        ),
        "a column is yielded after the forward pass that follows from it; the reader should not wait for that": (
            run_with(edit=stepping_before_yielding)
        ),
        "it ends with the first row that is completed; it must go on until all are": run_with(DoneWithTheFirst),
        "it goes on when all rows are completed": run_with(NeverDone),
        "there is one column too many": run_with(more=1),
        "there is one column too few": run_with(more=-1),
    },
)

# generate_batch


def batch_cases(rng: Random) -> list[Case]:
    keys = "columns tokens num_samples terminal"
    three = [([5, 6], [1, 1]), ([4, 0], [0, 1]), ([1, 5], [1, 1])]
    fixed = asked(
        keys,
        (three, [7, 8], 2, [0, 1]),
        (three, [7, 8], 2, [9, 1]),
        (three, [0, 1], 2, [0]),
        ([], [7], 3, [0]),
        ([([0], [1])], [7], 1, [0]),
        ([([0], [0]), ([3], [0]), ([4], [1])], [7], 1, [0]),
        ([([3], [1]), ([0], [1]), ([4], [1]), ([0], [1]), ([5], [0])], [7], 1, [0]),
        ([([3, 0, 3], [0, 0, 0]), ([0, 3, 3], [1, 1, 0]), ([3, 3, 3], [1, 1, 1])], [1, 2, 3], 3, [0]),
    )
    drawn = []
    for _ in range(8):
        rows, length = rng.randint(1, 6), rng.randint(1, 25)
        columns = [
            ([rng.randrange(20) for _ in range(rows)], [rng.randrange(2) for _ in range(rows)]) for _ in range(length)
        ]
        tokens = [rng.randrange(20) for _ in range(rng.randint(1, 6))]
        drawn.append((columns, tokens, rows, rng.sample(range(20), rng.randint(1, 2))))
    return fixed + asked(keys, *drawn)


def collect(columns: Columns, tokens: list[int], num_samples: int, terminal: list[int]) -> Case:
    """What the graded cell reports of `Engine.generate_batch` over these columns."""

    def generate(prompt: list[int], num_samples: int) -> Iterator[tuple[list[int], list[int]]]:
        return iter(columns)

    loop: Any = SimpleNamespace(generate=generate, terminal=terminal)
    sequences, masks = Engine.generate_batch(loop, tokens, num_samples)
    return {"sequences": sequences, "masks": masks, "own memory": True, "prompt": tokens}


Pairs = list[tuple[int, int]]


def mistaken_batch(cut: Callable[[Pairs, list[int]], Pairs], mask_of_prompt: int = 0) -> Callable[..., Case]:
    """Answers that take of a row's (token, mask) pairs what `cut(pairs, terminal)` leaves."""

    def mistake(columns: Columns, tokens: list[int], num_samples: int, terminal: list[int]) -> Case:
        rows = [cut([(column[i], mask[i]) for column, mask in columns], terminal) for i in range(num_samples)]
        sequences = [[*tokens, *(token for token, _ in row)] for row in rows]
        masks = [[*[mask_of_prompt] * len(tokens), *(mask for _, mask in row)] for row in rows]
        return {"sequences": sequences, "masks": masks, "own memory": True, "prompt": tokens}

    return mistake


def up_to_the_end(pairs: Pairs, terminal: list[int], more: int = 0) -> Pairs:
    return pairs[: next((i + more for i, (token, _) in enumerate(pairs) if token in terminal), len(pairs))]


def up_to_a_sampled_end(pairs: Pairs, terminal: list[int]) -> Pairs:
    return pairs[: next((i for i, (token, mask) in enumerate(pairs) if token in terminal and mask), len(pairs))]


def without_prompt(**case: Any) -> Case:
    prompt = len(case["tokens"])
    answer = collect(**case)
    return answer | {name: [row[prompt:] for row in answer[name]] for name in ("sequences", "masks")}


GENERATE_BATCH = Judge(
    batch_cases,
    collect,
    mistakes={
        "the prompt is left out; it comes first, with mask 0": without_prompt,
        "the prompt has mask 1; the model has not chosen it": mistaken_batch(up_to_the_end, mask_of_prompt=1),
        "the terminal token is taken along; a row stops before it": (
            mistaken_batch(lambda pairs, terminal: up_to_the_end(pairs, terminal, more=1))
        ),
        "a terminal token with mask 0 does not end the row; any does": mistaken_batch(up_to_a_sampled_end),
        "an ended row goes on: only the terminal tokens are left out": (
            mistaken_batch(lambda pairs, terminal: [pair for pair in pairs if pair[0] not in terminal])
        ),
        "a row never ends": mistaken_batch(lambda pairs, terminal: pairs),
        "every mask is 1; they are those of the columns": (
            mistaken_batch(lambda pairs, terminal: [(token, 1) for token, _ in up_to_the_end(pairs, terminal)])
        ),
        "forced tokens are left out; they belong to the answer, with mask 0": (
            mistaken_batch(lambda pairs, terminal: [pair for pair in up_to_the_end(pairs, terminal) if pair[1]])
        ),
    },
)
