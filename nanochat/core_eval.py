"""In-context tasks of the CORE benchmark (DCLM, arXiv 2406.11794): from an item to prompts, token spans and a verdict.

Three kinds of task, by how an answer is scored. multiple_choice: one query, several continuations; the likeliest wins.
schema: several contexts, one continuation; the context that makes it likeliest wins. language_modeling: greedy decoding
has to produce the continuation. Likelihood is the mean loss over the tokens that differ, or that are shared.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nanochat.common import InputError, is_ddp_initialized

if TYPE_CHECKING:
    from nanochat.engine import KVCache

Item = Mapping[str, Any]
Spans = tuple[list[list[int]], list[int], list[int]]
"""Token sequences, and for each the first position of its answer and the one after its last."""

MAX_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 8192}
"""Padded tokens in a forward by kind of device: what a CPU's caches hold; enough to keep an accelerator busy."""
EXAMPLES_AT_ONCE = 512
PREFIX_STEP = 8  # shared prefixes are cut to a multiple of this: items need equally long ones to be batched together

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
    """A sequence of which the tokens from `start` to `end` are the answer to be scored.

    The first `shared` tokens are the same in all options of the item, and predict nothing that is scored.
    """

    tokens: list[int]
    start: int
    end: int
    shared: int = 0


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

    Options of many items share forwards of up to about `max_batch_tokens` tokens, padding included (default:
    `MAX_BATCH_TOKENS`); a longer option has one to itself. A `GPT` reads what the options of an item share only once.
    Verdicts are those of one item at a time, but for rounding: a batch of another shape moves a mean loss by about a
    millionth, and so can decide between two options that are closer than that.

    Args:
        model: maps token ids (B, T) int64 to logits (B, T, vocab_size) float32; where it has a `max_seq_len`, longer
            sequences keep their last tokens.
        tokenizer: called with a list of prompts and `prepend=` a token id; has `get_bos_token_id`.
        task_meta: task_type (of `TASK_TYPES`), num_fewshot, continuation_delimiter.

    Raises:
        ValueError: unknown task type; more few-shot examples than other items; an answer that does not fit in
            `max_seq_len` together with a token to predict its first one from.
    """
    max_seq_len = getattr(model, "max_seq_len", None)
    max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[torch.device(device).type]
    verdicts: list[bool] = []
    for first in range(0, len(indices), EXAMPLES_AT_ONCE):
        examples = indices[first : first + EXAMPLES_AT_ONCE]
        options = {idx: _make_options(idx, tokenizer, data, task_meta, max_seq_len) for idx in examples}
        _refuse_unpredictable(options, max_seq_len)
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
    shared = _shared_length(options)
    return [option._replace(shared=shared) for option in options]


def _shared_length(options: list[Option]) -> int:
    if len(options) == 1:
        return 0
    common = find_common_length([option.tokens for option in options])
    before_answers = min(option.start for option in options) - 1  # the last of these predicts the first scored token
    return max(0, min(common, before_answers)) // PREFIX_STEP * PREFIX_STEP


def _refuse_unpredictable(options: Mapping[int, list[Option]], max_seq_len: int | None) -> None:
    """Raise InputError for an answer that was left without a token before it when its sequence was cut."""
    for idx, own in options.items():
        if any(option.start == 0 < option.end == max_seq_len for option in own):
            raise InputError(
                f"the answer of item {idx} fills max_seq_len {max_seq_len}: its first token has none before it to be "
                "predicted from; leave the item out, or give the model a longer max_seq_len"
            )


def _score(
    options: list[Option], model: Any, pad_token_id: int, device: torch.device | str, max_batch_tokens: int
) -> list[Score]:
    """Of each option: one forward for many of them, then the positions that predict its answer."""
    if hasattr(model, "hidden_states"):
        return _score_by_parts(options, model, pad_token_id, device, max_batch_tokens)
    scores: dict[int, Score] = {}
    for batch in _batches([len(option.tokens) for option in options], max_batch_tokens):
        input_ids = stack_sequences([options[i].tokens for i in batch], pad_token_id)
        losses, predictions = (result.cpu() for result in forward_model(model, input_ids.to(device)))
        for row, i in enumerate(batch):
            tokens, start, end, _ = options[i]
            predicting = slice(start - 1, end - 1)  # position t predicts token t + 1
            is_greedy = predictions[row, predicting].tolist() == tokens[start:end]
            scores[i] = Score(losses[row, predicting].mean().item(), is_greedy)
    return [scores[i] for i in range(len(options))]


@torch.no_grad()
def _score_by_parts(
    options: list[Option], model: Any, pad_token_id: int, device: torch.device | str, max_batch_tokens: int
) -> list[Score]:
    """`_score` with less to compute, for a `GPT`.

    What the options of an item share goes through the layers once, into a KV cache that is then copied for each of
    them. And logits, which cost a small model more than its layers, are made only where they predict an answer.
    """
    # Where the contexts of a schema item are equal, nothing precedes the "answer": it counts as empty.
    options = [option if option.start else option._replace(end=0) for option in options]
    scores: dict[int, Score] = {}
    for shared, siblings in _siblings(options).items():
        num_tokens = [shared + sum(len(options[i].tokens) - shared for i in rows) for rows in siblings]
        for batch in _batches(num_tokens, max_batch_tokens):
            rows = [i for n in batch for i in siblings[n]]
            tails = stack_sequences([options[i].tokens[shared:] for i in rows], pad_token_id).to(device)
            kv_cache = None
            if shared:
                prefixes = torch.tensor([options[siblings[n][0]].tokens[:shared] for n in batch], device=device)
                copies = torch.tensor([len(siblings[n]) for n in batch], device=device)
                kv_cache = _cache_prefixes(model, prefixes, copies, shared + tails.size(1))
            hidden = model.hidden_states(tails, kv_cache)
            spans = [(options[i].start, options[i].end) for i in rows]
            predicting = [hidden[row, start - shared - 1 : end - shared - 1] for row, (start, end) in enumerate(spans)]
            answers = [options[i].tokens[start:end] for i, (start, end) in zip(rows, spans, strict=True)]
            scores.update(zip(rows, _score_answers(answers, predicting, model), strict=True))
    return [scores[i] for i in range(len(options))]


def _siblings(options: list[Option]) -> dict[int, list[list[int]]]:
    """Positions in `options` of those of one item, by the length of what they share; 0: each by itself."""
    siblings: dict[int, list[list[int]]] = defaultdict(list)
    for _, rows in groupby(range(len(options)), key=lambda i: options[i].tokens[: options[i].shared] or i):
        own = list(rows)
        siblings[options[own[0]].shared].append(own)
    return siblings


def _cache_prefixes(model: Any, prefixes: torch.Tensor, copies: torch.Tensor, seq_len: int) -> "KVCache":
    """A KV cache for `seq_len` tokens, with each of the prefixes (N, P) in as many rows as `copies` (N,) says."""
    from nanochat.engine import make_cache

    once = make_cache(model, *prefixes.shape)
    model.hidden_states(prefixes, once)
    rows = torch.arange(len(prefixes), device=prefixes.device).repeat_interleave(copies)
    kv_cache = make_cache(model, len(rows), seq_len)
    kv_cache.k_cache[:, :, : once.max_seq_len] = once.k_cache[:, rows]
    kv_cache.v_cache[:, :, : once.max_seq_len] = once.v_cache[:, rows]
    kv_cache.advance(once.max_seq_len)
    kv_cache.prev_embedding = None if once.prev_embedding is None else once.prev_embedding[rows]
    return kv_cache


def _score_answers(answers: list[list[int]], predicting: list[torch.Tensor], model: Any) -> list[Score]:
    """Scores of answers, from the hidden states (tokens, C) that predict the tokens of each."""
    logits = model.unembed(torch.cat(predicting))
    targets = torch.tensor([token for answer in answers for token in answer], dtype=torch.long, device=logits.device)
    losses = F.cross_entropy(logits, targets, reduction="none").cpu()
    is_right = (logits.argmax(dim=-1) == targets).cpu()
    lengths = [len(answer) for answer in answers]
    return [
        Score(own_losses.mean().item(), bool(own.all()))
        for own_losses, own in zip(losses.split(lengths), is_right.split(lengths), strict=True)
    ]


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
