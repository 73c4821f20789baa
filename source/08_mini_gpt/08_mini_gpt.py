# %% [markdown]
# # Puzzle 8: Mini GPT
#
# **Write nanochat's Transformer yourself, piece by piece, until a real checkpoint loads into it strictly and it says
# what nanochat says, digit for digit.**
#
# ⭐⭐⭐⭐⭐ · about 180 minutes · 100 points in 8 parts · builds on puzzle 1 (helps, is not needed) · runs on any CPU,
# uses a GPU if there is one
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.08_mini_gpt` | runs your notebook and shows the visible checks |
# | `python -m puzzles.08_mini_gpt --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.08_mini_gpt --hint smear` | gives hints for a part |
# | `python -m puzzles.08_mini_gpt --peek smear` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# A checkpoint is only numbers. What they mean is in the forward pass, and a forward pass that is slightly wrong still
# runs, on weights of the right shapes, without a warning:
#
# - **One constant.** nanochat multiplies queries and keys by 1.2. Leave it out, and every attention logit shrinks by a
#   factor of 1.44. The weights have learnt to live with the other sharpness.
# - **One promotion.** A learnt scalar of shape `(1,)` in float32, times a bfloat16 stream, is float32. From there on
#   the whole model computes in float32: twice the memory, half the matrix throughput of an H100,
#   and no FlashAttention-3, which does not take float32.
# - **One forgotten token.** The first layer of nanochat sees a little of the token before. While decoding, that token
#   is in no tensor any more: it has to be kept. Forget it, and training, evaluation and the prompt are all exact, and
#   every generated token is computed from an input the model was never trained on.
#
# None of them shows in a shape. They show in the logits, if there is something to compare them with. Here there is.
#
# After this puzzle you can
# 1. write every piece of a current decoder (RMS norm, RoPE, QK norm, grouped heads, windows, squared ReLU) from its
#    formula;
# 2. call FlashAttention's two functions correctly, in training and with a KV cache;
# 3. say what nanochat's learnt scalars do (smear, value gates, residual and x0 lambdas, backout) and read them off a
#    checkpoint;
# 4. load a checkpoint of nanochat's strictly into a class of your own and get its logits to within 1e-5;
# 5. look into the model: attention maps, and what it would have said after each layer.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: `B` rows, `T` tokens, `C` = `n_embd` channels of the residual stream, `H` query heads, `H_kv` heads
# of keys and values, `D` channels a head, `V` tokens in the vocabulary.

# %% given="imports"
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from nanochat import common
from nanochat.engine import KVCache
from nanochat.flash_attention import flash_attn
from puzzles.checks import Checks, expect
from puzzles.compare import FLOAT32, Tolerance
from puzzles.plots import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, attempt, picture

check = Checks("08_mini_gpt")

# %% [markdown]
# ## One rule before the first part: whose dtype
#
# The weights are kept in **float32** (the optimizer wants that); the residual stream `x` runs in the machine's compute
# dtype, **bfloat16** on a GPU. There is no autocast. Every matrix product is computed in the dtype of the stream, so
# the weight is cast, not the stream. The next cell is all there is to it. PyTorch's layout: a weight `(out, in)` turns
# `(..., in)` into `(..., out)`. There are no biases anywhere.
#
# **This holds for every part:** what you return has the dtype of the stream that you were given (but for the logits of
# part 7), and what you are given is left as it is.


# %% given="linear"
def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., in) times a weight (out, in), in the dtype of x: (..., out)."""
    return F.linear(x, weight.to(x.dtype))


# %% [markdown]
# ## Part 1 · Norm and MLP (10 points, 10 minutes)
#
# **RMS norm** ([arXiv 1910.07467](https://arxiv.org/abs/1910.07467)) brings every token's vector to the same length. It
# divides by the root of the mean square; it does not centre, and in nanochat it has no learnt scale: the matrix that
# follows can hold one.
#
# $$\mathrm{norm}(x) = \frac{x}{\sqrt{\frac1n \sum_{c=1}^{n} x_c^2 + \varepsilon}}$$
#
# over the **last** dimension, whatever its size $n$, for a tensor with any number of dimensions. $\varepsilon$ is
# float32's machine epsilon, $2^{-23}$ = 1.19e-7, PyTorch's default, and the sum is made in float32: in bfloat16 the
# square of a small number would be lost. `[3, 4, 0, 0]` has the mean square 6.25, so it becomes `[1.2, 1.6, 0, 0]`.
#
# **The MLP** is two matrices with a squared ReLU between them (Primer,
# [arXiv 2109.08668](https://arxiv.org/abs/2109.08668)):
#
# $$\mathrm{mlp}(x) = \mathrm{relu}(x\,W_{fc}^\top)^2\;W_{proj}^\top$$
#
# The square costs nothing and makes the few neurons that fire strongly count more. A hidden layer of `[3, -2, 0.5]`
# becomes `[9, 0, 0.25]`.
#
# **Contract.** `norm` works on any shape. `mlp` takes `c_fc` `(hidden, C)` and `c_proj` `(C, hidden)` and does not norm
# or add anything: the block around it does.


# %% hole="norm_and_mlp"
def norm(x: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last dimension, without learnt parameters; eps 2^-23, inside the root. Same shape and dtype."""
    ### BEGIN SOLUTION
    return F.rms_norm(x, (x.size(-1),))
    ### END SOLUTION


def mlp(x: torch.Tensor, c_fc: torch.Tensor, c_proj: torch.Tensor) -> torch.Tensor:
    """x (..., C) -> (..., C): c_fc (hidden, C), the square of the ReLU, c_proj (C, hidden)."""
    ### BEGIN SOLUTION
    return linear(F.relu(linear(x, c_fc)).square(), c_proj)
    ### END SOLUTION


# %% given="check-norm_and_mlp"
BFLOAT16 = Tolerance(rtol=0.02, atol=0.02)  # a few roundings to 8 bits


def normed_and_mlp(x: torch.Tensor, c_fc: torch.Tensor, c_proj: torch.Tensor) -> dict:
    """What your two functions make of the same x."""
    return {"norm": norm(x), "mlp": mlp(x, c_fc, c_proj)}


with check("norm_and_mlp"):
    rms = "divide by the root of the mean (not the sum) of the squares along the last dimension, without centring"
    expect(norm, (torch.tensor([3.0, 4.0, 0.0, 0.0]),), torch.tensor([1.2, 1.6, 0.0, 0.0]), rms, FLOAT32)
    two = torch.tensor([[[1.0, 1.0], [7.0, 1.0]]])
    expect(norm, (two,), torch.tensor([[[1.0, 1.0], [1.4, 0.2]]]), rms, FLOAT32)
    expect(norm, (torch.zeros(2, 3),), torch.zeros(2, 3), "eps keeps the division from 0 / 0")
    tiny = "eps is 2^-23, under the root: of four times 0.0003 the mean square is 9e-8, less than eps"
    expect(norm, (torch.full((4,), 3e-4),), torch.full((4,), 0.6558896), tiny, FLOAT32)
    half = torch.tensor([3.0, 4.0, 0.0, 0.0]).bfloat16()
    cast = "what comes in as bfloat16 goes out as bfloat16"
    expect(norm, (half,), torch.tensor([1.2, 1.6, 0.0, 0.0]).bfloat16(), cast, BFLOAT16)

    fc = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]])
    proj = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 4.0]])
    squared = "the hidden layer is [3, -2, 2.5]; negative ones become 0, the others are squared, before c_proj"
    expect(mlp, (torch.tensor([[3.0, -2.0]]), fc, proj), torch.tensor([[9.0, 25.0]]), squared)
    expect(mlp, (torch.tensor([[3.0, -2.0]]), fc, -proj), torch.tensor([[-9.0, -25.0]]), squared)
    expect(mlp, (torch.tensor([[3.0, -2.0]]).bfloat16(), fc, proj), torch.tensor([[9.0, 25.0]]).bfloat16(), cast)

# %% graded="norm_and_mlp"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("norm_and_mlp")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "norm_and_mlp", normed_and_mlp)
### END HIDDEN TESTS

# %% given="plot-norm_and_mlp" tags=["plot"]
with picture(
    "Your norm and your MLP",
    alt="Left: the length after your norm, flat at 1, falling towards 0 for tiny inputs. Right: a squared ReLU.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    torch.manual_seed(0)
    scales = torch.logspace(-6, 3, 40)
    vectors = torch.randn(40, 64)
    lengths = norm(vectors * scales[:, None]).square().mean(dim=-1).sqrt()
    p.axes[0].loglog(scales, lengths, "o", color=BLUE, markersize=4, label="after your norm")
    p.axes[0].loglog(scales, scales, "--", color=GREY, label="before")
    rms = (vectors * scales[:, None]).square().mean(dim=-1)
    p.axes[0].loglog(scales, (1 / (1 + 2**-23 / rms)).sqrt(), color=ORANGE, label="by the formula")
    p.axes[0].axvline(2**-11.5, color=ORANGE, linestyle=":", label="root of eps, 3.5e-4")
    p.axes[0].set(title="Norm", xlabel="size of the input (RMS)", ylabel="size of the output (RMS)", ylim=(1e-3, 10))
    p.axes[0].legend(fontsize=7)
    hidden, one = torch.linspace(-2, 2, 81)[:, None], torch.ones(1, 1)
    p.axes[1].plot(hidden[:, 0], mlp(hidden, one, one)[:, 0], color=BLUE, label="yours")
    p.axes[1].plot(hidden[:, 0], F.gelu(hidden)[:, 0], "--", color=GREY, label="GELU")
    p.axes[1].set(title="What a hidden neuron passes on", xlabel="its input", ylabel="its output")
    p.axes[1].legend(fontsize=7)
    p.caption = (
        f"Size 1000 becomes {lengths[-1]:.3f}, size 0.000001 becomes {lengths[0]:.4f}. "
        f"A neuron at 2 passes on {mlp(one * 2, one, one).item():g}, at -2 {mlp(one * -2, one, one).item():g}."
    )

# %% [markdown]
# ## Part 2 · Queries and keys: rotary, then norm, then 1.2 (10 points, 15 minutes)
#
# A query and a key meet in a dot product. Before they do, two things happen to both of them.
#
# **Rotary** (RoPE, [arXiv 2104.09864](https://arxiv.org/abs/2104.09864)) turns channel pairs by an angle that grows
# with the position, so that the dot product depends on how far the two are apart. Channel $c$ is paired with channel
# $c + D/2$: the first **half** with the second, not neighbours. With $x_1$ and $x_2$ for the halves,
#
# $$y_1 = x_1 \cos + x_2 \sin, \qquad y_2 = x_2 \cos - x_1 \sin$$
#
# The tables `cos` and `sin` are given, `(1, T, 1, D/2)`: one row a position, the same for all rows and heads.
#
# **QK norm** ([arXiv 2010.04245](https://arxiv.org/abs/2010.04245)) then gives every query and key, that is every head
# of every token, the RMS 1 (the norm of part 1, over the `D` channels). A dot product of two such vectors is at most
# $D$, and after attention's division by $\sqrt D$ a logit is at most $\sqrt D$. No query can grow until its softmax
# saturates, which is what used to make large runs diverge. But with a bound comes a limit to how *sharp* attention can
# get. So both are multiplied by **1.2**, and the bound is $1.44 \sqrt D$: 16.3 for heads of 128 channels.
#
# **The order matters** although a rotation keeps lengths. A table need not be a pure rotation: in bfloat16
# $\cos^2 + \sin^2$ is off by up to 0.6 %, and YaRN ([arXiv 2309.00071](https://arxiv.org/abs/2309.00071)) scales its
# tables on purpose. The norm comes after the rotation, so that lengths are exact whatever the table.
#
# `D` = 4, x = `[1, 2, 3, 4]`, cos = `[0, 1]`, sin = `[1, 0]`: the pair (1, 3) turns to (3, -1), the pair (2, 4) stays.
# So `[3, 2, -1, 4]`, with RMS 2.739; the result is `[1.315, 0.876, -0.438, 1.753]`.
#
# **Contract.** `x` is `(B, T, heads, D)`, queries or keys with any number of heads, and may be a view; `cos` and `sin`
# are of its dtype.


# %% hole="rotary_qk_norm"
def rotary_qk_norm(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys (B, T, heads, D), rotated by the tables (1, T, 1, D/2), then RMS-normed a head, then times 1.2."""
    ### BEGIN SOLUTION
    x1, x2 = x.chunk(2, dim=-1)
    rotated = torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)
    return 1.2 * F.rms_norm(rotated, (rotated.size(-1),))
    ### END SOLUTION


# %% given="check-rotary_qk_norm"
def rotary_tables(length: int, head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """nanochat's cos and sin of `length` positions, each (1, length, 1, head_dim / 2): those of puzzle 1."""
    speed = 1.0 / 100_000 ** (torch.arange(0, head_dim, 2) / head_dim)
    turned = (torch.arange(float(length)).unsqueeze(1) * speed).view(1, length, 1, -1)
    return turned.cos().to(dtype), turned.sin().to(dtype)


def vectors(*lists: list[float]) -> torch.Tensor:
    """A tensor (1, T, 1, n): one row, one head, a list a token."""
    return torch.tensor(lists)[None, :, None, :]


with check("rotary_qk_norm"):
    halves = "channel c is paired with c + D/2; y1 = x1 cos + x2 sin and y2 = x2 cos - x1 sin"
    expect(
        rotary_qk_norm,
        (vectors([1.0, 2.0, 3.0, 4.0]), vectors([0.0, 1.0]), vectors([1.0, 0.0])),
        vectors([1.3145341, 0.8763561, -0.4381780, 1.7527121]),
        halves,
        FLOAT32,
    )
    expect(
        rotary_qk_norm,
        (vectors([1.0, 0.0], [1.0, 0.0]), vectors([1.0], [0.6]), vectors([0.0], [0.8])),
        vectors([1.6970563, 0.0], [1.0182338, -1.3576450]),
        "position 0 stays and position 1 turns by minus its angle; the RMS of each is 1.2",
        FLOAT32,
    )
    expect(
        rotary_qk_norm,
        (vectors([30.0, 0.0]), vectors([1.2]), vectors([1.6])),
        vectors([1.0182338, -1.3576450]),
        "this table doubles lengths, and the norm comes after it: the RMS of the result is 1.2 all the same",
        FLOAT32,
    )
    two_heads = torch.tensor([[[[1.0, 1.0], [3.0, -4.0]]]])
    expect(
        rotary_qk_norm,
        (two_heads, vectors([1.0]), vectors([0.0])),
        torch.tensor([[[[1.2, 1.2], [1.0182338, -1.3576450]]]]),
        "every head is normed by itself",
        FLOAT32,
    )
    expect(
        rotary_qk_norm,
        (vectors([3.0, -4.0]).bfloat16(), vectors([1.0]).bfloat16(), vectors([0.0]).bfloat16()),
        vectors([1.0182338, -1.3576450]).bfloat16(),
        "what comes in as bfloat16 goes out as bfloat16",
        BFLOAT16,
    )

# %% graded="rotary_qk_norm"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("rotary_qk_norm")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "rotary_qk_norm", rotary_qk_norm)
### END HIDDEN TESTS

# %% given="plot-rotary_qk_norm" tags=["plot"]
with picture(
    "One vector as query at position 600 and as key before it, D = 64",
    alt="Left: the logit falls off from 11.5 with the distance. Right: lengths of your results, all on 9.6.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    torch.manual_seed(1)
    cos, sin = rotary_tables(601, 64)
    same = torch.randn(64).expand(1, 601, 1, 64)
    turned = rotary_qk_norm(same, cos, sin)[0, :, 0]
    logits = (turned @ turned[-1]).flip(0) / 8
    p.axes[0].plot(logits, color=BLUE, label="yours")
    p.axes[0].axhline(1.44 * 8, color=ORANGE, linestyle=":", label="1.44 times the root of D")
    p.axes[0].set(title="Logit by distance", xlabel="tokens between them", ylabel="q · k / 8")
    p.axes[0].legend(fontsize=7)
    sizes = torch.logspace(-2, 2, 30)
    mixed = torch.randn(1, 30, 1, 64) * sizes[:, None, None]
    lengths = rotary_qk_norm(mixed, cos[:, :30], sin[:, :30])[0, :, 0].norm(dim=-1)
    doubled = rotary_qk_norm(mixed, 2 * cos[:, :30], 2 * sin[:, :30])[0, :, 0].norm(dim=-1)
    p.axes[1].semilogx(sizes, lengths, "o", color=BLUE, markersize=5, label="yours")
    p.axes[1].semilogx(sizes, doubled, "x", color=BLACK, markersize=5, label="yours, tables doubled")
    p.axes[1].axhline(9.6, color=ORANGE, linestyle=":", label="1.2 times the root of D")
    p.axes[1].set(
        title="Lengths", xlabel="size of what comes in (RMS)", ylabel="length of what comes out", ylim=(0, 25)
    )
    p.axes[1].legend(fontsize=7)
    p.caption = (
        f"Logit with itself {logits[0]:.2f}, 10 tokens away {logits[10]:.2f}, 600 away {logits[600]:.2f}. "
        f"Lengths from {lengths.min():.2f} to {lengths.max():.2f}, with doubled tables from {doubled.min():.2f} "
        f"to {doubled.max():.2f}."
    )

# %% [markdown]
# ## Part 3 · The value residual and its gate (10 points, 15 minutes)
#
# By the time a token has gone through ten layers, its values in attention are made of a stream that has moved on. What
# the token *was* is hard to get at. So some layers own a second embedding table, as wide as their values, and add the
# token's row of it, `ve`, to the values (ResFormer, [arXiv 2410.17897](https://arxiv.org/abs/2410.17897)). It costs a
# lookup, hardly any time.
#
# **Which layers?** The last one, and counted back from there every other: of 4 layers, layers 1 and 3; of 5 layers, 0,
# 2 and 4.
#
# **How much?** That is for the layer to say, for every token and every head of values. The gate is a linear map of the
# first **12** channels of `x`, the layer's (normed) input, put through a sigmoid and stretched to 0 to 3:
#
# $$v_h \leftarrow v_h + g_h \cdot ve_h, \qquad g = 3\,\sigma(x_{0:12}\,W_{gate}^\top)$$
#
# With a gate of zeros, and training starts with nearly that, $g$ = 1.5. One head, $v$ = `[1, 2]`, $ve$ = `[10, 20]`:
# the result is `[16, 32]`.
#
# **Contract.** `v` is `(B, T, H_kv, D)`, `x` `(B, T, C)` with `C` at least 12. `ve` is `(B, T, H_kv * D)`: the heads
# one after the other, and `gate` `(H_kv, 12)`. On layers without, both are `None` and the values are returned
# unchanged.


# %% hole="value_residual"
def has_ve(i: int, n_layer: int) -> bool:
    """Whether layer i (from 0) of n_layer has a value embedding: the last does, and every other one before it."""
    ### BEGIN SOLUTION
    return (n_layer - 1 - i) % 2 == 0
    ### END SOLUTION


def value_residual(
    v: torch.Tensor, x: torch.Tensor, ve: torch.Tensor | None, gate: torch.Tensor | None
) -> torch.Tensor:
    """Values v (B, T, H_kv, D) plus gated value embeddings ve (B, T, H_kv * D); gate (H_kv, 12) reads x[..., :12]."""
    ### BEGIN SOLUTION
    if ve is None or gate is None:
        return v
    opening = 3 * torch.sigmoid(linear(x[..., :12], gate))
    return v + opening[..., None] * ve.view(v.shape)
    ### END SOLUTION


# %% given="check-value_residual"
def layers_and_values(
    n_layer: int, v: torch.Tensor, x: torch.Tensor, ve: torch.Tensor | None, gate: torch.Tensor | None
) -> dict:
    """Which layers have a value embedding by your `has_ve`, and what your `value_residual` answers."""
    return {"layers": [i for i in range(n_layer) if has_ve(i, n_layer)], "values": value_residual(v, x, ve, gate)}


def layers(n_layer: int) -> list[int]:
    """The layers with a value embedding, by your `has_ve`."""
    return [i for i in range(n_layer) if has_ve(i, n_layer)]


with check("value_residual"):
    parity = "the last layer always has one, and every other one counted back from it"
    for n_layer, theirs in ((4, [1, 3]), (5, [0, 2, 4]), (1, [0])):
        expect(layers, (n_layer,), theirs, parity)
    one_v, one_ve = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[10.0, 20.0]]])
    shut = torch.zeros(1, 1, 12), one_ve, torch.zeros(1, 12)
    expect(value_residual, (one_v, *shut), torch.tensor([[[[16.0, 32.0]]]]), "a gate of 0 is 3 * sigmoid(0) = 1.5")
    expect(value_residual, (one_v, torch.zeros(1, 1, 12), None, None), one_v, "without ve nothing changes")
    wide, gates = torch.full((1, 2, 14), 100.0), torch.zeros(2, 12)
    wide[0, :, :12] = torch.tensor([[1.0], [-1.0]])
    gates[0, 0] = gates[1, 11] = math.log(2)  # the sigmoid of ln 2 is 2/3, of -ln 2 it is 1/3
    gates[1, 10] = -math.log(2)
    expect(
        value_residual,
        (torch.zeros(1, 2, 2, 2), wide, torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]), gates),
        torch.tensor([[[[2.0, 4.0], [4.5, 6.0]], [[5.0, 6.0], [10.5, 12.0]]]]),
        "each head has its own gate, from the first 12 channels of x, and its own D channels of ve",
        FLOAT32,
    )
    expect(
        value_residual,
        (one_v.bfloat16(), shut[0].bfloat16(), one_ve.bfloat16(), torch.zeros(1, 12)),
        torch.tensor([[[[16.0, 32.0]]]]).bfloat16(),
        "the gate's weight is float32, the values stay bfloat16",
    )

# %% graded="value_residual"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("value_residual")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "value_residual", layers_and_values)
### END HIDDEN TESTS

# %% given="plot-value_residual" tags=["plot"]
with picture(
    "Which layers look the token up again, and how much they take of it",
    alt="Left: a checkerboard of depths and layers, the last layer of each depth filled. Right: an S from 0 to 3.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    for depth in range(1, 13):
        for i in range(depth):
            full = has_ve(i, depth)
            p.axes[0].plot(i, depth, "s", color=BLUE, markersize=7, fillstyle="full" if full else "none")
    p.axes[0].set(title="Filled: has a value embedding", xlabel="layer", ylabel="depth (layers)", xticks=range(12))
    z = torch.linspace(-6, 6, 61)
    narrow = torch.zeros(1, 61, 12)
    narrow[0, :, 0] = z
    reader = torch.zeros(1, 12)
    reader[0, 0] = 1
    taken = value_residual(torch.zeros(1, 61, 1, 1), narrow, torch.ones(1, 61, 1), reader).flatten()
    p.axes[1].plot(
        z, [3 / (1 + math.exp(-read)) for read in z.tolist()], color=ORANGE, linewidth=4, label="by the formula"
    )
    p.axes[1].plot(z, taken, color=BLUE, label="yours")
    p.axes[1].axhline(1.5, color=GREY, linestyle=":", label="a gate of zeros: 1.5")
    p.axes[1].set(title="Share of ve that is added", xlabel="what the gate reads", ylabel="g", ylim=(-0.1, 3.2))
    p.axes[1].legend(fontsize=7)
    p.caption = f"Of 12 layers these have one: {layers(12)}. The gate goes from {taken[0]:.2f} to {taken[-1]:.2f}."

# %% [markdown]
# ## Part 4 · What attention looks at: the map (15 points, 20 minutes)
#
# FlashAttention never holds the attention weights: it keeps running sums and throws the weights away, which is why it
# is fast. To *see* what a head looks at, one has to compute them. This part does; the plots at the end use it.
#
# - A query of a head has a **logit** for every key: their dot product, divided by $\sqrt D$.
# - The query may see its own position and the `left` keys before it, nothing later; `left` = -1 is no limit. There may
#   be fewer queries than keys, as when decoding from a cache: **the queries are always the last `Tq` of the `Tk`
#   positions**, so query $i$ stands at position $p = i + T_k - T_q$ and sees key $j$ if $p - left \le j \le p$.
# - The **softmax** over the keys it sees gives weights that sum to 1. What it does not see has the weight 0.
# - **Grouped heads** (GQA, [arXiv 2305.13245](https://arxiv.org/abs/2305.13245)): with `H` query heads and `H_kv` of
#   keys, each key head serves `H / H_kv` query heads that lie **side by side**. 6 query heads on 2: heads 0, 1, 2 use
#   key head 0, and 3, 4, 5 use key head 1.
#
# Three tokens, one head, logits of the last query 0, ln 2 and ln 3: its weights are 1/6, 2/6, 3/6. With `left` = 1 it
# sees the last two only: 0, 0.4, 0.6.
#
# **Contract.** `q` is `(B, Tq, H, D)`, `k` is `(B, Tk, H_kv, D)`, float32, `1 <= Tq <= Tk`, `left >= -1`. Returns
# `(B, H, Tq, Tk)`. Use what you like, also `visible_mask(Tq, Tk, left)` of `nanochat.flash_attention`, which is part 4
# of puzzle 1. Logits may be as large as 1000 and as low as -1000.


# %% hole="attention_map"
def attention_map(q: torch.Tensor, k: torch.Tensor, left: int) -> torch.Tensor:
    """The attention weights of queries (B, Tq, H, D) over keys (B, Tk, H_kv, D): (B, H, Tq, Tk), each row sums to 1.

    The queries are the last Tq positions. Each sees itself and `left` keys before it (-1: all of them).
    """
    ### BEGIN SOLUTION
    Tq, Tk = q.size(1), k.size(1)
    k = k.repeat_interleave(q.size(2) // k.size(2), dim=2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.size(-1))
    position = torch.arange(Tk - Tq, Tk, device=q.device)[:, None]
    distance = position - torch.arange(Tk, device=q.device)
    hidden = distance < 0
    if left >= 0:
        hidden |= distance > left
    return logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    ### END SOLUTION


# %% given="check-attention_map"
def one_head(*numbers: float) -> torch.Tensor:
    """(1, T, 1, 4): a number a token in the first of four channels."""
    x = torch.zeros(1, len(numbers), 1, 4)
    x[0, :, 0, 0] = torch.tensor(numbers)
    return x


with check("attention_map"):
    ln2, ln3 = math.log(2), math.log(3)
    q, k = one_head(2.0, 2.0, 2.0), one_head(0.0, ln2, ln3)  # q · k / sqrt(4) is 0, ln 2, ln 3
    causal = torch.tensor([[1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 6, 2 / 6, 3 / 6]])[None, None]
    expect(attention_map, (q, k, -1), causal, "softmax of q · k / sqrt(D) over the keys up to the query's own", FLOAT32)
    near = torch.tensor([[1, 0, 0], [1 / 3, 2 / 3, 0], [0, 0.4, 0.6]])[None, None]
    expect(attention_map, (q, k, 1), near, "left = 1: itself and one before; the softmax is over those alone", FLOAT32)
    expect(attention_map, (q, k, 0), torch.eye(3)[None, None], "left = 0: a query still sees itself", FLOAT32)
    expect(attention_map, (q, k, 9), causal, "a window longer than the row is no limit", FLOAT32)
    last = "the queries are the last of the positions: two of three stand at positions 1 and 2"
    expect(attention_map, (q[:, :2], k, -1), causal[:, :, 1:], last, FLOAT32)
    expect(attention_map, (q[:, :1], k, 1), near[:, :, 2:], last, FLOAT32)
    grouped = torch.zeros(1, 2, 4, 4)
    grouped[0, 1, :, 0] = torch.tensor([2.0, 2.0, 2.0, 4.0])
    keys = torch.zeros(1, 2, 2, 4)
    keys[0, 1, :, 0] = torch.tensor([ln2, ln3])
    expect(
        attention_map,
        (grouped, keys, -1),
        torch.tensor(
            [[[1, 0], [1 / 3, 2 / 3]], [[1, 0], [1 / 3, 2 / 3]], [[1, 0], [1 / 4, 3 / 4]], [[1, 0], [0.1, 0.9]]]
        )[None],
        "query heads 0 and 1 use key head 0, query heads 2 and 3 use key head 1",
        FLOAT32,
    )
    even = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    large, low = (one_head(1000.0, 1000.0), one_head(2.0, 2.0)), (one_head(1000.0, 1000.0), one_head(-2.0, -2.0))
    expect(attention_map, (*large, -1), even, "e^1000 is infinite; softmax subtracts the largest logit first")
    expect(attention_map, (*low, -1), even, "what is hidden needs a logit of -inf: here the others are at -1000")

# %% graded="attention_map"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("attention_map")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "attention_map", attention_map)
### END HIDDEN TESTS

# %% given="plot-attention_map" tags=["plot"]
with picture(
    "Your maps of 24 tokens: four query heads on two key heads",
    alt="Four squares: a full triangle, a band of 7 keys, the same band all even, and a strip of 6 queries.",
    columns=4,
    size=(10.5, 3.6),
) as p:
    torch.manual_seed(2)
    q, k = torch.randn(1, 24, 4, 32).cumsum(dim=1) / 3, torch.randn(1, 24, 2, 32).cumsum(dim=1) / 3
    k[:, :, 1] = 0  # nothing to choose from: whoever uses key head 1 looks at all it sees evenly
    views = {
        "head 1, no limit": (1, 24, -1),
        "head 1, left 6": (1, 24, 6),
        "head 2, left 6\n(its keys are all 0)": (2, 24, 6),
        "head 1, left 6,\nlast 6 queries": (1, 6, 6),
    }
    weights = [attention_map(q[:, -queries:], k, left)[0, head_idx] for head_idx, queries, left in views.values()]
    for axis, title, weight in zip(p.axes, views, weights, strict=True):
        axis.imshow(weight.sqrt(), cmap="Blues", vmin=0, vmax=1, extent=(-0.5, 23.5, 23.5, 23.5 - len(weight)))
        axis.set(xlabel="key position", ylim=(23.5, -0.5))
        axis.set_title(title, fontsize=9)
    p.axes[0].set_ylabel("query position")
    low, high = torch.cat([weight.sum(dim=-1) for weight in weights]).aminmax()
    p.caption = (
        f"Darker is more weight (root scale). Sums over the keys lie between {low:.3f} and {high:.3f}; "
        f"the last query's largest weight in head 2 is {weights[2][-1].max():.3f} (1/7 = 0.143)."
    )

# %% [markdown]
# ## Part 5 · Attention through the kernel's door (15 points, 20 minutes)
#
# Training and chatting use FlashAttention. `nanochat.flash_attention` has its two functions, and runs PyTorch's own
# attention behind them where there is no such kernel. So the code is the same on a laptop and on an H100. All tensors
# are `(B, T, heads, D)`.
#
# - **Training**: `flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))`.
# - **With a cache**: `flash_attn.flash_attn_with_kvcache(q, k_cache, v_cache, k=k, v=v, cache_seqlens=...,
#   causal=True, window_size=(left, 0))`. It *writes* `k` and `v` into the layer's `k_cache` and `v_cache`, in place, at
#   the position that `cache_seqlens` gives for each row, and then attends to everything up to and including them. It
#   does **not** move the position: the same number is needed by the layers that follow, and whoever runs the layers
#   advances once, after the last one.
#
# Both return `(B, T, H, D)`. They know about grouped heads: keys and values are handed over with their `H_kv` heads.
# PyTorch's attention behind the door is causal whatever you say, FlashAttention is not: its default is `causal=False`.
# So a forgotten flag is right on every CPU and looks into the future on an H100. **The check watches what you pass.**
#
# The cache is nanochat's `KVCache` (puzzle 4): `get_layer_cache(layer_idx)` gives `(k_cache, v_cache)` of one layer,
# each `(B, room, H_kv, D)`, as views; `cache_seqlens` is `(B,)`, int32.
#
# Queries of zeros see everything equally, so the result is the mean of the values they see. Values 1, 2, 4 and a window
# of `(1, 0)`: 1, 1.5, 3.
#
# **Contract.** One call of one of the two functions, through the name `flash_attn`, with the window as it is given.
# Returns `(B, T, H * D)`: the heads one after the other, ready for the output projection.


# %% hole="attend"
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: tuple[int, int],
    layer_idx: int,
    kv_cache: KVCache | None = None,
) -> torch.Tensor:
    """Causal attention of q (B, T, H, D) over k and v (B, T, H_kv, D), and over what layer_idx has cached before them.

    Returns (B, T, H * D). With a cache, k and v are written into it, at its position, which stays where it is.
    """
    ### BEGIN SOLUTION
    if kv_cache is None:
        y = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=window_size)
    else:
        keys, values = kv_cache.get_layer_cache(layer_idx)
        filled = kv_cache.cache_seqlens
        y = flash_attn.flash_attn_with_kvcache(
            q, keys, values, k=k, v=v, cache_seqlens=filled, causal=True, window_size=window_size
        )
    return y.flatten(2)
    ### END SOLUTION


