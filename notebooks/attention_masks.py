# %% [markdown]
# # Lab: attention masks, receptive fields, and the price of a cache
#
# **Goal: say for any layer, query and window pattern which tokens can influence which, prove it on the real model, and
# know what a window saves, and what it does not.**
#
# about 20 minutes to read, half a minute to run · no points · any CPU · goes with puzzles 1, 4 and 8
#
# ## Why first
#
# In full attention every token looks at every token before it. Twice the context, four times the work; and every new token
# of a chat reads the keys and values of all the others from memory again. nanochat lets most layers look back a fixed
# distance only: the pattern `SSSL` means three layers with a short window, then one with a long one, and so on.
#
# That sounds as if most layers were blind to the past. They are not, and the reason is worth seeing once. Afterwards you can
#
# 1. draw the mask of any layer, also when the queries are only the last few positions (decoding with a cache);
# 2. compute how far back a token can be *felt* after so many layers, and find the one token that the masks forget;
# 3. tell which costs a window cuts (compute, bytes read) and which it does not (bytes kept), and what GQA adds.
#
# Everything here is computed by nanochat itself: `compute_window_sizes`, `visible_mask`, the counts of the model.
#
# Run all cells (*Run*, *Run All Cells*). Code that only draws is folded: click the bar beside `•••` to read it.

# %%
from dataclasses import replace

import torch
from matplotlib.patches import Patch, Rectangle

from nanochat import common, recipe
from nanochat.flash_attention import visible_mask
from nanochat.gpt import GPTConfig, compute_window_sizes
from puzzles.explore import choice, explore, slider
from puzzles.plots import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, SKY, picture

PATTERNS = ["SSSL", "SL", "SSL", "L", "S"]


def reach(config: GPTConfig, smear: bool = True) -> list[torch.Tensor]:
    """After each layer, (T, T) bool: can the token at column j influence position i? Masks one after another: layer
    n sees what layer n - 1 let through. The smear mixes each embedding with the one before it, a window of one."""
    T = config.sequence_len
    through = visible_mask(T, T, left=1 if smear else 0).float()
    fields = []
    for left, _ in compute_window_sizes(config.n_layer, T, config.window_pattern):
        through = (visible_mask(T, T, left).float() @ through > 0).float()
        fields.append(through.bool())
    return fields


# %% [markdown]
# ## 1 · The mask of a layer, and what a query can feel
#
# Left: the mask of the chosen layer. A row is a query, a column a key; filled means visible. The line marks your query.
# Right: for that query, a bar a layer. The dark bar is the layer's own window; the hatched one is the **receptive field**,
# every token that can influence the query after that layer, through all layers below.
#
# Try: pattern `S`, 8 layers, the last query. Each short layer adds one window to the field, so that even windows of a quarter
# see everything after four layers. Then `SSSL`: the first long layer ends the story, at any depth.


