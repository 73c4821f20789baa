"""Names, shapes and counts of a model's parameters. The oracle is nanochat's GPT on the meta device."""

import re
from collections.abc import Callable
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import Case, asked
from nanochat import gpt, recipe

Shapes = dict[str, tuple[int, ...]]


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
