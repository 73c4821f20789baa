"""Judges of puzzle 1, the Transformer blueprint. The oracle is nanochat's gpt, recipe, counts and flash_attention."""

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from autograder.draws import unlike
from autograder.judges import Judge
from nanochat import counts, gpt, recipe
from nanochat.flash_attention import visible_mask
from puzzles.compare import Tolerance, difference
from puzzles.wire import Opaque

Case = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def asked(keys: str, *rows: tuple) -> list[Case]:
    """Cases from rows of arguments in the order of `keys`."""
    return [dict(zip(keys.split(), row, strict=True)) for row in rows]


def plain_value_error(oracle: Callable) -> Callable:
    """nanochat's InputError is a ValueError with a name of its own; a learner raises the plain one."""

    @functools.wraps(oracle)
    def wrapped(**case: Any) -> Any:
        try:
            return oracle(**case)
        except ValueError as error:
            raise ValueError(str(error)) from error

    return wrapped


# widths


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

# window_sizes


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

# rotary


def rotary_cases(rng: Random) -> list[Case]:
    keys = "seq_len head_dim dtype"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    fixed = asked(
        keys,
        (3, 4, torch.float32),
        (1, 2, torch.float32),
        (5, 6, torch.float32),
        (7, 16, torch.float32),
        (9, 8, torch.bfloat16),
        (300, 64, torch.bfloat16),
        (1000, 10, torch.float16),
        (2000, 32, torch.float32),
    )
    return fixed + asked(keys, *((rng.randint(2, 600), 2 * rng.randint(1, 64), rng.choice(dtypes)) for _ in range(6)))