# %% tags=["drawing"]
def draw_masks(pattern: str, n_layer: int, sequence_len: int, layer: int, query: int) -> None:
    layer, query = min(layer, n_layer - 1), min(query, sequence_len - 1)
    config = GPTConfig(sequence_len=sequence_len, n_layer=n_layer, window_pattern=pattern)
    windows = compute_window_sizes(n_layer, sequence_len, pattern)
    left = windows[layer][0]
    mask = visible_mask(sequence_len, sequence_len, left)
    seen = mask[query].nonzero().flatten()
    fields = reach(config)
    first = [int(field[query].nonzero()[0]) for field in fields]
    alt = (
        f"Left: the mask of layer {layer}, a band {left + 1} keys wide below the diagonal. Right: bars by layer; the receptive "
        f"field of query {query} starts at {first}."
    )
    size = (12, 2.6 + 0.24 * n_layer)
    with picture(f"Layer {layer} of {n_layer}, pattern {pattern}, window {left}", alt, columns=2, size=size) as p:
        mask_axes, field_axes = p.axes
        thin = max(1, sequence_len // 256)
        mask_axes.imshow(
            mask[::thin, ::thin],
            cmap="Blues",
            vmin=0,
            vmax=1.4,
            extent=(0, sequence_len, sequence_len, 0),
            aspect="auto",
        )
        mask_axes.axhline(query, color=BLACK, linewidth=1)
        mask_axes.plot([seen[0], seen[-1]], [query, query], color=ORANGE, linewidth=4, marker="|", markersize=10)
        mask_axes.set(xlabel="key position", ylabel="query position", title=f"query {query} sees {len(seen)} keys")
        for i, (window, _) in enumerate(windows):
            start = max(0, query - window)
            field_axes.barh(
                i, query - first[i] + 1, left=first[i], height=0.8, color="white", edgecolor=GREY, hatch="///"
            )
            field_axes.barh(i, query - start + 1, left=start, height=0.4, color=BLUE if i == layer else SKY)
        field_axes.axvline(query, color=BLACK, linewidth=1)
        field_axes.set(xlabel="token position", ylabel="layer (bottom is first)", xlim=(0, sequence_len))
        field_axes.set_yticks(
            range(n_layer), [f"{i} {'L' if w >= sequence_len else 'S'}" for i, (w, _) in enumerate(windows)]
        )
        field_axes.legend(
            handles=[
                Patch(facecolor=SKY, label="own window"),
                Patch(facecolor="white", edgecolor=GREY, hatch="///", label="receptive field"),
            ],
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
        )
        visible = sum(int(visible_mask(sequence_len, sequence_len, w).sum()) for w, _ in windows)
        full = n_layer * int(visible_mask(sequence_len, sequence_len, -1).sum())
        p.caption = (
            f"Layer {layer}: query {query} sees keys {int(seen[0])} to {int(seen[-1])}; tokens from {first[layer]} on can "
            f"influence it. All layers together compute {visible / full:.0%} of the scores that full attention would."
        )


# %%
explore(
    draw_masks,
    pattern=choice("pattern", PATTERNS),
    n_layer=slider("layers", 1, 16, 8),
    sequence_len=slider("sequence length", 256, 2048, 1024, 256),
    layer=slider("layer", 0, 15, 1),
    query=slider("query", 0, 2047, 800),
)

# %% [markdown]
# Two rules to notice. The last layer is long whatever the pattern says, so that the logits can depend on everything. And a
# short window is a quarter of the context *rounded up to 128*, a tile of the attention kernel: at 256 tokens, "short" is half.
#
# ## 2 · Does the real model agree?
#
# A mask is a promise. The proof is a gradient: token j influences position q exactly if the output at q has a gradient by
# the embedding of j. Below, nanochat's GPT with random weights, every token another one, so that row j of the embedding's
# gradient is token j. Markers: the first token with a gradient, layer by layer. Lines: what the masks predict.


# %%
T = 512


def random_model(config: GPTConfig) -> torch.nn.Module:
    """A model in which everything is connected: what starts at zero gets a random weight too."""
    torch.manual_seed(0)
    model = recipe.build_model(config, "cpu")
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.3)
    return model


