"""Judges of `crop_to_context` and `batch_options`: options cut to the context, and laid into forwards."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import core_eval

Spans = tuple[list[list[int]], list[int], list[int]]

# the cut to the context


def options_of(rng: Random, answers: list[tuple[int, int]]) -> Spans:
    """Options of so many tokens in all and in the answer."""
    sequences = [[rng.randrange(1000) for _ in range(length)] for length, _ in answers]
    return sequences, [length - answer for length, answer in answers], [length for length, _ in answers]


def crop_cases(rng: Random) -> list[Case]:
    fixed: list[tuple[list[tuple[int, int]], int | None]] = [
        ([(5, 2)], None),
        ([(5, 2)], 9),
        ([(5, 2)], 5),
        ([(5, 2)], 4),
        ([(5, 2)], 3),
        ([(5, 2)], 2),
        ([(5, 2)], 1),
        ([(5, 0)], 1),
        ([(9, 1), (4, 2), (7, 3)], 6),
        ([(9, 1), (4, 2), (7, 3)], 4),
        ([(9, 1), (4, 2), (7, 3)], 3),
        ([(9, 1), (4, 2), (7, 3)], 2),
        ([(9, 1), (4, 2), (7, 3)], None),
        ([(30, 4), (30, 4), (31, 5)], 30),
    ]
    for _ in range(8):
        answers = [(rng.randint(8, 60), rng.randint(1, 7)) for _ in range(rng.randint(1, 5))]
        fixed.append((answers, rng.choice((4, 12, 25, 40))))
    return asked("sequences starts ends max_seq_len", *((*options_of(rng, each), limit) for each, limit in fixed))


def nanochat_crop(sequences: list[list[int]], starts: list[int], ends: list[int], max_seq_len: int | None) -> Spans:
    """nanochat cuts inside of `_make_options`: it is given prompts that become these very tokens."""
    options = [
        option
        for sequence, start, _ in zip(sequences, starts, ends, strict=True)
        for option in core_eval._make_options(
            0, GivenTokens(sequence, start), [BLANK], meta_of(sequence, start), max_seq_len
        )[-1:]
    ]
    return [option.tokens for option in options], [o.start for o in options], [o.end for o in options]


BLANK = {"query": "", "choices": ["", ""], "gold": 0, "context": "", "continuation": ""}


def meta_of(sequence: list[int], start: int) -> dict[str, Any]:
    """A task for which nanochat finds the answer at `start`: two equal options if the answer is empty."""
    task_type = "language_modeling" if start < len(sequence) else "multiple_choice"
    return {"task_type": task_type, "num_fewshot": 0, "continuation_delimiter": ""}


class GivenTokens:
    """A tokenizer that turns two prompts, whatever they say, into the context and the whole of a sequence."""

    def __init__(self, sequence: list[int], start: int) -> None:
        self.sequence, self.start = sequence, start

    def get_bos_token_id(self) -> int:
        return 0

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [self.sequence[: self.start], list(self.sequence)]


def cropped_by(crop: Callable[..., Spans], unchanged: bool = True) -> Callable[..., Case]:
    """What the graded cell reports of a way to cut."""

    @plain_value_error
    def cropped(sequences: list[list[int]], starts: list[int], ends: list[int], max_seq_len: int | None) -> Case:
        result = crop(sequences, starts, ends, max_seq_len)
        told: Case = dict(zip(("sequences", "starts", "ends"), result, strict=True))
        return told | {"given lists unchanged": unchanged}

    return cropped


def end_cut(sequences: list, starts: list, ends: list, max_seq_len: int | None) -> Spans:
    nanochat_crop(sequences, starts, ends, max_seq_len)
    return [sequence[:max_seq_len] for sequence in sequences], starts, ends


def not_moved(sequences: list, starts: list, ends: list, max_seq_len: int | None) -> Spans:
    return nanochat_crop(sequences, starts, ends, max_seq_len)[0], starts, ends


def end_not_moved(sequences: list, starts: list, ends: list, max_seq_len: int | None) -> Spans:
    return *nanochat_crop(sequences, starts, ends, max_seq_len)[:2], ends


def cut_alike(sequences: list, starts: list, ends: list, max_seq_len: int | None) -> Spans:
    nanochat_crop(sequences, starts, ends, max_seq_len)
    cut = max(0, max(map(len, sequences)) - (max_seq_len or 10**9))
    return [each[cut:] for each in sequences], [start - cut for start in starts], [end - cut for end in ends]


def never_refusing(sequences: list, starts: list, ends: list, max_seq_len: int | None) -> Spans:
    cuts = [max(0, len(each) - (max_seq_len or 10**9)) for each in sequences]
    kept = [each[cut:] for each, cut in zip(sequences, cuts, strict=True)]
    moved = [[at - cut for at, cut in zip(positions, cuts, strict=True)] for positions in (starts, ends)]
    return kept, moved[0], moved[1]


def bos_kept(sequences: list, starts: list, ends: list, max_seq_len: int | None) -> Spans:
    kept, moved_starts, moved_ends = nanochat_crop(sequences, starts, ends, max_seq_len)
    return [[each[0], *own[1:]] for each, own in zip(sequences, kept, strict=True)], moved_starts, moved_ends


CROP_TO_CONTEXT = Judge(
    crop_cases,
    cropped_by(nanochat_crop),
    mistakes={
        "the end is cut off; the answer stands there, so it is the beginning that goes": cropped_by(end_cut),
        "the span is not moved; start and end lose what was cut": cropped_by(not_moved),
        "end is not moved; it loses what was cut, like start": cropped_by(end_not_moved),
        "all options are cut by the same number of tokens; each is cut on its own": cropped_by(cut_alike),
        "an answer that does not fit is cut; it must raise ValueError": cropped_by(never_refusing),
        "the first token is kept; the last max_seq_len tokens are, whatever goes": cropped_by(bos_kept),
        "the lists given are changed": cropped_by(nanochat_crop, unchanged=False),
    },
)

# batches


def batching_cases(rng: Random) -> list[Case]:
    fixed = [
        ([], 8),
        ([3], 8),
        ([3, 3], 8),
        ([4, 4], 7),
        ([2, 3], 6),
        ([3, 2], 5),
        ([3, 2], 6),
        ([5, 4, 4, 5, 4], 12),
        ([2, 9, 2, 1, 9], 4),
        ([1, 1, 1, 1, 1, 1, 1], 3),
        ([8, 7, 6, 5, 4, 3, 2, 1], 16),
        ([6, 6, 6, 6], 6),
        ([2, 5, 11], 1),
    ]
    for _ in range(8):
        lengths = [rng.randint(1, rng.choice((4, 40))) for _ in range(rng.randint(2, 40))]
        fixed.append((lengths, rng.choice((16, 50, 128, 512))))
    return [
        {
            "sequences": [[rng.randint(1, 500) for _ in range(length)] for length in lengths],
            "max_tokens": max_tokens,
            "pad_token_id": rng.choice((0, 777)),
        }
        for lengths, max_tokens in fixed
    ]


def batched_by(
    order: Callable[[list[list[int]], int], list[list[int]]],
    stack: Callable[[list[list[int]], int], Tensor] = core_eval.stack_sequences,
) -> Callable[..., list]:
    """What the graded cell reports of a way to group sequences, given their rows by `order`."""

    def batches_of(sequences: list[list[int]], max_tokens: int, pad_token_id: int) -> list:
        groups = order(sequences, max_tokens)
        return [[group, stack([sequences[i] for i in group], pad_token_id)] for group in groups]

    return batches_of


def nanochat_groups(sequences: list[list[int]], max_tokens: int) -> list[list[int]]:
    return list(core_eval._batches([len(sequence) for sequence in sequences], max_tokens))


def grouped(sequences: list[list[int]], order: list[int], full: Callable[[list[int], int], bool]) -> list[list[int]]:
    """Sequences in an order, a new group where the last with one more is `full`."""
    groups: list[list[int]] = []
    for i in order:
        if groups and not full(groups[-1], len(sequences[i])):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def in_order_given(sequences: list[list[int]], max_tokens: int) -> list[list[int]]:
    def full(group: list[int], length: int) -> bool:
        return (len(group) + 1) * max(length, *(len(sequences[i]) for i in group)) > max_tokens

    return grouped(sequences, list(range(len(sequences))), full)


def longest_first(sequences: list[list[int]], max_tokens: int) -> list[list[int]]:
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    return grouped(sequences, order, lambda group, _: (len(group) + 1) * len(sequences[group[0]]) > max_tokens)


def without_padding(sequences: list[list[int]], max_tokens: int) -> list[list[int]]:
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    return grouped(sequences, order, lambda group, length: length + sum(len(sequences[i]) for i in group) > max_tokens)


def not_quite_full(sequences: list[list[int]], max_tokens: int) -> list[list[int]]:
    return nanochat_groups(sequences, max_tokens - 1)


def one_too_many(sequences: list[list[int]], max_tokens: int) -> list[list[int]]:
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    return grouped(sequences, order, lambda group, length: len(group) * length > max_tokens)


def padded_left(rows: list[list[int]], pad_token_id: int) -> Tensor:
    return core_eval.stack_sequences([row[::-1] for row in rows], pad_token_id).flip(1)


BATCH_OPTIONS = Judge(
    batching_cases,
    batched_by(nanochat_groups),
    mistakes={
        "rows are padded on the left; what is real must come first": batched_by(nanochat_groups, padded_left),
        "rows are padded with 0; it is pad_token_id": batched_by(
            nanochat_groups, lambda rows, _: core_eval.stack_sequences(rows, 0)
        ),
        "token ids are int32; they must be int64": batched_by(
            nanochat_groups, lambda rows, pad: core_eval.stack_sequences(rows, pad).to(torch.int32)
        ),
        "the room is counted without padding; it is rows times the longest": batched_by(without_padding),
        "a batch is closed before it is full: it may have exactly max_tokens": batched_by(not_quite_full),
        "a batch has one row too many": batched_by(one_too_many),
        "options are taken in the order given; the shortest comes first": batched_by(in_order_given),
        "the longest comes first; the shortest should": batched_by(longest_first),
        "every option has a batch to itself": batched_by(lambda sequences, _: nanochat_groups(sequences, 1)),
    },
)
