"""Judges of `generate` and `generate_batch`: nanochat's engine on a toy model, with a log of all that happens."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.transformer_blueprint import Case, asked, plain_value_error
from nanochat import engine
from nanochat.engine import Engine

Columns = list[tuple[list[int], list[int]]]


def private_copy(module: ModuleType) -> Any:
    """A module of the same code which nobody else has."""
    spec = importlib.util.find_spec(module.__name__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


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


class ToyEngine(toys.Engine):
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


def run_with(
    make_engine: type[ToyEngine] = ToyEngine,
    make_model: type[ToyModel] = ToyModel,
    edit: Callable[[list[str]], list[str]] = list,
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
        model = make_model(after, vocab_size, sequence_len)
        max_tokens = max_tokens if max_tokens is None else max(0, max_tokens + more)
        columns: Columns = []
        run = make_engine(model, forced, ends).generate(tokens, num_samples, max_tokens, temperature=model.sample)
        for token_column, mask_column in run:
            model.log.append(f"column {token_column} mask {mask_column}")
            columns.append((token_column, mask_column))
        return {"columns": columns, "log": edit(model.log) if columns else []}

    return run_toy


class NeverDone(ToyEngine):
    def emit(self, row: Any, sampled: int) -> tuple[int, int]:
        emitted = super().emit(row, sampled)
        row.completed = False
        return emitted


class DoneWithTheFirst(ToyEngine):
    """All are completed when one is."""

    def emit(self, row: Any, sampled: int) -> tuple[int, int]:
        self.any_completed = False if row not in (known := self.__dict__.setdefault("seen", [])) else self.any_completed
        known.append(row)
        emitted = super().emit(row, sampled)
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
    """The loop does not ask the sampler but takes the largest logit."""

    def sample(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1, keepdim=True)
