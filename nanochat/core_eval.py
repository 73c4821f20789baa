"""In-context tasks of the CORE benchmark (DCLM, arXiv 2406.11794): from an item to prompts, token spans and a verdict.

Three kinds of task, by how an answer is scored. multiple_choice: one query, several continuations; the likeliest wins.
schema: several contexts, one continuation; the context that makes it likeliest wins. language_modeling: greedy decoding
has to produce the continuation. Likelihood is the mean loss over the tokens that differ, or that are shared.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

import jinja2
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nanochat.common import InputError, is_ddp_initialized

Item = Mapping[str, Any]
Spans = tuple[list[list[int]], list[int], list[int]]
"""Token sequences, and for each the first position of its answer and the one after its last."""

MAX_BATCH_TOKENS = {"cpu": 512, "cuda": 8192, "mps": 8192}
"""Padded tokens in a forward by kind of device: what a CPU's caches hold; enough to keep an accelerator busy."""
EXAMPLES_AT_ONCE = 512

# Prompts

PROMPT = """\
{%- for context, continuation in solved -%}
{{ context }}{{ delimiter }}{{ continuation }}

{% endfor -%}
{{ context }}{{ delimiter }}{{ continuation }}"""


@cache
def _prompt_template() -> jinja2.Template:
    return jinja2.Template(PROMPT, undefined=jinja2.StrictUndefined)


def render_prompts_mc(
    item: Item, continuation_delimiter: str, fewshot_examples: Sequence[Item] | None = None
) -> list[str]:
    """One prompt a choice: the solved examples, then the query with that choice. Items: query, choices, gold."""
    solved = [(shot["query"], shot["choices"][shot["gold"]]) for shot in fewshot_examples or ()]
    return [_render(solved, item["query"], continuation_delimiter, choice) for choice in item["choices"]]


def render_prompts_schema(
    item: Item, continuation_delimiter: str, fewshot_examples: Sequence[Item] | None = None
) -> list[str]:
    """One prompt a context, each with the same continuation. Items: context_options, continuation, gold."""
    solved = [(shot["context_options"][shot["gold"]], shot["continuation"]) for shot in fewshot_examples or ()]
    contexts, continuation = item["context_options"], item["continuation"]
    return [_render(solved, context, continuation_delimiter, continuation) for context in contexts]


def render_prompts_lm(
    item: Item, continuation_delimiter: str, fewshot_examples: Sequence[Item] | None = None
) -> list[str]:
    """Two prompts, without and with the continuation. Items: context, continuation.

    The first is stripped: tokenizers join a space to the word after it, so that a prompt that ends in one would not be
    a prefix of the other.
    """
    solved = [(shot["context"].strip(), shot["continuation"]) for shot in fewshot_examples or ()]
    context = item["context"].strip()
    without, complete = (_render(solved, context, continuation_delimiter, end) for end in ("", item["continuation"]))
    return [without.strip(), complete]


def _render(solved: list[tuple[str, str]], context: str, delimiter: str, continuation: str) -> str:
    return _prompt_template().render(solved=solved, context=context, delimiter=delimiter, continuation=continuation)


# Token spans


def find_common_length(token_sequences: Sequence[Sequence[int]], direction: str = "left") -> int:
    """How many tokens all sequences share at their start ("left") or end ("right"). KeyError for another direction."""
    if direction not in ("left", "right"):
        raise KeyError(f'direction is {direction!r}: it must be "left" or "right"')
    sequences = token_sequences if direction == "left" else [sequence[::-1] for sequence in token_sequences]
    columns = zip(*sequences, strict=False)  # up to the shortest
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def batch_sequences_mc(tokenizer: Any, prompts: list[str]) -> Spans:
    """The answer is what follows the common prefix. It is found on tokens: text can share more than its tokens do."""
    tokens = tokenizer(prompts, prepend=tokenizer.get_bos_token_id())
    return tokens, [find_common_length(tokens, "left")] * len(tokens), [len(sequence) for sequence in tokens]


