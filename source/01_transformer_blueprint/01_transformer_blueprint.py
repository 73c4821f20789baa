# %% [markdown]
# # Puzzle 1: The Transformer Blueprint
#
# **From one number, the depth, derive everything about nanochat's Transformer that is fixed before the first training
# step.**
#
# ⭐⭐⭐⭐ · about 120 minutes · 100 points in 8 parts · builds on nothing · runs on any CPU, uses a GPU if there is one
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.01_transformer_blueprint` | runs your notebook and shows the visible checks |
# | `python -m puzzles.01_transformer_blueprint --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.01_transformer_blueprint --hint rotary` | gives hints for a part |
# | `python -m puzzles.01_transformer_blueprint --peek rotary` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# A wrong blueprint does not crash. It trains, a little worse, and you find out weeks later. Three real ways to get
# there:
#
# - **Round the width down instead of up.** A depth-5 model becomes 256 wide instead of 384: less than half the weights
#   in every layer, under the same name. Its checkpoint fits nobody else's code.
# - **Compute rotary angles in bfloat16.** Between 1024 and 2048, bfloat16 knows every eighth number. The 2048 positions
#   of a training row collapse into 641 different ones, and in the second half of the row the model can hardly tell a
#   word from its neighbours.
# - **Construct the model in memory.** A depth-32 model in float32 is 10.5 GiB. PyTorch's constructors fill it with
#   random numbers, nanochat's initialisation overwrites every one of them, and on eight GPUs eight processes do so in
#   the memory of one machine: 84 GiB. Constructed on the meta device, it takes none until it has a GPU to live on.
#
# After this puzzle you can
# 1. derive the widths, windows and parameter shapes of a model of any depth;
# 2. draw the attention mask of any layer, in training and while decoding from a cache;
# 3. state a model's parameters and FLOPs per token to the last digit (depth 12: 286,261,730 and 759,696,048), with code
#    of your own;
# 4. build a model of any size without writing a weight twice, and load it strictly into nanochat.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: `T` positions, `C` = `n_embd` channels, `H` = `n_head` query heads, `D` = `head_dim`.

# %% given="imports"
import math
from pathlib import Path

import torch
from torch import nn

from puzzles.checks import Checks, expect
from puzzles.compare import FLOAT32, Tolerance
from puzzles.plots import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, RED, SKY, attempt, picture

check = Checks("01_transformer_blueprint")

# %% [markdown]
# ## Part 1 · One dial: the widths (10 points, 5 minutes)
#
# Most model families are tables: so many layers, so wide, so many heads. nanochat has one dial, the **depth**, and the
# rest follows, so that a family of models from tiny to large differs in one number only. The width grows with the
# depth: `depth * aspect_ratio` channels. But attention splits the channels into heads of `head_dim` each, so the width
# has to be a whole number of heads. It is rounded **up**: no model gets less than it asked for.
#
# Depth 5 with the usual aspect ratio 64 and heads of 128: 5 · 64 = 320 channels are two and a half heads. So three
# heads, and a width of 384.
#
# Keys and values may have fewer heads than queries (grouped-query attention,
# [arXiv 2305.13245](https://arxiv.org/abs/2305.13245)): then every key/value head serves `n_head / n_kv_head` query
# heads, and the KV cache shrinks by that factor. That has to be a whole number.
#
# **Contract.** Returns a dict of ints `n_embd`, `n_head`, `n_kv_head`. `n_kv_head=None` means as many as query heads.
# Raises `ValueError` if `n_head` is not divisible by `n_kv_head`.


# %% hole="widths"
def widths(depth: int, aspect_ratio: int, head_dim: int, n_kv_head: int | None = None) -> dict[str, int]:
    """The widths of a model of `depth` layers: {"n_embd": ..., "n_head": ..., "n_kv_head": ...}.

    n_embd is depth * aspect_ratio rounded up to a multiple of head_dim. n_kv_head None: as many as query heads.
    Raises ValueError if n_head is not divisible by n_kv_head.
    """
    ### BEGIN SOLUTION
    n_head = math.ceil(depth * aspect_ratio / head_dim)
    if n_kv_head is None:
        n_kv_head = n_head
    if n_head % n_kv_head:
        raise ValueError(f"n_head {n_head} is not divisible by n_kv_head {n_kv_head}")
    return {"n_embd": n_head * head_dim, "n_head": n_head, "n_kv_head": n_kv_head}
    ### END SOLUTION


# %% given="check-widths"
with check("widths"):
    expect(widths, (12, 64, 128), {"n_embd": 768, "n_head": 6, "n_kv_head": 6}, "12 * 64 = 768 is six heads exactly")
    expect(widths, (5, 64, 128), {"n_embd": 384, "n_head": 3, "n_kv_head": 3}, "320 is 2.5 heads: round up to 3")
    expect(widths, (9, 64, 256), {"n_embd": 768, "n_head": 3, "n_kv_head": 3}, "576 is 2.25 heads: round up to 3")
    expect(widths, (6, 64, 64, 2), {"n_embd": 384, "n_head": 6, "n_kv_head": 2}, "n_kv_head is taken as it is given")
    expect(widths, (6, 64, 64, 4), ValueError, "6 query heads cannot share 4 key/value heads evenly")
    expect(widths, (2, 64, 64, 4), ValueError, "4 key/value heads are more than the 2 query heads")

# %% graded="widths"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("widths")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("01_transformer_blueprint", "widths", widths)
### END HIDDEN TESTS

# %% given="plot-widths" tags=["plot"]
with picture(
    "Width by depth", alt="Your width climbs in steps of one head, on or above the line of 64 channels a layer."
) as p:
    depths = range(1, 33)
    n_embd = [widths(depth, 64, 128)["n_embd"] for depth in depths]
    p.axes[0].plot(depths, [64 * depth for depth in depths], "--", color=GREY, label="depth * 64, what is asked for")
    p.axes[0].plot(depths, n_embd, "o", color=BLUE, label="your n_embd, heads of 128")
    p.axes[0].set(xlabel="depth (layers)", ylabel="width (channels)")
    p.axes[0].legend()
    gained = [n - 64 * depth for n, depth in zip(n_embd, depths, strict=True)]
    p.caption = (
        f"Depth 5: {n_embd[4]} channels; depth 32: {n_embd[31]}. Rounding adds {min(gained)} to {max(gained)} channels."
    )

# %% [markdown]
# ## Part 2 · Who looks how far: attention windows (15 points, 15 minutes)
#
# In full attention the last token of a 2048-token row reads 2048 keys in every layer. Most of what a head needs is near
# by, so nanochat lets most layers see a **short** window and only some the whole row. A pattern of letters, `SSSL`,
# says which: it is repeated over the layers, starting at layer 0. Distance is not lost: a layer passes on what the
# layer below has gathered, so reach adds up. The **last layer is always long**, whatever its letter, so that the
# prediction can look at everything directly.
#
# The two windows of a row of `sequence_len` tokens are
#
# - long: `sequence_len`;
# - short: a quarter of `sequence_len`, rounded up to a multiple of 128, the tile in which the attention kernel works. A
#   quarter of 2048 is 512. A quarter of 600 is 150, which makes 256. A quarter of 513 is 128.25, which also makes 256.
#   Nothing else is done to it: at a `sequence_len` of 24 the short window is 128.
#
# Six layers of `SSL` at 2048 tokens: 512, 512, 2048, 512, 512, 2048.
#
# **Contract.** Returns a list of `n_layer` pairs of ints `(left, right)`, the form FlashAttention wants: how many keys
# before and after its own position a query may see. `right` is always 0. Lower-case letters mean the same as upper-case
# ones. Raises `ValueError` if the pattern is empty or has any other character anywhere, even one that no layer would
# use.


# %% hole="window_sizes"
def window_sizes(n_layer: int, sequence_len: int, window_pattern: str) -> list[tuple[int, int]]:
    """The attention window (left, 0) of each layer. Long: sequence_len. Short: a quarter, up to a multiple of 128.

    The pattern of letters S and L, in either case, is repeated over the layers from layer 0; the last layer is long.
    Raises ValueError for an empty pattern and for any other character in it.
    """
    ### BEGIN SOLUTION
    pattern = window_pattern.upper()
    if not pattern or not set(pattern) <= {"S", "L"}:
        raise ValueError(f"window pattern {window_pattern!r} must be made of the letters S and L")
    short = 128 * math.ceil(sequence_len / 512)
    lefts = [short if pattern[i % len(pattern)] == "S" else sequence_len for i in range(n_layer)]
    lefts[-1] = sequence_len
    return [(left, 0) for left in lefts]
    ### END SOLUTION


# %% given="check-window_sizes"
with check("window_sizes"):
    expect(
        window_sizes,
        (6, 2048, "SSL"),
        [(512, 0), (512, 0), (2048, 0), (512, 0), (512, 0), (2048, 0)],
        "the pattern starts at layer 0 and is repeated as a whole",
    )
    expect(
        window_sizes,
        (5, 2048, "LSS"),
        [(2048, 0), (512, 0), (512, 0), (2048, 0), (2048, 0)],
        "layer 4 would be S by the pattern, but the last layer is always long",
    )
    expect(window_sizes, (2, 600, "S"), [(256, 0), (600, 0)], "a quarter is 150, and the next multiple of 128 is 256")
    expect(window_sizes, (2, 513, "S"), [(256, 0), (513, 0)], "a quarter is 128.25, a little more than one tile of 128")
    expect(window_sizes, (2, 24, "S"), [(128, 0), (24, 0)], "the short window is not cut down to the row")
    expect(window_sizes, (3, 2048, "sl"), [(512, 0), (2048, 0), (2048, 0)], "lower-case letters mean the same")
    expect(window_sizes, (3, 2048, ""), ValueError, "an empty pattern says nothing about any layer")
    expect(window_sizes, (2, 2048, "SLX"), ValueError, "X is no window, even though two layers never come to use it")

# %% graded="window_sizes"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("window_sizes")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("01_transformer_blueprint", "window_sizes", window_sizes)
### END HIDDEN TESTS

# %% given="plot-window_sizes" tags=["plot"]
with picture(
    "Windows and receptive field, 12 layers of 2048 tokens",
    alt="Left: bars, your window of each layer for SSSL. Right: how far back each layer can reach, for three patterns.",
    columns=2,
) as p:
    lefts = {pattern: [left for left, _ in window_sizes(12, 2048, pattern)] for pattern in ("SSSL", "S", "L")}
    for i, left in enumerate(lefts["SSSL"]):
        p.axes[0].bar(i, left, color=BLUE if left == 2048 else SKY, hatch="" if left == 2048 else "//")
    p.axes[0].set(title="SSSL: one layer sees (short hatched)", xlabel="layer", ylabel="keys before the query")
    for (pattern, row), colour, marker in zip(lefts.items(), COLOURS, MARKERS, strict=False):
        reach = [sum(row[: i + 1]) for i in range(12)]
        p.axes[1].semilogy(range(12), reach, color=colour, marker=marker, label=pattern)
    p.axes[1].axhline(2048, color=GREY, linestyle=":", label="the row, 2048")
    p.axes[1].set(title="Layers up to this one reach", xlabel="layer", ylabel="tokens back")
    p.axes[1].legend(ncols=2)
    full = next((i for i in range(12) if sum(lefts["SSSL"][: i + 1]) >= 2048), None)
    keys, share = sum(lefts["SSSL"]), sum(lefts["SSSL"]) / sum(lefts["L"])
    p.caption = (
        f"SSSL reads {keys:,} keys a token, {share:.0%} of all long. It reaches 2048 tokens back at layer {full}."
    )

# %% [markdown]
# ## Part 3 · Where am I: rotary tables (15 points, 15 minutes)
#
# Attention by itself does not know the order of tokens. Rotary embeddings (RoPE,
# [arXiv 2104.09864](https://arxiv.org/abs/2104.09864)) turn each pair of channels of a query or key by an angle that
# grows with its position. The dot product of two turned vectors then depends only on how far they are apart. Pair $c$
# of the $D/2$ pairs turns by
#
# $$\theta_{t,c} = t \cdot 100000^{-2c/D}, \qquad t = 0, 1, 2, \dots \quad c = 0, \dots, D/2 - 1$$
#
# so the first pair turns fast and the last one slowly, like the hands of a clock. With $D = 8$ the four frequencies are
# 1, 0.0562, 0.00316 and 0.000178 radians a token: full turns after 6, 112, 1987 and 35,333 tokens.
#
# The angles never change, so they are computed once, as tables of cosines and sines. Which channel is paired with which
# is decided where the table is used (nanochat pairs channel $c$ with $c + D/2$); the table has one entry a pair.
#
# Numbers as large as a position are coarse in 16 bits, so the angles are computed in float32. Only the result, which
# lies between −1 and 1, is cast to `dtype`.
#
# **Contract.** Returns `(cos, sin)`, each of shape `(1, seq_len, 1, head_dim / 2)` and of `dtype`: axes of size one for
# batch and heads, so that they broadcast against tensors `(B, T, H, D/2)`. `head_dim` is even.


# %% hole="rotary"
def rotary(seq_len: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the angle t * 100000^(-2c / head_dim) of every position t and channel pair c.

    Each (1, seq_len, 1, head_dim / 2). Angles, cosines and sines are computed in float32, then cast to `dtype`.
    """
    ### BEGIN SOLUTION
    pair = torch.arange(head_dim // 2, dtype=torch.float32)
    frequency = 100_000.0 ** (-2 * pair / head_dim)
    position = torch.arange(seq_len, dtype=torch.float32)
    angle = torch.outer(position, frequency)[None, :, None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)
    ### END SOLUTION


# %% given="check-rotary"
def rotary_rows(seq_len: int, head_dim: int, positions: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """A few positions of your tables, without the axes of size one: cos, then sin."""
    return [table[0, positions, 0, :] for table in rotary(seq_len, head_dim, dtype)]


with check("rotary"):
    turns = torch.tensor([[0.0, 0.0], [1.0, 0.0031622777], [2.0, 0.0063245553]])[None, :, None, :]
    expect(
        rotary,
        (3, 4, torch.float32),
        (turns.cos(), turns.sin()),
        "the frequencies for head_dim 4 are 1 and 100000^(-1/2) = 0.00316; cos comes first; positions start at 0",
        FLOAT32,
    )
    late = torch.tensor([[1999.0, 112.412031, 6.3213930, 0.35547805]])
    expect(
        rotary_rows,
        (2000, 8, [1999], torch.bfloat16),
        [late.cos().bfloat16(), late.sin().bfloat16()],
        "angles in 16 bits; at position 1999 bfloat16 knows only 1992, 2000, 2008",
        Tolerance(atol=0.01),
    )

# %% graded="rotary"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
# They allow for the rounding of float32 angles and of the result's dtype.
check.visible("rotary")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("01_transformer_blueprint", "rotary", rotary)
### END HIDDEN TESTS

# %% given="plot-rotary" tags=["plot"]
with picture(
    "Rotary clock hands, head_dim 128",
    alt="Left: stripes of your cosine table, fast at low pairs, slow at high ones. Right: wavelength by pair.",
    columns=2,
) as p:
    cos, sin = (table.float().reshape(256, -1) for table in rotary(256, 128, torch.float32))
    stripes = p.axes[0].imshow(cos, aspect="auto", cmap="cividis", vmin=-1, vmax=1)
    p.figure.colorbar(stripes, ax=p.axes[0], label="cos")
    p.axes[0].set(title="Your cos table", xlabel="channel pair", ylabel="position (tokens)")
    wavelength = 2 * math.pi / torch.atan2(sin[1], cos[1])
    p.axes[1].semilogy(wavelength, ".", color=BLUE, label="yours")
    p.axes[1].semilogy(2 * math.pi * 10_000 ** (torch.arange(64) / 64), "--", color=GREY, label="with base 10000")
    p.axes[1].axhline(2048, color=ORANGE, linestyle=":", label="a row, 2048")
    p.axes[1].set(title="Wavelength of each pair", xlabel="channel pair", ylabel="tokens for a full turn")
    p.axes[1].legend()
    turning = int((wavelength <= 2048).sum())
    p.caption = (
        f"{turning} of {len(wavelength)} pairs turn fully within 2048 tokens; the slowest takes {wavelength[-1]:,.0f}."
    )

# %% [markdown]
# ## Part 4 · Who sees whom: the mask (15 points, 15 minutes)
#
# The window of a layer says how many keys *before* its own position a query may see. With `left = 2` the query at
# position 4 sees the keys 2, 3 and 4: itself and two more, `left + 1` in all. A key of a later position is never
# visible. `left = -1` means no limit, and a `left` as long as the row comes to the same.
#
# In training there are as many queries as keys. While generating from a cache there are fewer: 11 keys may be known and
# only the last 4 positions be asking. **The queries are always the last `Tq` of the `Tk` positions**, so query $i$
# stands at position $p = i + T_k - T_q$. With `Tq = 2, Tk = 5, left = 1` (rows are queries, columns are keys, `1` is
# visible):
#
# ```
#             key 0 1 2 3 4
# query at 3      0 0 1 1 0
# query at 4      0 0 0 1 1
# ```
#
# **Contract.** Returns a boolean tensor `(Tq, Tk)`, `True` where the query of the row may see the key of the column.
# `1 <= Tq <= Tk`; `left >= -1`.


