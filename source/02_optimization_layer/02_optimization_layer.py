# %% [markdown]
# # Puzzle 2: The Optimization Layer
#
# **Decide how every parameter of a GPT learns: who is Muon's and who AdamW's, what one step of each does, how the rates
# move over a run, and what must not happen while FP8 is switched off.**
#
# ⭐⭐⭐⭐⭐ · about 180 minutes · 100 points in 9 parts · builds on nothing · runs on any CPU, and on a GPU
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.02_optimization_layer` | runs your notebook and shows the visible checks |
# | `python -m puzzles.02_optimization_layer --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.02_optimization_layer --hint orthogonalize` | gives hints for a part |
# | `python -m puzzles.02_optimization_layer --peek orthogonalize` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# A wrong optimizer seldom crashes. The loss falls, only less, and without something to compare with nobody sees it. Four
# mistakes, the first three measured on the little training run at the end of this notebook (200 steps; when all is
# right, the loss ends at 0.48 nats a byte):
#
# - **Leave the matrices to AdamW.** At its best learning rate it ends at 0.65. Muon is there before step 150.
# - **Forget to scale the embeddings' learning rates with the width.** It ends at 0.74, and no message says why.
# - **Use Polar Express's first coefficients for all five iterations.** Every weight is NaN after one step.
# - **Evaluate with FP8 still on.** A layer rounded to 8 bits gives outputs that are off by 3.7 % (part 9 measures it):
#   the number you report is not that of the model you ship.
#
# After this puzzle you can
# 1. sort the parameters of any nanochat model into three families and some ten groups, each with its hyperparameters;
# 2. write one step of AdamW and one of Muon that agree with nanochat's to the fifth digit;
# 3. say what orthogonalisation does to singular values, and show it, for two sets of coefficients;
# 4. state learning rate, momentum and weight decay at any step of a run;
# 5. train a small GPT with an optimizer of your own making, beside nanochat's and beside plain AdamW.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: a matrix has `m` rows and `n` columns, a stack of `K` matrices of one shape is `(K, m, n)`.

# %% given="imports"
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nanochat.recipe import build_meta_model, config_from_depth
from puzzles.checks import Checks, expect
from puzzles.compare import FLOAT32, Tolerance
from puzzles.plots import BLUE, COLOURS, GREEN, GREY, MARKERS, ORANGE, attempt, picture

check = Checks("02_optimization_layer")

# %% [markdown]
# ## Part 1 · Three families (5 points, 5 minutes)
#
# Muon is an optimizer for matrices that map one hidden vector to another: it looks at a matrix as a whole, at its
# singular values. An embedding table is no such matrix, though it has two dimensions: it is a stack of rows of which a
# batch touches a few. So nanochat decides by what a parameter *is*, not by how many dimensions it has:
#
# | family | who belongs to it |
# |---|---|
# | `muon_matrix` | every parameter of the blocks, that is below `transformer.h`; the little gates `ve_gate` too |
# | `adam_decay` | the three kinds of tables, `lm_head`, `transformer.wte` and `value_embeds`; and `resid_lambdas` |
# | `adam_no_decay` | all the rest: `x0_lambdas`, `smear_lambda`, `backout_lambda` and the matrix of `smear_gate` |
#
# The two Adam families differ in whether weight decay pulls their parameters towards zero. The next cell has the shapes
# of a small model to try it on, as `{name: tuple(p.shape) for name, p in model.named_parameters()}` gives them: 2
# layers, 48 channels, 3 query heads, 1 key/value head, 128 rows of vocabulary. Thirteen of its parameters are Muon's.
#
# **Contract.** Returns a dict with exactly these three keys, each with a list of names in the order of `shapes`. A
# family that nobody belongs to has an empty list.

# %% given="small-model"
SMALL: dict[str, tuple[int, ...]] = {
    "resid_lambdas": (2,),
    "x0_lambdas": (2,),
    "smear_lambda": (1,),
    "backout_lambda": (1,),
    "transformer.wte.weight": (128, 48),
    "transformer.h.0.attn.c_q.weight": (48, 48),
    "transformer.h.0.attn.c_k.weight": (16, 48),
    "transformer.h.0.attn.c_v.weight": (16, 48),
    "transformer.h.0.attn.c_proj.weight": (48, 48),
    "transformer.h.0.mlp.c_fc.weight": (192, 48),
    "transformer.h.0.mlp.c_proj.weight": (48, 192),
    "transformer.h.1.attn.c_q.weight": (48, 48),
    "transformer.h.1.attn.c_k.weight": (16, 48),
    "transformer.h.1.attn.c_v.weight": (16, 48),
    "transformer.h.1.attn.c_proj.weight": (48, 48),
    "transformer.h.1.attn.ve_gate.weight": (1, 12),
    "transformer.h.1.mlp.c_fc.weight": (192, 48),
    "transformer.h.1.mlp.c_proj.weight": (48, 192),
    "lm_head.weight": (128, 48),
    "smear_gate.weight": (1, 24),
    "value_embeds.1.weight": (128, 16),
}


# %% hole="param_families"
def param_families(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """The names of `shapes` by family: {"muon_matrix": [...], "adam_decay": [...], "adam_no_decay": [...]}.

    Within a family names keep the order they have in `shapes`.
    """
    ### BEGIN SOLUTION
    families: dict[str, list[str]] = {"muon_matrix": [], "adam_decay": [], "adam_no_decay": []}
    decaying = ("lm_head.", "transformer.wte.", "value_embeds.", "resid_lambdas")
    for name in shapes:
        if name.startswith("transformer.h."):
            families["muon_matrix"].append(name)
        elif name.startswith(decaying):
            families["adam_decay"].append(name)
        else:
            families["adam_no_decay"].append(name)
    return families
    ### END SOLUTION


# %% given="check-param_families"
def family_of(name: str) -> list[str]:
    """The families in which you put a parameter of SMALL."""
    return [family for family, names in param_families(SMALL).items() if name in names]


def sizes() -> dict[str, int]:
    """How many parameters of SMALL each of your families has."""
    return {family: len(names) for family, names in param_families(SMALL).items()}


with check("param_families"):
    expect(family_of, ("transformer.h.0.mlp.c_fc.weight",), ["muon_matrix"], "the matrices of the blocks are Muon's")
    expect(
        family_of, ("transformer.h.1.attn.ve_gate.weight",), ["muon_matrix"], "a gate in a block is a matrix of a block"
    )
    expect(
        family_of, ("transformer.wte.weight",), ["adam_decay"], "an embedding is a table, and lies outside the blocks"
    )
    expect(family_of, ("lm_head.weight",), ["adam_decay"], "the unembedding is a table too, one row a token")
    expect(family_of, ("value_embeds.1.weight",), ["adam_decay"], "value embeddings are tables")
    expect(family_of, ("resid_lambdas",), ["adam_decay"], "of the scalars, resid_lambdas alone decay")
    for name in ("x0_lambdas", "smear_lambda", "backout_lambda"):
        expect(family_of, (name,), ["adam_no_decay"], "of the scalars, resid_lambdas alone decay")
    expect(family_of, ("smear_gate.weight",), ["adam_no_decay"], "it is a matrix, but lies outside the blocks")
    expect(sizes, (), {"muon_matrix": 13, "adam_decay": 4, "adam_no_decay": 4})
    expect(
        param_families,
        ({"x0_lambdas": (2,), "backout_lambda": (1,)},),
        {"muon_matrix": [], "adam_decay": [], "adam_no_decay": ["x0_lambdas", "backout_lambda"]},
        "an empty family is still there, and the order is that of `shapes`",
    )

# %% graded="param_families"
# 5 points. The hidden tests are more of the same, with other models; `--verify` runs them.
check.visible("param_families")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade(
    "02_optimization_layer",
    "param_families",
    lambda shapes: param_families({name: tuple(shape) for name, shape in shapes.items()}),
)
### END HIDDEN TESTS

# %% given="plot-param_families" tags=["plot"]
with picture(
    "Your families in models of depth 4, 12 and 24",
    alt="Three stacked bars, the share of parameters of each family by depth: Muon's share grows from a tenth to half.",
    size=(8.0, 2.4),
) as p:
    hatches = ("", "//", "xx")
    for row, depth in enumerate((4, 12, 24)):
        model = build_meta_model(config_from_depth(depth))
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        numbers = {f: sum(math.prod(shapes[name]) for name in names) for f, names in param_families(shapes).items()}
        left = 0.0
        for (family, count), colour, hatch in zip(numbers.items(), COLOURS, hatches, strict=False):
            share = count / sum(numbers.values())
            p.axes[0].barh(row, share, left=left, color=colour, hatch=hatch, label=family if row == 0 else None)
            left += share
        if depth == 12:
            p.caption = "Depth 12: " + ", ".join(f"{family} {count:,}" for family, count in numbers.items()) + "."
    p.axes[0].set(xlabel="share of the parameters", ylabel="depth", yticks=range(3), yticklabels=(4, 12, 24))
    p.axes[0].legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

# %% [markdown]
# ## Part 2 · Groups and their hyperparameters (10 points, 20 minutes)
#
# A PyTorch optimizer takes a list of **groups**: dicts with the parameters and what applies to all of them. These are
# nanochat's, in this order, which also decides where a checkpoint looks for a parameter's optimizer state. First six
# groups for AdamW:
#
# | | params | lr | betas | weight_decay |
# |---|---|---|---|---|
# | 1 | `lm_head.weight` | `unembedding_lr` · s | 0.8, 0.96 | 0.01 |
# | 2 | `transformer.wte.weight` | `embedding_lr` · s | 0.8, 0.995 | 0.001 |
# | 3 | all `value_embeds.….weight` | half of `embedding_lr` · s | 0.8, 0.995 | 0.01 |
# | 4 | `resid_lambdas` | a hundredth of `scalar_lr` | 0.8, 0.95 | 0.05 |
# | 5 | `x0_lambdas` | `scalar_lr` | 0.96, 0.95 | 0 |
# | 6 | `smear_gate.weight`, `smear_lambda`, `backout_lambda`, in this order | 0.2 | 0.8, 0.95 | 0 |
#
# - **s** carries learning rates from one width to another. They were tuned at 768 channels, and the wider a table, the
#   smaller the steps it bears: $s = (\text{n\_embd} / 768)^{-1/2}$. At 192 channels it is 2, at 3072 it is ½.
# - Each has `eps` 1e-10.
#
# Then Muon's. It works on stacks, so there is one group for each **shape** that occurs among the matrices, sorted by
# shape as Python sorts tuples, (16, 48) before (48, 16) before (48, 48). Within a group names keep the order they have
# in `families`. Each has `lr` = `matrix_lr`, `momentum` 0.95, `ns_steps` 5, `beta2` 0.9 and `weight_decay` as given
# (only Muon's can be chosen). SMALL has matrices of five shapes, so it has eleven groups in all.
#
# So that this part stands alone, you get the families of part 1 as input.
#
# **Contract.** Returns a list of dicts. An AdamW group has the keys `family`, `kind` ("adamw"), `params` (a list of
# names), `lr`, `betas` (a pair), `eps`, `weight_decay`, `initial_lr`; a Muon group `family`, `kind` ("muon"), `params`,
# `lr`, `momentum`, `ns_steps`, `beta2`, `weight_decay`, `initial_lr`. `family` is one of part 1's. `initial_lr` equals
# `lr`: the schedules will change `lr` and need to know where it started.

# %% given="small-families"
SMALL_FAMILIES: dict[str, list[str]] = {
    "muon_matrix": [f"transformer.h.0.attn.{name}.weight" for name in ("c_q", "c_k", "c_v", "c_proj")]
    + [f"transformer.h.0.mlp.{name}.weight" for name in ("c_fc", "c_proj")]
    + [f"transformer.h.1.attn.{name}.weight" for name in ("c_q", "c_k", "c_v", "c_proj", "ve_gate")]
    + [f"transformer.h.1.mlp.{name}.weight" for name in ("c_fc", "c_proj")],
    "adam_decay": ["resid_lambdas", "transformer.wte.weight", "lm_head.weight", "value_embeds.1.weight"],
    "adam_no_decay": ["x0_lambdas", "smear_lambda", "backout_lambda", "smear_gate.weight"],
}


# %% hole="param_groups"
def param_groups(
    families: dict[str, list[str]],
    shapes: dict[str, tuple[int, ...]],
    n_embd: int,
    unembedding_lr: float = 0.004,
    embedding_lr: float = 0.2,
    matrix_lr: float = 0.02,
    weight_decay: float = 0.0,
    scalar_lr: float = 0.5,
) -> list[dict]:
    """nanochat's parameter groups, with names in place of parameters: six for AdamW, then Muon's, one a shape, sorted.

    `families` are the names by family, `shapes` the shape of each name. Only Muon's weight decay is `weight_decay`.
    """
    ### BEGIN SOLUTION
    scale = (n_embd / 768) ** -0.5
    value_embeds = [name for name in families["adam_decay"] if name.startswith("value_embeds.")]
    mixers = ["smear_gate.weight", "smear_lambda", "backout_lambda"]
    table = [
        ("adam_decay", ["lm_head.weight"], unembedding_lr * scale, (0.8, 0.96), 0.01),
        ("adam_decay", ["transformer.wte.weight"], embedding_lr * scale, (0.8, 0.995), 0.001),
        ("adam_decay", value_embeds, embedding_lr * scale / 2, (0.8, 0.995), 0.01),
        ("adam_decay", ["resid_lambdas"], scalar_lr / 100, (0.8, 0.95), 0.05),
        ("adam_no_decay", ["x0_lambdas"], scalar_lr, (0.96, 0.95), 0.0),
        ("adam_no_decay", mixers, 0.2, (0.8, 0.95), 0.0),
    ]
    groups = [
        {"family": family, "kind": "adamw", "params": names, "lr": lr, "betas": betas, "eps": 1e-10, "weight_decay": wd}
        for family, names, lr, betas, wd in table
    ]
    matrices = families["muon_matrix"]
    muon = {"lr": matrix_lr, "momentum": 0.95, "ns_steps": 5, "beta2": 0.9, "weight_decay": weight_decay}
    for shape in sorted({shapes[name] for name in matrices}):
        names = [name for name in matrices if shapes[name] == shape]
        groups.append({"family": "muon_matrix", "kind": "muon", "params": names, **muon})
    return [group | {"initial_lr": group["lr"]} for group in groups]
    ### END SOLUTION


# %% given="check-param_groups"
def column(key: str, n_embd: int = 48, **rates: float) -> list:
    """What each of your groups of SMALL has under `key`; None where it has no such key."""
    return [group.get(key) for group in param_groups(SMALL_FAMILIES, SMALL, n_embd, **rates)]


def keys_of(position: int) -> list[str]:
    """The keys of one of your groups of SMALL, sorted."""
    return sorted(param_groups(SMALL_FAMILIES, SMALL, 48)[position])


def third_group(adam_decay: list[str]) -> list[str]:
    """The parameters of your third group, of a family adam_decay with these names."""
    return param_groups(SMALL_FAMILIES | {"adam_decay": adam_decay}, SMALL, 48)[2]["params"]


DIGITS = Tolerance(rtol=1e-9)
RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "matrix_lr": 0.05, "weight_decay": 0.28, "scalar_lr": 0.7}
EMBEDDINGS = ["lm_head.weight"], ["transformer.wte.weight"], ["value_embeds.1.weight"]
SCALARS = ["resid_lambdas"], ["x0_lambdas"], ["smear_gate.weight", "smear_lambda", "backout_lambda"]
MATRICES = [
    ["transformer.h.1.attn.ve_gate.weight"],
    [f"transformer.h.{layer}.attn.{name}.weight" for layer in (0, 1) for name in ("c_k", "c_v")],
    [f"transformer.h.{layer}.attn.{name}.weight" for layer in (0, 1) for name in ("c_q", "c_proj")],
    [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)],
    [f"transformer.h.{layer}.mlp.c_fc.weight" for layer in (0, 1)],
]

with check("param_groups"):
    expect(column, ("kind",), ["adamw"] * 6 + ["muon"] * 5, "six groups for AdamW come first, then one a shape")
    expect(
        column,
        ("family",),
        ["adam_decay"] * 4 + ["adam_no_decay"] * 2 + ["muon_matrix"] * 5,
        "the family's name is there",
    )
    expect(
        column,
        ("params",),
        [*EMBEDDINGS, *SCALARS, *MATRICES],
        "the order is that of the table, then by shape: (1, 12), (16, 48), (48, 48), (48, 192), (192, 48)",
    )
    tables = ["value_embeds.0.weight", "lm_head.weight", "value_embeds.2.weight"]
    expect(third_group, (tables,), [tables[0], tables[2]], "all value embeddings are in it, in the order given")
    expect(
        column,
        ("lr",),
        [0.016, 0.8, 0.4, 0.005, 0.5, 0.2] + [0.02] * 5,
        "at 48 channels s is 4, and it applies to the first three groups only",
        DIGITS,
    )
    expect(
        column,
        {"key": "lr", "n_embd": 3072, **RATES},
        [0.004, 0.15, 0.075, 0.007, 0.7, 0.2] + [0.05] * 5,
        "at 3072 channels s is 1/2; the rates given are used, and the last AdamW group's is always 0.2",
        DIGITS,
    )
    expect(
        column,
        ("betas",),
        [(0.8, 0.96), (0.8, 0.995), (0.8, 0.995), (0.8, 0.95), (0.96, 0.95), (0.8, 0.95)] + [None] * 5,
        "each AdamW group has its own betas, Muon has none",
        DIGITS,
    )
    expect(
        column,
        {"key": "weight_decay", **RATES},
        [0.01, 0.001, 0.01, 0.05, 0.0, 0.0] + [0.28] * 5,
        "`weight_decay` is Muon's; AdamW's are fixed",
        DIGITS,
    )
    expect(column, {"key": "initial_lr", **RATES}, column("lr", **RATES), "initial_lr equals lr", DIGITS)
    for key, value in (("momentum", 0.95), ("ns_steps", 5), ("beta2", 0.9)):
        expect(column, (key,), [None] * 6 + [value] * 5, f"every Muon group has {key} {value}", DIGITS)
    expect(column, ("eps",), [1e-10] * 6 + [None] * 5, "every AdamW group has eps 1e-10", DIGITS)
    common = ["family", "initial_lr", "kind", "lr", "params", "weight_decay"]
    expect(keys_of, (0,), sorted([*common, "betas", "eps"]), "these keys and no others")
    expect(keys_of, (10,), sorted([*common, "beta2", "momentum", "ns_steps"]), "these keys and no others")

# %% graded="param_groups"
# 10 points. The hidden tests are more of the same, with other models and rates; `--verify` runs them.
check.visible("param_groups")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade(
    "02_optimization_layer",
    "param_groups",
    lambda shapes, **case: param_groups(shapes={name: tuple(shape) for name, shape in shapes.items()}, **case),
)
### END HIDDEN TESTS

# %% given="plot-param_groups" tags=["plot"]
with picture(
    "Learning rates of your groups",
    alt="Left: a dot for each group's rate, from 0.004 to 0.5. Right: three falling lines and two flat ones by width.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    groups = param_groups(SMALL_FAMILIES, SMALL, 768)
    kinds = dict(zip(("adam_decay", "adam_no_decay", "muon_matrix"), (ORANGE, GREEN, BLUE), strict=True))
    for row, group in enumerate(groups):
        marker = "s" if group["kind"] == "muon" else "o"
        p.axes[0].semilogx(group["lr"], row, marker, color=kinds[group["family"]])
    labels = [group["params"][0].replace("transformer.", "").replace(".weight", "") for group in groups]
    p.axes[0].set(title="At 768 channels (squares: Muon)", xlabel="learning rate")
    p.axes[0].set(yticks=range(len(groups)), yticklabels=labels)
    p.axes[0].invert_yaxis()
    widths = (192, 384, 768, 1536, 3072)
    by_width = torch.tensor([[g["lr"] for g in param_groups(SMALL_FAMILIES, SMALL, width)] for width in widths])
    for position, colour, marker in zip((0, 1, 2, 4, 6), COLOURS, MARKERS, strict=False):
        p.axes[1].loglog(widths, by_width[:, position], color=colour, marker=marker, label=labels[position])
    p.axes[1].set(title="By width", xlabel="n_embd (channels)", ylabel="learning rate")
    p.axes[1].set(xticks=widths, xticklabels=widths)
    p.axes[1].minorticks_off()
    p.axes[1].set_ylim(bottom=1e-4)
    p.axes[1].legend(ncols=2, fontsize="small", loc="lower left")
    p.caption = f"From 192 to 3072 channels, wte's rate falls by a factor of {by_width[0, 1] / by_width[-1, 1]:.3g}."

# %% [markdown]
# ## Part 3 · One step of AdamW (15 points, 20 minutes)
#
# Adam ([arXiv 1412.6980](https://arxiv.org/abs/1412.6980)) divides a running mean of the gradient by the root of a
# running mean of its square, number by number. What is left has no scale: a parameter with small gradients moves as
# fast as one with large ones. AdamW ([arXiv 1711.05101](https://arxiv.org/abs/1711.05101)) pulls the parameter towards
# zero separately, so that the decay isn't divided along. With the gradient $g$, at step $t = 1, 2, 3, \dots$
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$$
# $$p \leftarrow p\,(1 - \text{lr} \cdot \text{wd}) - \text{lr} \cdot \frac{\hat m}{\sqrt{\hat v} + \varepsilon},
# \qquad \hat m = \frac{m}{1 - \beta_1^t}, \quad \hat v = \frac{v}{1 - \beta_2^t}$$
#
# - $m$ and $v$ start at zero, so at first they are far too small. The two divisions undo exactly that. At $t = 1$ they
#   make $\hat m = g$ and $\hat v = g^2$: the first step is lr long, whatever the gradient.
# - ε stands outside the root. It decides what happens to parameters that get hardly any gradient, like the rows of
#   tokens which did not occur.
# - Embedding tables are stored in bfloat16 on modern GPUs, and so are their gradient, $m$ and $v$. bfloat16 keeps 8
#   significant bits: rounded after every operation, small updates drown. So everything is computed in **float32** and
#   rounded **once**, when the three results are stored.
#
# Worked: p = 1, g = 0.5, first step, lr = 0.1, betas 0.8 and 0.95, wd = 0.5. Then m = 0.1, v = 0.0125; m̂ = 0.5 and
# √v̂ = 0.5, so p = 1 · (1 − 0.05) − 0.1 · 1 = 0.85.
#
# **Contract.** Changes `p`, `exp_avg` ($m$) and `exp_avg_sq` ($v$) **in place**, and leaves `grad` as it is. The four
# have one shape, any number of dimensions, and one dtype, float32 or bfloat16. `step` is $t$ as it is to be used: 1 at
# the first step. What you return is ignored.


# %% hole="adamw_step"
def adamw_step(
    p: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW step, in place on `p`, `exp_avg` and `exp_avg_sq`; computed in float32 whatever their dtype.

    `step` counts from 1. eps is added to the root of the corrected second moment.
    """
    ### BEGIN SOLUTION
    g = grad.float()
    m = beta1 * exp_avg.float() + (1 - beta1) * g
    v = beta2 * exp_avg_sq.float() + (1 - beta2) * g.square()
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p.copy_(p.float() * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps))
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    ### END SOLUTION


# %% given="check-adamw_step"
def after_adamw_step(
    p: torch.Tensor, grad: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, **rest: float
) -> dict[str, torch.Tensor]:
    """What your step leaves in the four tensors (copies of those given)."""
    tensors = {"p": p, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    adamw_step(**tensors, **rest)
    return tensors


def after_one_number(
    what: str, p: float, grad: float, exp_avg: float = 0, exp_avg_sq: float = 0, **rest: float
) -> float:
    """What your step makes of one number: the new `what`. Not given: step 1, lr 0.1, betas 0.8, 0.95, eps 0, wd 0."""
    numbers = {"p": p, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    tensors = {name: torch.tensor([float(number)]) for name, number in numbers.items()}
    defaults = {"step": 1, "lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 0.0, "weight_decay": 0.0}
    return after_adamw_step(**tensors, **(defaults | rest))[what].item()


def entries_not_rounded_once() -> int:
    """Of 999 bfloat16 numbers, how many your step leaves at something else than its own float32 result, rounded."""
    torch.manual_seed(0)
    given = [torch.randn(999).bfloat16(), torch.randn(999).bfloat16(), torch.randn(999).bfloat16() / 4]
    given.append(torch.rand(999).bfloat16())
    rest = {"step": 3, "lr": 0.5, "beta1": 0.8, "beta2": 0.995, "eps": 1e-10, "weight_decay": 0.1}
    low = after_adamw_step(*given, **rest)
    high = after_adamw_step(*(tensor.float() for tensor in given), **rest)
    return sum(int((low[name] != high[name].bfloat16()).sum()) for name in ("p", "exp_avg", "exp_avg_sq"))


with check("adamw_step"):
    expect(after_one_number, {"what": "exp_avg", "p": 1, "grad": 0.5}, 0.1, "m takes (1 - beta1) of g", FLOAT32)
    expect(after_one_number, {"what": "exp_avg_sq", "p": 1, "grad": 0.5}, 0.0125, "v takes (1 - beta2) of g²", FLOAT32)
    expect(after_one_number, {"what": "grad", "p": 1, "grad": 0.5}, 0.5, "the gradient is not yours to change", FLOAT32)
    expect(
        after_one_number,
        {"what": "p", "p": 1, "grad": 0.5},
        0.9,
        "at step 1 the corrections make m̂ = g and v̂ = g², so the step is lr",
        FLOAT32,
    )
    expect(
        after_one_number,
        {"what": "p", "p": 1, "grad": 0.5, "weight_decay": 0.5},
        0.85,
        "p(1 - lr·wd) comes first, and the update is not decayed: 0.95 - 0.1",
        FLOAT32,
    )
    expect(
        after_one_number,
        {"what": "p", "p": 1, "grad": 0.5, "eps": 1.0},
        0.9666667,
        "eps is added to the root: 0.1 · 0.5 / (0.5 + 1)",
        FLOAT32,
    )
    expect(
        after_one_number,
        {"what": "p", "p": -2, "grad": 1.5, "exp_avg": -0.4, "exp_avg_sq": 0.3, "step": 3, "weight_decay": 0.2},
        -1.9575451,
        "m = -0.02, v = 0.3975, corrected by 1 - 0.8³ = 0.488 and 1 - 0.95³ = 0.142625",
        FLOAT32,
    )
    expect(entries_not_rounded_once, (), 0, "some arithmetic is done in bfloat16: take .float() of all four first")

# %% graded="adamw_step"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("adamw_step")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "adamw_step", after_adamw_step)
### END HIDDEN TESTS

# %% given="plot-adamw_step" tags=["plot"]
with picture(
    "Your AdamW has no scale, and no slow start",
    alt="Left: three paths, for gradients of very different size, coincide. Right: the step is 1 from the start.",
    columns=2,
) as p:
    torch.manual_seed(1)
    noise = torch.randn(60) + 0.5
    usual = {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-10, "weight_decay": 0.0}
    ends = []
    for scale, colour, marker in zip((1e-3, 1.0, 1e3), COLOURS, MARKERS, strict=False):
        weight, m, v = torch.zeros(1), torch.zeros(1), torch.zeros(1)
        path = []
        for t in range(60):
            adamw_step(weight, scale * noise[t : t + 1], m, v, step=t + 1, **usual)
            path.append(weight.item())
        label = f"gradient about {scale:g}"
        p.axes[0].plot(path, color=colour, marker=marker, markevery=8, label=label, fillstyle="none")
        ends.append(path[-1])
    p.axes[0].set(title="Same gradients, three units", xlabel="step", ylabel="weight")
    p.axes[0].legend()
    weight, m, v = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    lengths = []
    for t in range(1, 41):
        before = weight.clone()
        adamw_step(weight, torch.ones(1), m, v, step=t, **usual)
        lengths.append((before - weight).item() / usual["lr"])
    t = torch.arange(1, 41)
    p.axes[1].plot(t, lengths, "o-", color=BLUE, markersize=3, label="yours")
    p.axes[1].plot(t, (1 - 0.8**t) / (1 - 0.95**t).sqrt(), "--", color=GREY, label="m̂ and v̂ left uncorrected")
    p.axes[1].set(title="A constant gradient", xlabel="step", ylabel="step length / lr", ylim=(0, None))
    p.axes[1].legend()
    p.caption = (
        f"After 60 steps the three are at {', '.join(f'{end:.4f}' for end in ends)}; first step {lengths[0]:.3f} lr."
    )

# %% [markdown]
# ## Part 4 · Orthogonalise: singular values to one (15 points, 25 minutes)
#
# Muon ([Keller Jordan et al.](https://kellerjordan.github.io/posts/muon/)) asks of a matrix of gradients only for its
# *directions*. Write it as $X = U \Sigma V^\top$. A few large singular values dominate it, and a step along it would
# serve them alone. Muon steps along $U V^\top$ instead: the same directions, every one with singular value 1. It does
# so without computing an SVD, with matrix products only. Take any polynomial with odd powers and apply it to the
# matrix:
#
# $$X \;\leftarrow\; aX + b\,(XX^\top) X + c\,(XX^\top)^2 X$$
#
# In the middle of every product $U^\top U$ or $V^\top V$ cancels, so that $U$ and $V$ stay and each singular value $s$
# becomes $as + bs^3 + cs^5$. Choose $a, b, c$ such that this pushes everything in 0…1 towards 1, and iterate.
#
# - **Classic Newton–Schulz** repeats one triple, (3.4445, −4.7750, 2.0315). It is steep at zero, which is what counts
#   for small singular values, and leaves them anywhere in about 0.7…1.2.
# - **Polar Express** ([arXiv 2505.16932](https://arxiv.org/abs/2505.16932)), nanochat's choice, has its own triple for
#   each iteration: the best one for the range that the iterations before it leave.
#
# Before the first iteration all singular values must lie within 0…1. The Frobenius norm (the root of the sum of all
# squares) is at least the largest of them, so each matrix is divided by `margin · norm + eps`. Classic: 1 and 1e-7.
# Polar Express: 1.01 and 1e-6; the one per cent keeps rounding from pushing a value above 1, where its first polynomial
# explodes.
#
# **Count the work.** $XX^\top$ is m × m. Of a tall matrix, 3072 × 768, it has 16 times as many numbers as $X^\top X$,
# and to square it takes 64 times as many FLOPs. A transposed matrix has the same singular values, so nanochat turns
# tall matrices over, iterates, and turns the result back. With sides s ≤ l, an iteration then takes one product of an
# s × l with an l × s matrix, one of two s × s matrices, and one of an s × s with an s × l matrix: at most 3 times 2 s² l
# FLOPs. The checks count the FLOPs of your matrix products and allow for 8 times.
#
# Worked: the diagonal matrix (3, 4) has norm 5 and becomes (0.6, 0.8). One classic iteration makes of 0.6
# 3.4445 · 0.6 − 4.775 · 0.216 + 2.0315 · 0.07776 = 1.1933, and of 0.8 it makes 0.9765.
#
# **Contract.** `x` is (…, m, n): one matrix, or a stack with any dimensions in front, each matrix by itself.
# `coefficients` is a list of triples, one an iteration, applied in order; it may be empty. Returns a new tensor of the
# shape and dtype of `x`, float32 or bfloat16 (iterate in that dtype, take the norm in float32). A zero matrix stays
# zero. `x` itself is left as it is.


# %% hole="orthogonalize"
def orthogonalize(
    x: torch.Tensor, coefficients: list[tuple[float, float, float]], margin: float, eps: float
) -> torch.Tensor:
    """Divide each matrix of `x` (..., m, n) by margin * norm + eps, then apply aX + b(XXᵀ)X + c(XXᵀ)²X for each triple.

    Returns a new tensor of the same shape and dtype. Works with the smaller of the two Gram matrices.
    """
    ### BEGIN SOLUTION
    norm = x.float().norm(dim=(-2, -1), keepdim=True)
    x = x / (margin * norm + eps).to(x.dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
    ### END SOLUTION


# %% given="check-orthogonalize"
NEWTON_SCHULZ = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def newton_schulz(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Classic Muon's orthogonalisation, made of yours."""
    return orthogonalize(x, NEWTON_SCHULZ[:steps], 1.0, 1e-7)


def polar_express(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """nanochat's orthogonalisation, made of yours."""
    return orthogonalize(x, POLAR_EXPRESS[:steps], 1.01, 1e-6)


def work(x: torch.Tensor, coefficients: list[tuple[float, float, float]], margin: float, eps: float) -> float:
    """The FLOPs of your products for each iteration and matrix, in units of 2 s² l (the sides of x, s the smaller)."""
    with FlopCounterMode(display=False) as counter:
        orthogonalize(x, coefficients, margin, eps)
    short, long = sorted(x.shape[-2:])
    return counter.get_total_flops() / (len(coefficients) * math.prod(x.shape[:-2]) * 2 * short * short * long)


def inspect_orthogonalize(
    x: torch.Tensor, coefficients: list[tuple[float, float, float]], margin: float, eps: float
) -> dict:
    """Your result, whether it took at most 8 units of work, and whether `x` was left as it was."""
    given = x.clone()
    result = orthogonalize(given, coefficients, margin, eps)
    cheap = not coefficients or work(x.clone(), coefficients, margin, eps) <= 8
    return {"result": result, "cheap": cheap, "x is unchanged": torch.equal(given, x)}


def inspected(what: str, shape: tuple[int, ...]) -> bool:
    """One line of that report, for random matrices and the coefficients of Polar Express."""
    return inspect_orthogonalize(torch.randn(shape), POLAR_EXPRESS, 1.01, 1e-6)[what]


def dtype_of_result(dtype: torch.dtype) -> torch.dtype:
    """The dtype of your result for a matrix of the dtype given."""
    return orthogonalize(torch.eye(3, 2).to(dtype), NEWTON_SCHULZ, 1.0, 1e-7).dtype


def on_values(values: list[float], coefficients: list[tuple[float, float, float]], margin: float = 1.0) -> list[float]:
    """The diagonal of your result for the diagonal matrix of `values`."""
    return orthogonalize(torch.tensor(values).diag(), coefficients, margin, 0.0).diagonal().tolist()


with check("orthogonalize"):
    expect(on_values, ([3.0, 4.0], []), [0.6, 0.8], "before anything else, divide by the Frobenius norm, 5", FLOAT32)
    expect(on_values, ([3.0, 4.0], [], 1.25), [0.48, 0.64], "divide by margin * norm + eps", FLOAT32)
    expect(on_values, ([3.0, 4.0], [(2.0, 0.0, 0.0)]), [1.2, 1.6], "a multiplies X", FLOAT32)
    expect(on_values, ([3.0, 4.0], [(0.0, 1.0, 0.0)]), [0.216, 0.512], "b multiplies (XXᵀ)X: the cube", FLOAT32)
    expect(
        on_values, ([3.0, 4.0], [(0.0, 0.0, 1.0)]), [0.07776, 0.32768], "c multiplies (XXᵀ)²X: the fifth power", FLOAT32
    )
    expect(on_values, ([3.0, 4.0], NEWTON_SCHULZ[:1]), [1.1932694, 0.9764819], "one classic iteration", FLOAT32)
    two = [(2.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    expect(on_values, ([3.0, 4.0], two), [1.728, 4.096], "each iteration has its own triple, in order", FLOAT32)
    tall = torch.tensor([[0.0, 3.0], [4.0, 0.0], [0.0, 0.0]])
    cube = torch.tensor([[0.0, 0.216], [0.512, 0.0], [0.0, 0.0]])
    expect(
        orthogonalize, (tall, [(0.0, 1.0, 0.0)], 1.0, 0.0), cube, "the result has the shape of x, tall or wide", FLOAT32
    )
    expect(orthogonalize, (tall.mT, [(0.0, 1.0, 0.0)], 1.0, 0.0), cube.mT, "the result has the shape of x", FLOAT32)
    stack = torch.stack([tall, 10 * tall, 0 * tall])
    cubes = torch.stack([cube, cube, 0 * cube])
    because = "each matrix of a stack is divided by its own norm; a zero one stays zero, thanks to eps"
    expect(orthogonalize, (stack, [(0.0, 1.0, 0.0)], 1.0, 1e-7), cubes, because, FLOAT32)
    for shape in ((64, 16), (3, 64, 16), (16, 64)):
        expect(inspected, ("cheap", shape), True, "the Gram matrix is the larger one, 64 x 64; 16 x 16 is enough")
        expect(inspected, ("x is unchanged", shape), True, "x itself is changed: return a new tensor")
    expect(dtype_of_result, (torch.bfloat16,), torch.bfloat16, "the result has the dtype of x")

# %% graded="orthogonalize"
# 15 points. The hidden tests are more of the same, with other matrices, triples and margins; `--verify` runs them.
# They allow for the rounding of the dtype, which the iterations amplify.
check.visible("orthogonalize")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "orthogonalize", inspect_orthogonalize)
### END HIDDEN TESTS


# %% given="plot-orthogonalize" tags=["plot"]
def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """From large to small; NaN for a matrix that has none."""
    finite = bool(matrix.isfinite().all())
    return torch.linalg.svdvals(matrix) if finite else torch.full((min(matrix.shape),), math.nan)


with picture(
    "Singular values through your iterations",
    alt="Two panels, ten lines each, rising from 0.001 to 0.7 towards 1: classic ends spread out, Polar Express less.",
    columns=2,
    size=(9.0, 3.4),
) as p:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(48, 10))
    right, _ = torch.linalg.qr(torch.randn(32, 10))
    matrix = left @ torch.logspace(-2.8, 0, 10).diag() @ right.mT
    last = []
    for axis, recipe in zip(p.axes, (newton_schulz, polar_express), strict=True):
        rows = torch.stack([singular_values(recipe(matrix, steps))[:10] for steps in range(6)])
        for column_, style in zip(rows.mT.flip(0), ("-", "--", ":", "-.") * 3, strict=False):
            axis.semilogy(range(6), column_, style, color=BLUE, marker=".")
        axis.axhspan(0.7, 1.2, color=GREY, alpha=0.2)
        axis.set(title=recipe.__name__, xlabel="iterations", ylabel="singular value", xlim=(-0.2, 5.2), ylim=(5e-4, 4))
        last.append(f"{recipe.__name__} {rows[5].min():.3f} to {rows[5].max():.3f}")
    p.caption = f"After five iterations: {'; '.join(last)}. Grey: 0.7 to 1.2."

# %% [markdown]
# ## Part 5 · Muon, before the orthogonalisation (10 points, 15 minutes)
#
# What is orthogonalised is not the gradient itself. Two things happen to it first.
#
# **Nesterov momentum.** A buffer $M$ keeps a running mean of the gradients; the direction looks one step ahead, by
# mixing the gradient in once more:
#
# $$M \leftarrow \mu M + (1 - \mu)\, G \qquad N = \mu M + (1 - \mu)\, G \quad\text{(with the new } M\text{)}$$
#
# **Row equilibration.** Every row of $N$ is scaled to the same norm, $\lVert N \rVert / \sqrt m$ (Frobenius norm, $m$
# rows, so the norm of the whole stays). Muon's iterations lift small singular values, but only so far; a neuron whose
# gradient is a thousand times smaller than the others' would be lost, and this brings it up first. A row's norm is
# taken to be at least 1e-6 when it is divided by, so that a row of zeros stays zero.
#
# Worked: N has the rows (3, 4) and (5, 12), of norm 5 and 13. The whole has norm √(25 + 169) = 13.928, so each row is
# to have 9.849: the first is multiplied by 1.9698 and becomes (5.909, 7.879), the second by 0.7576, (3.788, 9.091).
#
# **Contract.** `grad` and `momentum_buffer` are (K, m, n), float32: K matrices of one shape, each by itself. Changes
# `momentum_buffer` in place, leaves `grad` as it is and returns the direction, (K, m, n).


# %% hole="muon_direction"
def muon_direction(grad: torch.Tensor, momentum_buffer: torch.Tensor, momentum: float) -> torch.Tensor:
    """Nesterov momentum, then every row scaled to the norm ||N|| / sqrt(m) of its matrix: the direction (K, m, n).

    `momentum_buffer` is updated in place. Row norms below 1e-6 count as 1e-6.
    """
    ### BEGIN SOLUTION
    momentum_buffer.mul_(momentum).add_((1 - momentum) * grad)
    ahead = momentum * momentum_buffer + (1 - momentum) * grad
    row_norm = ahead.norm(dim=-1, keepdim=True)
    target = ahead.norm(dim=(-2, -1), keepdim=True) / ahead.size(-2) ** 0.5
    return ahead * (target / row_norm.clamp(min=1e-6))
    ### END SOLUTION


# %% given="check-muon_direction"
def after_muon_direction(grad: torch.Tensor, momentum_buffer: torch.Tensor, momentum: float) -> dict[str, torch.Tensor]:
    """Your direction, and what you leave in the two tensors (copies of those given)."""
    tensors = {"grad": grad.clone(), "momentum_buffer": momentum_buffer.clone()}
    return {"direction": muon_direction(**tensors, momentum=momentum), **tensors}


def one_matrix(what: str, grad: list, momentum_buffer: list, momentum: float) -> list:
    """`what` after your function has seen one matrix, written as rows."""
    tensors = (torch.tensor([grad]).float(), torch.tensor([momentum_buffer]).float())
    return after_muon_direction(*tensors, momentum)[what][0].tolist()


with check("muon_direction"):
    zeros = [[0, 0], [0, 0]]
    expect(
        one_matrix,
        ("momentum_buffer", [[8, 4], [0, -4]], [[0, 4], [4, 0]], 0.75),
        [[2.0, 4.0], [3.0, -1.0]],
        "the buffer keeps 0.75 of itself and takes 0.25 of the gradient, in place",
        FLOAT32,
    )
    expect(
        one_matrix,
        ("direction", [[8, 0]], [[0, 4]], 0.75),
        [[3.5, 2.25]],
        "the direction mixes the new buffer (2, 3) with the gradient (8, 0), three to one; one row keeps its norm",
        FLOAT32,
    )
    expect(one_matrix, ("grad", [[8, 0]], [[0, 4]], 0.75), [[8.0, 0.0]], "the gradient is not yours to change", FLOAT32)
    expect(
        one_matrix,
        ("direction", [[3, 4], [5, 12]], zeros, 0.0),
        [[5.9093146, 7.8790862], [3.7880222, 9.0912533]],
        "every row gets the norm of the whole, 13.928, divided by the root of 2",
        FLOAT32,
    )
    expect(
        one_matrix,
        ("direction", [[3, 4], [0, 0], [0, 0], [0, 0]], [[0, 0]] * 4, 0.0),
        [[1.5, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        "5 divided by the root of 4 rows is 2.5; rows of zeros count and stay zero",
        FLOAT32,
    )
    expect(
        one_matrix,
        ("direction", [[3, 4], [2e-7, 0]], zeros, 0.0),
        [[2.1213203, 2.8284271], [0.70710678, 0.0]],
        "a row's norm counts as at least 1e-6: the second row is multiplied by 3.5355 / 1e-6",
        FLOAT32,
    )
    pair = torch.tensor([[[3.0, 4.0], [5.0, 12.0]], [[300.0, 400.0], [500.0, 1200.0]]])
    both = torch.tensor([[[5.9093146, 7.8790862], [3.7880222, 9.0912533]]])
    expect(
        lambda: muon_direction(pair.clone(), torch.zeros(2, 2, 2), 0.0),
        (),
        torch.cat([both, 100 * both]),
        "each matrix of the stack is equilibrated by itself",
        FLOAT32,
    )

# %% graded="muon_direction"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("muon_direction")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "muon_direction", after_muon_direction)
### END HIDDEN TESTS

# %% given="plot-muon_direction" tags=["plot"]
with picture(
    "Rows before and after equilibration",
    alt="Left: twelve unequal bars and twelve equal ones. Right: singular values, falling steeply before, flat after.",
    columns=2,
) as p:
    torch.manual_seed(3)
    unequal = torch.randn(1, 12, 24) * torch.logspace(-3, 0, 12)[torch.randperm(12)][:, None]
    equal = muon_direction(unequal.clone(), torch.zeros_like(unequal), 0.0)
    for shift, matrix, colour, hatch, label in (
        (-0.2, unequal, GREY, "//", "gradient"),
        (0.2, equal, BLUE, "", "yours"),
    ):
        norms = matrix[0].norm(dim=-1)
        p.axes[0].bar(torch.arange(12) + shift, norms, width=0.4, color=colour, hatch=hatch, label=label)
        marker = "s" if hatch else "o"
        p.axes[1].semilogy(range(1, 13), singular_values(matrix[0]), marker, color=colour, label=label)
    p.axes[0].set(title="Norms", xlabel="row", ylabel="norm", yscale="log")
    p.axes[1].set(title="Singular values", xlabel="rank", ylabel="singular value")
    p.axes[1].legend()
    norms, values = equal[0].norm(dim=-1), singular_values(equal[0])
    p.caption = (
        f"Row norms now go from {norms.min():.3f} to {norms.max():.3f}; the largest singular value is "
        f"{values[0] / values[-1]:.1f} times the smallest, before it was "
        f"{torch.linalg.cond(unequal[0]):,.0f} times."
    )

# %% [markdown]
# ## Part 6 · Muon, after the orthogonalisation (15 points, 30 minutes)
#
# Orthogonalisation has given a direction $X$ whose singular values are about 1. Five steps are left.
#
# 1. **Renormalise.** An orthogonal m × n matrix has Frobenius norm $\sqrt{\min(m, n)}$. Scale $X$ to exactly that (a
#    norm below 1e-6 counts as 1e-6).
# 2. **Reduce variance** (NorMuon, [arXiv 2510.05491](https://arxiv.org/abs/2510.05491)). Neurons still differ in how
#    far they move, so keep an Adam-like second moment $V$, one number each: one a row if m ≥ n, one a column if
#    m < n. With $q$ the mean of the squares of a row (or column) of $X$: $V \leftarrow \beta_2 V + (1 - \beta_2)\, q$,
#    and the row (or column) is divided by $\sqrt V$ ($V$ below 1e-10 counts as 1e-10).
# 3. **Keep the length.** Scale $X$ back to the Frobenius norm it had before step 2. A zero matrix stays zero (a norm
#    below 1e-10 counts as 1e-10).
# 4. **Learning rate by shape.** $\text{lr}' = \text{lr} \cdot \sqrt{\max(1, m / n)}$: a tall matrix writes into more
#    numbers than it reads, and its update has to be longer to move each of them as far.
# 5. **Update, with cautious decay** ([arXiv 2510.12402](https://arxiv.org/abs/2510.12402)). Weight decay pulls a weight
#    towards zero, the gradient may push it away from zero; both at once is a waste. So decay only where the update
#    shrinks the weight too, that is where $X$ and $P$ have the same sign (or one is zero: $X \cdot P \ge 0$):
#
# $$P \leftarrow P - \text{lr}' X - \text{lr}' \cdot \text{wd} \cdot P \cdot [X \cdot P \ge 0]$$
#
# Worked for 1, 2 and 3: two rows of (1, 1), m = n = 2. The norm is 2, and $\sqrt 2$ is wanted: all entries become
# 0.7071. Let $V$ be (0.04, 0.25) and β₂ = 1, so that it stays. Divided by 0.2 and 0.5 the rows hold 3.5355 and 1.4142,
# of norm 5.385. Scaled back to $\sqrt 2$ they hold 0.9285 and 0.3714: the row that has been moving less moves more.
#
# **Contract.** `p` and `direction` are (K, m, n), float32, each matrix by itself; `second_momentum_buffer` ($V$) is
# (K, m, 1) if m ≥ n, else (K, 1, n). Changes `p` and `second_momentum_buffer` in place, leaves `direction` as it is.
# What you return is ignored.


# %% hole="muon_update"
def muon_update(
    p: torch.Tensor,
    direction: torch.Tensor,
    second_momentum_buffer: torch.Tensor,
    lr: float,
    weight_decay: float,
    beta2: float,
) -> None:
    """Renormalise, reduce variance, keep the length, and update with cautious decay, in place on `p` (K, m, n).

    `second_momentum_buffer`, (K, m, 1) if m >= n, else (K, 1, n), is updated in place. `lr` is without the factor
    for the shape.
    """
    ### BEGIN SOLUTION
    m, n = p.shape[-2:]
    norm = direction.norm(dim=(-2, -1), keepdim=True)
    x = direction * (min(m, n) ** 0.5 / norm.clamp(min=1e-6))
    before = x.norm(dim=(-2, -1), keepdim=True)
    mean_square = x.square().mean(dim=-1 if m >= n else -2, keepdim=True)
    second_momentum_buffer.mul_(beta2).add_((1 - beta2) * mean_square)
    x = x / second_momentum_buffer.clamp(min=1e-10).sqrt()
    x = x * (before / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-10))
    rate = lr * max(1.0, m / n) ** 0.5
    p.sub_(rate * x + rate * weight_decay * p * (x * p >= 0))
    ### END SOLUTION


# %% given="check-muon_update"
def after_muon_update(
    p: torch.Tensor, direction: torch.Tensor, second_momentum_buffer: torch.Tensor, **rest: float
) -> dict[str, torch.Tensor]:
    """What your update leaves in the three tensors (copies of those given)."""
    tensors = {"p": p, "direction": direction, "second_momentum_buffer": second_momentum_buffer}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    muon_update(**tensors, **rest)
    return tensors


def updated(what: str, p: list, direction: list, second: list, **rest: float) -> list:
    """`what` after your update of one matrix, written as rows. Not given: lr 1, weight decay 0, beta2 1."""
    rest = {"lr": 1.0, "weight_decay": 0.0, "beta2": 1.0} | rest
    tensors = (torch.tensor([rows]).float() for rows in (p, direction, second))
    return after_muon_update(*tensors, **rest)[what][0].tolist()


with check("muon_update"):
    zeros, ones, even = [[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1], [1]]
    expect(
        updated,
        ("p", [[0, 0]], [[3, 4]], [[1, 1]]),
        [[-0.6, -0.8]],
        "a 1 x 2 matrix gets the norm 1, the root of min(1, 2), and is subtracted",
        FLOAT32,
    )
    expect(
        updated,
        ("p", zeros, ones, [[0.04], [0.25]]),
        [[-0.9284767, -0.9284767], [-0.3713907, -0.3713907]],
        "rows are divided by the root of V, then all is scaled back to the norm the root of 2",
        FLOAT32,
    )
    expect(
        updated,
        {
            "what": "second_momentum_buffer",
            "p": zeros,
            "direction": [[3, 1], [1, 1]],
            "second": [[1], [2]],
            "beta2": 0.75,
        },
        [[0.95833333], [1.54166667]],
        "V keeps 0.75 of itself and takes 0.25 of the mean squares of the renormalised rows, 5/6 and 1/6",
        FLOAT32,
    )
    expect(
        updated,
        {"what": "second_momentum_buffer", "p": [[0, 0]], "direction": [[3, 1]], "second": [[1, 2]], "beta2": 0.75},
        [[0.975, 1.525]],
        "a wide matrix has one number a column: 0.9 and 0.1 are the squares of the renormalised columns",
        FLOAT32,
    )
    expect(
        updated,
        {"what": "p", "p": [[0, 0]], "direction": [[1, 1]], "second": [[0.5, 2]], "beta2": 0.5},
        [[-0.8451543, -0.5345225]],
        "the columns are divided by the root of the new V, 0.5 and 1.25, and all is scaled back to 1",
        FLOAT32,
    )
    expect(
        updated,
        {"what": "p", "p": [[2, -2], [2, 0]], "direction": ones, "second": even, "lr": 0.1, "weight_decay": 0.5},
        [[1.8292893, -2.0707107], [1.8292893, -0.0707107]],
        "the update 0.0707 shrinks 2, so 2 decays too (by 0.1); it makes -2 grow, so -2 does not",
        FLOAT32,
    )
    expect(
        updated,
        {
            "what": "p",
            "p": [[4], [0], [0], [0]],
            "direction": [[1]] * 4,
            "second": [[1]] * 4,
            "lr": 0.1,
            "weight_decay": 0.5,
        },
        [[3.5], [-0.1], [-0.1], [-0.1]],
        "4 rows on 1 column: the rate is 0.1 times 2, for the update (0.5 an entry) and for the decay (0.5 of 4)",
        FLOAT32,
    )
    expect(
        updated,
        {"what": "p", "p": [[4, -4]], "direction": [[0, 0]], "second": [[1, 1]], "lr": 0.1, "weight_decay": 0.5},
        [[3.8, -3.8]],
        "a zero update agrees with every weight: all decay, and nothing is NaN",
        FLOAT32,
    )
    expect(
        updated,
        ("p", [[0, 0]], [[3e-7, 4e-7]], [[1, 1]]),
        [[-0.3, -0.4]],
        "a norm below 1e-6 counts as 1e-6 when it is divided by",
        FLOAT32,
    )
    expect(
        updated,
        ("p", zeros, [[1, 0], [0, 1e-6]], [[0.25], [0]]),
        [[-1.4124491, 0.0], [0.0, -0.0706225]],
        "V counts as at least 1e-10: the second row holds 1.4e-6 and is divided by 1e-5",
        FLOAT32,
    )
    expect(updated, ("direction", [[0, 0]], [[3, 4]], [[1, 1]]), [[3.0, 4.0]], "leave the direction as it is", FLOAT32)
    pair = torch.tensor([[[3.0, 4.0]], [[300.0, 400.0]]])
    expect(
        lambda: after_muon_update(torch.zeros(2, 1, 2), pair, torch.ones(2, 1, 2), lr=1.0, weight_decay=0.0, beta2=1.0)[
            "p"
        ],
        (),
        torch.tensor([[[-0.6, -0.8]], [[-0.6, -0.8]]]),
        "each matrix of the stack is renormalised by itself",
        FLOAT32,
    )

# %% graded="muon_update"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("muon_update")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "muon_update", after_muon_update)
### END HIDDEN TESTS

# %% given="plot-muon_update" tags=["plot"]
with picture(
    "How far each row moves, and who decays",
    alt="Left: row lengths, rising in the direction, nearly equal in your update. Right: two lines, each with a kink.",
    columns=2,
) as p:
    torch.manual_seed(5)
    shape = (1, 16, 8)
    size = torch.linspace(0.3, 1.7, 16)[:, None]
    second = torch.zeros(1, 16, 1)
    for _ in range(30):
        direction = nn.functional.normalize(torch.randn(shape), dim=-1) * size
        weights = torch.zeros(shape)
        muon_update(weights, direction, second, lr=1.0, weight_decay=0.0, beta2=0.9)
    scaled = direction / direction.norm() * 8**0.5
    into, out = (rows[0].norm(dim=-1) for rows in (scaled, weights))
    p.axes[0].plot(into, "s--", color=GREY, label="direction")
    p.axes[0].plot(out, "o-", color=BLUE, label="your update, step 30")
    p.axes[0].set(title="16 rows of unequal size", xlabel="row", ylabel="norm of a row", ylim=(0, None))
    p.axes[0].legend()
    before = torch.linspace(-2, 2, 41)
    for sign, colour, style in ((1.0, BLUE, "-"), (-1.0, ORANGE, "--")):
        weights = before.clone()[None, None, :]
        muon_update(weights, sign * torch.ones(1, 1, 41), torch.ones(1, 1, 41), lr=0.1, weight_decay=2.0, beta2=1.0)
        p.axes[1].plot(before, weights.flatten() - before, style, color=colour, label=f"update {sign:+g}")
    p.axes[1].set(title="Cautious decay", xlabel="weight before", ylabel="change of the weight")
    p.axes[1].legend()
    p.caption = (
        f"The largest row is {into.max() / into.min():.1f} times the smallest in the direction, "
        f"{out.max() / out.min():.1f} times in your update."
    )

# %% [markdown]
# ## Part 7 · Three schedules (15 points, 20 minutes)
#
# Nothing stays put over a run of `num_iterations` = N steps, numbered `it` = 0, 1, …, N − 1. Let $w$ be
# `warmdown_ratio` · N, rounded by Python's `round`: the length of the **warmdown**, which starts after step N − w.
#
# - **Learning rate**, as a multiplier for every group. *Warmup*: (it + 1) / `warmup_steps` while it < `warmup_steps`;
#   the first step already counts, a step with rate 0 would be a step for nothing. Then 1, up to and including step N −
#   w. *Warmdown*: on a straight line from 1 at N − w to `final_lr_frac` at N. Where the two overlap, the warmup has its
#   way.
# - **Muon's momentum.** 0.85 + 0.12 · it / 400 while it < 400: early gradients are soon outdated. Then 0.97, and in the
#   warmdown on a straight line from 0.97 at N − w to 0.90 at N, because with small steps less averaging is needed.
#   Where the two overlap, the first 400 steps have their way, and the momentum may jump at step 400. These numbers are
#   fixed.
# - **Muon's weight decay.** Half a cosine from `weight_decay` at step 0 to 0 at step N: weight_decay · ½ (1 + cos(π it
#   / N)).
#
# Worked: N = 1000 with the usual numbers. w = 650, so the warmdown starts after step 350. The multiplier is 0.025 at
# step 0, 1 from step 39 to 350, 0.525 at step 675 (half way down) and 0.05 at 1000. The momentum is 0.91 at step 200
# and 0.9697 at step 399; at step 400 it is 50/650 of the way down from 0.97, at 0.9646.
#
# **Contract.** Returns a dict of floats with the keys `lr_multiplier`, `muon_momentum`, `muon_weight_decay`.
# 0 ≤ it ≤ N, and N ≥ 1. `warmup_steps` may be 0 (no warmup) and so may w (no warmdown: the multiplier stays 1 and the
# momentum 0.97 to the end).


# %% hole="schedules"
def schedules(
    it: int,
    num_iterations: int,
    weight_decay: float,
    warmup_steps: int = 40,
    warmdown_ratio: float = 0.65,
    final_lr_frac: float = 0.05,
) -> dict[str, float]:
    """{"lr_multiplier": ..., "muon_momentum": ..., "muon_weight_decay": ...} at step `it` of `num_iterations`."""
    ### BEGIN SOLUTION
    warmdown_steps = round(warmdown_ratio * num_iterations)
    # the share of the warmdown that is done; 0 before it starts
    down = max(0, it - (num_iterations - warmdown_steps)) / max(1, warmdown_steps)
    multiplier = 1 + down * (final_lr_frac - 1)
    momentum = 0.97 + down * (0.90 - 0.97)
    if it < warmup_steps:
        multiplier = (it + 1) / warmup_steps
    if it < 400:
        momentum = 0.85 + 0.12 * it / 400
    decay = weight_decay * 0.5 * (1 + math.cos(math.pi * it / num_iterations))
    return {"lr_multiplier": multiplier, "muon_momentum": momentum, "muon_weight_decay": decay}
    ### END SOLUTION


# %% given="check-schedules"
def at(what: str, it: int, num_iterations: int = 1000, weight_decay: float = 0.2, **rest: float) -> float:
    """One of your three values at a step of a run, of 1000 steps if not said otherwise."""
    return schedules(it, num_iterations, weight_decay, **rest)[what]


SMOOTH = Tolerance(rtol=1e-9, atol=1e-12)

with check("schedules"):
    lr = "lr_multiplier"
    for it, expected, because in (
        (0, 0.025, "the first step has 1/40, not 0"),
        (39, 1.0, "the warmup reaches 1 at its last step, 39"),
        (40, 1.0, "and there it stays"),
        (350, 1.0, "step 350 still has the full rate"),
        (351, 1 - 0.95 / 650, "the warmdown starts after step 350"),
        (675, 0.525, "half way down, at step 675, it is half way between 1 and 0.05"),
        (1000, 0.05, "it ends at final_lr_frac, at step N"),
    ):
        expect(at, (lr, it), expected, because, SMOOTH)
    expect(at, {"what": lr, "it": 0, "warmup_steps": 0}, 1.0, "no warmup: full rate from step 0", SMOOTH)
    expect(at, {"what": lr, "it": 1000, "warmdown_ratio": 0.0}, 1.0, "no warmdown: full rate to the end", SMOOTH)
    expect(
        at,
        {"what": lr, "it": 9, "num_iterations": 20, "warmup_steps": 20, "warmdown_ratio": 0.8},
        0.5,
        "where warmup and warmdown overlap, the warmup has its way",
        SMOOTH,
    )
    short_run = {"warmup_steps": 1, "warmdown_ratio": 0.5, "final_lr_frac": 0.2}
    because = "half of 7 steps is 3.5; Python's round makes it 4, so the warmdown starts after step 3"
    expect(at, {"what": lr, "it": 4, "num_iterations": 7, **short_run}, 0.8, because, SMOOTH)
    because = "half of 5 steps is 2.5; Python's round makes it 2, so the warmdown starts after step 3"
    expect(at, {"what": lr, "it": 4, "num_iterations": 5, **short_run}, 0.6, because, SMOOTH)
    momentum = "muon_momentum"
    for it, num_iterations, expected, because in (
        (0, 5000, 0.85, "it starts at 0.85"),
        (200, 5000, 0.91, "half way to 0.97 at step 200"),
        (400, 5000, 0.97, "0.97 from step 400"),
        (1750, 5000, 0.97, "0.97 up to and including the start of the warmdown"),
        (3375, 5000, 0.935, "half way down from 0.97 to 0.90"),
        (5000, 5000, 0.90, "0.90 at step N"),
        (399, 1000, 0.9697, "the first 400 steps have their way, even in the warmdown"),
        (400, 1000, 0.97 - 0.07 * 50 / 650, "from step 400 the warmdown has"),
    ):
        expect(at, (momentum, it, num_iterations), expected, because, SMOOTH)
    expect(at, {"what": momentum, "it": 1000, "warmdown_ratio": 0.0}, 0.97, "no warmdown: 0.97 to the end", SMOOTH)
    decay = "muon_weight_decay"
    expect(at, (decay, 0), 0.2, "it starts at weight_decay", SMOOTH)
    expect(at, (decay, 250), 0.1707106781, "a cosine: 0.2 · (1 + cos 45°) / 2", SMOOTH)
    expect(at, (decay, 1000), 0.0, "it ends at 0, at step N", SMOOTH)

# %% graded="schedules"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("schedules")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "schedules", schedules)
### END HIDDEN TESTS

# %% given="plot-schedules" tags=["plot"]
with picture(
    "Your schedules over a run of 2000 steps",
    alt="Three curves: a trapezoid; a rise, a plateau and a slow fall; half a cosine from 0.28 to 0.",
    columns=3,
    size=(10.0, 3.0),
) as p:
    runs = [schedules(it, 2000, 0.28) for it in range(2001)]
    short = [schedules(it, 600, 0.28) for it in range(601)]
    titles = {"lr_multiplier": "Learning rate", "muon_momentum": "Muon's momentum", "muon_weight_decay": "Weight decay"}
    for axis, (key, title) in zip(p.axes, titles.items(), strict=True):
        axis.plot([values[key] for values in runs], "-", color=BLUE, label="N = 2000")
        axis.plot([values[key] for values in short], "--", color=ORANGE, label="N = 600")
        axis.set(title=title, xlabel="step", ylabel=key)
    p.axes[0].legend()
    mean = sum(values["lr_multiplier"] for values in runs[:2000]) / 2000
    p.caption = (
        f"Over 2000 steps the multiplier is {mean:.3f} on average; the last step before N has {runs[1999][lr]:.4f}."
    )

# %% [markdown]
# ## Part 8 · FP8: who may (5 points, 5 minutes)
#
# Recent GPUs multiply 8-bit floats twice as fast as 16-bit ones. But a tensor has to be scaled and rounded to 8 bits
# first, which takes a pass over it, and the hardware takes only certain sizes. So nanochat converts a layer to FP8 if
#
# - it is a linear layer, that is an `nn.Linear` or of a class derived from it. That something has attributes of the
#   same names is not enough;
# - both of its dimensions are divisible by 16; otherwise the hardware refuses;
# - the smaller of the two is at least 128; otherwise rounding costs more than the product saves.
#
# A layer 768 → 3072 qualifies, 768 → 100 does not (100 is not divisible by 16), 768 → 64 does not (64 is too small),
# and an embedding of 768 × 3072 does not.
#
# **Contract.** `fqn` is the layer's full name in the model, `transformer.h.0.mlp.c_fc`. The converter passes it to any
# filter; this one does not look at it. Returns a bool.


# %% hole="fp8_filter"
def fp8_module_filter(module: nn.Module, fqn: str) -> bool:
    """Whether to convert the layer `module`, called `fqn`, to FP8."""
    ### BEGIN SOLUTION
    if not isinstance(module, nn.Linear):
        return False
    dims = (module.in_features, module.out_features)
    return all(dim % 16 == 0 for dim in dims) and min(dims) >= 128
    ### END SOLUTION


# %% given="check-fp8_filter"
class LowRank(nn.Module):
    """No linear layer, though it has its attributes: two thin matrices in place of a large one."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.down, self.up = nn.Linear(in_features, 16), nn.Linear(16, out_features)


class CastingLinear(nn.Linear):
    """A linear layer of a class of its own, like nanochat's, which casts its weight to the dtype of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


LAYERS = {"Linear": nn.Linear, "CastingLinear": CastingLinear, "LowRank": LowRank, "Embedding": nn.Embedding}


def chosen(kind: str, in_features: int, out_features: int, fqn: str = "layer") -> bool:
    """What your filter says to a layer of the kind and size given."""
    with torch.device("meta"):
        return fp8_module_filter(LAYERS[kind](in_features, out_features), fqn)


with check("fp8_filter"):
    expect(chosen, ("Linear", 768, 3072), True, "a large layer with round sizes is what FP8 is for")
    expect(chosen, ("Linear", 128, 128), True, "128 is large enough")
    expect(chosen, ("Linear", 768, 100), False, "100 is not divisible by 16: both dimensions must be")
    expect(chosen, ("Linear", 136, 768), False, "136 is not divisible by 16: both dimensions must be")
    expect(chosen, ("Linear", 144, 176), True, "16 is enough: neither has to be a multiple of 128")
    expect(chosen, ("Linear", 768, 64), False, "64 is less than 128: the smaller dimension counts")
    expect(chosen, ("Linear", 112, 768), False, "112 is less than 128: the smaller dimension counts")
    expect(chosen, ("CastingLinear", 768, 3072), True, "a class derived from nn.Linear is a linear layer")
    expect(chosen, ("LowRank", 768, 3072), False, "it has in_features and out_features, but is no nn.Linear")
    expect(chosen, ("Embedding", 768, 3072), False, "an embedding is no nn.Linear")
    expect(chosen, ("Linear", 256, 256, "lm_head"), True, "the name does not matter")

# %% graded="fp8_filter"
# 5 points. The hidden tests are more of the same, with other layers; `--verify` runs them.
check.visible("fp8_filter")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "fp8_filter", chosen)
### END HIDDEN TESTS

# %% given="plot-fp8_filter" tags=["plot"]
with picture(
    "Which sizes your filter takes",
    alt="A grid of dots from 128 upwards in steps of 16, and the layers of two models as squares on or off it.",
    size=(6.0, 4.2),
) as p:
    grid = range(8, 264, 8)
    taken = [(i, o) for i in grid for o in grid if chosen("Linear", i, o)]
    p.axes[0].plot(*zip(*taken, strict=True) if taken else ([], []), ".", color=BLUE, markersize=3, label="taken")
    counts = {}
    for (depth, aspect), colour, marker in zip(((4, 32), (4, 64)), (ORANGE, GREEN), ("s", "D"), strict=True):
        model = build_meta_model(config_from_depth(depth, aspect_ratio=aspect, head_dim=64, vocab_size=640))
        linears = [(n, module) for n, module in model.named_modules() if isinstance(module, nn.Linear)]
        counts[aspect] = sum(fp8_module_filter(module, name) for name, module in linears), len(linears)
        inside = {(min(module.in_features, 264), min(module.out_features, 264)) for _, module in linears}
        label = f"layers, {depth * aspect} channels"
        p.axes[0].plot(*zip(*inside, strict=True), marker, color=colour, fillstyle="none", markersize=9, label=label)
    p.axes[0].set(xlabel="in_features (264: or more)", ylabel="out_features (264: or more)")
    p.axes[0].legend(loc="upper left")
    shares = "; ".join(f"{4 * aspect} channels: {yes} of {all_} layers" for aspect, (yes, all_) in counts.items())
    p.caption = f"Your filter takes {shares}."

# %% [markdown]
# ## Part 9 · FP8: switched off, and safely back on (10 points, 25 minutes)
#
# Training in FP8 is fast, but a model should be *evaluated* with the numbers it will be used with. So nanochat
# evaluates within
#
# ```python
# with disable_fp8(model):
#     loss = evaluate(model)
# ```
#
# The FP8 layers are taken out, plain ones put in their place, and afterwards it is all as it was. *Whatever happens in
# between*: an evaluation that fails or is interrupted must not leave a run that silently trains on without FP8.
#
# The next cell has an FP8 layer, `Float8Linear`: its forward rounds input and weight to 8 bits, on a CPU as on a GPU.
# Within the context
#
# - there is no `Float8Linear` in the model, however deeply it is nested; in the place of each stands a plain
#   `nn.Linear` which computes with the **same parameters**: `plain.weight is layer.weight`, and so is the bias, if
#   there is one. Nothing is copied, so what changes them inside has changed them outside;
# - the plain layer is in the same mode (`training`) as the one it stands for;
# - all other modules are left alone, and `state_dict()` has the same keys;
# - no random number is drawn (an evaluation must not change the training that follows, and a new layer initialises its
#   weights, unless it is made on the meta device).
#
# Afterwards every `Float8Linear` is back, the very same object, also when the body raises, be it an error or an interrupt
# (Ctrl-C); what was raised is passed on.
#
# **Safe without a GPU.** FP8 takes a GPU of compute capability 8.9 or more. Elsewhere nanochat warns, trains without
# it, and runs the very same evaluation code: on a model without FP8 layers the context changes nothing.
#
# Worked: `nn.Sequential(Float8Linear(4, 8), nn.ReLU())` has a `Float8Linear` as `model[0]`; within the context
# `model[0]` is an `nn.Linear` with the same weight, and `model[1]` the same `nn.ReLU`. Replace a child with
# `setattr(parent, name, layer)`; `parent.named_children()` gives names and layers.
#
# **Contract.** A context manager; `with disable_fp8(model) as m` gives the model itself. The model itself is never a
# `Float8Linear`.


