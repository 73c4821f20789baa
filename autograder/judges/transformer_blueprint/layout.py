"""How wide a model is and how far its layers look. The oracle is nanochat.recipe and nanochat.gpt."""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import torch

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import gpt, recipe


def widths_cases(rng: Random) -> list[Case]:
    keys = "depth aspect_ratio head_dim n_kv_head"
    fixed = asked(
        keys,
        (2, 64, 64, None),
        (5, 64, 128, None),
        (9, 64, 256, None),
        (1, 64, 128, None),
        (5, 64, 128, 3),
        (6, 64, 64, 2),
        (6, 64, 64, 4),  # 4 divides the width 384 but not the 6 heads
        (2, 64, 64, 4),
        (7, 48, 32, 1),
        (12, 64, 128, None),
    )
    drawn = [
        (rng.randint(1, 40), rng.randint(20, 100), rng.choice((16, 32, 64, 96, 128)), rng.choice((None, 1, 2, 3, 5)))
        for _ in range(10)
    ]
    return fixed + asked(keys, *drawn)


@plain_value_error
def widths(depth: int, aspect_ratio: int, head_dim: int, n_kv_head: int | None) -> dict[str, int]:
    config = recipe.config_from_depth(depth, aspect_ratio, head_dim)
    if n_kv_head is not None:
        config = replace(config, n_kv_head=n_kv_head)
    with torch.device("meta"):
        gpt.CausalSelfAttention(config, layer_idx=0)  # refuses heads that do not fit
    return {"n_embd": config.n_embd, "n_head": config.n_head, "n_kv_head": config.n_kv_head}


def mistaken_widths(heads: Callable[[int, int], int]) -> Callable[..., dict[str, int]]:
    """Widths whose number of heads is `heads(depth * aspect_ratio, head_dim)`."""

    def mistake(depth: int, aspect_ratio: int, head_dim: int, n_kv_head: int | None) -> dict[str, int]:
        n_head = heads(depth * aspect_ratio, head_dim)
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        if n_head % n_kv_head:
            raise ValueError
        return {"n_embd": n_head * head_dim, "n_head": n_head, "n_kv_head": n_kv_head}

    return mistake


def unrounded_widths(depth: int, aspect_ratio: int, head_dim: int, n_kv_head: int | None) -> dict[str, int]:
    return widths(depth=depth, aspect_ratio=aspect_ratio, head_dim=head_dim, n_kv_head=n_kv_head) | {
        "n_embd": depth * aspect_ratio
    }


def unchecked_widths(n_kv_head: int | None, **case: int) -> dict[str, int]:
    return widths(**case, n_kv_head=None) | ({"n_kv_head": n_kv_head} if n_kv_head is not None else {})


WIDTHS = Judge(
    widths_cases,
    widths,
    mistakes={
        "the width is rounded to the nearest whole head; it must always be rounded up": (
            mistaken_widths(lambda width, head_dim: int(width / head_dim + 0.5))
        ),
        "the width is rounded down to whole heads; it must be rounded up, so that no model is narrower than asked": (
            mistaken_widths(lambda width, head_dim: width // head_dim)
        ),
        "a width that already is a multiple of head_dim gets one head too many": (
            mistaken_widths(lambda width, head_dim: width // head_dim + 1)
        ),
        "n_embd is depth * aspect_ratio itself; it must be n_head * head_dim": unrounded_widths,
        "n_kv_head is ignored; unless it is None it is the number of key/value heads": (
            lambda n_kv_head, **case: widths(**case, n_kv_head=None)
        ),
        "n_kv_head is not checked; n_head must be a multiple of it, else ValueError": unchecked_widths,
    },
)


def window_cases(rng: Random) -> list[Case]:
    keys = "n_layer sequence_len window_pattern"
    fixed = asked(
        keys,
        (1, 2048, "L"),
        (1, 2048, "S"),
        (3, 2048, "SL"),
        (3, 2304, "sLS"),
        (3, 600, "S"),
        (3, 24, "SSL"),
        (4, 513, "SL"),
        (5, 2048, "SSSL"),
        (7, 1024, "LSS"),
        (2, 4096, "SLLLL"),
        (6, 2048, "ssl"),
        (4, 2048, ""),
        (4, 2048, "SXL"),
        (2, 2048, "SLX"),
        (4, 2048, "S L"),
    )
    drawn = [
        (rng.randint(1, 32), rng.randint(1, 9000), "".join(rng.choice("SLsl") for _ in range(rng.randint(1, 7))))
        for _ in range(10)
    ]
    return fixed + asked(keys, *drawn)


@plain_value_error
def window_sizes(n_layer: int, sequence_len: int, window_pattern: str) -> list[tuple[int, int]]:
    return gpt.compute_window_sizes(n_layer, sequence_len, window_pattern)


def mistaken_windows(short: Callable[[int], int]) -> Callable[..., list[tuple[int, int]]]:
    """Windows whose short one is `short(sequence_len)`."""

    def mistake(sequence_len: int, **case: Any) -> list[tuple[int, int]]:
        layout = window_sizes(sequence_len=2048, **case)
        return [(sequence_len if left == 2048 else short(sequence_len), 0) for left, _ in layout]

    return mistake


def last_as_the_pattern_says(n_layer: int, **case: Any) -> list[tuple[int, int]]:
    return window_sizes(n_layer=n_layer + 1, **case)[:n_layer]


def aligned_to_the_last_layer(n_layer: int, window_pattern: str, **case: Any) -> list[tuple[int, int]]:
    turn = n_layer % len(window_pattern)
    return window_sizes(n_layer=n_layer, window_pattern=window_pattern[-turn:] + window_pattern[:-turn], **case)


def stretched(n_layer: int, window_pattern: str, **case: Any) -> list[tuple[int, int]]:
    times = -(-n_layer // len(window_pattern))
    return window_sizes(n_layer=n_layer, window_pattern="".join(c * times for c in window_pattern), **case)


def any_letter(window_pattern: str, **case: Any) -> list[tuple[int, int]]:
    return window_sizes(window_pattern=re.sub("[^SL]", "L", window_pattern.upper()) or "L", **case)


WINDOW_SIZES = Judge(
    window_cases,
    window_sizes,
    mistakes={
        "the last layer follows the pattern; it must be long whatever the pattern says": last_as_the_pattern_says,
        "the pattern is laid so that it ends at the last layer; it must start at layer 0": aligned_to_the_last_layer,
        "each letter is repeated for a stretch of layers; the pattern must be repeated as a whole": stretched,
        "the short window is capped by sequence_len; at short contexts it may be longer than the context": (
            mistaken_windows(lambda t: min(t, -(-t // 512) * 128))
        ),
        "the short window is a plain quarter; it must be rounded up to a multiple of 128": (
            mistaken_windows(lambda t: -(-t // 4))
        ),
        "the quarter is cut to a whole number before it is rounded up: 513 / 4 is 128.25, which rounds up to 256": (
            mistaken_windows(lambda t: -(-(t // 4) // 128) * 128)
        ),
        "the short window is rounded to the nearest multiple of 128; it must be rounded up": (
            mistaken_windows(lambda t: int(t / 512 + 0.5) * 128)
        ),
        "the short window is rounded down to a multiple of 128; it must be rounded up": (
            mistaken_windows(lambda t: t // 512 * 128)
        ),
        "a letter other than S and L is taken as long; it must raise ValueError, and so must an empty pattern": (
            any_letter
        ),
    },
)