def batch_sequences_schema(tokenizer: Any, prompts: list[str]) -> Spans:
    """The answer is the common suffix."""
    tokens = tokenizer(prompts, prepend=tokenizer.get_bos_token_id())
    ends = [len(sequence) for sequence in tokens]
    suffix_length = find_common_length(tokens, "right")
    return tokens, [end - suffix_length for end in ends], ends


def batch_sequences_lm(tokenizer: Any, prompts: list[str]) -> Spans:
    """One sequence, the complete one; its answer is what the other has not. InputError (an AssertionError) if that is
    nothing, or if the shorter one's tokens are not a prefix of the longer one's."""
    without, complete = tokenizer(prompts, prepend=tokenizer.get_bos_token_id())
    start, end = len(without), len(complete)
    if start >= end or complete[:start] != without:
        raise InputError(
            f"the tokens of a prompt must begin those of the prompt with its continuation, and be fewer: "
            f"{without} against {complete} for {prompts[1][-80:]!r}"
        )
    return [complete], [start], [end]


# Forward


def stack_sequences(tokens: Sequence[Sequence[int]], pad_token_id: int) -> torch.Tensor:
    """Sequences padded on the right to the longest, (B, T) int64. A causal model does not see the padding."""
    return pad_sequence([torch.tensor(sequence) for sequence in tokens], batch_first=True, padding_value=pad_token_id)