# %% given="float8-linear"
def to_8_bits_and_back(x: torch.Tensor) -> torch.Tensor:
    """`x` rounded to 8-bit floats (e4m3), scaled so that its largest number is theirs, 448."""
    scale = 448 / x.abs().max().clamp(min=1e-12)
    return (x * scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) / scale


class Float8Linear(nn.Linear):
    """A linear layer that rounds its input and its weight to 8 bits before it multiplies them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(to_8_bits_and_back(x), to_8_bits_and_back(self.weight), self.bias)


# %% hole="disable_fp8"
@contextmanager
def disable_fp8(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context plain nn.Linear layers, with the same parameters, stand in for the model's Float8Linear ones.

    Afterwards the Float8Linear layers are back, also when the body raises. Gives `model`.
    """
    ### BEGIN SOLUTION
    fp8_layers = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Float8Linear)
    ]
    try:
        for parent, name, layer in fp8_layers:
            plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            setattr(parent, name, plain.train(layer.training))
        yield model
    finally:
        for parent, name, layer in fp8_layers:
            setattr(parent, name, layer)
    ### END SOLUTION


# %% given="check-disable_fp8"
def tree(plan: list, width: int) -> tuple[nn.Sequential, int]:
    """A model from a plan like ["fp8 8", ["linear 6", "relu"]], and its output width: layers with theirs, nested.

    A "-" after the kind means without bias.
    """
    layers: list[nn.Module] = []
    for item in plan:
        if isinstance(item, list):
            branch, width = tree(item, width)
            layers.append(branch)
        elif item == "relu":
            layers.append(nn.ReLU())
        else:
            kind, out = item.split()
            make = Float8Linear if kind.startswith("fp8") else nn.Linear
            layers.append(make(width, int(out), bias=not kind.endswith("-")))
            width = int(out)
    return nn.Sequential(*layers), width