# %% given="check-attend"
@contextmanager
def watched() -> Iterator[list]:
    """A list of the calls of FlashAttention's functions in the block: [name, causal, window]."""
    calls: list = []

    def watch(name: str) -> Callable:
        real = getattr(flash_attn, name)

        def call(
            *arguments: Any, causal: bool = False, window_size: tuple[int, int] = (-1, -1), **keywords: Any
        ) -> Any:
            calls.append([name, bool(causal), [int(side) for side in window_size]])
            return real(*arguments, causal=causal, window_size=window_size, **keywords)

        return call

    names = ("flash_attn_func", "flash_attn_with_kvcache")
    with patch.multiple(flash_attn, **{name: watch(name) for name in names}):
        yield calls


def attend_steps(steps: list, cache_size: dict | None, device: Any = "cpu") -> dict:
    """Your `attend` at work: what each step gives, how FlashAttention was called, and what is in the cache at the end.

    Steps: ("attend", layer_idx, q, k, v, window) and ("advance", n). cache_size: B, H_kv, room, D and layers, or None.
    """
    cache = KVCache(**cache_size, device=device, dtype=steps[0][2].dtype) if cache_size else None
    results: list = []
    with watched() as calls:
        for what, *arguments in steps:
            if what == "advance":
                cache.advance(*arguments)
            else:
                layer_idx, q, k, v, window = arguments
                given = [tensor.to(device) for tensor in (q, k, v)]
                results.append(attend(*given, tuple(window), layer_idx, cache))
    state = [cache.k_cache, cache.v_cache, cache.cache_seqlens] if cache else None
    return {"results": results, "calls": calls, "cache": state}


