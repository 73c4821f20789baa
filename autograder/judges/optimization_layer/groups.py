"""Which optimizer, learning rate and decay a parameter gets: parts param_families and param_groups."""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

from autograder.judges import Judge
from autograder.judges.cases import asked
from autograder.judges.transformer_blueprint.parameters import (
    config_of,
    model_of,
    parameter_shapes,
    random_size,
    shuffled,
)
from nanochat.param_groups import build_param_groups
from nanochat.recipe import build_meta_model
from puzzles.compare import Tolerance

Case = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Families = dict[str, list[str]]
Groups = list[dict[str, Any]]

FAMILIES = ("muon_matrix", "adam_decay", "adam_no_decay")
RATES = ("unembedding_lr", "embedding_lr", "matrix_lr", "weight_decay", "scalar_lr")
USUAL = (0.004, 0.2, 0.02, 0.0, 0.5)


def groups_of(model: Any, **rates: float) -> Groups:
    """nanochat's groups of a model, with names in place of parameters and their family in front."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {"family": _family(group), **group, "params": [names[id(parameter)] for parameter in group["params"]]}
        for group in build_param_groups(model, **rates)
    ]


def _family(group: dict[str, Any]) -> str:
    if group["kind"] == "muon":
        return "muon_matrix"
    return "adam_decay" if group["weight_decay"] > 0 else "adam_no_decay"


# param_families


def family_cases(rng: Random) -> list[Case]:
    sizes = [(1, 32, 2, 2, 64), (2, 64, 4, 2, 97), (5, 96, 6, 3, 130), *(random_size(rng) for _ in range(3))]
    in_order = [parameter_shapes(*size) for size in sizes]
    few: list[Shapes] = [{"smear_gate.weight": (1, 24)}, {"transformer.h.10.attn.ve_gate.weight": (5, 12)}]
    tables = [{}, *in_order, *few, *(shuffled(shapes, rng) for shapes in in_order)]
    return [{"shapes": shapes} for shapes in tables]


@cache
def family_by_name() -> dict[str, str]:
    """The family of every name there is in models of up to 13 layers."""
    models = [build_meta_model(config_of(n_layer, 8, 2, 2, 64)) for n_layer in (12, 13)]
    rates = dict(zip(RATES, USUAL, strict=True))
    return {
        name: group["family"] for model in models for group in groups_of(model, **rates) for name in group["params"]
    }


def param_families(shapes: Shapes) -> Families:
    return {family: [name for name in shapes if family_by_name()[name] == family] for family in FAMILIES}


def moved(pattern: str, family: str) -> Callable[..., Families]:
    """The right families, but what matches `pattern` is put into `family`."""

    def mistake(shapes: Shapes) -> Families:
        chosen = {name: family if re.search(pattern, name) else family_by_name()[name] for name in shapes}
        return {each: [name for name in shapes if chosen[name] == each] for each in FAMILIES}

    return mistake


def by_dimensions(shapes: Shapes) -> Families:
    matrices = {name for name, shape in shapes.items() if len(shape) == 2}
    others = param_families({name: shape for name, shape in shapes.items() if name not in matrices})
    return others | {"muon_matrix": [name for name in shapes if name in matrices]}


PARAM_FAMILIES = Judge(
    family_cases,
    param_families,
    mistakes={
        "a family without parameters is left out; it is there with an empty list": (
            lambda shapes: {family: names for family, names in param_families(shapes).items() if names}
        ),
        "every parameter with two dimensions goes to Muon; tables and smear_gate do not, only the blocks' matrices": (
            by_dimensions
        ),
        "smear_gate goes to Muon; it is a matrix, but lies outside the blocks": moved("smear_gate", "muon_matrix"),
        "ve_gate goes to AdamW; it lies in a block, so it is Muon's": moved("ve_gate", "adam_no_decay"),
        "ve_gate goes to AdamW with decay; it lies in a block, so it is Muon's": moved("ve_gate", "adam_decay"),
        "wte goes to Muon; transformer.wte is an embedding, only transformer.h holds the blocks": (
            moved("wte", "muon_matrix")
        ),
        "lm_head goes to Muon; it is a table with a row for each token": moved("lm_head", "muon_matrix"),
        "value embeddings go to Muon; they are tables with a row for each token": moved("value_embeds", "muon_matrix"),
        "value embeddings do not decay; like the other tables they do": moved("value_embeds", "adam_no_decay"),
        "wte does not decay; like the other tables it does": moved("wte", "adam_no_decay"),
        "lm_head does not decay; like the other tables it does": moved("lm_head", "adam_no_decay"),
        "resid_lambdas do not decay; of the scalars they alone do": moved("resid_lambdas", "adam_no_decay"),
        "x0_lambdas decay; of the scalars resid_lambdas alone do": moved("x0_lambdas", "adam_decay"),
        "the scalars all decay; resid_lambdas alone do": moved("lambda", "adam_decay"),
        "names are sorted; they must keep the order of `shapes`": (
            lambda shapes: {family: sorted(names) for family, names in param_families(shapes).items()}
        ),
    },
)

# param_groups


def group_cases(rng: Random) -> list[Case]:
    def drawn() -> tuple[float, ...]:
        return tuple(round(rng.uniform(0.001, 0.9), 4) for _ in RATES)

    sizes = [
        ((1, 32, 2, 2, 64), USUAL),
        ((2, 64, 4, 2, 97), USUAL),
        # five shapes of matrices, of which (16, 48), (48, 48) and (192, 48) sort differently by area or as text
        ((3, 48, 3, 1, 128), (0.008, 0.3, 0.05, 0.28, 0.7)),
        ((2, 768, 6, 6, 1000), drawn()),
        ((4, 1536, 12, 12, 64), drawn()),
        *((random_size(rng), drawn()) for _ in range(4)),
    ]
    cases = []
    for size, rates in sizes:
        shapes = parameter_shapes(*size)
        case = (param_families(shapes), shapes, size[1], *rates)
        cases += asked(" ".join(("families shapes n_embd", *RATES)), case)
    return cases


def param_groups(families: Families, shapes: Shapes, n_embd: int, **rates: float) -> Groups:
    return groups_of(model_of(shapes), **rates)


def changed(change: Callable[..., None]) -> Callable[..., Groups]:
    """The right groups, but `change(group, **case)` is made in each."""

    def mistake(**case: Any) -> Groups:
        groups = param_groups(**case)
        for group in groups:
            change(group, **case)
        return groups

    return mistake


def with_lr(lr: Callable[..., float]) -> Callable[..., Groups]:
    """The right groups, but with the rates `lr(group, scale)`."""

    def change(group: dict[str, Any], n_embd: int, **_: Any) -> None:
        group["lr"] = group["initial_lr"] = lr(group, (n_embd / 768) ** -0.5)

    return changed(change)


def is_table(group: dict[str, Any]) -> bool:
    return group["params"][0].endswith("weight") and group["family"] == "adam_decay"


def first_is(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda group: group["params"][0].startswith(name)


def rearranged(arrange: Callable[[Groups], Iterator[dict[str, Any]]]) -> Callable[..., Groups]:
    """The right groups, but Muon's are what `arrange` makes of them."""

    def mistake(**case: Any) -> Groups:
        groups = param_groups(**case)
        return groups[:6] + list(arrange([group | {"shapes": case["shapes"]} for group in groups[6:]]))

    return mistake