class Failure(Exception):
    """What an evaluation that fails raises."""


class Interrupt(BaseException):
    """What Ctrl-C raises: like KeyboardInterrupt it is no Exception."""


ENDS = {"well": None, "with an error": Failure, "with an interrupt": Interrupt}


def report_disable_fp8(plan: list, x: torch.Tensor, ends: str = "well", training: bool = True) -> dict:
    """What happens to a model of this plan in and after your context, whose body ends as said."""
    model = tree(plan, x.size(-1))[0].to(x.device).train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape).sin() / 2)
    modules, parameters, keys = list(model.modules()), list(model.parameters()), list(model.state_dict())
    random_state = torch.get_rng_state()
    report: dict = {"error passed on": False}
    try:
        with disable_fp8(model) as given, torch.no_grad():
            report["FP8 layers inside"] = sum(isinstance(module, Float8Linear) for module in model.modules())
            report["output inside"] = model(x)
            report["gives the model"] = given is model
            pairs = list(zip(parameters, model.parameters(), strict=False))
            report["same parameters"] = len(pairs) == len(parameters) and all(mine is yours for mine, yours in pairs)
            report["same mode"] = [module.training for module in model.modules()] == [training] * len(modules)
            report["same keys"] = list(model.state_dict()) == keys
            others = {id(module) for module in modules if not isinstance(module, Float8Linear)}
            report["others left alone"] = others <= {id(module) for module in model.modules()}
            if ENDS[ends]:
                raise ENDS[ends]
    except (Failure, Interrupt):
        report["error passed on"] = True
    after = list(model.modules())
    report["all back"] = len(after) == len(modules) and all(a is b for a, b in zip(after, modules, strict=True))
    report["no random number drawn"] = torch.equal(torch.get_rng_state(), random_state)
    return report