def first_felt(model: torch.nn.Module, query: int) -> list[int]:
    """After each layer, the first token whose embedding has a gradient from the output at `query`."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[-1])) for block in model.transformer.h]
    model(torch.arange(T)[None])
    for hook in hooks:
        hook.remove()
    firsts = []
    for output in outputs:
        (gradient,) = torch.autograd.grad(
            output[0, query].square().sum(), model.transformer.wte.weight, retain_graph=True
        )
        firsts.append(int(gradient[:T].any(dim=1).nonzero()[0]))
    return firsts


# %% tags=["drawing"]
def draw_proof(pattern: str, n_layer: int, query: int) -> None:
    config = GPTConfig(
        sequence_len=T, vocab_size=T, n_layer=n_layer, n_head=2, n_kv_head=1, n_embd=32, window_pattern=pattern
    )
    measured = first_felt(random_model(config), query)
    predicted = {
        name: [int(field[query].nonzero()[0]) for field in reach(config, smear)]
        for name, smear in (("masks alone", False), ("masks and smear", True))
    }
    alone = predicted["masks alone"]
    extra = [without - value for value, without in zip(measured, alone, strict=True)]
    alt = f"First token felt by query {query}, layer by layer: {measured}; that is {extra} tokens further back than masks say."
    with picture(
        f"How far back query {query} feels, pattern {pattern}, {T} tokens", alt, columns=2, size=(12, 3.6)
    ) as p:
        left, right = p.axes
        for (name, values), line, colour in zip(predicted.items(), (":", "-"), (ORANGE, BLUE), strict=True):
            left.plot(range(n_layer), values, linestyle=line, color=colour, linewidth=2, label=f"predicted: {name}")
        left.plot(range(n_layer), measured, "D", color=BLACK, markerfacecolor="white", label="measured: has a gradient")
        for i, value in enumerate(measured):
            left.annotate(str(value), (i, value), (8, 4), textcoords="offset points", fontsize=9)
        left.set(xlabel="layer", ylabel="first token felt", ylim=(-20, query + 60), xlim=(-0.3, n_layer - 0.3))
        left.legend(frameon=False, loc="upper right")
        right.bar(range(n_layer), extra, color=SKY, edgecolor=BLACK)
        for i, value in enumerate(extra):
            right.text(i, value + 0.05, f"{value:+d}", ha="center")
        right.set(xlabel="layer", ylabel="tokens", ylim=(0, 2), title="felt further back than the masks alone say")
        for axes in p.axes:
            axes.set_xticks(range(n_layer))
        p.caption = (
            f"Measured {measured}; masks and smear predict {predicted['masks and smear']}, the masks alone "
            f"{predicted['masks alone']}. Agreement with masks and smear: {measured == predicted['masks and smear']}."
        )


# %%
explore(
    draw_proof,
    pattern=choice("pattern", ["S", "SSSL", "SL", "L"]),
    n_layer=slider("layers", 1, 6, 5),
    query=slider("query", 0, T - 1, 500),
)

# %% [markdown]
# The masks are off by one, and the model is right. Before the first layer nanochat *smears*: every
# embedding takes a gated share of the one before it. So a window of 128 feels 129 tokens back, and anyone who cuts a context
# "exactly" at the window changes the logits. It is also why the KV cache has to remember one embedding, `prev_embedding`.
#
# Read a gradient like this whenever you do not trust a mask: it needs no knowledge of the code at all.
#
# ## 3 · Decoding: the queries are the last of the keys
#
# With a cache the keys are all positions so far, the queries only the new ones. Query i is *not* at position i: the mask is
# anchored at its lower right corner. ■ is visible, · is not. One query is what decoding does, all of them is training, and
# what lies between is a prompt that arrives in pieces.


# %% tags=["drawing"]
def draw_decode(keys: int, queries: int, left: int) -> None:
    queries = min(queries, keys)
    mask = visible_mask(queries, keys, left)
    alt = f"A grid of {queries} queries by {keys} keys; the last query sees {int(mask[-1].sum())} keys, the first {int(mask[0].sum())}."
    what = f"{queries} new positions after {keys - queries} in the cache, window {left if left >= 0 else 'none'}"
    with picture(what, alt, size=(8, 0.9 + 0.28 * queries)) as p:
        axes = p.axes[0]
        for i in range(queries):
            for j in range(keys):
                shown = bool(mask[i, j])
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=SKY if shown else "white", edgecolor=GREY))
                axes.text(j, i, "■" if shown else "·", ha="center", va="center", fontsize=8)
        axes.axvline(keys - queries - 0.5, color=BLACK, linewidth=2)
        axes.set(
            xlim=(-0.5, keys - 0.5),
            ylim=(queries - 0.5, -0.5),
            xlabel="key position (left of the line: cached)",
            ylabel="query",
        )
        axes.set_xticks(range(keys))
        axes.set_yticks(range(queries), [f"{i} at {i + keys - queries}" for i in range(queries)])
        p.caption = f"{int(mask.sum())} of {mask.numel()} scores are needed. The first query stands at position {keys - queries}."


# %%
explore(
    draw_decode,
    keys=slider("keys so far", 1, 24, 16),
    queries=slider("queries", 1, 16, 4),
    left=slider("window (-1: none)", -1, 16, 5),
)

# %% [markdown]
# ## 4 · What it costs
#
# The counts come from nanochat's model of the depth you choose, built on the meta device (shapes without memory). Left, bytes
# of cache for one conversation: what is **kept**, and what is **read** for every new token. Right, what one decoding step reads
# for all conversations together: the weights once, the cache for each. Decoding is bound by these bytes, not by arithmetic.


# %% tags=["drawing"]
def draw_cost(depth: int, pattern: str, heads_a_key: int, context: int, rows: int) -> None:
    config = recipe.config_from_depth(depth, sequence_len=4096, window_pattern=pattern)
    share = max(n for n in range(1, heads_a_key + 1) if config.n_head % n == 0)
    chosen = recipe.build_meta_model(replace(config, n_kv_head=config.n_head // share))
    full = recipe.build_meta_model(replace(config, window_pattern="L"))
    contexts = list(range(128, 4097, 128))
    mib = 2**20
    kept, read = context * chosen.kv_bytes_per_token() / mib, chosen.kv_read_bytes(context) / mib
    plain = full.kv_read_bytes(context) / mib
    weights = chosen.num_matmul_params() * common.COMPUTE_DTYPE.itemsize / mib
    alt = (
        f"Left: bytes kept grow in a line, bytes read flatten at the window. Right: a step reads {weights:.0f} MiB of weights "
        f"and {rows * read:.0f} MiB of cache."
    )
    title = f"Depth {depth}, {pattern}, {config.n_head} query heads on {config.n_head // share} key heads"
    with picture(title, alt, columns=2, size=(12, 3.8)) as p:
        left, right = p.axes
        curves = {
            "kept": [c * chosen.kv_bytes_per_token() / mib for c in contexts],
            "read for a token": [chosen.kv_read_bytes(c) / mib for c in contexts],
            "kept and read, pattern L without GQA": [full.kv_read_bytes(c) / mib for c in contexts],
        }
        for (name, values), colour, marker, line in zip(
            curves.items(), COLOURS, MARKERS, ("-", "--", ":"), strict=False
        ):
            left.plot(contexts, values, color=colour, marker=marker, markevery=4, linestyle=line, label=name)
        left.axvline(context, color=GREY, linewidth=1)
        left.set(xlabel="tokens in the context", ylabel="MiB for one conversation", ylim=(0, None))
        left.legend(frameon=False)
        names = ["this model", "pattern L without GQA"]
        right.barh(names, [weights, weights], color=GREY, edgecolor=BLACK, label="weights")
        right.barh(
            names, [rows * read, rows * plain], left=weights, color=SKY, edgecolor=BLACK, hatch="//", label="cache"
        )
        right.set(
            xlabel=f"MiB read in one step for {rows} conversations of {context} tokens",
            xlim=(0, (weights + rows * plain) * 1.3),
        )
        right.invert_yaxis()
        right.legend(frameon=False, loc="upper right")
        bandwidth = common.get_peak_bandwidth("NVIDIA H100")
        floor = (weights + rows * read) * mib / bandwidth * 1e6
        ratio = full.estimate_prefill_flops(context) / chosen.estimate_prefill_flops(context)
        p.caption = (
            f"One conversation of {context}: {kept:.1f} MiB kept, {read:.1f} read a token ({plain:.1f} without windows and GQA). "
            f"A step for {rows} reads {weights + rows * read:.0f} MiB, at least {floor:.0f} µs on an H100. A prompt of {context} "
            f"costs {ratio:.2f} times as many FLOPs without windows. Bytes are of {common.COMPUTE_DTYPE}, the dtype on this machine."
        )


# %%
explore(
    draw_cost,
    depth=slider("depth", 4, 32, 20),
    pattern=choice("pattern", PATTERNS),
    heads_a_key=slider("query heads on a key head", 1, 10, 1),
    context=slider("context", 128, 4096, 2048, 128),
    rows=slider("conversations", 1, 256, 32),
)

# %% [markdown]
# Look at the left panel with GQA off: the solid and the dotted line are one. **Windows save reading and computing, not
# memory**: nanochat's cache has room for every position in every layer, also where a short window never looks again. What cuts
# the memory is GQA, and it cuts the reading as well. The two multiply.
#
# Then drag the conversations up from 1. For a single one most of the bar is weights: windows make one chat hardly faster. From
# about seven on, at depth 20 and 2048 tokens, the cache costs more than the weights. That is the whole economics of serving:
# weights are read once for everybody, the cache once for each.
#
# **Try to answer by slider:** at depth 20, pattern `SSSL` and a context of 4096, from how many conversations on does the cache
# cost more than the weights, and by how much does sharing each key head among 5 query heads move that point?