# %% hole="attention_mask"
def attention_mask(Tq: int, Tk: int, left: int) -> torch.Tensor:
    """Which keys each query may see: bool (Tq, Tk), True = visible.

    The queries are the last Tq of the Tk positions. A query sees itself and the `left` keys before it; -1: all of them.
    """
    ### BEGIN SOLUTION
    query = torch.arange(Tk - Tq, Tk)[:, None]
    key = torch.arange(Tk)[None, :]
    visible = key <= query
    if left >= 0:
        visible &= query - key <= left
    return visible
    ### END SOLUTION


# %% given="check-attention_mask"
def rows(*lines: str) -> torch.Tensor:
    """A mask written as text: a line for each query, 1 where a key is visible."""
    return torch.tensor([[letter == "1" for letter in line] for line in lines])


with check("attention_mask"):
    expect(
        attention_mask, (3, 3, -1), rows("100", "110", "111"), "a query sees itself and all before it, none after it"
    )
    expect(
        attention_mask,
        (5, 5, 2),
        rows("10000", "11000", "11100", "01110", "00111"),
        "the window is inclusive of `left`: the query at 4 sees keys 2, 3 and 4, so left + 1 keys",
    )
    expect(attention_mask, (2, 5, 1), rows("00110", "00011"), "the two queries are at the last positions, 3 and 4")
    expect(attention_mask, (2, 4, 0), rows("0010", "0001"), "with left = 0 a query still sees its own position")
    expect(attention_mask, (1, 4, 9), rows("1111"), "a window longer than the row lets everything through")