def reported(what: str, plan: list, **rest: bool | str) -> object:
    """One line of that report, for an input of ones."""
    return report_disable_fp8(plan, torch.ones(1, 4), **rest)[what]


with check("disable_fp8"):
    nested = ["fp8 8", "relu", ["linear 6", ["fp8- 6", "relu"], "fp8 3"]]
    expect(reported, ("FP8 layers inside", ["fp8 8", "relu"]), 0, "replace each Float8Linear by a plain nn.Linear")
    expect(reported, ("FP8 layers inside", nested), 0, "FP8 layers may be nested: look at the children of all modules")
    expect(
        reported, ("same parameters", nested), True, "the plain layer has the layer's own weight and bias, no copies"
    )
    expect(
        reported,
        ("output inside", ["fp8 2"]),
        torch.tensor([[0.9459437, -0.2483422]]),
        "inside, a layer computes x Wᵀ + bias in full precision",
        FLOAT32,
    )
    expect(reported, ("gives the model", nested), True, "`yield model`")
    for training in (True, False):
        expect(
            reported,
            {"what": "same mode", "plan": nested, "training": training},
            True,
            "a new layer is in training mode; it must be in the mode of the one it stands for",
        )
    expect(reported, ("same keys", nested), True, "a layer without bias stays one without bias")
    expect(reported, ("others left alone", nested), True, "a layer that is no Float8Linear is not to be replaced")
    expect(reported, ("all back", nested), True, "afterwards the very same Float8Linear objects are in their places")
    because = "the FP8 layers must come back also when the body raises, whatever it raises: put that under `finally`"
    for ends in ("with an error", "with an interrupt"):
        expect(reported, {"what": "all back", "plan": nested, "ends": ends}, True, because)
        expect(
            reported, {"what": "error passed on", "plan": nested, "ends": ends}, True, "do not swallow what is raised"
        )
    expect(reported, ("no random number drawn", nested), True, "make the plain layer with device='meta'")
    plain = ["linear 8", "relu"]
    for what in ("gives the model", "others left alone", "all back"):
        expect(reported, (what, plain), True, "a model without FP8 layers is left alone")
    because = "do not swallow what is raised"
    expect(reported, {"what": "error passed on", "plan": plain, "ends": "with an error"}, True, because)