def simple(passes: list) -> list:
    """Steps from short notes: (layer_idx, window, values) is queries of zeros, two heads of one channel, on one head of
    these values and of keys that are their negatives; a number n advances the cache by n."""
    steps: list = []
    for note in passes:
        if isinstance(note, int):
            steps.append(("advance", note))
            continue
        layer_idx, window, values = note
        v = torch.tensor(values).view(1, -1, 1, 1)
        steps.append(("attend", layer_idx, torch.zeros(1, len(values), 2, 1), -v, v, window))
    return steps


ROOM = {"batch_size": 1, "num_heads": 1, "seq_len": 5, "head_dim": 1, "num_layers": 2}


def attend_results(passes: list, cached: bool = False) -> list:
    """What each step gives; with a cache, it has two layers and room for 5 positions."""
    return attend_steps(simple(passes), ROOM if cached else None)["results"]


def attend_calls(passes: list, cached: bool = False) -> list:
    """How FlashAttention was called: [function, causal, window]."""
    return attend_steps(simple(passes), ROOM if cached else None)["calls"]


def attend_cache(passes: list) -> list:
    """What is in the cache at the end: keys, values, cache_seqlens."""
    return attend_steps(simple(passes), ROOM)["cache"]


def four_heads(values: list[float]) -> torch.Tensor:
    """What comes back when one token attends to itself, with four heads of two channels of these values."""
    v = torch.tensor(values).view(1, 1, 4, 2)
    return attend(torch.zeros_like(v), v, v, (1, 0), 0)


def pairs(*numbers: float) -> torch.Tensor:
    """The result (1, T, 2) of two heads that agree."""
    return torch.tensor(numbers).view(1, -1, 1).repeat(1, 1, 2)