# %% graded="attention_mask"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("attention_mask")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("01_transformer_blueprint", "attention_mask", attention_mask)
### END HIDDEN TESTS

# %% given="plot-attention_mask" tags=["plot"]
with picture(
    "What your mask lets each query see",
    alt="Four squares: a causal triangle, a band three keys back, the last four rows of that band, a single row.",
    columns=4,
    size=(10.0, 3.0),
) as p:
    views = [(12, 12, -1), (12, 12, 3), (4, 12, 3), (1, 12, 5)]
    for axis, (Tq, Tk, left) in zip(p.axes, views, strict=True):
        area = (-0.5, Tk - 0.5, Tk - 0.5, Tk - Tq - 0.5)
        axis.imshow(attention_mask(Tq, Tk, left), cmap="Blues", vmin=0, vmax=1.4, extent=area)
        axis.set(title=f"Tq {Tq}, Tk {Tk}, left {left}", xlabel="key position", ylabel="query position")
        axis.set_ylim(11.5, -0.5)
        axis.set_xticks([k - 0.5 for k in range(1, Tk)], minor=True)
        axis.set_yticks([q - 0.5 for q in range(1, Tk)], minor=True)
        axis.grid(which="minor", color="white")
    counts = ", ".join(str(int(attention_mask(*view)[-1].sum())) for view in views)
    p.caption = f"Blue is visible. The last query sees {counts} keys."