# %% graded="disable_fp8"
# 10 points. The hidden tests are more of the same, with other models; `--verify` runs them.
check.visible("disable_fp8")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("02_optimization_layer", "disable_fp8", report_disable_fp8)
### END HIDDEN TESTS

# %% given="plot-disable_fp8" tags=["plot"]
with picture(
    "Rounding to 8 bits, inside and outside your context",
    alt="Left: a bell of errors outside the context, a spike at zero inside. Right: FP8 errors scatter about zero.",
    columns=2,
) as p:
    torch.manual_seed(0)
    layer = nn.Sequential(Float8Linear(256, 256, bias=False))
    x = torch.randn(64, 256)
    with torch.no_grad():
        exact = F.linear(x, layer[0].weight)
        outside = layer(x)
        with disable_fp8(layer):
            inside = layer(x)
        again = layer(x)
    spread = exact.std()
    errors = {"outside, FP8": (outside - exact) / spread, "inside": (inside - exact) / spread}
    for (label, error), colour, hatch in zip(errors.items(), (ORANGE, BLUE), ("//", ""), strict=True):
        p.axes[0].hist(error.flatten(), bins=torch.linspace(-0.15, 0.15, 61), color=colour, hatch=hatch, label=label)
    p.axes[0].set(title="Error of the output", xlabel="error / standard deviation of the output", ylabel="how many")
    p.axes[0].set(yscale="log")
    p.axes[0].legend()
    for (label, error), colour, marker in zip(errors.items(), (ORANGE, BLUE), ("x", "."), strict=True):
        p.axes[1].plot(exact.flatten()[:500], error.flatten()[:500], marker, color=colour, markersize=3, label=label)
    p.axes[1].set(title="500 outputs", xlabel="exact output", ylabel="error / standard deviation")
    p.axes[1].legend(loc="upper left")
    rms = [error.square().mean().sqrt() for error in errors.values()]
    back = "FP8 again" if torch.equal(again, outside) else "not what it was"
    p.caption = f"RMS error: outside {rms[0]:.2%}, inside {rms[1]:.2%}. After the context the layer is {back}."

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your functions together. There is nothing to fill in: an `OptimizerFactory` sorts the parameters of a
# model, and `build` makes the optimizer. It keeps its state under nanochat's names.