def rotary(seq_len: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return gpt.precompute_rotary(seq_len, head_dim, dtype=dtype)


def mistaken_rotary(
    base: float = gpt.ROTARY_BASE,
    exponent: Callable[[Tensor, int], Tensor] = lambda pair, head_dim: 2 * pair / head_dim,
    first: int = 0,
    coarse: tuple[str, ...] = (),
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Tables of other frequencies, of positions from `first`, or with what `coarse` names cast to `dtype`."""

    def mistake(seq_len: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        def cast(name: str, numbers: Tensor) -> Tensor:
            return numbers.to(dtype) if name in coarse else numbers

        frequency = cast("frequency", base ** -exponent(torch.arange(head_dim // 2).float(), head_dim))
        position = cast("position", torch.arange(first, first + seq_len).float())
        angle = cast("angle", torch.outer(position, frequency))[None, :, None, :]
        return angle.cos().to(dtype), angle.sin().to(dtype)

    return mistake


def reshaped_rotary(change: Callable[[Tensor, Tensor], Any]) -> Callable[..., Any]:
    """The right tables, put into another form by `change(cos, sin)`."""
    return lambda **case: change(*rotary(**case))


def examine_rotary(expected: Any, got: Any) -> str | None:
    """cos and sin may be off by the rounding of the result's dtype, and of a float32 angle as large as the position."""
    cos = expected[0]
    atol = 1e-6 + torch.finfo(cos.dtype).eps + 2 * torch.finfo(torch.float32).eps * cos.size(1)
    return difference(expected, got, Tolerance(atol=atol))


ROTARY = Judge(
    rotary_cases,
    rotary,
    tolerance=Tolerance(atol=2e-6),
    examine=examine_rotary,
    mistakes={
        "cos and sin are swapped; cos comes first": reshaped_rotary(lambda cos, sin: (sin, cos)),
        "positions start at 1; they start at 0, where cos is 1 and sin is 0": mistaken_rotary(first=1),
        "the angles are negative; the table holds position times frequency, and its use turns backwards": (
            reshaped_rotary(lambda cos, sin: (cos, -sin))
        ),
        "each frequency stands twice, as for neighbouring channels; the table has one entry a pair, head_dim / 2": (
            reshaped_rotary(lambda cos, sin: (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)))
        ),
        "the table is repeated to head_dim channels; it has one entry a pair of channels, head_dim / 2": (
            reshaped_rotary(lambda cos, sin: (cos.repeat(1, 1, 1, 2), sin.repeat(1, 1, 1, 2)))
        ),
        "the axes for batch and heads are missing: the shape is (1, seq_len, 1, head_dim / 2)": (
            reshaped_rotary(lambda cos, sin: (cos[0, :, 0], sin[0, :, 0]))
        ),
        "time stands in the place of the heads: tensors are (batch, time, heads, channels)": (
            reshaped_rotary(lambda cos, sin: (cos.transpose(1, 2), sin.transpose(1, 2)))
        ),
        "the base is 10000, as in the first RoPE paper; nanochat's is 100000": mistaken_rotary(base=10_000),
        "the exponent lacks its factor 2: pair c turns by base^(-2c / head_dim)": (
            mistaken_rotary(exponent=lambda pair, head_dim: pair / head_dim)
        ),
        "the exponent runs to 1 inclusive: it is 2c / head_dim, which stays below 1": (
            mistaken_rotary(exponent=lambda pair, head_dim: pair / max(1, head_dim // 2 - 1))
        ),
        "positions and frequencies are cast to the dtype of the result; only cos and sin may be": (
            mistaken_rotary(coarse=("position", "frequency"))
        ),
        "the positions are cast to the dtype of the result; only cos and sin may be": (
            mistaken_rotary(coarse=("position",))
        ),
        "the angles are cast to the dtype of the result; only cos and sin may be": mistaken_rotary(coarse=("angle",)),
        "the result is not cast to the dtype asked for": (
            lambda seq_len, head_dim, dtype: rotary(seq_len, head_dim, torch.float32)
        ),
    },
)

# attention_mask


def mask_cases(rng: Random) -> list[Case]:
    keys = "Tq Tk left"
    fixed = asked(
        keys,
        (4, 4, 1),
        (3, 3, -1),
        (2, 5, 1),
        (1, 1, 0),
        (1, 1, -1),
        (3, 3, 0),
        (1, 5, 2),
        (4, 11, 3),
        (3, 7, 6),
        (5, 5, 5),
        (2, 6, -1),
        (6, 6, 100),
    )
    drawn = []
    for _ in range(10):
        Tk = rng.randint(1, 60)
        drawn.append((rng.randint(1, Tk), Tk, rng.randint(-1, Tk + 2)))
    return fixed + asked(keys, *drawn)


def attention_mask(Tq: int, Tk: int, left: int) -> Tensor:
    return visible_mask(Tq, Tk, left)


def mistaken_mask(visible: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """The mask of `visible(position of the query, of the key, left)`, with left large for an unlimited window."""

    def mistake(Tq: int, Tk: int, left: int) -> Tensor:
        return visible(torch.arange(Tk - Tq, Tk)[:, None], torch.arange(Tk)[None, :], Tk if left < 0 else left)

    return mistake


ATTENTION_MASK = Judge(
    mask_cases,
    attention_mask,
    mistakes={
        "True and False are swapped: True marks a key that the query may see": (
            lambda **case: attention_mask(**case).logical_not()
        ),
        "the mask is one to add to the scores (0 and -inf); it must be boolean": (
            lambda **case: torch.zeros(case["Tq"], case["Tk"]).masked_fill(~attention_mask(**case), -torch.inf)
        ),
        "left = -1 is taken for a window; it means that all earlier keys are visible": (
            lambda Tq, Tk, left: (
                attention_mask(Tq, Tk, left) & (torch.arange(Tk) >= torch.arange(Tk - Tq, Tk)[:, None] - left)
            )
        ),
        "queries see keys of later positions; attention is causal": mistaken_mask(lambda q, k, left: k >= q - left),
        "a query does not see its own position; it sees itself and `left` keys before": (
            mistaken_mask(lambda q, k, left: (k < q) & (k >= q - left))
        ),
        "the window is one key short: a query sees itself and `left` keys before, left + 1 in all": (
            mistaken_mask(lambda q, k, left: (k <= q) & (k > q - left))
        ),
        "the window is one key too long: a query sees itself and `left` keys before, left + 1 in all": (
            mistaken_mask(lambda q, k, left: (k <= q) & (k >= q - left - 1))
        ),
        "the window is ignored: keys more than `left` positions back are not visible": (
            mistaken_mask(lambda q, k, left: k <= q)
        ),
        "the queries are put at the first positions; they are the last Tq of the Tk positions": (
            lambda Tq, Tk, left: attention_mask(Tk, Tk, left)[:Tq]
        ),
        "the axes are swapped: rows are queries, columns are keys": lambda **case: attention_mask(**case).T,
    },
)

# parameter_shapes


def config_of(n_layer: int, n_embd: int, n_head: int, n_kv_head: int, vocab_size: int) -> gpt.GPTConfig:
    return gpt.GPTConfig(
        n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_kv_head=n_kv_head, vocab_size=vocab_size, sequence_len=8
    )


def random_size(rng: Random, most_layers: int = 9, most_heads: int = 3) -> tuple[int, int, int, int, int]:
    """n_layer, n_embd, n_head, n_kv_head, vocab_size of a small model; `most_heads` bounds KV heads and group size."""
    n_kv_head = rng.randint(1, most_heads)
    n_head = n_kv_head * rng.randint(1, most_heads)
    return rng.randint(1, most_layers), n_head * rng.choice((24, 28, 32)), n_head, n_kv_head, rng.randint(1, 400)


def shape_cases(rng: Random) -> list[Case]:
    fixed = [
        (1, 32, 2, 2, 130),
        (2, 64, 4, 2, 97),
        (3, 48, 3, 1, 128),
        (4, 256, 2, 2, 1000),
        (5, 96, 6, 3, 50257),
        (12, 768, 6, 6, 32768),
    ]
    return asked("n_layer n_embd n_head n_kv_head vocab_size", *fixed, *(random_size(rng) for _ in range(6)))


def parameter_shapes(n_layer: int, n_embd: int, n_head: int, n_kv_head: int, vocab_size: int) -> Shapes:
    model = recipe.build_meta_model(config_of(n_layer, n_embd, n_head, n_kv_head, vocab_size))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def mistaken_shapes(pattern: str, change: Callable[..., tuple[int, ...] | None]) -> Callable[..., Shapes]:
    """The right table, but what matches `pattern` has the shape `change(shape, **size)`; None leaves it out."""

    def mistake(**size: int) -> Shapes:
        shapes: dict[str, Any] = parameter_shapes(**size)
        shapes |= {name: change(shape, **size) for name, shape in shapes.items() if re.search(pattern, name)}
        return {name: shape for name, shape in shapes.items() if shape is not None}

    return mistake


def value_embeddings_at(keep: Callable[[int, int], bool]) -> Callable[..., Shapes]:
    """The right table, but with value embeddings and their gates on the layers i of n for which keep(i, n)."""

    def mistake(n_layer: int, **size: int) -> Shapes:
        shapes = parameter_shapes(n_layer=n_layer, **size)
        table = shapes[f"value_embeds.{n_layer - 1}.weight"]
        gate = shapes[f"transformer.h.{n_layer - 1}.attn.ve_gate.weight"]
        others = {n: s for n, s in shapes.items() if not n.startswith("value_embeds") and "ve_gate" not in n}
        layers = [i for i in range(n_layer) if keep(i, n_layer)]
        tables = {f"value_embeds.{i}.weight": table for i in layers}
        return others | tables | {f"transformer.h.{i}.attn.ve_gate.weight": gate for i in layers}

    return mistake


PARAMETER_SHAPES = Judge(
    shape_cases,
    parameter_shapes,
    mistakes={
        "a vocabulary that already is a multiple of 64 gets 64 rows too many": (
            mistaken_shapes(
                "wte|lm_head|value_embeds", lambda shape, vocab_size, **_: (vocab_size // 64 * 64 + 64, shape[1])
            )
        ),
        "the vocabulary is not padded: the tables have it rounded up to a multiple of 64 rows": (
            mistaken_shapes("wte|lm_head|value_embeds", lambda shape, vocab_size, **_: (vocab_size, shape[1]))
        ),
        "only the token embedding is padded: lm_head and value embeddings have as many rows": (
            mistaken_shapes("lm_head|value_embeds", lambda shape, vocab_size, **_: (vocab_size, shape[1]))
        ),
        "the vocabulary is padded to a multiple of 128; 64 is enough": (
            mistaken_shapes("wte|lm_head|value_embeds", lambda shape, **_: (-(-shape[0] // 128) * 128, shape[1]))
        ),
        "the unembedding is tied to wte; lm_head has a weight of its own": (
            mistaken_shapes("lm_head", lambda shape, **_: None)
        ),
        "the matrices are (in, out); nn.Linear stores its weight as (out, in)": (
            mistaken_shapes("c_|gate", lambda shape, **_: shape[::-1])
        ),
        "keys and values have n_head heads; with grouped queries they have n_kv_head": (
            mistaken_shapes("c_[kv]", lambda shape, n_embd, **_: (n_embd, n_embd))
        ),
        "value embeddings are n_embd wide; they are added to the values and are as wide as those": (
            mistaken_shapes("value_embeds", lambda shape, n_embd, **_: (shape[0], n_embd))
        ),
        "ve_gate has one output for each query head; it gates the values, so one for each key/value head": (
            mistaken_shapes("ve_gate", lambda shape, n_head, **_: (n_head, shape[1]))
        ),
        "ve_gate reads all channels; it reads the first 12": (
            mistaken_shapes("ve_gate", lambda shape, n_embd, **_: (shape[0], n_embd))
        ),
        "smear_gate is missing": mistaken_shapes("smear_gate", lambda shape, **_: None),
        "the learnt scalars are missing: they are parameters too": (mistaken_shapes("lambda", lambda shape, **_: None)),
        "value embeddings stand on every layer; they stand on every other one": value_embeddings_at(lambda i, n: True),
        "value embeddings stand on the wrong half of the layers: the last layer has one, and every other before it": (
            value_embeddings_at(lambda i, n: i % 2 != (n - 1) % 2)
        ),
    },
)

# param_counts


def shuffled(shapes: Shapes, rng: Random) -> Shapes:
    """The same table in another order."""
    return dict(rng.sample(list(shapes.items()), len(shapes)))


def table_cases(rng: Random) -> list[Case]:
    sizes = [(1, 32, 2, 2, 64), (2, 64, 4, 2, 97), (12, 768, 6, 6, 32768), *(random_size(rng) for _ in range(5))]
    return [{"shapes": shuffled(parameter_shapes(*size), rng)} for size in sizes]


def model_of(shapes: Shapes) -> gpt.GPT:
    """The model, on meta, whose state dict has these shapes."""
    n_layer = shapes["resid_lambdas"][0]
    rows, n_embd = shapes["transformer.wte.weight"]
    n_kv_head = shapes[f"transformer.h.{n_layer - 1}.attn.ve_gate.weight"][0]
    head_dim = shapes["transformer.h.0.attn.c_k.weight"][0] // n_kv_head
    return recipe.build_meta_model(config_of(n_layer, n_embd, n_embd // head_dim, n_kv_head, rows))


def param_counts(shapes: Shapes) -> dict[str, int]:
    return model_of(shapes).num_scaling_params()


def mistaken_counts(moved: Callable[[gpt.GPT], int], source: str, target: str) -> Callable[..., dict[str, int]]:
    """The right counts, but `moved` parameters are counted under `target` instead of `source`."""

    def mistake(shapes: Shapes) -> dict[str, int]:
        model = model_of(shapes)
        right = model.num_scaling_params()
        wrong = {source: right[source] - moved(model), target: right.get(target, 0) + moved(model)}
        return {family: n for family, n in (right | wrong).items() if family in right}

    return mistake


def tensor_counts(shapes: Shapes) -> dict[str, int]:
    in_blocks = sum(name.startswith("transformer.h.") for name in shapes)
    tables = sum(name.startswith("value_embeds.") for name in shapes)
    rest = {"scalars": len(shapes) - in_blocks - tables - 2, "total": len(shapes)}
    return {"wte": 1, "value_embeds": tables, "lm_head": 1, "transformer_matrices": in_blocks} | rest


def gates(model: gpt.GPT) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "ve_gate" in name)


PARAM_COUNTS = Judge(
    table_cases,
    param_counts,
    mistakes={
        "the tensors are counted; a tensor counts as many as it holds numbers": (
            lambda shapes: param_counts(shapes) | tensor_counts(shapes)
        ),
        "smear_gate is counted with the matrices; it lies outside the blocks and belongs to the scalars": (
            mistaken_counts(lambda m: m.smear_gate.weight.numel(), "scalars", "transformer_matrices")
        ),
        "smear_gate is counted nowhere; it belongs to the scalars": (
            lambda shapes: (
                (right := param_counts(shapes)) | {"scalars": right["scalars"] - 24, "total": right["total"] - 24}
            )
        ),
        "the gates of the blocks are counted with the scalars; all that lies in transformer.h is a matrix": (
            mistaken_counts(gates, "transformer_matrices", "scalars")
        ),
        "value embeddings are counted under wte; they are a family of their own": (
            mistaken_counts(lambda m: m.num_scaling_params()["value_embeds"], "value_embeds", "wte")
        ),
        "the scalars are left out of the total": (
            mistaken_counts(lambda m: m.num_scaling_params()["scalars"], "total", "nothing")
        ),
        "the total leaves the embedding tables out": (
            lambda shapes: (
                (right := param_counts(shapes)) | {"total": right["total"] - right["wte"] - right["value_embeds"]}
            )
        ),
        "the total leaves lm_head out": (mistaken_counts(lambda m: m.lm_head.weight.numel(), "total", "nothing")),
    },
)

# flops_per_token


def flops_cases(rng: Random) -> list[Case]:
    keys = "matmul_params n_head head_dim window_sizes sequence_len"
    fixed = asked(
        keys,
        (1000, 1, 2, [(4, 0)], 4),
        (0, 5, 16, [(8, 0), (32, 0)], 32),
        (5000, 5, 16, [(128, 0), (24, 0)], 24),
        (110_100_936, 6, 128, [(512, 0), (512, 0), (512, 0), (2048, 0)] * 3, 2048),
    )
    drawn = []
    for _ in range(6):
        sequence_len = rng.randint(1, 4000)
        windows = [(rng.choice((128, 256, sequence_len)), 0) for _ in range(rng.randint(1, 12))]
        drawn.append((rng.randint(1, 10**10), rng.randint(1, 16), 2 * rng.randint(4, 64), windows, sequence_len))
    return fixed + asked(keys, *drawn)


def flops_per_token(
    matmul_params: int, n_head: int, head_dim: int, window_sizes: list[tuple[int, int]], sequence_len: int
) -> int:
    """nanochat counts the FLOPs of a model: give it as much of one as it looks at."""
    model: Any = nn.Module()
    model.config = SimpleNamespace(n_head=n_head, sequence_len=sequence_len)
    model.head_dim, model.window_sizes = head_dim, window_sizes
    with torch.device("meta"):
        blocks = nn.Module()
        blocks.register_parameter("weights", nn.Parameter(torch.empty(matmul_params)))
        model.transformer = nn.ModuleDict({"wte": nn.Identity(), "h": blocks})
        model.smear_gate = nn.Linear(1, 1, bias=False)
        model.smear_gate.weight = nn.Parameter(torch.empty(0))
    model.value_embeds = model.lm_head = nn.Identity()
    return counts.estimate_flops(model)


def with_windows(change: Callable[[int, int], int]) -> Callable[..., int]:
    """FLOPs when a layer with the window `left` reads `change(left, sequence_len)` keys."""

    def mistake(window_sizes: list[tuple[int, int]], sequence_len: int, **case: int) -> int:
        keys = [(change(left, sequence_len), 0) for left, _ in window_sizes]
        unlimited = max(left for left, _ in keys)
        return flops_per_token(window_sizes=keys, sequence_len=unlimited, **case)

    return mistake


FLOPS_PER_TOKEN = Judge(
    flops_cases,
    flops_per_token,
    mistakes={
        "every layer is counted as long; a short layer reads only its window": with_windows(lambda left, t: t),
        "a window is counted as left + 1 keys; nanochat's count takes it as `left`": (
            with_windows(lambda left, t: min(left, t) + 1)
        ),
        "a window longer than the context is counted whole; no query can read more than sequence_len keys": (
            with_windows(lambda left, t: left)
        ),
        "only the forward pass is counted; the backward pass costs twice as much again": (
            lambda **case: flops_per_token(**case) // 3
        ),
        "the backward pass is counted as one forward pass; it costs two": (
            lambda **case: flops_per_token(**case) // 3 * 2
        ),
        "attention is left out: the scores and the weighted sum of values cost FLOPs too": (
            with_windows(lambda left, t: 0)
        ),
        "attention is counted for one head; every query head does it": (
            lambda n_head, **case: flops_per_token(n_head=1, **case)
        ),
        "attention counts the scores only; the weighted sum of values costs as much again": (
            lambda n_head, head_dim, **case: flops_per_token(n_head=n_head, head_dim=head_dim // 2, **case)
        ),
        "attention's backward pass is missing": (
            lambda **case: (
                flops_per_token(**case) - 2 * (flops_per_token(**case) - flops_per_token(**case | {"n_head": 0})) // 3
            )
        ),
    },
)

# build


def build_cases(rng: Random) -> list[Case]:
    cases = []
    for size in [
        (1, 32, 2, 2, 64),
        (2, 64, 4, 2, 97),
        (3, 96, 6, 3, 130),
        random_size(rng, most_layers=4, most_heads=2),
    ]:
        shapes = shuffled(parameter_shapes(*size), rng)
        cases += asked("seed shapes n_layer n_embd device", (rng.randrange(2**31), shapes, size[0], size[1], "cpu"))
    return cases


def build(seed: int, shapes: Shapes, n_layer: int, n_embd: int, device: Any) -> dict[str, Any]:
    """As the graded cell reports a build: where its parameters were made, whether they are on `device`, its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build_model(model_of(shapes).config, "cpu")
    return {"born_on": "meta", "on_device": True, "state": {k: v.float() for k, v in model.state_dict().items()}}


def examine_build(expected: Any, got: Any) -> str | None:
    """Weights need not be nanochat's; they must be such as it might have drawn."""
    if not isinstance(got, dict) or got.keys() != expected.keys() or not isinstance(got["state"], dict):
        return difference(expected, got)
    if got["born_on"] != "meta":
        return (
            f"the parameters were made on {got['born_on']}, where each is written once for nothing: construct on meta"
        )
    if unfilled := next((name for name, tensor in got["state"].items() if isinstance(tensor, Opaque)), None):
        return f"{unfilled} has no memory: it is still on meta. Call to_empty(device=...) before you fill it"
    if got["on_device"] is not True:
        return "not all parameters are on the device asked for"
    return unlike(expected["state"], got["state"])


BUILD = Judge(build_cases, build, examine=examine_build)

JUDGES = {
    "widths": WIDTHS,
    "window_sizes": WINDOW_SIZES,
    "rotary": ROTARY,
    "attention_mask": ATTENTION_MASK,
    "parameter_shapes": PARAMETER_SHAPES,
    "param_counts": PARAM_COUNTS,
    "flops_per_token": FLOPS_PER_TOKEN,
    "build": BUILD,
}