# %% [markdown]
# ## Part 5 · Every name, every shape (15 points, 20 minutes)
#
# A checkpoint is a dict from names to tensors. Whoever has the right names and shapes can load it. These are the
# parameters of nanochat's GPT, with what each module is; `i` runs over the layers:
#
# | name | module | remarks |
# |---|---|---|
# | `transformer.wte.weight` | embedding, rows × C | the token embedding |
# | `lm_head.weight` | linear, C → rows | a weight of its own, not `wte` again |
# | `value_embeds.{i}.weight` | embedding, rows × width of the values | on some layers |
# | `transformer.h.{i}.attn.c_q.weight` | linear, C → H · D | |
# | `transformer.h.{i}.attn.c_k.weight`, `….c_v.weight` | linear, C → n_kv_head · D | |
# | `transformer.h.{i}.attn.c_proj.weight` | linear, C → C | |
# | `transformer.h.{i}.attn.ve_gate.weight` | linear, 12 → n_kv_head | on the layers with a value embedding |
# | `transformer.h.{i}.mlp.c_fc.weight` | linear, C → 4 C | |
# | `transformer.h.{i}.mlp.c_proj.weight` | linear, 4 C → C | |
# | `smear_gate.weight` | linear, 24 → 1 | mixes in the token before |
# | `resid_lambdas`, `x0_lambdas` | one number a layer | how much stream, how much first embedding |
# | `smear_lambda`, `backout_lambda` | one number each, shape `(1,)` | |
#
# - There are no biases and no parameters in the norms.
# - PyTorch's linear module $a \to b$ stores its weight as $(b, a)$, an embedding of $r$ rows as $(r, \text{width})$.
# - **rows** is the vocabulary rounded up to a multiple of 64, because matrix products are fastest at round sizes: 97
#   tokens take 128 rows, 128 tokens take 128. The extra rows are never looked up.
# - **Value embeddings** (ResFormer, [arXiv 2410.17897](https://arxiv.org/abs/2410.17897)) give a layer's values a
#   direct line to the token. The last layer has one, and counted back from there every other layer: of 4 layers, layers
#   3 and 1; of 5 layers, 4, 2 and 0.
# - $D = C / H$.
#
# For 2 layers, C = 64, 4 query and 2 key/value heads and 97 tokens, `c_k` is (32, 64), `value_embeds.1` is (128, 32)
# and layer 1 has the only `ve_gate`, (2, 12).
#
# **Contract.** Returns a dict from each of these names to its shape, a tuple of ints. The order does not matter.