with check("attend"):
    mean = "with queries of zeros, the mean of the values in the window: itself and `left` before"
    expect(attend_results, ([(0, (1, 0), [1.0, 2.0, 4.0])],), [pairs(1.0, 1.5, 3.0)], mean, FLOAT32)
    expect(attend_results, ([(3, (9, 0), [1.0, 2.0, 6.0])],), [pairs(1.0, 1.5, 3.0)], mean, FLOAT32)
    once = "one call of flash_attn_func with causal=True and the window as it is given"
    expect(attend_calls, ([(0, (1, 0), [1.0, 2.0, 4.0])],), [["flash_attn_func", True, [1, 0]]], once)
    numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    in_order = "the heads lie one after the other in the last dimension"
    expect(four_heads, (numbers,), torch.tensor([[numbers]]), in_order, FLOAT32)

    prompt = [(0, (9, 0), [1.0, 3.0]), (1, (1, 0), [2.0, 4.0]), 2]
    next_token = [(0, (9, 0), [8.0]), (1, (1, 0), [6.0]), 1]
    reach = "the new tokens see what their layer has cached, as far as the window reaches"
    each = [pairs(1.0, 2.0), pairs(2.0, 3.0), pairs(4.0), pairs(5.0)]
    expect(attend_results, ([*prompt, *next_token], True), each, reach, FLOAT32)
    values = torch.tensor([[1.0, 3.0, 8.0, 0.0, 0.0], [2.0, 4.0, 6.0, 0.0, 0.0]]).view(2, 1, 5, 1, 1)
    written = "k and v belong in the layer's cache, at the position that `advance` moves and you do not"
    filled = [-values, values, torch.tensor([3], dtype=torch.int32)]
    expect(attend_cache, ([*prompt, *next_token],), filled, written)
    with_cache = "with a cache, one call of flash_attn_with_kvcache, also when the cache is empty"
    doors = [["flash_attn_with_kvcache", True, [9, 0]], ["flash_attn_with_kvcache", True, [1, 0]]]
    expect(attend_calls, (next_token, True), doors, with_cache)

# %% graded="attend"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("attend")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "attend", attend_steps)
### END HIDDEN TESTS