def without_shapes(groups: Groups) -> Iterator[dict[str, Any]]:
    return ({key: value for key, value in group.items() if key != "shapes"} for group in groups)


def shape_of(group: dict[str, Any]) -> tuple[int, ...]:
    return group["shapes"][group["params"][0]]


def one_a_matrix(groups: Groups) -> Iterator[dict[str, Any]]:
    return without_shapes([group | {"params": [name]} for group in groups for name in group["params"]])


def all_in_one(groups: Groups) -> Iterator[dict[str, Any]]:
    names = [name for group in groups for name in group["params"]]
    in_order = [name for name in groups[0]["shapes"] if name in names]
    return without_shapes([groups[0] | {"params": in_order}])


def sorted_by(key: Callable[[dict[str, Any]], Any]) -> Callable[..., Groups]:
    return rearranged(lambda groups: without_shapes(sorted(groups, key=key)))


def set_where(where: Callable[[dict[str, Any]], bool], **values: Any) -> Callable[..., Groups]:
    """The right groups, but with other values in those for which `where` holds."""
    return changed(lambda group, **_: group.update(values) if where(group) else None)


def every_decay(group: dict[str, Any], weight_decay: float, **_: Any) -> None:
    group["weight_decay"] = weight_decay


def mixers_sorted(group: dict[str, Any], **_: Any) -> None:
    if "smear_gate.weight" in group["params"]:
        group["params"] = ["smear_lambda", "backout_lambda", "smear_gate.weight"]