# %% hole="parameter_shapes"
def parameter_shapes(
    n_layer: int, n_embd: int, n_head: int, n_kv_head: int, vocab_size: int
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of nanochat's GPT, by its name in the state dict. The order is free."""
    ### BEGIN SOLUTION
    rows = math.ceil(vocab_size / 64) * 64
    kv_dim = n_kv_head * (n_embd // n_head)
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (rows, n_embd),
        "lm_head.weight": (rows, n_embd),
        "smear_gate.weight": (1, 24),
        "resid_lambdas": (n_layer,),
        "x0_lambdas": (n_layer,),
        "smear_lambda": (1,),
        "backout_lambda": (1,),
    }
    for i in range(n_layer):
        block = f"transformer.h.{i}"
        shapes[f"{block}.attn.c_q.weight"] = (n_embd, n_embd)
        shapes[f"{block}.attn.c_k.weight"] = (kv_dim, n_embd)
        shapes[f"{block}.attn.c_v.weight"] = (kv_dim, n_embd)
        shapes[f"{block}.attn.c_proj.weight"] = (n_embd, n_embd)
        shapes[f"{block}.mlp.c_fc.weight"] = (4 * n_embd, n_embd)
        shapes[f"{block}.mlp.c_proj.weight"] = (n_embd, 4 * n_embd)
        if (n_layer - 1 - i) % 2 == 0:
            shapes[f"{block}.attn.ve_gate.weight"] = (n_kv_head, 12)
            shapes[f"value_embeds.{i}.weight"] = (rows, kv_dim)
    return shapes
    ### END SOLUTION


# %% given="check-parameter_shapes"
def shapes_of(name: str, n_layer: int, n_embd: int, n_head: int, n_kv_head: int, vocab_size: int) -> dict:
    """The part of your table whose names contain `name`."""
    return {n: s for n, s in parameter_shapes(n_layer, n_embd, n_head, n_kv_head, vocab_size).items() if name in n}


with check("parameter_shapes"):
    small = (2, 64, 4, 2, 97)
    expect(
        shapes_of,
        (".h.0.", *small),
        {
            "transformer.h.0.attn.c_q.weight": (64, 64),
            "transformer.h.0.attn.c_k.weight": (32, 64),
            "transformer.h.0.attn.c_v.weight": (32, 64),
            "transformer.h.0.attn.c_proj.weight": (64, 64),
            "transformer.h.0.mlp.c_fc.weight": (256, 64),
            "transformer.h.0.mlp.c_proj.weight": (64, 256),
        },
        "a linear module a -> b stores (b, a); keys and values have n_kv_head heads of n_embd / n_head channels",
    )
    expect(
        shapes_of,
        ("gate", *small),
        {"transformer.h.1.attn.ve_gate.weight": (2, 12), "smear_gate.weight": (1, 24)},
        "of 2 layers, the last has a value embedding and a gate for it",
    )
    expect(
        shapes_of,
        ("value_embeds", 4, 48, 3, 1, 128),
        {"value_embeds.1.weight": (128, 16), "value_embeds.3.weight": (128, 16)},
        "as wide as the values, on the last layer and every other one before it; 128 rows need no padding",
    )
    expect(
        shapes_of,
        ("value_embeds", 3, 48, 3, 1, 129),
        {"value_embeds.0.weight": (192, 16), "value_embeds.2.weight": (192, 16)},
        "with 3 layers the last is layer 2, so 0 and 2 have one; 129 tokens take 192 rows",
    )
    expect(shapes_of, ("wte", *small), {"transformer.wte.weight": (128, 64)}, "97 tokens take 128 rows")
    expect(shapes_of, ("lm_head", *small), {"lm_head.weight": (128, 64)}, "lm_head has as many rows as wte")
    expect(
        shapes_of,
        ("lambda", *small),
        {"resid_lambdas": (2,), "x0_lambdas": (2,), "smear_lambda": (1,), "backout_lambda": (1,)},
        "the learnt scalars are parameters too",
    )

# %% graded="parameter_shapes"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("parameter_shapes")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("01_transformer_blueprint", "parameter_shapes", parameter_shapes)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 6 · Where the parameters are (10 points, 10 minutes)
#
# How large is a model? It depends on what you ask. Scaling laws go by the matrices of the blocks and the unembedding;
# memory goes by everything; and the value embeddings, which are only looked up, can be more than half of it and cost
# hardly any time. So nanochat counts by family:
#
# | family | what belongs to it |
# |---|---|
# | `wte` | `transformer.wte.weight` |
# | `value_embeds` | everything below `value_embeds` |
# | `lm_head` | `lm_head.weight` |
# | `transformer_matrices` | everything below `transformer.h`, the gates of the blocks too |
# | `scalars` | all the rest: the lambdas, and `smear_gate` |
# | `total` | the sum of the five |
#
# So that this part stands alone, you get the table of part 5 as input. The next cell has one to work with: 2 layers,
# C = 64, 4 query and 2 key/value heads, 128 rows. Its two lambdas a layer are 4 numbers, with `smear_lambda`,
# `backout_lambda` and the 24 of `smear_gate` 30 scalars.
#
# **Contract.** `shapes` maps names to tuples, in any order, for any number of layers. Returns a dict of ints with these
# six keys.

# %% given="small-model"
SMALL = {
    "resid_lambdas": (2,),
    "x0_lambdas": (2,),
    "smear_lambda": (1,),
    "backout_lambda": (1,),
    "smear_gate.weight": (1, 24),
    "lm_head.weight": (128, 64),
    "value_embeds.1.weight": (128, 32),
    "transformer.wte.weight": (128, 64),
    "transformer.h.0.attn.c_q.weight": (64, 64),
    "transformer.h.0.attn.c_k.weight": (32, 64),
    "transformer.h.0.attn.c_v.weight": (32, 64),
    "transformer.h.0.attn.c_proj.weight": (64, 64),
    "transformer.h.0.mlp.c_fc.weight": (256, 64),
    "transformer.h.0.mlp.c_proj.weight": (64, 256),
    "transformer.h.1.attn.c_q.weight": (64, 64),
    "transformer.h.1.attn.c_k.weight": (32, 64),
    "transformer.h.1.attn.c_v.weight": (32, 64),
    "transformer.h.1.attn.c_proj.weight": (64, 64),
    "transformer.h.1.attn.ve_gate.weight": (2, 12),
    "transformer.h.1.mlp.c_fc.weight": (256, 64),
    "transformer.h.1.mlp.c_proj.weight": (64, 256),
}


# %% hole="param_counts"
def param_counts(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """How many numbers the parameters in a table of shapes hold, by family.

    Keys: wte, value_embeds, lm_head, transformer_matrices, scalars (with smear_gate) and total.
    """
    ### BEGIN SOLUTION
    prefixes = {
        "wte": "transformer.wte.",
        "value_embeds": "value_embeds.",
        "lm_head": "lm_head.",
        "transformer_matrices": "transformer.h.",
    }
    counts = dict.fromkeys([*prefixes, "scalars"], 0)
    for name, shape in shapes.items():
        family = next((f for f, prefix in prefixes.items() if name.startswith(prefix)), "scalars")
        counts[family] += math.prod(shape)
    return counts | {"total": sum(counts.values())}
    ### END SOLUTION


# %% given="check-param_counts"
with check("param_counts"):
    expect(
        param_counts,
        ({"transformer.wte.weight": (128, 64), "lm_head.weight": (128, 64)},),
        {"wte": 8192, "value_embeds": 0, "lm_head": 8192, "transformer_matrices": 0, "scalars": 0, "total": 16384},
        "a shape (128, 64) holds 128 * 64 = 8192 numbers; families with nothing in them count 0",
    )
    expect(
        param_counts,
        (SMALL,),
        {
            "wte": 8192,
            "value_embeds": 4096,
            "lm_head": 8192,
            "transformer_matrices": 90136,
            "scalars": 30,
            "total": 110646,
        },
        "ve_gate lies in a block and is a matrix (24 numbers here); smear_gate lies outside and is a scalar (24 too)",
    )

# %% graded="param_counts"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("param_counts")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade(
    "01_transformer_blueprint",
    "param_counts",
    lambda shapes: param_counts({name: tuple(shape) for name, shape in shapes.items()}),
)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 7 · What a token costs (10 points, 10 minutes)
#
# FLOPs per token decide how long a run takes and how well the hardware is used (MFU). The rule of PaLM
# ([arXiv 2204.02311](https://arxiv.org/abs/2204.02311), appendix B), which nanochat follows, counts multiplications and
# additions:
#
# - **Weights.** A weight in a matrix product takes part in one multiplication and one addition: 2 FLOPs.
# - **Attention.** For each key it reads, a query head multiplies and adds `head_dim` channels for the score, and as
#   many again to sum up the values: 4 · `head_dim` FLOPs a key and query head.
# - **Keys read.** A layer reads `left` keys (by convention not left + 1, and as if every query had a full window), but
#   never more than `sequence_len`.
# - **Training.** That was the forward pass. The backward pass costs twice as much, so training costs three times the
#   forward pass.
#
# A toy: 1000 weights, 1 head of 2 channels, one layer with left = 4 in a row of 4. Forward: 2 · 1000 + 4 · 2 · 4 =
# 2032. Training: 6096.
#
# **Contract.** Returns an int, the training FLOPs per token. `window_sizes` is what part 2 returns, one pair a layer.


# %% hole="flops_per_token"
def flops_per_token(
    matmul_params: int, n_head: int, head_dim: int, window_sizes: list[tuple[int, int]], sequence_len: int
) -> int:
    """Training FLOPs per token: three forward passes, each 2 per matmul weight and 4 * head_dim per head and key read.

    A layer with the window (left, 0) reads `left` keys, at most sequence_len.
    """
    ### BEGIN SOLUTION
    keys = sum(min(left, sequence_len) for left, _ in window_sizes)
    return 6 * matmul_params + 12 * n_head * head_dim * keys
    ### END SOLUTION


# %% given="check-flops_per_token"
with check("flops_per_token"):
    expect(flops_per_token, (1000, 1, 2, [(4, 0)], 4), 6096, "the toy: three times (2 * 1000 + 4 * 2 * 4)")
    expect(
        flops_per_token,
        (1000, 3, 2, [(4, 0), (16, 0)], 16),
        7440,
        "three heads read 4 keys in one layer and 16 in the other: 3 * (2000 + 4 * 2 * 3 * 20)",
    )
    expect(
        flops_per_token,
        (1000, 1, 2, [(128, 0), (24, 0)], 24),
        7152,
        "a window of 128 in a row of 24 reads 24 keys: 3 * (2000 + 4 * 2 * 48)",
    )

# %% graded="flops_per_token"
# 10 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("flops_per_token")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade(
    "01_transformer_blueprint",
    "flops_per_token",
    lambda window_sizes, **case: flops_per_token(window_sizes=[tuple(pair) for pair in window_sizes], **case),
)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 8 · From paper to memory: build (10 points, 20 minutes)
#
# Now the blueprint becomes weights. PyTorch's **meta** device holds tensors that have a shape and a dtype but no
# memory. A model constructed there costs nothing, whatever its size. `to_empty(device=...)` then gives every parameter
# memory on the device where it is to live, without writing to it, and the initialisation writes each weight exactly
# once:
#
# | parameters | first values |
# |---|---|
# | `wte` | normal, standard deviation 0.8 |
# | `lm_head` | normal, standard deviation 0.001 |
# | `c_q`, `c_k`, `c_v`, value embeddings | uniform between $-s$ and $s$, where $s = \sqrt{3 / C}$ |
# | `c_fc` | uniform between $-0.4\,s$ and $0.4\,s$ |
# | both `c_proj` | zero: every block starts as the identity |
# | `ve_gate`, `smear_gate` | uniform between 0 and 0.02 |
# | `resid_lambdas` | from 1.15 at the first layer to 1.05 at the last, in equal steps |
# | `x0_lambdas` | from 0.20 at the first layer to 0.05 at the last, in equal steps |
# | `smear_lambda` | 0 |
# | `backout_lambda` | 0.2 |
#
# A model of one layer takes the first value of the lambdas. Every random tensor is a fresh draw. All parameters stay
# float32 here (on a GPU with bfloat16, nanochat afterwards stores the embeddings in bfloat16).
#
# The next cell gives you `ParameterTree`, which turns a table of shapes into nested modules with exactly these
# parameters. To make a forgotten one visible, it fills new memory with NaN. It also remembers the device its parameters
# were made on.
#
# For `SMALL` (C = 64): $s$ = 0.2165, so `c_q` lies within ±0.2165 with standard deviation 0.125, and `c_fc` within
# ±0.0866.
#
# **Contract.** Returns a `ParameterTree` constructed on meta, with all its parameters on `device`, filled by the rules
# above. Uses torch's global random state.