# %% given="plot-attend" tags=["plot"]
with picture(
    "One pass of 40 tokens against the same tokens in pieces of 16, 1, 7, 1, ...",
    alt="Two panels, a line for each window. Left, both ways lie on each other. Right, their difference, near 1e-7.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 40, heads, 8) for heads in (4, 2, 2))
    largest = []
    for window, colour, marker in zip(((40, 0), (8, 0)), COLOURS, MARKERS, strict=False):
        cache = KVCache(batch_size=1, num_heads=2, seq_len=40, head_dim=8, num_layers=1, device="cpu", dtype=q.dtype)
        pieces = []
        for part_of in zip(*(x.split([16, 1, 7, 1, 1, 1, 5, 1, 7], dim=1) for x in (q, k, v)), strict=True):
            pieces.append(attend(*part_of, window, 0, cache))
            cache.advance(part_of[0].size(1))
        whole, cached = attend(q, k, v, window, 0)[0], torch.cat(pieces, dim=1)[0]
        p.axes[0].plot(whole[:, 0], color=colour, label=f"at once, window {window}")
        p.axes[0].plot(cached[:, 0], marker, color=colour, fillstyle="none", markersize=4, label="from the cache")
        error = (whole - cached).abs().amax(dim=-1)
        largest.append(error.max().item())
        p.axes[1].semilogy(error.clamp(min=1e-9), marker, color=colour, markersize=4, label=f"window {window}")
    p.axes[0].set(title="First channel of the result", xlabel="position", ylabel="value")
    p.axes[1].set(title="Difference", xlabel="position", ylabel="largest of all channels", ylim=(1e-9, 10))
    for axis in p.axes:
        axis.legend(fontsize=7)
    p.caption = f"Largest differences: {largest[0]:.1e} with the long window, {largest[1]:.1e} with the short one."

# %% [markdown]
# ## Part 6 · The smear: a little of the token before (10 points, 15 minutes)
#
# Much of what the first layers learn is "which token stands before me". nanochat hands that to them, before layer 0:
# each token's embedding gets a share of the embedding before it (from modded-nanogpt). How large the share is decides a
# gate on the first **24** channels of the token itself, times one learnt number $\lambda$:
#
# $$x'_t = x_t + \lambda\,\sigma(x_t[0{:}24]\,W_{gate}^\top)\;x_{t-1}$$
#
# Everything on the right is from **before** the smear. The first token of a sequence has none before it and stays as it
# is. With a gate of zeros and $\lambda$ = 2 each token gets exactly its predecessor added: 1, 10, 100 become 1, 11, 110
# (and not 1, 11, 111).
#
# **With a cache** the tokens come in pieces, often one by one, and the predecessor of a piece's first token is not
# among them. The cache has a place for it: `kv_cache.prev_embedding`, `(B, 1, C)`, or `None` at the start of a
# sequence. Use it, and leave there the last embedding of this piece, also from before the smear. Fed in any pieces, a
# sequence must give what it gives at once.
#
# **Contract.** `x` is `(B, T, C)` with `C` at least 24, `gate` `(1, 24)`; `smear_lambda` is float32 of shape `(1,)`,
# and `x` may be bfloat16 (mind the second story at the top).


# %% hole="smear"
def smear(
    x: torch.Tensor, gate: torch.Tensor, smear_lambda: torch.Tensor, kv_cache: KVCache | None = None
) -> torch.Tensor:
    """x (B, T, C) plus the token before each, times smear_lambda (1,) and a gate (1, 24) on x[..., :24].

    With a cache, its prev_embedding (B, 1, C) or None precedes x[:, 0], and is replaced by x[:, -1:].
    """
    ### BEGIN SOLUTION
    before = torch.zeros_like(x[:, :1])
    if kv_cache is not None:
        if kv_cache.prev_embedding is not None:
            before = kv_cache.prev_embedding
        kv_cache.prev_embedding = x[:, -1:]
    share = smear_lambda.to(x.dtype) * torch.sigmoid(linear(x[..., :24], gate))
    return x + share * torch.cat([before, x[:, :-1]], dim=1)
    ### END SOLUTION


# %% given="check-smear"
def smear_pieces(
    pieces: list, gate: torch.Tensor, smear_lambda: torch.Tensor, cached: bool, device: Any = "cpu"
) -> list:
    """What your `smear` makes of each piece (B, T, C), and what it leaves in the cache: one cache for all, or none."""
    batch_size, dtype = pieces[0].size(0), pieces[0].dtype
    size = {"batch_size": batch_size, "num_heads": 1, "seq_len": 64, "head_dim": 1, "num_layers": 1}
    cache = KVCache(**size, device=device, dtype=dtype) if cached else None
    told = []
    for piece in pieces:
        smeared = smear(piece.to(device), gate.to(device), smear_lambda.to(device), cache)
        told.append({"smeared": smeared, "kept": cache.prev_embedding.clone() if cache else None})
    return told


def smeared_tokens(pieces: list[list[float]], cached: bool = True, closed: bool = False) -> list:
    """The first channel of every token after your smear, by pieces. lambda is 2, and the gate says 0.5, or nearly 0
    where a token is not 0 (`closed`)."""
    x = [torch.tensor(piece).view(1, -1, 1) * (torch.arange(26) < 2) for piece in pieces]
    gate = torch.zeros(1, 24)
    gate[0, 1] = -100.0 * closed
    told = smear_pieces(x, gate, torch.tensor([2.0]), cached)
    return [answer["smeared"][0, :, 0] for answer in told]


def kept_tokens(pieces: list[list[float]]) -> list:
    """The first channel of what your smear leaves in the cache after each piece."""
    x = [torch.tensor(piece).view(1, -1, 1).expand(1, len(piece), 26) for piece in pieces]
    told = smear_pieces(x, torch.zeros(1, 24), torch.tensor([2.0]), True)
    return [answer["kept"][:, :, 0] for answer in told]


def smeared_dtype(dtype: torch.dtype) -> list:
    """The dtypes of what your smear returns and keeps."""
    told = smear_pieces([torch.ones(1, 2, 26, dtype=dtype)], torch.zeros(1, 24), torch.tensor([2.0]), True)
    return [told[0]["smeared"].dtype, told[0]["kept"].dtype]


with check("smear"):
    before = "each token gets its predecessor as it was before the smear; the first of a sequence has none"
    row = [1.0, 10.0, 100.0]
    expect(smeared_tokens, ([row], False), [torch.tensor([1.0, 11.0, 110.0])], before)
    expect(smeared_tokens, ([row],), [torch.tensor([1.0, 11.0, 110.0])], "at once, a cache changes nothing")
    expect(
        smeared_tokens,
        ([[1.0, 10.0], [100.0], [1000.0, 1e4]],),
        [torch.tensor([1.0, 11.0]), torch.tensor([110.0]), torch.tensor([1100.0, 11000.0])],
        "the predecessor of a piece's first token is kv_cache.prev_embedding",
    )
    expect(
        kept_tokens,
        ([[1.0, 10.0], [100.0]],),
        [torch.tensor([[10.0]]), torch.tensor([[100.0]])],
        "the cache keeps the last embedding, (B, 1, C), from before the smear",
    )
    by_itself = "the gate reads the token itself, not its predecessor: here tokens of 0 let theirs in, others do not"
    expect(smeared_tokens, ([[1.0, 0.0, 100.0, 0.0]], False, True), [torch.tensor([1.0, 1.0, 100.0, 100.0])], by_itself)
    same = "smear_lambda is float32 of shape (1,), and times a bfloat16 stream that is float32"
    expect(smeared_dtype, (torch.bfloat16,), [torch.bfloat16, torch.bfloat16], same)
    twice = [torch.ones(2, 2, 26)], torch.full((1, 24), math.log(3) / 24), torch.tensor([1.0]), False
    three_quarters = {"smeared": torch.tensor([[1.0], [1.75]]).expand(2, 2, 26), "kept": None}
    reads = "the gate reads 24 channels: here they sum to ln 3, whose sigmoid is 0.75; without a cache nothing is kept"
    expect(smear_pieces, twice, [three_quarters], reads, FLOAT32)

# %% graded="smear"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("smear")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "smear", smear_pieces)
### END HIDDEN TESTS

# %% given="plot-smear" tags=["plot"]
with picture(
    "What your smear makes of single tokens at positions 3 and 8",
    alt="Two stem plots. At once and token by token, each stem at 3 and 8 has one echo, half as high, right after it.",
    columns=2,
    size=(9.0, 3.0),
) as p:
    impulses = [1.0 if t in (3, 8) else 0.0 for t in range(14)]
    x = torch.zeros(1, 14, 26)
    x[0, :, 25] = torch.tensor(impulses)
    ways = {"at once": [x], "token by token, with a cache": list(x.split(1, dim=1))}
    outcomes = []
    for axis, (way, pieces) in zip(p.axes, ways.items(), strict=True):
        told = smear_pieces(pieces, torch.zeros(1, 24), torch.tensor([1.0]), way != "at once")
        smeared = torch.cat([answer["smeared"] for answer in told], dim=1)[0, :, 25]
        axis.stem(smeared, linefmt=ORANGE, markerfmt="D", basefmt=GREY, label="after the smear")
        axis.stem(impulses, linefmt=BLUE, markerfmt="o", basefmt=GREY, label="before")
        axis.set(title=way, xlabel="position", ylabel="channel 25", ylim=(-0.1, 1.7), xticks=range(0, 14, 2))
        axis.legend(fontsize=7)
        outcomes.append(smeared)
    echoes = [round(value, 2) for value in outcomes[0][[4, 5, 9, 10]].tolist()]
    p.caption = (
        f"Echoes at positions 4, 5, 9, 10: {echoes}. "
        f"The two ways differ by at most {(outcomes[0] - outcomes[1]).abs().max():.1e}."
    )

# %% [markdown]
# ## Part 7 · Logits and loss (10 points, 15 minutes)
#
# At the end the stream is compared with every token of the vocabulary: `logits = linear(x, lm_head)`, a product in the
# dtype of the stream. Three things have to be done to it, in this order:
#
# 1. **Crop.** `lm_head` has more rows than there are tokens (a multiple of 64, for speed). What is beyond `vocab_size`
#    is no token: drop it, before anything else is computed with it.
# 2. **float32.** Softmax and loss in 8 bits of precision are worth nothing.
# 3. **Soft cap** (Gemma 2, [arXiv 2408.00118](https://arxiv.org/abs/2408.00118)): $15 \tanh(z / 15)$ keeps logits
#    within ±15 and lets a gradient through everywhere. 3 becomes 2.961, 15 becomes 11.42, 100 becomes 15.00.
#
# The logits are the largest tensor of the whole model (at depth 12, 32 rows of 2048 tokens: 8.6 GB in float32), so the
# check counts: for a bfloat16 stream, no float32 tensor may be larger than `B * T * vocab_size`.
#
# **With targets** the answer is their cross-entropy (nats), from the capped logits. A target of **-1** means: do not
# count this position (padding, or words which are not the model's own). `reduction` is `"mean"` (over the positions
# that count), `"sum"`, or `"none"`: all `B * T` losses in one flat row, 0 where the target is -1. If no position
# counts, the mean is NaN.
#
# **Contract.** `x` is `(B, T, C)`, `lm_head` `(rows, C)` with `rows >= vocab_size`, `targets` int64 `(B, T)` or `None`.
# Returns float32: `(B, T, vocab_size)` without targets, else a scalar or `(B * T,)`.


# %% hole="logits_and_loss"
def logits_and_loss(
    x: torch.Tensor,
    lm_head: torch.Tensor,
    vocab_size: int,
    targets: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """x (B, T, C) -> capped logits (B, T, vocab_size) in float32, or with targets (B, T) their cross-entropy.

    lm_head (rows, C) may have rows beyond vocab_size. Targets of -1 do not count. reduction: mean, sum or none (flat).
    """
    ### BEGIN SOLUTION
    logits = linear(x, lm_head)[..., :vocab_size].float()
    logits = 15 * torch.tanh(logits / 15)
    if targets is None:
        return logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction)
    ### END SOLUTION


# %% given="check-logits_and_loss"
class LargestFloat32(TorchFunctionMode):
    """Within it, `numel` is how many numbers the largest float32 result of any torch function has."""

    numel = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.numel = max(self.numel, result.numel())
        return result


def head(
    x: torch.Tensor,
    lm_head: torch.Tensor,
    vocab_size: int,
    targets: torch.Tensor | None = None,
    reduction: str = "mean",
) -> dict:
    """Your logits or loss and, for a bfloat16 stream, whether every float32 tensor was small enough."""
    with LargestFloat32() as largest:
        answer = logits_and_loss(x, lm_head, vocab_size, targets, reduction)
    enough = x.size(0) * x.size(1) * vocab_size
    return {"answer": answer, "cropped first": x.dtype == torch.float32 or largest.numel <= enough}


with check("logits_and_loss"):
    one = torch.ones(1, 1, 1)
    rows = torch.tensor([[0.0], [3.0], [15.0], [-100.0], [40.0]])
    capped = torch.tensor([[[0.0, 2.9606280, 11.4239120, -14.9999514]]])
    cap = "15 * tanh(logit / 15) of the first vocab_size rows"
    expect(logits_and_loss, (one, rows, 4), capped, cap, FLOAT32)
    answer = {"answer": capped.expand(2, 3, 4), "cropped first": True}
    crop = "crop, then float32, then cap: of a bfloat16 stream nothing larger than B * T * vocab_size becomes float32"
    expect(head, (one.expand(2, 3, 1).bfloat16(), rows, 4), answer, crop, FLOAT32)

    # logits 0, ln 2 and ln 3 have the probabilities 1/6, 2/6, 3/6; a large one beyond the vocabulary
    before_cap = torch.atanh(torch.tensor([0.0, math.log(2), math.log(3)]) / 15) * 15
    rows = torch.cat([before_cap, torch.tensor([50.0])])[:, None]
    x, targets = torch.ones(2, 2, 1), torch.tensor([[0, -1], [2, 1]])
    losses = torch.tensor([math.log(6), 0.0, math.log(2), math.log(3)])
    flat = "one loss a position, flat, 0 where the target is -1"
    expect(logits_and_loss, (x, rows, 3, targets, "none"), losses, flat, FLOAT32)
    mean = "the mean over the three positions that count"
    expect(logits_and_loss, (x, rows, 3, targets), losses.sum() / 3, mean, FLOAT32)
    expect(logits_and_loss, (x, rows, 3, targets, "sum"), losses.sum(), "the sum over all positions", FLOAT32)
    nothing = torch.full((2, 2), -1)
    expect(logits_and_loss, (x, rows, 3, nothing), torch.tensor(torch.nan), "the mean of nothing is NaN")
    large = "the loss is that of the capped logits: against 15 * tanh(20), a logit of 0 costs almost exactly 15"
    steep = torch.tensor([[0.0], [300.0]])
    expect(
        logits_and_loss, (torch.ones(1, 2, 1), steep, 2, torch.zeros(1, 2).long()), torch.tensor(15.0), large, FLOAT32
    )

# %% graded="logits_and_loss"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("logits_and_loss")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "logits_and_loss", head)
### END HIDDEN TESTS

# %% given="plot-logits_and_loss" tags=["plot"]
with picture(
    "Your soft cap, and what it does to the loss of a wrong token",
    alt="Left: logits bend off towards 15 and -15. Right: the loss grows with the logit, then levels off at 15.",
    columns=2,
    size=(9.0, 3.2),
) as p:
    z = torch.linspace(-60, 60, 121)
    bent = logits_and_loss(torch.ones(1, 2, 1), z[:, None], 121)[0, 0]
    p.axes[0].plot(
        z, [15 * math.tanh(each / 15) for each in z.tolist()], color=ORANGE, linewidth=4, label="by the formula"
    )
    p.axes[0].plot(z, bent, color=BLUE, label="yours")
    p.axes[0].plot(z, z, "--", color=GREY, label="without a cap")
    p.axes[0].set(title="Logits", xlabel="before the cap", ylabel="after", ylim=(-25, 25))
    wrong = torch.linspace(0, 60, 61)
    pairs_of = [torch.tensor([[0.0], [logit]]) for logit in wrong.tolist()]
    first = torch.zeros(1, 2, dtype=torch.long)
    costs = [logits_and_loss(torch.ones(1, 2, 1), two, 2, first).item() for two in pairs_of]
    p.axes[1].plot(wrong, costs, color=BLUE, label="yours")
    p.axes[1].plot(wrong, F.softplus(wrong), "--", color=GREY, label="without a cap")
    p.axes[1].set(title="Loss, the right logit at 0", xlabel="logit of the wrong token", ylabel="nats", ylim=(0, 40))
    for axis in p.axes:
        axis.legend(fontsize=7)
    p.caption = (
        f"A logit of 15 becomes {bent[75]:.2f}, 60 becomes {bent[120]:.2f}; the worst loss here is {max(costs):.2f}."
    )

# %% [markdown]
# ## Part 8 · The stream: all of it in order (20 points, 40 minutes)
#
# Now run the model. Everything that is learnt inside the pieces is theirs; this part is about what happens **between**
# them. Here is the way of a call with `T` tokens, `idx` `(B, T)`:
#
# 1. **Positions.** The first of the tokens stands at position `start`: 0, or with a cache as many as it holds
#    (`kv_cache.get_pos()`). The blocks get the `T` rows of `model.cos` and `model.sin`, `(1, N, 1, D/2)`, that belong
#    to these positions.
# 2. **In.** `model.embed(idx)`, then `model.norm`, then `model.smear(x, kv_cache)`. What comes out is called $x_0$.
# 3. **Layers.** Before layer $i$ the stream is mixed with $x_0$ again; then the block runs on the mixture:
#    $$x \leftarrow \mathrm{block}_i\big(\lambda^{resid}_i\,x + \lambda^{x0}_i\,x_0,\ \dots\big)$$
#    `model.blocks[i](x, ve, cos, sin, window_size, kv_cache)`, where `window_size` is `model.window_sizes[i]` and `ve`
#    is the tokens' value embedding `model.value_embeds[str(i)](idx)`, **cast to the dtype of the stream**, or `None` if
#    `str(i)` is not in `model.value_embeds`.
# 4. **Backout.** The early layers build things which later layers need and the prediction does not. So the stream as it
#    is right after layer `n_layer // 2` (counted from 0) is remembered, and `backout_lambda` times that is taken out
#    again at the end, after the last layer.
# 5. **Out.** `model.norm`. Then the cache, if there is one, is told: `kv_cache.advance(T)`, once.
#
# The lambdas are float32: `resid_lambdas` and `x0_lambdas` `(n_layer,)`, `backout_lambda` `(1,)`. The stream keeps the
# dtype that `model.embed` gives it. (PyTorch promotes by *dimensions*: a 0-d float32 tensor times a bfloat16 one is
# bfloat16, one of shape `(1,)` makes it float32.)
#
# **Refuse** with `ValueError`, before anything has changed:
# - one single token without a cache: that is nearly always a decoding loop which has lost its cache;
# - a position that the tables do not have (`N` rows);
# - with a cache, a position beyond its `max_seq_len`.
#
# A walk by hand, with toys for the pieces: norm halves, smear adds 1, both blocks double what they get, the tables are
# all 0. One channel, 2 layers, residual lambdas 1 and 0.5, x0 lambdas 0.5 and 2, backout lambda 0.25. The middle is
# layer 1:
#
# ```
# embed 6   norm 3   smear 4 = x0
# layer 0   1   * 4  + 0.5 * 4 = 6     block 12
# layer 1   0.5 * 12 + 2   * 4 = 14    block 28     (also what is backed out)
# out       28 - 0.25 * 28 = 21        norm 10.5
# ```
#
# **Contract.** Returns the hidden states `(B, T, C)`. `model` has what is named above and nothing else; `n_layer` is
# `len(model.blocks)`. Each block is called once, in order. In the next cell is the model that the checks use: its
# pieces are toys that add and multiply, and keep a log of how they were called.


# %% given="toy-model"
class ToyModel:
    """The pieces of a model as `hidden_states` meets them, made of simple arithmetic. `log` says what was called how.

    weights: wte (V, C), scale and shift (n_layer, C), ve (V, E), resid and x0 (n_layer,), backout (1,), cos and sin.
    """

    def __init__(self, weights: dict, ve_layers: list[int], lefts: list[int], dtype: torch.dtype, device: Any) -> None:
        self.weights = {name: tensor.to(device) for name, tensor in weights.items()}
        self.dtype, self.log = dtype, []
        self.resid_lambdas, self.x0_lambdas = self.weights["resid"], self.weights["x0"]
        self.backout_lambda = self.weights["backout"]
        self.cos, self.sin = self.weights["cos"].to(dtype), self.weights["sin"].to(dtype)
        self.window_sizes = [(left, 0) for left in lefts]
        self.value_embeds = {str(i): self.lookup for i in ve_layers}  # float32 tables
        self.blocks = [self.make_block(i) for i in range(len(lefts))]

    def embed(self, idx: torch.Tensor) -> torch.Tensor:
        return self.weights["wte"][idx].to(self.dtype)

    def lookup(self, idx: torch.Tensor) -> torch.Tensor:
        return self.weights["ve"][idx]

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    def smear(self, x: torch.Tensor, kv_cache: KVCache | None) -> torch.Tensor:
        self.log.append("smear, " + self.said_of(kv_cache))
        return x + 1

    def make_block(self, i: int) -> Callable:
        def block(x: Any, ve: Any, cos: Any, sin: Any, window_size: Any, kv_cache: Any) -> torch.Tensor:
            looked_up = "no ve" if ve is None else f"ve {ve.dtype}"
            self.log.append(f"block {i}, {looked_up}, window {tuple(window_size)}, {self.said_of(kv_cache)}")
            scale, shift = (self.weights[name][i].to(x.dtype) for name in ("scale", "shift"))
            y = x * scale + shift + cos[:, :, 0, :1] - 2 * sin[:, :, 0, :1]
            return y if ve is None else y + ve.mean(dim=-1, keepdim=True)

        return block

    def said_of(self, kv_cache: KVCache | None) -> str:
        return "no cache" if kv_cache is None else f"cache at {kv_cache.get_pos()}"


# %% hole="hidden_states"
def hidden_states(model: Any, idx: torch.Tensor, kv_cache: KVCache | None = None) -> torch.Tensor:
    """Token ids (B, T) -> the normed hidden states (B, T, C) that the logits are made of.

    With a cache, the tokens continue what it holds, and it is advanced by T at the end. Raises ValueError for a single
    token without a cache, and for positions beyond the tables or the cache; then nothing has changed.
    """
    ### BEGIN SOLUTION
    T = idx.size(1)
    start = kv_cache.get_pos() if kv_cache is not None else 0
    if kv_cache is None and T == 1:
        raise ValueError("a single token needs a cache")
    if start + T > model.cos.size(1):
        raise ValueError(f"position {start + T - 1} is beyond the rotary tables")
    if kv_cache is not None and start + T > kv_cache.max_seq_len:
        raise ValueError(f"position {start + T - 1} is beyond the cache")
    cos, sin = model.cos[:, start : start + T], model.sin[:, start : start + T]
    x = x0 = model.smear(model.norm(model.embed(idx)), kv_cache)
    n_layer = len(model.blocks)
    for i in range(n_layer):
        x = model.resid_lambdas[i] * x + model.x0_lambdas[i] * x0
        ve = None
        if str(i) in model.value_embeds:
            ve = model.value_embeds[str(i)](idx).to(x.dtype)
        x = model.blocks[i](x, ve, cos, sin, model.window_sizes[i], kv_cache)
        if i == n_layer // 2:
            middle = x
    x = model.norm(x - model.backout_lambda.to(x.dtype) * middle)
    if kv_cache is not None:
        kv_cache.advance(T)
    return x
    ### END SOLUTION


# %% given="check-hidden_states"
def run_calls(
    weights: dict,
    ve_layers: list[int],
    lefts: list[int],
    dtype: torch.dtype,
    calls: list,
    room: int | None,
    device: Any = "cpu",
) -> list:
    """Your `hidden_states` on one model, call after call, with one cache of `room` positions (None: no cache).

    For each call what it returns, or "ValueError", what the toys have logged, and the position afterwards.
    """
    model = ToyModel(weights, ve_layers, lefts, dtype, device)
    size = {"batch_size": calls[0].size(0), "num_heads": 1, "head_dim": 1, "num_layers": len(lefts)}
    cache = None if room is None else KVCache(**size, seq_len=room, device=device, dtype=dtype)
    told = []
    for idx in calls:
        try:
            answer: Any = hidden_states(model, idx.to(device), cache)
        except ValueError:
            answer = "ValueError"
        told.append({"x": answer, "log": list(model.log), "position": cache.get_pos() if cache is not None else None})
        model.log.clear()
    return told


def walk(**changes: Any) -> dict:
    """The walk by hand as arguments of `run_calls`, but for `changes`. Token 6 is embedded as 6, its ve is 96."""
    zeros, weights = torch.zeros(2, 1), changes.pop("weights", {})
    toys = {
        "wte": torch.arange(12.0)[:, None],
        "ve": 16 * torch.arange(12.0)[:, None],
        "scale": zeros + 2,
        "shift": zeros,
        "resid": torch.tensor([1.0, 0.5]),
        "x0": torch.tensor([0.5, 2.0]),
        "backout": torch.tensor([0.25]),
        "cos": torch.zeros(1, 8, 1, 1),
        "sin": torch.zeros(1, 8, 1, 1),
    }
    plain = {"ve_layers": [], "lefts": [4, 8], "dtype": torch.float32, "calls": [[6, 6]], "room": None}
    case = plain | changes | {"weights": toys | {name: torch.tensor(value) for name, value in weights.items()}}
    return case | {"calls": [torch.tensor([call]) for call in case["calls"]]}


def streams(**changes: Any) -> list:
    """The hidden states of each call of a walk with `changes`, or "ValueError"."""
    return [told["x"] for told in run_calls(**walk(**changes))]


def logs(**changes: Any) -> list:
    """What the toys have logged in each call."""
    return [told["log"] for told in run_calls(**walk(**changes))]


def positions(**changes: Any) -> list:
    """The cache's position after each call."""
    return [told["position"] for told in run_calls(**walk(**changes))]


def tokens(*numbers: float) -> torch.Tensor:
    """(1, T, 1)"""
    return torch.tensor(numbers).view(1, -1, 1)


with check("hidden_states"):
    by_hand = "embed 6, norm 3, smear 4; 6, block 12; 14, block 28; 28 - 7 = 21, norm 10.5"
    expect(streams, {}, [tokens(10.5, 10.5)], by_hand)
    after = "what is backed out is the stream right after the block of layer n_layer // 2"
    expect(streams, {"weights": {"shift": [[0.0], [-8.0]]}}, [tokens(7.5, 7.5)], after)
    three = {"scale": [[2.0], [2.0], [-1.0]], "shift": [[0.0]] * 3, "resid": [1.0, 0.5, 1.0], "x0": [0.5, 2.0, 0.0]}
    late = "of three layers, the stream after layer 1 is taken out, and after the last layer"
    expect(streams, {"weights": three, "lefts": [4, 4, 8]}, [tokens(-17.5, -17.5)], late)

    looked_up = "ve is the tokens' own row, for the layers that are in value_embeds, in the dtype of the stream"
    expect(streams, {"ve_layers": [1]}, [tokens(46.5, 46.5)], looked_up)
    half = {"ve_layers": [1], "dtype": torch.bfloat16}
    first, second = "block 0, no ve, window (4, 0), no cache", "block 1, ve torch.bfloat16, window (8, 0), no cache"
    expect(logs, half, [["smear, no cache", first, second]], looked_up)
    promoted = "the stream stays bfloat16: a float32 lambda of shape (1,) would make it float32"
    expect(streams, half, [tokens(46.5, 46.5).bfloat16()], promoted)

    clock = {"cos": [[[[0.0]], [[8.0]], [[16.0]], [[24.0]], [[32.0]], [[40.0]], [[48.0]], [[56.0]]]]}
    talk = {"weights": clock, "calls": [[6, 6, 10], [6], [6, 6]], "room": 8}
    heard = [tokens(10.5, 16.5, 27.75), tokens(28.5), tokens(34.5, 40.5)]
    expect(streams, talk, heard, "the first token of a call stands at the position which the cache has reached")
    expect(positions, talk, [3, 4, 6], "the cache is advanced once a call, by T")
    cached = [f"block {i}, no ve, window {window}, cache at 0" for i, window in ((0, (4, 0)), (1, (8, 0)))]
    handed = "the cache is handed to the smear and to every block, and not advanced before the last one is done"
    expect(logs, {"room": 8}, [["smear, cache at 0", *cached]], handed)

    expect(streams, {"calls": [[6]]}, ["ValueError"], "a single token without a cache")
    full = "position 8 is beyond tables of 8 rows, position 7 is not"
    expect(streams, {"calls": [[6] * 9, [6] * 8]}, ["ValueError", tokens(*[10.5] * 8)], full)
    tight = {"calls": [[6] * 3, [6] * 2, [6]], "room": 4}
    fits = "3 and 2 do not fit a cache of 4; what is refused changes nothing, so that 3 and 1 still do"
    expect(positions, tight, [3, 3, 4], fits)
    later = [line.replace("at 0", "at 3") for line in ("smear, cache at 0", *cached)]
    expect(logs, tight, [["smear, cache at 0", *cached], [], later], "refuse before anything is called")

# %% graded="hidden_states"
# 20 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("hidden_states")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("08_mini_gpt", "hidden_states", run_calls)
### END HIDDEN TESTS

# %% given="plot-hidden_states" tags=["plot"]
with picture(
    "Where the output of 8 layers comes from, by your mixing",
    alt="Left: bars, what one more unit of each layer's output adds to the end. Right: the same for four backouts.",
    columns=2,
    size=(9.0, 3.2),
) as p:

    def reach(backout: float, resid: float) -> list[float]:
        """How much of a unit that block i adds arrives at the end (toys: blocks pass on what they get)."""
        weights = {
            "wte": torch.zeros(2, 1),
            "ve": torch.zeros(2, 1),
            "scale": torch.ones(8, 1),
            "resid": torch.full((8,), resid),
            "x0": torch.zeros(8),
            "backout": torch.tensor([backout]),
            "cos": torch.zeros(1, 8, 1, 1),
            "sin": torch.zeros(1, 8, 1, 1),
        }
        arrived = []
        for units in torch.cat([torch.zeros(1, 8), torch.eye(8)]):
            toys = ToyModel(weights | {"shift": units[:, None]}, [], [8] * 8, torch.float32, "cpu")
            arrived.append(hidden_states(toys, torch.zeros(1, 2, dtype=torch.long))[0, 0, 0].item() * 2)
        return [one - arrived[0] for one in arrived[1:]]

    fresh = reach(0.2, 1.1)
    by_formula = [1.1 ** (7 - i) - (0.2 * 1.1 ** (4 - i) if i <= 4 else 0) for i in range(8)]
    p.axes[0].bar(range(8), fresh, color=BLUE, label="yours")
    p.axes[0].plot(range(8), by_formula, "D", color=ORANGE, label="by the formula")
    p.axes[0].legend(fontsize=7, loc="lower left")
    p.axes[0].set(title="resid 1.1, backout 0.2", xlabel="layer", ylabel="share that arrives", xticks=range(8))
    for backout, colour, marker in zip((0.0, 0.2, 0.5, 1.0), COLOURS, MARKERS, strict=False):
        p.axes[1].plot(reach(backout, 1.0), marker=marker, color=colour, label=f"backout {backout:g}")
    p.axes[1].set(title="resid 1", xlabel="layer", ylabel="share that arrives", xticks=range(8), ylim=(-0.2, 1.3))
    p.axes[1].legend(fontsize=7)
    p.caption = "Of a unit added by layers 0 to 7 arrive " + ", ".join(f"{share:.2f}" for share in fresh) + "."

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your parts together. There is nothing to fill in. What is new in it is only bookkeeping that puzzle 1
# was about: which tensor has which name and shape, the windows of the layers, the rotary tables. Read it all the same:
# it is the place where you can see who calls whom. The interface is that of `nanochat.gpt.GPT`.


# %% given="mini-gpt"
@dataclass
class Config:
    """The shape of a model: the fields of nanochat's GPTConfig."""

    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"


class Linear(nn.Linear):
    """A weight and its use: `linear`."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight)


class Attention(nn.Module):
    """One layer's attention, made of your parts 2, 3 and 5."""

    def __init__(self, config: Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = layer_idx, config.n_embd // config.n_head
        kv_width = config.n_kv_head * self.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, kv_width)
        self.c_v = Linear(config.n_embd, kv_width)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.ve_gate = Linear(12, config.n_kv_head) if has_ve(layer_idx, config.n_layer) else None

    def qkv(self, x: Any, ve: Any, cos: Any, sin: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, T, H, D), keys and values (B, T, H_kv, D), ready for attention."""
        q, k, v = (matrix(x).unflatten(-1, (-1, self.head_dim)) for matrix in (self.c_q, self.c_k, self.c_v))
        v = value_residual(v, x, ve, self.ve_gate.weight if self.ve_gate is not None else None)
        return rotary_qk_norm(q, cos, sin), rotary_qk_norm(k, cos, sin), v

    def forward(self, x: Any, ve: Any, cos: Any, sin: Any, window_size: Any, kv_cache: Any) -> torch.Tensor:
        return self.c_proj(attend(*self.qkv(x, ve, cos, sin), window_size, self.layer_idx, kv_cache))


class MLP(nn.Module):
    """The weights of your `mlp`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mlp(x, self.c_fc.weight, self.c_proj.weight)


class Block(nn.Module):
    """One layer: attention and MLP, each reading the normed stream and adding to it."""

    def __init__(self, config: Config, layer_idx: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer_idx)
        self.mlp = MLP(config)

    def forward(self, x: Any, ve: Any, cos: Any, sin: Any, window_size: Any, kv_cache: Any) -> torch.Tensor:
        x = x + self.attn(norm(x), ve, cos, sin, window_size, kv_cache)
        return x + self.mlp(norm(x))


class MiniGPT(nn.Module):
    """nanochat's GPT, made of your eight parts: the same names in its state dict, the same forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, n_layer, C = config, config.n_layer, config.n_embd
        head_dim, rows = C // config.n_head, 64 * math.ceil(config.vocab_size / 64)
        blocks = nn.ModuleList(Block(config, i) for i in range(n_layer))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, C), "h": blocks})
        self.lm_head = Linear(C, rows)
        self.resid_lambdas = nn.Parameter(torch.ones(n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(n_layer))
        self.smear_gate = Linear(24, 1)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        with_ve = [i for i in range(n_layer) if has_ve(i, n_layer)]
        self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(rows, config.n_kv_head * head_dim) for i in with_ve})
        lefts = {"S": 128 * math.ceil(config.sequence_len / 512), "L": config.sequence_len}
        pattern = (config.window_pattern.upper() * n_layer)[: n_layer - 1] + "L"
        self.window_sizes = [(lefts[letter], 0) for letter in pattern]
        for name, table in zip(("cos", "sin"), rotary_tables(10 * config.sequence_len, head_dim), strict=True):
            self.register_buffer(name, table.to(common.COMPUTE_DTYPE), persistent=False)

    @property
    def blocks(self) -> Any:
        return self.transformer["h"]

    def embed(self, idx: torch.Tensor) -> torch.Tensor:
        return self.transformer["wte"](idx).to(common.COMPUTE_DTYPE)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return norm(x)

    def smear(self, x: torch.Tensor, kv_cache: KVCache | None) -> torch.Tensor:
        return smear(x, self.smear_gate.weight, self.smear_lambda, kv_cache)

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        kv_cache: KVCache | None = None,
        loss_reduction: str = "mean",
    ) -> torch.Tensor:
        """Logits (B, T, V), or with targets their loss."""
        x = hidden_states(self, idx, kv_cache)
        return logits_and_loss(x, self.lm_head.weight, self.config.vocab_size, targets, loss_reduction)

    def get_device(self) -> torch.device:
        return self.lm_head.weight.device

    def new_cache(self, batch_size: int, seq_len: int) -> KVCache:
        """An empty cache that fits this model."""
        config = self.config
        return KVCache(
            batch_size=batch_size,
            num_heads=config.n_kv_head,
            seq_len=seq_len,
            head_dim=config.n_embd // config.n_head,
            num_layers=config.n_layer,
            device=self.get_device(),
            dtype=common.COMPUTE_DTYPE,
        )


# %% [markdown]
# **Does it run?** The next cell needs no checkpoint. It fills a small model of five layers (6 query heads on 2, a short
# and a long window, value embeddings on layers 0, 2 and 4) with made-up numbers that come out the same on every
# machine, and compares with what nanochat says to these weights. Then the same tokens once more from the cache, in
# pieces.

# %% given="first-words" tags=["plot"]
NANOCHAT_SAYS = {"loss": 4.6063, "logits of the last token": [-0.0469, 0.3697, 0.3011, -0.1627, -0.4130, -0.1213]}


def made_up(model: nn.Module) -> Any:
    """Fill every parameter with numbers that depend on its name and shape only."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            at = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
            wave = torch.sin(at * (1 + sum(name.encode()) % 97) * 0.731).reshape(parameter.shape)
            parameter.copy_(wave * (1.0 if parameter.dim() == 1 else 3 / parameter.size(-1) ** 0.5))
    return model


with attempt("Your model with made-up weights"), torch.inference_mode():
    shape = {"sequence_len": 300, "vocab_size": 90, "n_layer": 5, "n_head": 6, "n_kv_head": 2, "n_embd": 48}
    toy = made_up(MiniGPT(Config(**shape, window_pattern="SL")))
    text = "A checkpoint is only numbers. What they mean is in the forward pass. " * 5
    ids = torch.tensor([[ord(letter) % 90 for letter in text]])
    loss, logits = toy(ids[:, :-1], ids[:, 1:]), toy(ids)
    print(f"loss        yours {loss:.4f}, nanochat {NANOCHAT_SAYS['loss']:.4f}")
    yours = " ".join(f"{logit:8.4f}" for logit in logits[0, -1, :6])
    print(
        f"last token  yours    {yours}\n            nanochat "
        + " ".join(f"{z:8.4f}" for z in NANOCHAT_SAYS["logits of the last token"])
    )
    cache = toy.new_cache(1, ids.size(1))
    pieces = [toy(piece, kv_cache=cache) for piece in ids.split([300, 1, 1, 20, *[1] * (ids.size(1) - 322)], dim=1)]
    print(
        f"from the cache, in {len(pieces)} pieces: logits differ by at most {(torch.cat(pieces, 1) - logits).abs().max():.1e}"
    )

# %% [markdown]
# ## On real data: a checkpoint, strictly
#
# nanochat ships a small chat model: 4 layers, trained on a toy world until it could answer questions and use a
# calculator. `strict=True` means that every tensor of the checkpoint has its place in your model, by name and shape,
# and no place stays empty. Then both models read the same text.
#
# Do you have a checkpoint of the original nanochat (a directory with `model_*.pt` and `meta_*.json`)? Set the
# environment variable `NANOCHAT_CHECKPOINT` to its path before you start Jupyter, or call `load_directory(path)` in a
# cell of your own: the last step in it is loaded, older formats too.

# %% given="strict-load" tags=["oracle"]
from nanochat import checkpoint_manager, toyworld
from nanochat.gpt import GPT, GPTConfig
from nanochat.toyworld.tasks import ToyArithmetic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def mini_of(model: GPT) -> MiniGPT:
    """Your model with the weights of one of nanochat's: every tensor by name, none missing, none left over."""
    mini = MiniGPT(Config(**vars(model.config))).to(model.get_device())
    mini.load_state_dict(model.state_dict(), strict=True)
    return mini.eval()


def load_directory(directory: str | Path) -> tuple[MiniGPT, GPT]:
    """Your model and nanochat's, both with the weights of the last step in a checkpoint directory."""
    step = checkpoint_manager.find_last_step(directory)
    weights, _, meta = checkpoint_manager.load_checkpoint(directory, step, DEVICE)
    config = checkpoint_manager.upgrade_config(meta["model_config"])
    mini, original = MiniGPT(Config(**config)).to(DEVICE), GPT(GPTConfig(**config)).to(DEVICE)
    for model in (mini, original):
        model.load_state_dict(checkpoint_manager.upgrade_state(weights, original.config), strict=True)
    return mini.eval(), original.eval()


def compare(mini: MiniGPT, original: GPT, ids: torch.Tensor) -> None:
    """Print how far logits and gradients of the two are apart."""
    with torch.inference_mode():
        yours, theirs = mini(ids), original(ids)
    losses = [model(ids[:, :-1], ids[:, 1:]) for model in (mini, original)]
    for loss in losses:
        loss.backward()
    pairs = zip(mini.named_parameters(), original.named_parameters(), strict=True)
    apart = max(((a.grad - b.grad).norm() / (b.grad.norm() + 1e-12)).item() for (_, a), (_, b) in pairs)
    for model in (mini, original):
        model.zero_grad()
    count = sum(tensor.numel() for tensor in mini.state_dict().values())
    print(f"{len(mini.state_dict())} tensors, {count:,} numbers loaded strictly")
    print(f"logits of {ids.numel()} tokens differ by at most {(yours - theirs).abs().max():.1e}")
    print(
        f"loss: yours {losses[0]:.6f}, nanochat's {losses[1]:.6f}; gradients differ by at most {apart:.1e} of their norm"
    )


with attempt("The shipped checkpoint in your model"):
    original, tokenizer, meta = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    conversations = [ToyArithmetic("test")[i] for i in range(8)]
    ids = [token for each in conversations for token in tokenizer.render_conversation(each)[0]]
    compare(mini, original, torch.tensor([ids[:256]], device=DEVICE))
with attempt("Your own checkpoint"):
    if directory := os.environ.get("NANOCHAT_CHECKPOINT"):
        own, own_original = load_directory(directory)
        vocab_size = own.config.vocab_size
        print(f"{directory}:")
        compare(own, own_original, torch.randint(vocab_size, (1, min(512, own.config.sequence_len)), device=DEVICE))

# %% [markdown]
# **What is each piece worth?** Your model is made of parts that can be taken out. The dots show how much worse the
# shipped model predicts its own kind of text (answers of its test questions) when one part is replaced by the mistake
# that is easy to make there. The weights are the same each time; nothing crashes.

# %% given="ablation" tags=["plot", "oracle"]
PLAIN = {
    name: globals()[name] for name in ("rotary_qk_norm", "value_residual", "smear", "mlp", "attend", "hidden_states")
}


def without_backout(model: Any, idx: torch.Tensor, kv_cache: Any = None) -> torch.Tensor:
    kept = model.backout_lambda.detach().clone()
    model.backout_lambda.data.zero_()
    try:
        return PLAIN["hidden_states"](model, idx, kv_cache)
    finally:
        model.backout_lambda.data.copy_(kept)


def without_x0(model: Any, idx: torch.Tensor, kv_cache: Any = None) -> torch.Tensor:
    kept = model.x0_lambdas.detach().clone()
    model.x0_lambdas.data.zero_()
    try:
        return PLAIN["hidden_states"](model, idx, kv_cache)
    finally:
        model.x0_lambdas.data.copy_(kept)


MISTAKES = {
    "as it is": {},
    "queries and keys not times 1.2": {
        "rotary_qk_norm": lambda x, cos, sin: PLAIN["rotary_qk_norm"](x, cos, sin) / 1.2
    },
    "no positions": {"rotary_qk_norm": lambda x, cos, sin: PLAIN["rotary_qk_norm"](x, cos * 0 + 1, sin * 0)},
    "no value embeddings": {"value_residual": lambda v, x, ve, gate: v},
    "value gate up to 2, not 3": {
        "value_residual": lambda v, x, ve, gate: v + (PLAIN["value_residual"](v, x, ve, gate) - v) * 2 / 3
    },
    "no smear": {"smear": lambda x, gate, smear_lambda, kv_cache=None: x},
    "no x0": {"hidden_states": without_x0},
    "no backout": {"hidden_states": without_backout},
    "ReLU not squared": {
        "mlp": lambda x, c_fc, c_proj: linear(PLAIN["mlp"](x, c_fc, torch.eye(len(c_fc))).sqrt(), c_proj)
    },
    "windows of 8 tokens": {"attend": lambda q, k, v, window, *rest: PLAIN["attend"](q, k, v, (8, 0), *rest)},
}

with (
    picture(
        "The shipped model with one piece wrong",
        alt="Dots on a log scale, one a line: the loss of the model as it is, and with each of nine mistakes.",
        size=(9.0, 3.8),
    ) as p,
    torch.inference_mode(),
):
    original, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    rendered = [tokenizer.render_conversation(ToyArithmetic("test")[i]) for i in range(40)]
    length = max(len(ids) for ids, _ in rendered)
    inputs, answers = torch.zeros(40, length, dtype=torch.long), torch.full((40, length), -1)
    for row, (ids, mask) in enumerate(rendered):
        inputs[row, : len(ids)] = torch.tensor(ids)
        answers[row, : len(ids)] = torch.where(torch.tensor(mask) == 1, torch.tensor(ids), -1)
    worth = {}
    for name, replaced in MISTAKES.items():
        with patch.dict(globals(), replaced):
            worth[name] = mini(inputs[:, :-1].to(DEVICE), answers[:, 1:].to(DEVICE)).item()
    as_it_is = worth["as it is"]
    for line, (name, loss) in enumerate(worth.items()):
        colour, marker = (BLUE, "D") if name == "as it is" else (ORANGE, "o")
        p.axes[0].plot([as_it_is, loss], [line, line], color=GREY, linewidth=1)
        p.axes[0].plot(loss, line, marker, color=colour)
        p.axes[0].annotate(f"{loss:.2g}", (loss, line), xytext=(6, 3), textcoords="offset points", fontsize=7)
    p.axes[0].set_yticks(range(len(worth)), list(worth), fontsize=8)
    p.axes[0].invert_yaxis()
    p.axes[0].set(xlabel="loss on the answers (nats a token)", xscale="log")
    worst = max(worth, key=worth.__getitem__)
    p.caption = f"As it is: {as_it_is:.2g} nats a token. Worst: {worst}, {worth[worst]:.2g}."

# %% [markdown]
# **What does it look at?** The maps of your part 4, on queries and keys of the shipped model, while it reads a question
# and its own call of the calculator. Look for heads that look one token back, at the first token, or at the same digit
# further up.

# %% given="attention-maps" tags=["plot", "oracle"]


def attention_inputs(model: MiniGPT, idx: torch.Tensor) -> list[tuple]:
    """What each layer's attention is called with: (x, ve, cos, sin, window_size, kv_cache)."""
    seen: list[tuple] = []
    hooks = [block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs)) for block in model.blocks]
    try:
        model(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def readable(tokenizer: Any, ids: list[int]) -> list[str]:
    """Tokens as labels: spaces visible, special tokens without their bars, dollar signs not taken for mathematics."""
    texts = [re.sub(r"<\|(.*)\|>", r"‹\1›", tokenizer.decode([token])) for token in ids]
    return [text.replace(" ", "·").replace("\n", "↵").replace("$", r"\$") for text in texts]


def question_and_answer(model: Any, tokenizer: Any, number: int, longest: int) -> list[int]:
    """A test question and what the model says to it, as token ids."""
    from nanochat.engine import Engine

    prompt = tokenizer.render_for_completion(ToyArithmetic("test")[number])
    sequences, _ = Engine(model, tokenizer).generate_batch(prompt, max_tokens=32, temperature=0)
    return sequences[0][:longest]


with (
    picture(
        "Attention maps of the shipped model, by your code",
        alt="A grid of triangles, a row for each layer and a column for each head, with tokens along the edges.",
        rows=4,
        columns=4,
        size=(11.0, 11.0),
    ) as p,
    torch.inference_mode(),
):
    original, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    ids = question_and_answer(mini, tokenizer, 2, 28)
    texts = readable(tokenizer, ids)
    maps = []
    for block, inputs in zip(mini.blocks, attention_inputs(mini, torch.tensor([ids], device=DEVICE)), strict=True):
        q, k, _ = block.attn.qkv(*inputs[:4])
        maps.append(attention_map(q.float(), k.float(), inputs[4][0])[0].cpu())
    weights = {(layer, head_idx): weight for layer, heads in enumerate(maps) for head_idx, weight in enumerate(heads)}
    for axis, ((layer, head_idx), weight) in zip(p.axes, weights.items(), strict=False):
        axis.imshow(weight.sqrt(), cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"layer {layer}, head {head_idx}", fontsize=8)
        axis.tick_params(length=0)
        axis.set_xticks(range(len(ids)), texts if layer == len(maps) - 1 else [""] * len(ids), rotation=90, fontsize=5)
        axis.set_yticks(range(len(ids)), texts if head_idx == 0 else [""] * len(ids), fontsize=5)
    back_one = {place: weight.diagonal(-1).mean().item() for place, weight in weights.items()}
    p.figure.supxlabel("key", fontsize=8)
    p.figure.supylabel("query", fontsize=8)
    (layer, head_idx), share = max(back_one.items(), key=lambda item: item[1])
    p.caption = f"Layer {layer}, head {head_idx} looks back by one most: {share:.0%} of its weight on average."

# %% [markdown]
# **When does it know?** The *logit lens* (nostalgebraist, 2020) reads the stream after each layer as if it were the
# last: norm, then your part 7. A cell is the token that would have been said next, and how sure it is. Most of the
# answer is copied or computed in few layers; watch where a column settles.

# %% given="logit-lens" tags=["plot", "oracle"]


def lens(model: MiniGPT, idx: torch.Tensor) -> torch.Tensor:
    """Probabilities (n_layer + 2, T, V): from the stream before layer 0, after each layer, and at the very end."""
    streams: list[torch.Tensor] = []
    first = model.blocks[0].register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: streams.append(output)) for block in model.blocks
    ]
    try:
        end = model(idx)
    finally:
        for hook in (first, *hooks):
            hook.remove()
    read = [logits_and_loss(norm(x), model.lm_head.weight, model.config.vocab_size) for x in streams]
    return torch.cat([*read, end]).softmax(dim=-1)