# %% given="optimizer-factory"
class MuonAdamW(torch.optim.Optimizer):
    """AdamW and Muon in one optimizer, made of your functions. Takes groups like those of part 2, with parameters."""

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                self.step_stack(group)
            else:
                for parameter in group["params"]:
                    self.step_parameter(group, parameter)

    def step_parameter(self, group: dict, p: nn.Parameter) -> None:
        """AdamW on one parameter."""
        state = self.state[p]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        rates = {"beta1": group["betas"][0], "beta2": group["betas"][1]}
        rates |= {key: group[key] for key in ("lr", "eps", "weight_decay")}
        adamw_step(p, p.grad, state["exp_avg"], state["exp_avg_sq"], step=state["step"], **rates)

    def step_stack(self, group: dict) -> None:
        """Muon on the stack of all matrices of a group."""
        stack = torch.stack(list(group["params"]))
        grad = torch.stack([parameter.grad for parameter in group["params"]])
        _, m, n = stack.shape
        state = self.state[group["params"][0]]
        if not state:
            second = grad[:, :, :1] if m >= n else grad[:, :1, :]
            state |= {"momentum_buffer": torch.zeros_like(grad), "second_momentum_buffer": torch.zeros_like(second)}
        direction = muon_direction(grad, state["momentum_buffer"], group["momentum"])
        direction = polar_express(direction, group["ns_steps"])
        rates = {key: group[key] for key in ("lr", "weight_decay", "beta2")}
        muon_update(stack, direction, state["second_momentum_buffer"], **rates)
        for parameter, updated_matrix in zip(group["params"], stack, strict=True):
            parameter.copy_(updated_matrix)