# %% given="parameter-tree"
class ParameterTree(nn.Module):
    """Nested modules with exactly the parameters of a table: {"a.b.weight": (2, 3)} becomes tree.a.b.weight."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for child in path:
                if not hasattr(module, child):
                    module.add_module(child, nn.Module())
                module = getattr(module, child)
            module.register_parameter(leaf, nn.Parameter(torch.full(shape, math.nan)))
        self.born_on = next(self.parameters()).device.type

    def to_empty(self, *, device: torch.device | str, recurse: bool = True) -> "ParameterTree":
        """Memory for every parameter on `device`. What it holds is arbitrary; here it is NaN."""
        super().to_empty(device=device, recurse=recurse)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(math.nan)
        return self


# %% hole="build"
def build(shapes: dict[str, tuple[int, ...]], n_layer: int, n_embd: int, device: torch.device | str) -> ParameterTree:
    """The parameters of `shapes`, constructed on meta, given memory on `device`, with nanochat's first values."""
    ### BEGIN SOLUTION
    with torch.device("meta"):
        tree = ParameterTree(shapes)
    tree.to_empty(device=device)
    s = math.sqrt(3 / n_embd)
    with torch.no_grad():
        for name, parameter in tree.named_parameters():
            module = name.removesuffix(".weight").split(".")[-1]
            if module == "wte":
                parameter.normal_(std=0.8)
            elif module == "lm_head":
                parameter.normal_(std=0.001)
            elif module in ("c_q", "c_k", "c_v") or name.startswith("value_embeds."):
                parameter.uniform_(-s, s)
            elif module == "c_fc":
                parameter.uniform_(-0.4 * s, 0.4 * s)
            elif module in ("c_proj", "smear_lambda"):
                parameter.zero_()
            elif module in ("ve_gate", "smear_gate"):
                parameter.uniform_(0, 0.02)
            elif module == "resid_lambdas":
                parameter.copy_(torch.linspace(1.15, 1.05, n_layer))
            elif module == "x0_lambdas":
                parameter.copy_(torch.linspace(0.20, 0.05, n_layer))
            elif module == "backout_lambda":
                parameter.fill_(0.2)
    return tree
    ### END SOLUTION


# %% given="check-build"
def where_made() -> str:
    """The device the parameters of SMALL were made on."""
    return build(SMALL, n_layer=2, n_embd=64, device="cpu").born_on


def never_filled() -> list[str]:
    """The parameters of SMALL which still hold what was in memory."""
    tree = build(SMALL, n_layer=2, n_embd=64, device="cpu")
    return [name for name, parameter in tree.named_parameters() if parameter.isnan().any()]


def fresh(name: str) -> torch.Tensor:
    """A parameter of SMALL as your build leaves it."""
    torch.manual_seed(0)
    return build(SMALL, n_layer=2, n_embd=64, device="cpu").get_parameter(name).detach()


def deviation(name: str) -> float:
    """Its standard deviation."""
    return fresh(name).std().item()


def bounds(name: str) -> list[float]:
    """Its smallest and its largest number."""
    return [fresh(name).min().item(), fresh(name).max().item()]


with check("build"):
    expect(where_made, (), "meta", "the tree is constructed outside of `with torch.device(...)`")
    expect(never_filled, (), [], "these parameters have no rule in your code, or were given memory after it")
    expect(fresh, ("resid_lambdas",), torch.tensor([1.15, 1.05]), "the first layer has 1.15, the last 1.05", FLOAT32)
    expect(fresh, ("x0_lambdas",), torch.tensor([0.20, 0.05]), "the first layer has 0.20, the last 0.05", FLOAT32)
    expect(fresh, ("smear_lambda",), torch.tensor([0.0]), "nothing is smeared at first", FLOAT32)
    expect(fresh, ("backout_lambda",), torch.tensor([0.2]), "it starts at 0.2", FLOAT32)
    for name in ("transformer.h.0.attn.c_proj.weight", "transformer.h.1.mlp.c_proj.weight"):
        expect(bounds, (name,), [0.0, 0.0], "every block starts as the identity, so both c_proj are zero")
    expect(deviation, ("transformer.wte.weight",), 0.8, "normal with standard deviation 0.8", Tolerance(rtol=0.05))
    expect(deviation, ("lm_head.weight",), 0.001, "normal with standard deviation 0.001", Tolerance(rtol=0.05))
    for name in ("transformer.h.0.attn.c_q.weight", "transformer.h.1.attn.c_v.weight", "value_embeds.1.weight"):
        expect(bounds, (name,), [-0.2165, 0.2165], "uniform between -s and s, s = sqrt(3 / 64)", Tolerance(rtol=0.02))
    name = "transformer.h.0.mlp.c_fc.weight"
    expect(bounds, (name,), [-0.0866, 0.0866], "uniform, 0.4 times as wide as c_q", Tolerance(rtol=0.02))
    # only 24 numbers: their extremes scatter
    for name in ("transformer.h.1.attn.ve_gate.weight", "smear_gate.weight"):
        expect(bounds, (name,), [0.0, 0.02], "uniform between 0 and 0.02", Tolerance(atol=0.007))