with (
    picture(
        "Logit lens: what your model would say after each layer",
        alt="A table of tokens, a row for each layer and a column for each position, darker where the model is surer.",
        size=(13.0, 3.6),
    ) as p,
    torch.inference_mode(),
):
    original, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    ids = question_and_answer(mini, tokenizer, 2, 256)[-26:]
    whole = question_and_answer(mini, tokenizer, 2, 256)
    sure, said = lens(mini, torch.tensor([whole], device=DEVICE)).max(dim=-1)
    sure, said = sure[:, -len(ids) :].cpu(), said[:, -len(ids) :].cpu()
    p.axes[0].imshow(sure, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    names = ["before layer 0", *(f"after layer {i}" for i in range(len(mini.blocks))), "the model"]
    for row in range(len(names)):
        for column, text in enumerate(readable(tokenizer, said[row].tolist())):
            colour = "white" if sure[row, column] > 0.8 else BLACK
            p.axes[0].text(column, row, text[:9], ha="center", va="center", fontsize=6, color=colour)
    p.axes[0].set_yticks(range(len(names)), names, fontsize=8)
    p.axes[0].set_xticks(range(len(ids)), readable(tokenizer, ids), rotation=90, fontsize=7)
    p.axes[0].set_xlabel("token that was read last")
    settled = [int((said[row] == said[-1]).sum()) for row in range(len(names))]
    p.caption = f"Of {len(ids)} predictions these many are already the final ones, row by row: {settled}."

# %% [markdown]
# **What has it learnt to mix?** The scalars of the checkpoint against what they were at the start of training.

# %% given="lambdas" tags=["plot", "oracle"]
with (
    picture(
        "Learnt scalars of the shipped checkpoint",
        alt="Three panels: residual and x0 lambdas by layer with their first values, openness of the value gates by layer.",
        columns=3,
        size=(11.0, 3.2),
    ) as p,
    torch.inference_mode(),
):
    original, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    n_layer = len(mini.blocks)
    panels = (("resid_lambdas", 1.15, 1.05), ("x0_lambdas", 0.20, 0.05))
    for axis, (name, first, last) in zip(p.axes, panels, strict=False):
        axis.plot(getattr(mini, name).cpu(), "o-", color=BLUE, label="learnt")
        axis.plot(torch.linspace(first, last, n_layer), "s--", color=GREY, label="at the start")
        axis.set(title=name, xlabel="layer", ylabel="factor", xticks=range(n_layer))
        axis.legend(fontsize=7)
    ids = torch.tensor([question_and_answer(mini, tokenizer, 2, 256)], device=DEVICE)
    for block, inputs in zip(mini.blocks, attention_inputs(mini, ids), strict=True):
        if inputs[1] is not None:
            gate = block.attn.ve_gate.weight
            shape = (1, ids.size(1), gate.size(0), 1)
            zeros, ones = torch.zeros(shape, device=DEVICE), torch.ones(1, ids.size(1), gate.size(0), device=DEVICE)
            opened = value_residual(zeros, inputs[0].float(), ones, gate)[0, :, :, 0].cpu()
            p.axes[2].boxplot(
                opened, positions=block.attn.layer_idx + 0.2 * torch.arange(opened.size(1)).numpy(), widths=0.15
            )
    p.axes[2].axhline(1.5, color=GREY, linestyle="--", label="a gate of zeros")
    p.axes[2].set(title="value gates, by layer and head", xlabel="layer", ylabel="share of ve added")
    p.axes[2].set_xticks(range(n_layer), [str(i) for i in range(n_layer)])
    p.axes[2].legend(fontsize=7, loc="upper left")
    p.caption = (
        f"smear_lambda 0 at the start, now {mini.smear_lambda.item():.3f}; "
        f"backout_lambda 0.2, now {mini.backout_lambda.item():.3f}."
    )

# %% [markdown]
# ## What you have built
#
# A model that anything in nanochat takes for its own. Here nanochat's `Engine` generates with it (prefill, cache, many
# rows, calculator), and must say what it says with nanochat's model, token by token. Then nanochat's chat command, same
# flags, runs on yours.

# %% given="what-you-have-built" tags=["oracle"]
import tempfile

from nanochat.engine import Engine
from nanochat.scripts import chat_cli

QUESTIONS = ("Where does Ada live?", "How much is 512 - 87?", "Please multiply 24 by 19.")

with attempt("Your model inside nanochat's engine"):
    original, tokenizer, meta = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    task, right, same, calls = ToyArithmetic("test"), 0, 0, 0
    for conversation in (task[i] for i in range(8)):
        prompt = tokenizer.render_for_completion(conversation)
        yours, theirs = (
            Engine(model, tokenizer).generate_batch(prompt, max_tokens=48, temperature=0) for model in (mini, original)
        )
        same += yours == theirs
        calls += 0 in yours[1][0][len(prompt) :]
        right += task.evaluate(conversation, tokenizer.decode(yours[0][0][len(prompt) :]))
    print(f"Of 8 answers {same} are the same as with nanochat's model, {calls} use the calculator, {right} are right.")
    dials = {"num_samples": 4, "max_tokens": 32, "temperature": 0.9, "top_k": 20, "seed": 11}
    samples = [Engine(model, tokenizer).generate_batch(prompt, **dials) for model in (mini, original)]
    print(
        f"4 samples from one seed: {'all the same as' if samples[0] == samples[1] else 'not the same as'} nanochat's."
    )

with (
    attempt("Your model in nanochat's chat"),
    tempfile.TemporaryDirectory() as folder,
    patch.object(chat_cli.command, "load_model", lambda args, device: (mini, tokenizer, meta)),
    patch.dict(os.environ, NANOCHAT_BASE_DIR=folder),
):
    original, tokenizer, meta = toyworld.load_toy("sft", DEVICE)
    mini = mini_of(original)
    for question in QUESTIONS:
        print(f"you: {question}\nmodel: ", end="")
        chat_cli.main(["--toy", "--prompt", question, "--temperature", "0"])

# %% [markdown]
# ## In your own words
#
# A colleague ports your model to another framework. With random weights, and with one pass over 64 tokens, the port's
# logits agree with yours to 1e-5. On a trained checkpoint in production, in bfloat16, with a cache and conversations of
# 3000 tokens (`sequence_len` 2048, pattern `SSSL`), the answers are slightly worse than yours. In about ten sentences:
# (a) which pieces of the model can be wrong and still pass that test, and why (name at least four); (b) what is the
# smallest set of tests that would have caught all of them; (c) which difference would you *not* try to remove, and how
# do you know that it is harmless?

# %% [markdown] written="porting"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) Four of these, with the reason: *windows* (64 tokens are fewer than the short window of 512, so nothing is cut
# off, and off-by-one in `left` does not show); *everything with a cache* (the smear's `prev_embedding`, rotary
# positions that start at 0 in each call, a position advanced by every layer, a mask not aligned to the end); *scalars
# at their first values* (smear_lambda is 0 and both `c_proj` are 0 in a fresh model, so attention, MLP, value residual
# and smear have no effect on the logits at all: with nanochat's initialisation the test sees nothing but embedding,
# lambdas, backout, norm and head); *dtype* (promotion by a `(1,)` scalar, cap in bfloat16, angles in bfloat16);
# *grouped heads* if `n_kv_head` equals `n_head`; *norm before rotary*, which is the same for a pure rotation in
# float32; *positions beyond the tables*.
#
# (b) Few and small: weights that are all different from zero and from each other (made-up ones as in this notebook, or
# a trained checkpoint); `n_kv_head` < `n_head`; a row longer than the short window; one full pass against the same
# tokens in pieces of several lengths; the same in bfloat16 with looser bounds and a check of dtypes. Compare logits,
# not losses or texts.
#
# (c) Differences of rounding: order of sums in another attention kernel, another matmul. They are harmless if they are
# as large as what one gets by changing the kernel or the batch size on *one* implementation, do not grow with the
# position or with the depth beyond that, and have no sign (the mean difference is about 0). A difference that depends
# on the position, the head or the token is a mistake, however small.
# ### END SOLUTION