PARAM_GROUPS = Judge(
    group_cases,
    param_groups,
    tolerance=Tolerance(rtol=1e-9),
    mistakes={
        "the rates of the embeddings are not scaled with the width: times (n_embd / 768) ** -0.5": (
            with_lr(lambda group, scale: group["lr"] / (scale if is_table(group) else 1))
        ),
        "the embeddings' rates grow with the width; the wider a table, the smaller its steps: exponent -0.5": (
            with_lr(lambda group, scale: group["lr"] / (scale**2 if is_table(group) else 1))
        ),
        "the embeddings' rates are scaled with n_embd / 768 itself; it is the inverse of its root": (
            with_lr(lambda group, scale: group["lr"] * (scale if is_table(group) else 1))
        ),
        "all of AdamW's rates are scaled with the width; only those of the three kinds of tables are": (
            with_lr(
                lambda group, scale: group["lr"] * (scale if group["kind"] == "adamw" and not is_table(group) else 1)
            )
        ),
        "Muon's rate is scaled with the width; only those of the three kinds of tables are": (
            with_lr(lambda group, scale: group["lr"] * (scale if group["kind"] == "muon" else 1))
        ),
        "value embeddings have wte's rate; theirs is half of it": (
            with_lr(lambda group, scale: group["lr"] * (2 if first_is("value_embeds")(group) else 1))
        ),
        "resid_lambdas have scalar_lr itself; theirs is a hundredth of it": (
            with_lr(lambda group, scale: group["lr"] * (100 if first_is("resid_lambdas")(group) else 1))
        ),
        "x0_lambdas have a hundredth of scalar_lr; theirs is scalar_lr itself": (
            with_lr(lambda group, scale: group["lr"] / (100 if first_is("x0_lambdas")(group) else 1))
        ),
        "initial_lr is not the group's own lr": set_where(lambda group: True, initial_lr=1.0),
        "eps is 1e-8, PyTorch's default; nanochat has 1e-10": set_where(lambda g: g["kind"] == "adamw", eps=1e-8),
        "the betas are one pair for all AdamW groups; look at the table": (
            set_where(lambda group: group["kind"] == "adamw", betas=(0.8, 0.95))
        ),
        "the betas of x0_lambdas are those of the other scalars; its first is 0.96": (
            set_where(first_is("x0_lambdas"), betas=(0.8, 0.95))
        ),
        "`weight_decay` is given to all groups; it is Muon's, AdamW's are fixed": changed(every_decay),
        "Muon's weight decay is 0; it is the one given": (
            set_where(lambda group: group["kind"] == "muon", weight_decay=0.0)
        ),
        "each matrix has a group of its own; those of one shape share one": rearranged(one_a_matrix),
        "all matrices share one group; there is one for each shape": rearranged(all_in_one),
        "Muon's groups come in the order of their size; they are sorted by shape": (
            sorted_by(lambda group: (math.prod(shape_of(group)), list(group["shapes"]).index(group["params"][0])))
        ),
        "Muon's groups come in the order in which shapes occur; they are sorted by shape": (
            sorted_by(lambda group: list(group["shapes"]).index(group["params"][0]))
        ),
        "Muon's groups are sorted by their shape as text, where 192 comes before 48": (
            sorted_by(lambda group: str(tuple(shape_of(group))))
        ),
        "the sixth group's parameters are in another order: smear_gate.weight, smear_lambda, backout_lambda": (
            changed(mixers_sorted)
        ),
    },
)