# %% graded="build"
# 10 points. The hidden tests are more of the same, with other shapes and numbers; `--verify` runs them.
# They look at the distribution of each tensor, so any order of drawing is right.
check.visible("build")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade


def report_build(seed: int, shapes: dict, n_layer: int, n_embd: int, device: torch.device) -> dict:
    torch.manual_seed(seed)
    tree = build({name: tuple(shape) for name, shape in shapes.items()}, n_layer, n_embd, device)
    there = all(parameter.device.type == device.type for parameter in tree.parameters())
    return {"born_on": tree.born_on, "on_device": there, "state": tree.state_dict()}


grade("01_transformer_blueprint", "build", report_build)
### END HIDDEN TESTS

# %% given="plot-build" tags=["plot"]
with picture(
    "Fresh weights of the small model",
    alt="Six histograms: bells for wte and lm_head, boxes for c_q, c_fc and the gate, one spike at zero for c_proj.",
    rows=2,
    columns=3,
    size=(9.0, 4.2),
) as p:
    tree = build(SMALL, n_layer=2, n_embd=64, device="cpu")
    blocks = "transformer.h.0"
    shown = (
        "transformer.wte",
        "lm_head",
        f"{blocks}.attn.c_q",
        f"{blocks}.mlp.c_fc",
        f"{blocks}.mlp.c_proj",
        "smear_gate",
    )
    weights = {name: tree.get_parameter(f"{name}.weight").detach().flatten() for name in shown}
    for axis, (name, weight), colour in zip(p.axes, weights.items(), COLOURS, strict=True):
        axis.hist(weight, bins=40 if weight.numel() > 100 else 8, color=colour)
        axis.set(title=name.removeprefix("transformer."), xlabel="weight", ylabel="how many")
    deviations = ", ".join(f"{name.split('.')[-1]} {weight.std():.3g}" for name, weight in weights.items())
    p.caption = f"Standard deviations: {deviations}."

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your eight functions together. There is nothing to fill in: a `ModelSetup` is a blueprint, and `build`
# makes the model.