class OptimizerFactory:
    """Everything about how a nanochat GPT learns, from the model. Made of your functions."""

    def __init__(self, model: nn.Module, **rates: float) -> None:
        self.parameters = dict(model.named_parameters())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.families = param_families(self.shapes)
        n_embd = self.shapes["transformer.wte.weight"][1]
        self.groups = param_groups(self.families, self.shapes, n_embd, **rates)

    def build(self) -> MuonAdamW:
        """The optimizer over the model's parameters."""
        return MuonAdamW([self.with_parameters(group) for group in self.groups])

    def build_plain_adamw(self, matrix_lr: float) -> MuonAdamW:
        """For comparison: the matrices go to AdamW, too."""
        adamw = {"kind": "adamw", "lr": matrix_lr, "initial_lr": matrix_lr, "betas": (0.8, 0.95), "eps": 1e-10}
        return MuonAdamW(
            [self.with_parameters(group | adamw if group["kind"] == "muon" else group) for group in self.groups]
        )

    def with_parameters(self, group: dict) -> dict:
        """A group with the parameters in place of their names."""
        return group | {"params": [self.parameters[name] for name in group["params"]]}


def set_schedules(optimizer: torch.optim.Optimizer, values: dict[str, float]) -> None:
    """Give every group what your schedules say about a step."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * values["lr_multiplier"]
        if group["kind"] == "muon":
            group["momentum"], group["weight_decay"] = values["muon_momentum"], values["muon_weight_decay"]


with attempt("The optimizer of a model of depth 12"):
    factory = OptimizerFactory(build_meta_model(config_from_depth(12)))
    muon = sum(math.prod(factory.shapes[name]) for name in factory.families["muon_matrix"])
    print(f"depth 12: {len(factory.groups)} groups over {len(factory.shapes)} tensors")
    print(f"Muon keeps one buffer for its {muon:,} numbers where AdamW has two: it saves {muon * 4 / 1e6:.0f} MB")

# %% [markdown]
# ## On real data: train a small GPT
#
# Now your factory trains. The model is nanochat's GPT, small enough for any laptop (2 layers, 64 channels), the text
# that of nanochat's toy world: short facts about people, towns and beasts, as bytes. One model learns with your
# `MuonAdamW`, its twin (the same first weights, the same batches, the same schedules) with AdamW for the matrices too,
# at 0.02, the best rate for it that we found between 0.005 and 0.03. The third is trained by nanochat's own optimizer
# and schedules.

# %% given="train" tags=["oracle"]
import time
from functools import cache

from nanochat import common
from nanochat import schedules as nanochat_schedules
from nanochat.gpt import GPT, GPTConfig
from nanochat.recipe import build_model
from nanochat.toyworld.documents import write_documents

# for a model this small, neither a GPU nor a second thread pays; and in float32, also where there is a bfloat16 GPU
torch.set_num_threads(1)
common.COMPUTE_DTYPE = torch.float32
STEPS, ROWS, LENGTH = 200, 8, 64
TOY_RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "matrix_lr": 0.02, "weight_decay": 0.1, "scalar_lr": 0.5}


def fresh_model() -> GPT:
    """The small GPT with its first weights, always the same."""
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 2}
    return build_model(GPTConfig(sequence_len=LENGTH, vocab_size=128, window_pattern="L", **size), "cpu")


@cache
def text() -> torch.Tensor:
    """The toy world's documents as ASCII bytes, one after the other."""
    return torch.tensor(list("\n".join(write_documents(400, "train")).encode("ascii")))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a step, each (ROWS, LENGTH)."""
    starts = torch.randint(len(text()) - LENGTH, (ROWS, 1), generator=torch.Generator().manual_seed(step))
    rows = text()[starts + torch.arange(LENGTH + 1)]
    return rows[:, :-1], rows[:, 1:]


def train(
    model: GPT, optimizer: torch.optim.Optimizer, values_at: Callable, first: int = 0, last: int = STEPS
) -> list[float]:
    """The loss of each step from `first` to before `last`; `values_at(step)` are the schedules."""
    losses = []
    for step in range(first, last):
        set_schedules(optimizer, values_at(step))
        loss = model(*batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def your_values(step: int) -> dict[str, float]:
    """Your schedules for this run."""
    return schedules(step, STEPS, TOY_RATES["weight_decay"], warmup_steps=10)


def nanochat_values(step: int) -> dict[str, float]:
    """nanochat's."""
    return {
        "lr_multiplier": nanochat_schedules.lr_multiplier(step, STEPS, warmup_steps=10),
        "muon_momentum": nanochat_schedules.muon_momentum(step, STEPS),
        "muon_weight_decay": nanochat_schedules.muon_weight_decay(step, STEPS, TOY_RATES["weight_decay"]),
    }