@torch.no_grad()
def forward_model(model: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For token ids (B, T): losses (B, T) float32, of predicting token t + 1 from position t, NaN at the last; and the
    likeliest next tokens (B, T) int64."""
    logits = model(input_ids)
    next_ids = input_ids.roll(-1, dims=1)
    losses = F.cross_entropy(logits.flatten(0, 1), next_ids.flatten(), reduction="none").view_as(input_ids)
    losses[:, -1] = float("nan")
    return losses, logits.argmax(dim=-1)


# Verdicts

TASK_TYPES = {
    "multiple_choice": (render_prompts_mc, batch_sequences_mc),
    "schema": (render_prompts_schema, batch_sequences_schema),
    "language_modeling": (render_prompts_lm, batch_sequences_lm),
}


class Option(NamedTuple):
    """A sequence of which the tokens from `start` to `end` are the answer to be scored."""

    tokens: list[int]
    start: int
    end: int


class Score(NamedTuple):
    """Of an option's answer: the mean loss of its tokens (nats, NaN if it has none), and if it is greedily decoded."""

    mean_loss: float
    is_greedy: bool


def evaluate_example(
    idx: int, model: Any, tokenizer: Any, data: Sequence[Item], device: torch.device | str, task_meta: Item
) -> bool:
    """Whether the model gets item `idx` of `data` right; see `evaluate_examples`."""
    return evaluate_examples([idx], model, tokenizer, data, device, task_meta)[0]


def evaluate_task(
    model: Any,
    tokenizer: Any,
    data: Sequence[Item],
    device: torch.device | str,
    task_meta: Item,
    max_batch_tokens: int | None = None,
) -> float:
    """Accuracy over `data`. Items are dealt to the ranks in turn, and every rank returns the accuracy over all."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_ddp_initialized() else (0, 1)
    verdicts = evaluate_examples(
        range(rank, len(data), world_size), model, tokenizer, data, device, task_meta, max_batch_tokens
    )
    num_right = torch.tensor(sum(verdicts), dtype=torch.float32, device=device)
    if is_ddp_initialized():
        dist.all_reduce(num_right)
    return (num_right / len(data)).item()


def evaluate_examples(
    indices: Sequence[int],
    model: Any,
    tokenizer: Any,
    data: Sequence[Item],
    device: torch.device | str,
    task_meta: Item,
    max_batch_tokens: int | None = None,
) -> list[bool]:
    """Whether the model gets each of these items of `data` right.

    Options of many items share forwards of up to `max_batch_tokens` tokens, padding included (default:
    `MAX_BATCH_TOKENS`); a longer option has one to itself. Verdicts are those of one item at a time.

    Args:
        model: maps token ids (B, T) int64 to logits (B, T, vocab_size) float32; where it has a `max_seq_len`, longer
            sequences keep their last tokens.
        tokenizer: called with a list of prompts and `prepend=` a token id; has `get_bos_token_id`.
        task_meta: task_type (of `TASK_TYPES`), num_fewshot, continuation_delimiter.

    Raises:
        ValueError: unknown task type; more few-shot examples than other items; an answer cut by `max_seq_len`.
    """
    max_seq_len = getattr(model, "max_seq_len", None)
    max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[torch.device(device).type]
    verdicts: list[bool] = []
    for first in range(0, len(indices), EXAMPLES_AT_ONCE):
        examples = indices[first : first + EXAMPLES_AT_ONCE]
        options = {idx: _make_options(idx, tokenizer, data, task_meta, max_seq_len) for idx in examples}
        flat = [option for idx in examples for option in options[idx]]
        scores = iter(_score(flat, model, tokenizer.get_bos_token_id(), device, max_batch_tokens))
        by_example = [(data[idx], [next(scores) for _ in options[idx]]) for idx in examples]
        verdicts += [_is_right(item, own_scores, task_meta["task_type"]) for item, own_scores in by_example]
    return verdicts


def choose_fewshot(idx: int, num_items: int, num_fewshot: int) -> list[int]:
    """Which other items are shown solved before item `idx`: the same every time, for every model."""
    if num_fewshot >= num_items:
        raise ValueError(f"num_fewshot is {num_fewshot}, but beside the item asked there are only {num_items - 1}")
    others = [i for i in range(num_items) if i != idx]
    return random.Random(1234 + idx).sample(others, num_fewshot)


def _make_options(
    idx: int, tokenizer: Any, data: Sequence[Item], task_meta: Item, max_seq_len: int | None
) -> list[Option]:
    if task_meta["task_type"] not in TASK_TYPES:
        raise ValueError(f"task_type is {task_meta['task_type']!r}: it must be one of {', '.join(TASK_TYPES)}")
    render_prompts, batch_sequences = TASK_TYPES[task_meta["task_type"]]
    fewshot_examples = [data[i] for i in choose_fewshot(idx, len(data), task_meta["num_fewshot"])]
    prompts = render_prompts(data[idx], task_meta["continuation_delimiter"], fewshot_examples)
    options = []
    for tokens, start, end in zip(*batch_sequences(tokenizer, prompts), strict=True):
        cut = max(0, len(tokens) - max_seq_len) if max_seq_len is not None else 0
        if start < cut:
            raise InputError(f"the answer of item {idx} has {end - start} tokens, more than max_seq_len {max_seq_len}")
        options.append(Option(tokens[cut:], start - cut, end - cut))
    return options


def _score(
    options: list[Option], model: Any, pad_token_id: int, device: torch.device | str, max_batch_tokens: int
) -> list[Score]:
    scores: dict[int, Score] = {}
    for batch in _batches([len(option.tokens) for option in options], max_batch_tokens):
        input_ids = stack_sequences([options[i].tokens for i in batch], pad_token_id)
        losses, predictions = (result.cpu() for result in forward_model(model, input_ids.to(device)))
        for row, i in enumerate(batch):
            tokens, start, end = options[i]
            predicting = slice(start - 1, end - 1)  # position t predicts token t + 1
            is_greedy = predictions[row, predicting].tolist() == tokens[start:end]
            scores[i] = Score(losses[row, predicting].mean().item(), is_greedy)
    return [scores[i] for i in range(len(options))]


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions in `lengths`, shortest first so that little is padded, in batches of at most `max_tokens` padded."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _is_right(item: Item, scores: list[Score], task_type: str) -> bool:
    if task_type == "language_modeling":
        return scores[0].is_greedy
    mean_losses = [score.mean_loss for score in scores]
    return mean_losses.index(min(mean_losses)) == item["gold"]  # the first of equals; NaN wins in first place only