# %% given="model-setup"
class ModelSetup:
    """Everything about a nanochat GPT that is fixed before training, from its depth. Made of your functions."""

    def __init__(
        self,
        depth: int,
        *,
        aspect_ratio: int = 64,
        head_dim: int = 128,
        sequence_len: int = 2048,
        vocab_size: int = 32768,
        window_pattern: str = "SSSL",
        n_kv_head: int | None = None,
    ) -> None:
        size = widths(depth, aspect_ratio, head_dim, n_kv_head)
        self.n_layer, self.head_dim, self.sequence_len = depth, head_dim, sequence_len
        self.n_embd, self.n_head, self.n_kv_head = size["n_embd"], size["n_head"], size["n_kv_head"]
        self.vocab_size, self.window_pattern = vocab_size, window_pattern
        self.window_sizes = window_sizes(depth, sequence_len, window_pattern)
        self.shapes = parameter_shapes(depth, self.n_embd, self.n_head, self.n_kv_head, vocab_size)

    def rotary(self, seq_len: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each (1, seq_len, 1, head_dim / 2)."""
        return rotary(seq_len, self.head_dim, dtype)

    def attention_mask(self, layer: int, Tq: int, Tk: int) -> torch.Tensor:
        """The mask of a layer: bool (Tq, Tk), True = visible."""
        return attention_mask(Tq, Tk, self.window_sizes[layer][0])

    def param_counts(self) -> dict[str, int]:
        """Parameters by family."""
        return param_counts(self.shapes)

    def flops_per_token(self) -> int:
        """Training FLOPs per token. Every matrix takes part in a product but the embeddings, which are looked up."""
        families = self.param_counts()
        smear_gate = math.prod(self.shapes["smear_gate.weight"])
        matmul_params = families["transformer_matrices"] + families["lm_head"] + smear_gate
        return flops_per_token(matmul_params, self.n_head, self.head_dim, self.window_sizes, self.sequence_len)

    def build(self, device: torch.device | str) -> ParameterTree:
        """The model's parameters on `device`, freshly initialised."""
        return build(self.shapes, self.n_layer, self.n_embd, device)


with attempt("The blueprint of depth 12"):
    d12 = ModelSetup(12)
    print(f"depth 12: {d12.n_embd} wide, {d12.n_head} heads, {len(d12.shapes)} tensors")
    print(f"{d12.param_counts()['total']:,} parameters, {d12.flops_per_token():,} training FLOPs per token")

# %% given="plot-model-masks" tags=["plot", "oracle"]
from nanochat.flash_attention import visible_mask

with picture(
    "Masks of your model by layer, against nanochat's",
    alt="Four squares, one a layer: three bands of 129 keys, one full triangle. Red crosses: nanochat differs.",
    columns=4,
    size=(10.0, 3.0),
) as p:
    setup = ModelSetup(4, aspect_ratio=16, head_dim=16, sequence_len=320)
    differing = 0
    for layer, axis in enumerate(p.axes):
        yours = setup.attention_mask(layer, 320, 320)
        wrong = yours != visible_mask(320, 320, [128, 128, 128, 320][layer])
        axis.imshow(yours, cmap="Blues", vmin=0, vmax=1.4)
        axis.plot(*wrong.nonzero().flip(1).T[:, ::37], "x", color=RED, markersize=5)
        axis.set(title=f"layer {layer}, left {setup.window_sizes[layer][0]}", xlabel="key", ylabel="query position")
        differing += int(wrong.sum())
    p.caption = f"{differing:,} of {4 * 320 * 320:,} entries differ from nanochat's."

# %% given="plot-scaling" tags=["plot", "oracle"]
from nanochat.recipe import build_meta_model, config_from_depth

with picture(
    "Parameters and FLOPs by depth, yours on nanochat's",
    alt="Both panels rise steeply with depth on a log scale. Your markers lie on nanochat's lines.",
    columns=2,
    size=(9.0, 3.6),
) as p:
    depths = (2, 4, 8, 12, 16, 20, 26, 32)
    setups = [ModelSetup(depth) for depth in depths]
    models = [build_meta_model(config_from_depth(depth)) for depth in depths]
    families = ("total", "transformer_matrices", "value_embeds")
    for family, colour, marker in zip(families, COLOURS, MARKERS, strict=False):
        theirs = [model.num_scaling_params()[family] for model in models]
        yours = [setup.param_counts()[family] for setup in setups]
        p.axes[0].semilogy(depths, theirs, "-", color=colour)
        p.axes[0].semilogy(depths, yours, marker, color=colour, fillstyle="none", label=family)
    p.axes[1].semilogy(depths, [model.estimate_flops() for model in models], "-", color=BLACK, label="nanochat")
    p.axes[1].semilogy(depths, [s.flops_per_token() for s in setups], "o", color=BLUE, fillstyle="none", label="yours")
    for axis, what in zip(p.axes, ("parameters", "training FLOPs per token"), strict=True):
        axis.set(xlabel="depth (layers)", ylabel=what)
        axis.legend()
    pairs = list(zip(setups, models, strict=True))
    flops = sum(setup.flops_per_token() == model.estimate_flops() for setup, model in pairs)
    counts = sum(setup.param_counts() == model.num_scaling_params() for setup, model in pairs)
    p.caption = f"Of {len(pairs)} depths, parameters equal nanochat's to the last digit at {counts}, FLOPs at {flops}."

# %% [markdown]
# ## On real data: name every tensor of a checkpoint
#
# A nanochat checkpoint is a directory with the weights, `model_<step>.pt`, and a `meta_<step>.json` that holds the
# model's configuration. Your blueprint should know every tensor in it by name and shape, without having seen it.

# %% given="real-checkpoint"
import json

import nanochat

CHECKPOINTS = Path(nanochat.__file__).parent / "assets"


def setup_of(config: dict) -> ModelSetup:
    """Your blueprint of a model configuration."""
    return ModelSetup(
        config["n_layer"],
        # rounded up to whole heads again, this gives n_embd
        aspect_ratio=config["n_embd"] // config["n_layer"],
        head_dim=config["n_embd"] // config["n_head"],
        sequence_len=config["sequence_len"],
        vocab_size=config["vocab_size"],
        window_pattern=config["window_pattern"],
        n_kv_head=config["n_kv_head"],
    )


with attempt("Your blueprint against a real checkpoint"):
    found = sorted(CHECKPOINTS.rglob("model_*.pt"))
    if not found:
        print("No checkpoint is shipped here. With one, you would see how many of its tensors your blueprint names.")
    for path in found:
        meta = json.loads(path.with_name(path.stem.replace("model", "meta") + ".json").read_text())
        state = torch.load(path, map_location="cpu", weights_only=True)
        setup = setup_of(meta["model_config"])
        real = {name: tuple(tensor.shape) for name, tensor in state.items()}
        right = sum(setup.shapes.get(name) == shape for name, shape in real.items())
        invented = len(setup.shapes.keys() - real.keys())
        print(f"{path.name}: {right} of {len(real)} tensors named with the right shape, {invented} invented.")
        for name in sorted(real.keys() | setup.shapes.keys()):
            if setup.shapes.get(name) != real.get(name):
                print(f"  {name}: the checkpoint has {real.get(name)}, your blueprint {setup.shapes.get(name)}")

# %% [markdown]
# ## What you have built
#
# Here your blueprint takes the place of nanochat's own. Your weights go strictly (every name, every shape) into the
# real `nanochat.gpt.GPT`; your rotary tables replace its buffers and your mask the one its attention uses. Then
# nanochat's own optimizer trains it for 30 steps on a single sentence. The last line runs the same weights on
# nanochat's own tables and masks: the logits must agree but for rounding.

# %% given="what-you-have-built" tags=["oracle"]
from unittest.mock import patch

from nanochat import common, flash_attention
from nanochat.gpt import GPTConfig
from nanochat.recipe import build_meta_model, build_model


def mask_for_nanochat(Tq: int, Tk: int, left: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Your mask, on the device where nanochat wants it."""
    return attention_mask(Tq, Tk, left).to(device)


with attempt("Your blueprint inside nanochat"):
    torch.manual_seed(0)
    text = (
        "Three of four layers look 512 tokens back, the last one sees it all. What does that save, what can it cost? "
    )
    row = torch.tensor([list((text * 4).encode()[:321])])
    setup = ModelSetup(4, aspect_ratio=16, head_dim=16, sequence_len=320, vocab_size=256)
    fields = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern")
    model = build_meta_model(GPTConfig(**{field: getattr(setup, field) for field in fields}))
    model.to_empty(device="cpu")
    model.load_state_dict(setup.build("cpu").state_dict(), strict=True)
    model.cos, model.sin = setup.rotary(10 * setup.sequence_len, common.COMPUTE_DTYPE)
    model.window_sizes = setup.window_sizes
    with patch.object(flash_attention, "visible_mask", mask_for_nanochat):
        optimizer = model.setup_optimizer()
        losses = []
        for _ in range(30):
            loss = model(row[:, :-1], row[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        with torch.inference_mode():
            yours = model(row[:, :-1])
    print(f"{sum(weight.numel() for weight in model.parameters()):,} weights loaded, every name and shape right")
    print(f"loss {losses[0]:.2f} (ln 256 = {math.log(256):.2f}), after 30 steps {losses[-1]:.2f}")
    original = build_model(model.config, "cpu")
    original.load_state_dict(model.state_dict(), strict=True)
    with torch.inference_mode():
        error = (yours - original(row[:, :-1])).abs().max()
    print(f"largest difference to the logits on nanochat's own tables and masks: {error:.1e}")

# %% [markdown]
# ## In your own words
#
# nanochat's default pattern for 2048 tokens is `SSSL`. A colleague wants to train a depth-12 model at 32,768 tokens and
# proposes the pattern `S`. In about ten sentences: (a) what share of the FLOPs per token does that save against `L` at
# that length (use your functions), (b) what can the model still do and what becomes hard for it, and (c) why is the
# last layer long in any pattern?

# %% [markdown] written="why_windows"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) `ModelSetup(12, sequence_len=32768, window_pattern=...)`: short windows are 8192 keys, and the last layer is long
# under both patterns. `L` costs 4,284,484,272 FLOPs per token, `S` 1,793,067,696: 58 % less. The weights (660,605,616)
# cost the same, so of attention itself 69 % are saved. No point for 75 %, which forgets the last layer and the weights.
#
# (b) Reach adds up over the layers: eleven windows of 8192 keys cover 32,768 tokens after four layers, so information
# *can* come from anywhere. But from far away it comes only in hops, squeezed through the hidden state of a token in
# between, which had to know that it would be wanted. Exact recall over more than 8192 tokens (a name, a number,
# copying) is left to the last layer; what it fetches can no longer be worked on by layers above. Style, syntax and
# topic hardly suffer.
#
# (c) So that some layer sees the whole row directly, whatever the depth and the pattern. It is the last one, because
# there the other layers have already prepared what to look for and what to offer, and because the prediction is read
# off right after it.
# ### END SOLUTION