LOSSES: dict[str, list[float]] = {}
with attempt("Training with your optimizer"):
    started = time.monotonic()
    model = fresh_model()
    LOSSES["your Muon and AdamW"] = train(model, OptimizerFactory(model, **TOY_RATES).build(), your_values)
    print(f"{STEPS} steps of {ROWS * LENGTH} bytes in {time.monotonic() - started:.1f} s")

# %% given="train-adamw" tags=["oracle"]
with attempt("Training with your AdamW alone"):
    model = fresh_model()
    adamw_only = OptimizerFactory(model, **TOY_RATES).build_plain_adamw(matrix_lr=0.02)
    LOSSES["your AdamW alone"] = train(model, adamw_only, your_values)

# %% given="plot-training" tags=["plot", "oracle"]
with picture(
    "Training loss, yours beside nanochat's",
    alt="Three falling curves. Yours lies on nanochat's; AdamW alone falls as fast at first, then stays above them.",
    columns=2,
    size=(9.0, 3.4),
) as p:
    model = fresh_model()
    LOSSES["nanochat"] = train(model, model.setup_optimizer(**TOY_RATES), nanochat_values)
    styles = {
        "nanochat": (GREY, "-", 4.0),
        "your Muon and AdamW": (BLUE, "--", 1.5),
        "your AdamW alone": (ORANGE, "-", 1.5),
    }
    for axis, first in zip(p.axes, (0, 100), strict=True):
        for name, (colour, style, width) in styles.items():
            if name in LOSSES:
                means = torch.tensor(LOSSES[name]).unfold(0, 10, 1).mean(dim=1)[first:]
                steps = range(first + 9, first + 9 + len(means))
                axis.plot(steps, means, style, color=colour, linewidth=width, label=name)
        axis.set(xlabel="step", ylabel="loss (nats a byte), mean of 10 steps")
    p.axes[0].set(title="The whole run")
    p.axes[0].legend()
    p.axes[1].set(title="The second half")
    ends = {name: sum(losses[-10:]) / 10 for name, losses in LOSSES.items()}
    p.caption = "Last ten steps: " + ", ".join(f"{name} {end:.3f}" for name, end in ends.items()) + "."

# %% [markdown]
# ## What you have built
#
# Here your factory takes the place of `GPT.setup_optimizer`, and nanochat's own training loop drives what it builds.
# After 20 steps the run changes hands: nanochat's optimizer loads your optimizer's state, as if from a checkpoint, and
# both go on. Your groups have nanochat's order and your state its names and shapes, so the losses stay the same but for
# rounding.

# %% given="what-you-have-built" tags=["oracle"]
import copy
from unittest.mock import patch

from nanochat import train as nanochat_train


class ToyLoader:
    """The batches from `step` on, as nanochat's training loop wants them."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, dict[str, int]]:
        self.step += 1
        return *batch(self.step - 1), self.state_dict()

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}


with attempt("Your optimizer inside nanochat"):
    scaler = nanochat_train.make_grad_scaler(torch.device("cpu"))

    def drive(model: GPT, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
        """nanochat's training steps from `first` to before `last`."""
        batches = nanochat_train.Ahead(ToyLoader(first))
        losses = []
        for step in range(first, last):
            nanochat_schedules.apply_schedules(optimizer, *nanochat_values(step).values())
            losses.append(nanochat_train.accumulate_gradients(model, batches, 1, scaler))
            nanochat_train.update_weights(optimizer, scaler)
        return losses

    model = fresh_model()
    with patch.object(GPT, "setup_optimizer", lambda model, **rates: OptimizerFactory(model, **rates).build()):
        yours = model.setup_optimizer(**TOY_RATES)
    losses = drive(model, yours, 0, 20)
    twin = copy.deepcopy(model)
    theirs = twin.setup_optimizer(**TOY_RATES)
    theirs.load_state_dict(copy.deepcopy(yours.state_dict()))
    pair = drive(model, yours, 20, 40), drive(twin, theirs, 20, 40)
    difference = max(abs(a - b) for a, b in zip(*pair, strict=True))
    name = f"{type(yours).__module__}.{type(yours).__name__}"
    print(f"{name} in nanochat's loop: loss {losses[0]:.3f}, after 20 steps {losses[-1]:.3f}")
    print(f"20 steps later {pair[0][-1]:.4f} with yours, {pair[1][-1]:.4f} with nanochat's on your state")
    print(f"largest difference of the losses on the way: {difference:.1e}")

# %% [markdown]
# ## In your own words
#
# A colleague finds two kinds of optimizer one too many: "Muon gives the better loss, so let it have all that has two
# dimensions, `wte`, `lm_head` and the value embeddings too." In about ten sentences: (a) a token has occurred in one
# batch and in none of the 50 after it; how far does its row of `wte` still move, compared with the others, under Muon
# and under AdamW (try it with your functions), (b) what is it about `wte` or `lm_head` that makes orthogonalising its
# update questionable, and (c) what would the change save or cost at depth 12, in memory and in FLOPs a step of 524,288
# tokens (a token costs 759,696,048 FLOPs)?

# %% [markdown] written="why_not_everything"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) Under Muon (momentum 0.95, NorMuon's 0.9) about as far as all the others: 1.03 times, in a trial with 64 rows of
# random gradients. The buffer still holds 0.95^50 = 8 % of that one gradient, row equilibration scales it up to the
# norm of every other row, and so it goes on, in a direction long out of date, until its norm is below 1e-6. Under AdamW
# (0.8, 0.995) it stands still, at 0.00006 of the others: m has shrunk by 0.8^50, the root of v hardly. Full marks for
# the argument alone. No point for "the gradient is zero, so it does not move", which forgets the momentum.
#
# (b) A matrix of a block maps one dense vector to another, and its singular values say how much it changes any of them.
# `wte` only ever sees one-hot vectors: what counts is how far each row moves, and rows belong to different tokens,
# frequent and rare, which have nothing to do with each other. Orthogonalising couples them, and lifts the directions of
# rare tokens, mostly noise, to the size of the frequent ones'. 32,768 rows in 768 channels cannot be orthogonal to each
# other, anyhow. `lm_head` is the same at the other end, one row a token; its factor for the shape, the root of 32768 /
# 768, would be 6.5.
#
# (c) Memory: the tables have 201,326,592 numbers, for which Muon keeps one buffer instead of two: 805 MB less in
# float32, half of it in bfloat16. FLOPs: an iteration on a 32768 x 768 table takes two products of 2 · 768² · 32768 and
# one of 2 · 768³, 7.8e10; five of them on eight tables 3.1e12. A training step takes 4.0e14, so that is 0.8 % more (and
# twice what Muon takes for the blocks, 1.6e12). So memory and time are no argument against it; (a) and (b) are.
# ### END SOLUTION
