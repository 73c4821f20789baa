# %% [markdown]
# # Puzzle 4: The Inference Engine
#
# **Make a trained model talk: one pass over the prompt, one small step a token, many answers at once, and a calculator
# that each of them may call.**
#
# ⭐⭐⭐⭐⭐ · about 180 minutes · 100 points in 5 parts · builds on nothing · runs on any CPU, uses a GPU
# if there is one
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.04_inference_engine` | runs your notebook and shows the visible checks |
# | `python -m puzzles.04_inference_engine --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.04_inference_engine --hint kv_cache` | gives hints for a part |
# | `python -m puzzles.04_inference_engine --peek kv_cache` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# Generating is a loop of three lines, and the three lines are right: run the model on all tokens so far, draw the next
# one, append it. What breaks without an engine:
#
# - **It is slow beyond use.** 500 tokens after a prompt of 1500: the simple loop pushes 874,750 positions through the
#   model, an engine 1,999. That is 438 times the work for the same text.
# - **Many answers cost many prompts.** Reinforcement learning asks for 16 answers to each question. Run as 16 prompts,
#   the prompt is computed 16 times. It is the same each time.
# - **The calculator's words are taken for the model's.** What a tool answers is written into the text as tokens. If
#   they are not told apart from sampled ones, reinforcement learning rewards the model for making results up itself.
#
# After this puzzle you can
# 1. draw a token from logits such that a seed in a log gives the same text again, token by token;
# 2. build the KV cache that FlashAttention reads, and give one prompt to any number of rows for the price of one;
# 3. interrupt a model in the middle of a sentence to run a tool, and say of every token whose it is;
# 4. generate with exactly one forward pass a column, and none whose result nobody uses;
# 5. put your engine in the place of nanochat's and chat.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: `B` rows (answers in the making), `T` positions, `H` heads of keys and values, `D` channels a head,
# `V` tokens in the vocabulary.

# %% given="imports"
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from nanochat import common
from nanochat.calculator import use_calculator
from puzzles.checks import Checks, expect
from puzzles.compare import Tolerance
from puzzles.plots import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, SKY, attempt, picture

check = Checks("04_inference_engine")

# %% [markdown]
# ## Part 1 · From logits to a token (15 points, 15 minutes)
#
# For every row the model gives `V` logits, one a token of the vocabulary. Two dials decide how a token is drawn:
#
# - **temperature** $\tau$ divides the logits before the softmax. Below 1 the likely tokens become likelier; above 1 the
#   distribution flattens; at **0** no chance is left: it is the token with the largest logit, of equal ones the first.
# - **top_k** keeps the `k` largest logits only. The softmax is over those `k` values, so their probabilities sum to 1.
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_j e^{z_j / \tau}}, \qquad j \text{ over the } k \text{ largest logits}$$
#
# Logits 2, 1, 0:
#
# | | token 0 | token 1 | token 2 |
# |---|---|---|---|
# | temperature 1 | 0.665 | 0.245 | 0.090 |
# | temperature 0.5 | 0.867 | 0.117 | 0.016 |
# | temperature 2 | 0.506 | 0.307 | 0.186 |
# | temperature 1, top_k 2 | 0.731 | 0.269 | 0 |
#
# **Seeds.** "seed 42, row 3" in a log should give the same text with your engine as with nanochat's, so the hidden
# tests compare token by token (on the CPU; a GPU draws other numbers). That fixes how the chance is used: one call of
# `torch.multinomial(p, num_samples=1, generator=rng)` for all rows. Without `top_k`, `p` is `(B, V)`, in the order of
# the vocabulary. With `top_k` it is `(B, k)`, the **largest first**, and what is drawn must be mapped back to token
# ids. At temperature 0, and only there, `rng` is not touched.
#
# **Contract.** `logits` is `(B, V)`, float32, and must be left as it is. Returns token ids `(B, 1)`, int64, a draw of
# its own for every row. `top_k` of `None` or 0 means all tokens without sorting; a `top_k` above `V` is taken as `V`.
# Of logits that are equal, exactly as many are kept as there is room for among the `k`; which ones, is up to
# `torch.topk`. Raises `ValueError` for a negative temperature. Logits may be as large as 10,000.


# %% hole="sample_next_token"
def sample_next_token(
    logits: torch.Tensor, rng: torch.Generator, temperature: float = 1.0, top_k: int | None = None
) -> torch.Tensor:
    """Draw one token a row from logits (B, V) float32: (B, 1) int64.

    Temperature 0: the most likely one, without `rng`. top_k (None or 0: all) keeps the k largest logits, and the
    softmax is over those. One torch.multinomial for all rows, with top_k over the probabilities from the largest down.
    Raises ValueError if the temperature is negative.
    """
    ### BEGIN SOLUTION
    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if not top_k:
        return torch.multinomial(torch.softmax(logits / temperature, dim=-1), num_samples=1, generator=rng)
    values, tokens = logits.topk(min(top_k, logits.size(-1)), dim=-1)
    choice = torch.multinomial(torch.softmax(values / temperature, dim=-1), num_samples=1, generator=rng)
    return tokens.gather(-1, choice)
    ### END SOLUTION


# %% given="check-sample_next_token"
def draw(
    logits: list, temperature: float, top_k: int | None, seed: int, draws: int, report: str, device: Any = "cpu"
) -> dict:
    """Your function called `draws` times with one generator, and one of three reports of it.

    tokens: the tokens (B, draws), the generator's next number, and whether the logits are as they were
    greedy: the tokens and whether the generator is as it was
    variety: how many different tokens each row has shown
    """
    z, rng = torch.tensor(logits, device=device), torch.Generator(device).manual_seed(seed)
    before = z.clone(), rng.get_state()
    drawn = [sample_next_token(z, rng, temperature, top_k) for _ in range(draws)]
    if drawn[0].shape != (len(z), 1):
        raise TypeError(f"one token for each row has the shape {(len(z), 1)}, yours has {tuple(drawn[0].shape)}")
    tokens = torch.cat(drawn, dim=1)
    if report == "variety":
        return {"variety": [len(set(row)) for row in tokens.tolist()]}
    if report == "greedy":
        return {"tokens": tokens, "generator untouched": torch.equal(rng.get_state(), before[1])}
    next_number = torch.randint(10**6, (1,), generator=rng).item()
    return {"tokens": tokens, "next": next_number, "logits unchanged": torch.equal(z, before[0])}


def shares(logits: list, temperature: float, top_k: int | None) -> torch.Tensor:
    """How often each token is drawn by your function, of 4000 times."""
    rng = torch.Generator().manual_seed(7)
    tokens = sample_next_token(torch.tensor(logits).expand(4000, -1), rng, temperature, top_k)
    return torch.bincount(tokens.flatten(), minlength=len(logits)) / 4000


def by_hand(probabilities: list, tokens: list, seed: int, draws: int) -> dict:
    """What `draw` reports if these are the probabilities, and this the token of each."""
    p, rng = torch.tensor(probabilities), torch.Generator().manual_seed(seed)
    choices = torch.cat([torch.multinomial(p, 1, generator=rng) for _ in range(draws)], dim=1)
    next_number = torch.randint(10**6, (1,), generator=rng).item()
    return {"tokens": torch.tensor(tokens).gather(1, choices), "next": next_number, "logits unchanged": True}


with check("sample_next_token"):
    near = Tolerance(atol=0.04)
    tau = "the logits are divided by the temperature before the softmax"
    expect(shares, ([2.0, 1.0, 0.0], 1.0, None), torch.tensor([0.665, 0.245, 0.090]), "a plain softmax", near)
    expect(shares, ([2.0, 1.0, 0.0], 0.5, None), torch.tensor([0.867, 0.117, 0.016]), tau, near)
    expect(shares, ([2.0, 1.0, 0.0], 2.0, 0), torch.tensor([0.506, 0.307, 0.186]), tau, near)
    renormalised = "the softmax is over the k values, and what it draws is a place among them, not yet a token"
    expect(shares, ([0.0, 2.0, 1.0], 1.0, 2), torch.tensor([0.0, 0.731, 0.269]), renormalised, near)
    expect(shares, ([0.0, 2.0, 1.0], 2.0, 2), torch.tensor([0.0, 0.622, 0.378]), tau, near)
    expect(shares, ([0.0, 2.0, 1.0], 1.0, 9), torch.tensor([0.090, 0.665, 0.245]), "9 of 3 tokens are all 3", near)
    expect(
        draw,
        ([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], 1.0, None, 3, 40, "tokens"),
        by_hand([[0.66524096, 0.24472847, 0.09003057], [1 / 3, 1 / 3, 1 / 3]], [[0, 1, 2], [0, 1, 2]], 3, 40),
        "one torch.multinomial(p, num_samples=1, generator=rng) for all rows; the logits may not be changed in place",
    )
    expect(
        draw,
        ([[0.0, 2.0, 1.0], [2.0, -1.0, 0.0]], 2.0, 2, 3, 40, "tokens"),
        by_hand([[0.62245933, 0.37754067], [0.73105858, 0.26894142]], [[1, 2], [0, 2]], 3, 40),
        "with top_k one torch.multinomial over the k probabilities, the largest first",
    )
    expect(
        draw,
        ([[0.0, 2.0, 1.0]], 1.0, 9, 3, 40, "tokens"),
        by_hand([[0.66524096, 0.24472847, 0.09003057]], [[1, 2, 0]], 3, 40),
        "a top_k above V is V, and as with any top_k the largest comes first",
    )
    expect(
        draw,
        ([[0.0, 2.0, 1.0], [2.0, -1.0, 0.0]], 1.0, 1, 3, 2, "tokens"),
        by_hand([[1.0], [1.0]], [[1], [0]], 3, 2),
        "top_k 1 leaves no choice, but is a draw all the same: only temperature 0 leaves the generator alone",
    )
    greedy = {"tokens": torch.tensor([[1, 1], [0, 0]]), "generator untouched": True}
    zero = "temperature 0 takes the first of the largest logits and leaves the generator alone"
    expect(draw, ([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0]], 0.0, 2, 3, 2, "greedy"), greedy, zero)
    ties = "three logits are equal, but top_k 2 has room for two of them only"
    expect(draw, ([[1.0, 0.0, 1.0, 1.0]], 1.0, 2, 3, 60, "variety"), {"variety": [2]}, ties)
    overflow = "e^10000 is infinite; torch.softmax subtracts the largest logit first"
    expect(draw, ([[10000.0, 0.0, 10000.0]], 1.0, None, 3, 60, "variety"), {"variety": [2]}, overflow)
    expect(sample_next_token, (torch.zeros(1, 3), torch.Generator(), -0.5), ValueError, "a temperature below 0")

# %% graded="sample_next_token"
# 15 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("sample_next_token")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("04_inference_engine", "sample_next_token", draw)
### END HIDDEN TESTS

# %% given="plot-sample_next_token" tags=["plot"]
with picture(
    "What temperature and top-k do to eight logits",
    alt="Four bar charts: at temperature 0.5 few bars are high, at 2 all are similar, with top-k 3 there are three.",
    columns=4,
    size=(10.0, 3.0),
) as p:
    hills = [1.0, 0.0, 3.0, 2.0, 0.5, 2.5, -0.5, 1.5]
    dials = [(1.0, None), (0.5, None), (2.0, None), (1.0, 3)]
    measured = [shares(hills, temperature, top_k) for temperature, top_k in dials]
    plain = torch.softmax(torch.tensor(hills), dim=-1)
    for axis, (temperature, top_k), share in zip(p.axes, dials, measured, strict=True):
        axis.bar(range(8), share, color=BLUE, label="drawn by you")
        axis.plot(plain, "D", color=ORANGE, markersize=4, label="softmax at 1")
        title = f"temperature {temperature:g}" + (f", top-k {top_k}" if top_k else "")
        axis.set(title=title, xlabel="token", ylim=(0, 0.75), xticks=range(8))
    p.axes[0].set_ylabel("share of 4000 draws")
    p.axes[0].legend(fontsize=7)
    p.caption = "Share of token 2, the likeliest: " + ", ".join(f"{share[2]:.3f}" for share in measured) + "."

# %% [markdown]
# ## Part 2 · What the model remembers: the KV cache (20 points, 35 minutes)
#
# To predict the next token, attention needs the keys and values of **all** earlier tokens. They do not change any more:
# the past does not see the future. So each is computed once and kept. A step then runs the model on one new token only,
# which looks at what is kept.
#
# **Layout.** FlashAttention reads tensors `(B, T, H, D)`: position before head. One such tensor a layer, all layers in
# one piece of memory, keys and values apart: `k_cache` and `v_cache` are `(n_layers, B, T, H, D)`, made of zeros, with
# room for `seq_len` positions. `cache_seqlens` is `(B,)`, **int32** because the kernel wants it, and says how many
# positions of each row are filled. Here they are always equal.
#
# **A forward pass** of `n` new tokens goes through the layers. Each layer writes its new keys and values at positions
# `pos` to `pos + n - 1` and attends to positions `0` to `pos + n - 1`. When the *last* layer has done so, the model
# calls `advance(n)`, **once**. Were the position moved by each layer, layer 1 would write behind where layer 0 wrote:
#
# ```
#                          layer 0 writes    layer 1 writes    then
# forward of 5 tokens      positions 0-4     positions 0-4     advance(5)   pos 5
# forward of 1 token       position 5        position 5        advance(1)   pos 6
# ```
#
# In nanochat the writing is done inside the attention kernel, which is handed the views of `get_layer_cache` and
# `cache_seqlens`. Here it is a method, `write`, so that you have seen it.
#
# **One prompt, many rows.** The prompt runs through the model once, into a cache of *one* row. `prefill` copies that
# row into every row of a larger, empty cache. From then on the rows go their own ways.
#
# nanochat mixes a little of the token before into every embedding (the "smear"), so the model also leaves something
# here for its next step: `prev_embedding`, `(B, 1, C)`, or `None` when nothing has been seen. `prefill` copies it as
# well, and every row gets memory of its own: changing one row's changes no other row's and not the prompt's. If there
# is none in the other cache, it stays `None`.
#
# **Contract.** The attributes are `batch_size`, `max_seq_len` (this is `seq_len`), `n_layers`, `n_heads`, `head_dim`,
# `k_cache`, `v_cache`, `cache_seqlens`, `prev_embedding`. A call that is refused raises
# `ValueError` and changes nothing. `reset` need not wipe keys and values: nobody looks behind a length of 0.
# `prefill(other)` refuses if
# - this cache is not empty (by its position: it may have been reset),
# - `other` has more than one row,
# - the two differ in layers, heads or head dimension,
# - this cache has a smaller `max_seq_len` than `other` (a larger one is fine, however much of it is filled).


# %% hole="kv_cache"
class KVCache:
    """Keys and values of the tokens seen so far, for every layer and row."""

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        seq_len: int,
        head_dim: int,
        num_layers: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        """An empty cache: k_cache and v_cache (num_layers, batch_size, seq_len, num_heads, head_dim) of `dtype`."""
        ### BEGIN SOLUTION
        self.batch_size = batch_size
        self.max_seq_len = seq_len
        self.n_layers = num_layers
        self.n_heads = num_heads
        self.head_dim = head_dim
        shape = (num_layers, batch_size, seq_len, num_heads, head_dim)
        self.k_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.v_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.cache_seqlens = torch.zeros(batch_size, device=device, dtype=torch.int32)
        self.prev_embedding: torch.Tensor | None = None
        ### END SOLUTION

    def reset(self) -> None:
        """Empty the cache: position 0, no previous embedding."""
        ### BEGIN SOLUTION
        self.cache_seqlens.zero_()
        self.prev_embedding = None
        ### END SOLUTION

    def get_pos(self) -> int:
        """How many positions are filled, as an int: the position of the next token."""
        ### BEGIN SOLUTION
        return int(self.cache_seqlens[0])
        ### END SOLUTION

    def get_layer_cache(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's whole keys and values, each (B, seq_len, H, D): views, so that a kernel can write into them."""
        ### BEGIN SOLUTION
        return self.k_cache[layer_idx], self.v_cache[layer_idx]
        ### END SOLUTION

    def write(self, layer_idx: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put k and v (B, n, H, D) into one layer, from the current position on, and do not move the position.

        Returns the layer's keys and values up to and including the new ones, each (B, pos + n, H, D).
        Raises ValueError if they do not fit.
        """
        ### BEGIN SOLUTION
        start = self.get_pos()
        end = start + k.size(1)
        if end > self.max_seq_len:
            raise ValueError(f"positions {start} to {end - 1} do not fit a cache of {self.max_seq_len}")
        keys, values = self.get_layer_cache(layer_idx)
        keys[:, start:end] = k
        values[:, start:end] = v
        return keys[:, :end], values[:, :end]
        ### END SOLUTION

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` more positions as filled, in every row. The model does it once a forward pass."""
        ### BEGIN SOLUTION
        self.cache_seqlens += num_tokens
        ### END SOLUTION

    def prefill(self, other: "KVCache") -> None:
        """Copy the one row of `other` into every row of this empty cache: keys, values, position, previous embedding.

        Raises ValueError if this cache is not empty, `other` has more than one row, the shapes differ in layers, heads
        or head_dim, or this cache's max_seq_len is the smaller.
        """
        ### BEGIN SOLUTION
        if self.get_pos() != 0:
            raise ValueError("only an empty cache can be prefilled")
        if other.batch_size != 1:
            raise ValueError(f"a cache of one row is wanted, not of {other.batch_size}")
        if (self.n_layers, self.n_heads, self.head_dim) != (other.n_layers, other.n_heads, other.head_dim):
            raise ValueError("the caches differ in layers, heads or head_dim")
        if self.max_seq_len < other.max_seq_len:
            raise ValueError(f"{other.max_seq_len} positions do not fit a cache of {self.max_seq_len}")
        pos = other.get_pos()
        self.k_cache[:, :, :pos] = other.k_cache[:, :, :pos]
        self.v_cache[:, :, :pos] = other.v_cache[:, :, :pos]
        self.cache_seqlens.fill_(pos)
        if other.prev_embedding is not None:
            self.prev_embedding = other.prev_embedding.repeat(self.batch_size, 1, 1)
        ### END SOLUTION


# %% given="check-kv_cache"
def work_through(size: dict, dtype: torch.dtype, steps: list, device: Any = "cpu") -> list:
    """A cache of yours at work: what each step gives, and the state of the cache at the end.

    Steps: ("write", layer, k, v), ("advance", n), ("reset",), ("remember", prev_embedding), ("state",),
    ("poke", layer): write 7 and -7 to position 0 through the views of get_layer_cache,
    ("prefill", size, steps): make another cache, let it work, and prefill from it,
    ("change",): add 1 to the previous embedding of row 0.
    """
    cache = KVCache(**size, device=device, dtype=dtype)
    given: list = []  # the caches that prefilled this one
    results = [step_of(cache, given, dtype, device, *step) for step in steps]
    return [*results, *(state_of(other) for other in given), state_of(cache)]


def step_of(cache: Any, given: list, dtype: torch.dtype, device: Any, what: str, *arguments: Any) -> Any:
    """Do one step; a ValueError is a result too."""
    try:
        match what, arguments:
            case "write", (layer, k, v):
                keys, values = cache.write(layer, k.to(device), v.to(device))
                return {"keys": keys.clone(), "values": values.clone()}
            case "advance", (n,):
                cache.advance(n)
            case "reset", ():
                cache.reset()
            case "remember", (embedding,):
                cache.prev_embedding = embedding.to(device)
            case "change", ():
                cache.prev_embedding[0] += 1
            case "poke", (layer,):
                for number, view in zip((7, -7), cache.get_layer_cache(layer), strict=True):
                    view[:, 0] = number
            case "prefill", (size, steps):
                other = KVCache(**size, device=device, dtype=dtype)
                for step in steps:
                    step_of(other, given, dtype, device, *step)
                cache.prefill(other)
                given.append(other)
            case "state", ():
                return state_of(cache)
    except ValueError:
        return "ValueError"
    return f"position {cache.get_pos()}"


def state_of(cache: Any) -> dict:
    """All there is to know of a cache; of keys and values the filled positions."""
    pos = cache.get_pos()
    return {
        "sizes": [cache.batch_size, cache.max_seq_len, cache.n_layers, cache.n_heads, cache.head_dim],
        "shapes": [list(cache.k_cache.shape), list(cache.v_cache.shape)],
        "position": pos,
        "cache_seqlens": cache.cache_seqlens.clone(),
        "keys": cache.k_cache[:, :, :pos].clone(),
        "values": cache.v_cache[:, :, :pos].clone(),
        "prev_embedding": None if cache.prev_embedding is None else cache.prev_embedding.clone(),
    }


def numbers(*shape: int) -> torch.Tensor:
    """A tensor that holds 1, 2, 3, ..."""
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)


SMALL = {"batch_size": 1, "num_heads": 2, "seq_len": 4, "head_dim": 3, "num_layers": 2}


def small(**changes: int) -> dict:
    """A cache of 1 row, 4 positions, 2 heads of 3 channels, 2 layers, but for `changes`."""
    return SMALL | changes


def state(size: dict, pos: int, keys: torch.Tensor, values: torch.Tensor, embedding: torch.Tensor | None) -> dict:
    """What `state_of` should say."""
    shape = [size[name] for name in ("num_layers", "batch_size", "seq_len", "num_heads", "head_dim")]
    return {
        "sizes": [shape[1], shape[2], shape[0], shape[3], shape[4]],
        "shapes": [shape, shape],
        "position": pos,
        "cache_seqlens": torch.full((shape[1],), pos, dtype=torch.int32),
        "keys": keys,
        "values": values,
        "prev_embedding": embedding,
    }


with check("kv_cache"):
    f32, none = torch.float32, numbers(0, 2, 3)
    empty = state(small(batch_size=5), 0, none.expand(2, 5, 0, 2, 3), none.expand(2, 5, 0, 2, 3), None)
    layout = "the layout is (layers, rows, positions, heads, channels), cache_seqlens is int32, one a row"
    expect(work_through, (small(batch_size=5), f32, []), [empty], layout)

    k, one = numbers(2, 1, 3, 2, 3), numbers(1, 1, 2, 3)
    both = [("write", layer, k[layer], -k[layer]) for layer in (0, 1)]  # a forward pass of 3 tokens
    twice = torch.cat([k, torch.stack([100 * one, 200 * one])], dim=2)
    told = [{"keys": k[layer], "values": -k[layer]} for layer in (0, 1)]
    expect(
        work_through,
        (
            small(),
            f32,
            [*both, ("advance", 3), ("write", 0, 100 * one, one), ("write", 1, 200 * one, one), ("advance", 1)],
        ),
        [
            *told,
            "position 3",
            {"keys": twice[0], "values": torch.cat([-k[0], one], dim=1)},
            {"keys": twice[1], "values": torch.cat([-k[1], one], dim=1)},
            "position 4",
            state(small(), 4, twice, torch.cat([-k, torch.stack([one, one])], dim=2), None),
        ],
        "every layer writes at the same position, which only `advance` moves, and gives back all up to the new end",
    )
    full = [*both, ("advance", 3), ("write", 1, k[0, :, :2], k[0, :, :2])]
    refused = [*told, "position 3", "ValueError", state(small(), 3, k, -k, None)]
    expect(work_through, (small(), f32, full), refused, "positions 3 and 4 do not fit a cache of 4")

    halves = numbers(2, 1, 2, 2, 3).bfloat16() * 0
    half = ["position 2", state(small(), 2, halves, halves, None)]
    expect(work_through, (small(), torch.bfloat16, [("advance", 2)]), half, "keys and values are of `dtype`")

    poked = state(small(), 1, numbers(2, 1, 1, 2, 3) * 0, numbers(2, 1, 1, 2, 3) * 0, None)
    poked["keys"][1], poked["values"][1] = 7, -7
    views = "get_layer_cache gives views of the layer, into which attention writes: keys, then values"
    expect(work_through, (small(), f32, [("poke", 1), ("advance", 1)]), ["position 0", "position 1", poked], views)

    prev = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    prompt = [*both, ("advance", 3), ("remember", prev)]
    three, changed = small(batch_size=3, seq_len=9), prev.repeat(3, 1, 1)
    changed[0] += 1
    expect(
        work_through,
        (three, f32, [("prefill", small(), prompt), ("change",)]),
        [
            "position 3",
            "position 3",
            state(small(), 3, k, -k, prev),
            state(three, 3, k.repeat(1, 3, 1, 1, 1), -k.repeat(1, 3, 1, 1, 1), changed),
        ],
        "every row gets the prompt's keys, values, position and a previous embedding of its own, in its own memory",
    )
    expect(
        work_through,
        (small(), f32, [("prefill", small(), prompt), ("change",), ("reset",), ("prefill", small(), prompt[:3])]),
        [
            "position 3",
            "position 3",
            "position 0",
            "position 3",
            state(small(), 3, k, -k, prev),
            state(small(), 3, k, -k, None),
            state(small(), 3, k, -k, None),
        ],
        "reset empties the cache (the previous embedding too), so that it can be prefilled again",
    )
    expect(
        work_through,
        (three, f32, [("prefill", small(batch_size=3), []), ("advance", 2), ("prefill", small(), prompt)]),
        ["ValueError", "position 2", "ValueError", state(three, 2, *2 * [torch.zeros(2, 3, 2, 2, 3)], None)],
        "prefill wants an empty cache, and another of one row",
    )
    for change in ({"seq_len": 5}, {"num_heads": 3}, {"head_dim": 2}, {"num_layers": 3}):
        expect(
            work_through,
            (small(batch_size=5), f32, [("prefill", small(**change), [])]),
            ["ValueError", empty],
            f"the caches do not fit each other: the other one has {change}",
        )

# %% graded="kv_cache"
# 20 points. The hidden tests are more of the same, with other shapes, dtypes and orders; `--verify` runs them.
check.visible("kv_cache")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("04_inference_engine", "kv_cache", work_through)
### END HIDDEN TESTS

# %% given="plot-kv_cache" tags=["plot"]
with picture(
    "Cache occupancy: one prompt of 3 tokens, three rows, three more steps",
    alt="Three panels, a line for each layer and row. The prompt's 3 positions fill one row, then three, then 3 more.",
    columns=3,
    size=(10.0, 3.2),
) as p:
    size = small(seq_len=18, head_dim=1, num_heads=1)
    prompt_cache = KVCache(**size, device="cpu", dtype=torch.float32)
    for layer in (0, 1):
        prompt_cache.write(layer, torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    prompt_cache.advance(3)
    cache = KVCache(**size | {"batch_size": 3}, device="cpu", dtype=torch.float32)
    cache.prefill(prompt_cache)
    stages = [(prompt_cache.k_cache.clone(), prompt_cache.get_pos()), (cache.k_cache.clone(), cache.get_pos())]
    for _ in range(3):
        for layer in (0, 1):
            cache.write(layer, torch.full((3, 1, 1, 1), 2.0), torch.ones(3, 1, 1, 1))
        cache.advance(1)
    stages.append((cache.k_cache.clone(), cache.get_pos()))
    titles = ("the prompt, once", "prefill: into every row", "three steps of one token")
    for axis, title, (keys, position) in zip(p.axes, titles, stages, strict=True):
        names = [f"layer {layer}, row {row}" for layer in range(keys.size(0)) for row in range(keys.size(1))]
        for line, positions in enumerate(keys.flatten(0, 1)[..., 0, 0].tolist()):
            for at, number in enumerate(positions):
                colour, hatch = {0.0: ("white", ""), 1.0: (SKY, ""), 2.0: (ORANGE, "//")}.get(number, (BLACK, "x"))
                axis.barh(line, 1, left=at, color=colour, hatch=hatch, edgecolor=GREY, linewidth=0.5)
        axis.axvline(position, color=BLACK, linestyle="--")
        axis.set(title=title, xlabel="position", xlim=(0, 18.2), xticks=range(0, 19, 3), yticks=range(len(names)))
        axis.set_yticklabels(names, fontsize=7)
        axis.invert_yaxis()
    labels = {"from the prompt": (SKY, ""), "from a step": (ORANGE, "//"), "empty": ("white", "")}
    patches = [Patch(facecolor=c, hatch=h, edgecolor=GREY, label=name) for name, (c, h) in labels.items()]
    p.figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8)
    filled = [int((keys != 0).sum()) for keys, _ in stages]
    where = [position for _, position in stages]
    p.caption = f"Filled places (layer, row, position): {filled}; position (dashed): {where}."

# %% [markdown]
# ## Part 3 · A row and its calculator (25 points, 35 minutes)
#
# Models are bad at arithmetic and good at asking. nanochat's writes what it wants computed between `<|python_start|>`
# and `<|python_end|>`. The engine stops listening to it, computes, and writes the result into the text, between
# `<|output_start|>` and `<|output_end|>`. Then the model goes on, and reads the result as if it had been there all
# along.
#
# Every row keeps its own account of this. In each step the model offers it a **sampled** token, and the row says what
# is really emitted:
#
# - If tokens are waiting to be **forced**, the first of them is emitted, with mask **0**. What was sampled is thrown
#   away and has no effect.
# - Else the sampled token is emitted, with mask **1**.
#
# Then the row takes note of the token it emitted:
#
# - `<|python_start|>` opens a block, with nothing in it yet; also if one was open already, whose content is then lost.
# - Inside a block every other token is collected, special or not, until `<|python_end|>` closes it. The collected
#   tokens are decoded together (a character may be made of several tokens) and the calculator is asked, once.
# - If it has a value, that is queued to be forced: `<|output_start|>`, the value as text (`str`), encoded, and
#   `<|output_end|>`. 0 is a value too. `None` means that the calculator refused or failed: nothing is queued.
# - A `<|python_end|>` outside of a block is a token like any other.
# - `<|assistant_end|>` and BOS complete the row, also inside a block. For the row it is nothing but a flag: it goes on
#   as before, calculator and all, if the engine asks for more. (Others may not be done yet. Part 5 cuts off what is too
#   much.) A terminal token that was thrown away completes nothing.
#
# Here and in the checks, `{ }` stand for `<|python_start|>` and `<|python_end|>`, `[ ]` for `<|output_start|>` and
# `<|output_end|>`, `$` for `<|assistant_end|>`, `^` for BOS; everything else is a token a byte. The model samples
# `{12*3}`, then something while four tokens are forced, then goes on:
#
# ```
# sampled   { 1 2 * 3 } a b c d Z $
# emitted   { 1 2 * 3 } [ 3 6 ] Z $
# mask      1 1 1 1 1 1 0 0 0 0 1 1
# completed 0 0 0 0 0 0 0 0 0 0 0 1
# ```
#
# **Contract.** `Row(tools)`: `tools` is one object of the class in the next cell, shared by all rows. `completed` is a
# bool. `emit(sampled)` takes an int and returns `(token, mask)`, two ints. A row starts outside of any block, whatever
# its prompt was. The calculator given to you takes a text and returns its value, or `None`.


# %% given="tools"
@dataclass(frozen=True)
class Tools:
    """What a row needs from outside: special token ids, both directions of the tokenizer, and the calculator."""

    python_start: int
    python_end: int
    output_start: int
    output_end: int
    terminal: frozenset[int]  # <|assistant_end|> and BOS
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    calculator: Callable[[str], Any]  # a text -> its value, or None if it is refused or fails


def tools_of(tokenizer: Any, calculator: Callable[[str], Any]) -> Tools:
    """The tools of a tokenizer's rows."""
    special = tokenizer.encode_special
    return Tools(
        python_start=special("<|python_start|>"),
        python_end=special("<|python_end|>"),
        output_start=special("<|output_start|>"),
        output_end=special("<|output_end|>"),
        terminal=frozenset([special("<|assistant_end|>"), tokenizer.get_bos_token_id()]),
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        calculator=calculator,
    )


SIGNS = {
    "<|python_start|>": "{",
    "<|python_end|>": "}",
    "<|output_start|>": "[",
    "<|output_end|>": "]",
    "<|assistant_end|>": "$",
    "<|bos|>": "^",
}


class ToyTokenizer:
    """Every byte is a token, numbered from `first`; special tokens have the ids they are given, in the order of SIGNS.
    They decode to their sign."""

    def __init__(self, special: list[int], first: int) -> None:
        self.first = first
        self.special = dict(zip(SIGNS.values(), special, strict=True))

    def encode_special(self, name: str) -> int:
        return self.special[SIGNS[name]]

    def get_bos_token_id(self) -> int:
        return self.special["^"]

    def encode(self, text: str) -> list[int]:
        return [self.first + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return self.show(ids).encode("latin-1").decode(errors="replace")

    def read(self, signs: str) -> list[int]:
        """Tokens as this notebook writes them: a sign for a special token, a letter for a byte."""
        return [self.special.get(sign, self.first + ord(sign)) for sign in signs]

    def show(self, ids: list[int]) -> str:
        """The way back of `read`."""
        signs = {token: sign for sign, token in self.special.items()}
        return "".join(signs.get(i) or chr(i - self.first) for i in ids)


# %% hole="tool_state_machine"
class Row:
    """One answer in the making: what waits to be forced, what a python block has collected, whether it is completed.

    Attributes:
        completed: whether <|assistant_end|> or BOS has been emitted.
    """

    def __init__(self, tools: Tools) -> None:
        """A row at the end of its prompt: nothing forced, outside of any block, not completed."""
        ### BEGIN SOLUTION
        self.tools = tools
        self.completed = False
        self.forced: deque[int] = deque()
        self.block: list[int] | None = None  # None outside of a block
        ### END SOLUTION

    def emit(self, sampled: int) -> tuple[int, int]:
        """The next (token, mask): a forced token with mask 0 if one is waiting, else `sampled` with mask 1."""
        ### BEGIN SOLUTION
        is_forced = bool(self.forced)
        token = self.forced.popleft() if is_forced else sampled
        tools = self.tools
        if token in tools.terminal:
            self.completed = True
        if token == tools.python_start:
            self.block = []
        elif token == tools.python_end:
            if self.block is not None:
                value = tools.calculator(tools.decode(self.block))
                self.block = None
                if value is not None:
                    self.forced.extend([tools.output_start, *tools.encode(str(value)), tools.output_end])
        elif self.block is not None:
            self.block.append(token)
        return token, 0 if is_forced else 1
        ### END SOLUTION


# %% given="check-tool_state_machine"
def emit_all(sampled: list[str], special: tuple = (300, 301, 302, 303, 304, 305), first: int = 0) -> dict:
    """Rows of yours, side by side, each offered its signs one by one: all they emit, and what the calculator is asked
    (but for nothing at all, which may be asked or not)."""
    tokenizer = ToyTokenizer(list(special), first)
    asked: list[str] = []

    def calculator(expression: str) -> Any:
        asked.extend([expression] if expression else [])
        return use_calculator(expression)

    tools = tools_of(tokenizer, calculator)
    rows = [Row(tools) for _ in sampled]
    told = [{"emitted": "", "mask": "", "completed": ""} for _ in sampled]
    for column in zip(*map(tokenizer.read, sampled), strict=True):
        for row, so_far, offered in zip(rows, told, column, strict=True):
            token, mask = row.emit(offered)
            so_far["emitted"] += tokenizer.show([token])
            so_far["mask"] += str(mask)
            so_far["completed"] += {False: "0", True: "1"}.get(row.completed, "?")
    return {"rows": told, "asked": asked}


def one_row(sampled: str) -> list[str]:
    """What a single row of yours emits, its mask, and when it is completed."""
    return list(emit_all([sampled])["rows"][0].values())


def asked_for(*sampled: str) -> list[str]:
    """What the calculator is asked by rows of yours."""
    return emit_all(list(sampled))["asked"]


with check("tool_state_machine"):
    expect(one_row, ("Hi$",), ["Hi$", "111", "001"], "plain text is emitted as sampled, and $ completes the row")
    expect(one_row, ("Hi^",), ["Hi^", "111", "001"], "BOS completes a row too")
    expect(
        one_row,
        ("{12*3}abcdZ$",),
        ["{12*3}[36]Z$", "111111000011", "000000000001"],
        "the result is forced between output tags, with mask 0, and what is sampled meanwhile is thrown away",
    )
    expect(one_row, ("{5-5}abcZ",), ["{5-5}[0]Z", "111110001", "0" * 9], "0 is a value and must be written")
    expect(one_row, ("{6/4}abcdeZ",), ["{6/4}[1.5]Z", "11111000001", "0" * 11], "the value as text, by str()")
    expect(one_row, ("{6/}Z",), ["{6/}Z", "11111", "00000"], "None is no value: nothing is forced")
    expect(one_row, ("{6/}1}Z",), ["{6/}1}Z", "1111111", "0000000"], "the block is closed: the 1 is outside of it")
    expect(one_row, ("}{}Z",), ["}{}Z", "1111", "0000"], "a stray } does nothing, and an empty block has no value")
    expect(one_row, ("{9}ab{1}Z",), ["{9}[9]1}Z", "111000111", "0" * 9], "a { that was thrown away opens no block")
    expect(one_row, ("{1+1}$^$Z$",), ["{1+1}[2]Z$", "1111100011", "0000000001"], "a $ thrown away completes nothing")
    expect(one_row, ("{1$+1}Z",), ["{1$+1}Z", "1111111", "0011111"], "$ completes in a block too, and is part of it")
    expect(one_row, ("$Z^{1}abcZ",), ["$Z^{1}[1]Z", "1111110001", "1" * 10], "completed or not, the row goes on")
    expect(
        one_row,
        ("{1+{2+2}abc{3}def",),
        ["{1+{2+2}[4]{3}[3]", "11111111000111000", "0" * 17],
        "a new { starts the block afresh, and nothing of a closed block is left in the next",
    )
    expect(asked_for, ("{1[^+]2}Z",), ["1[^+]2"], "tokens of any kind are collected, and decoded as they are")
    expect(asked_for, ("{'caf\u00c3\u00a9'}",), ["'café'"], "é is two tokens here: decode the block as a whole")
    expect(
        emit_all,
        (["{1+1}abcZ", "plain}$xy", "{2*{30}ab"],),
        {
            "rows": [
                {"emitted": "{1+1}[2]Z", "mask": "111110001", "completed": "000000000"},
                {"emitted": "plain}$xy", "mask": "111111111", "completed": "000000111"},
                {"emitted": "{2*{30}[3", "mask": "111111100", "completed": "000000000"},
            ],
            "asked": ["1+1", "30"],
        },
        "every row has a block, a queue and a flag of its own: nothing may be shared",
    )

# %% graded="tool_state_machine"
# 25 points. The hidden tests are more of the same, with other rows and other token ids; `--verify` runs them.
check.visible("tool_state_machine")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("04_inference_engine", "tool_state_machine", emit_all)
### END HIDDEN TESTS

# %% given="timeline"
LOOKS = {"sampled": (SKY, ""), "forced": (ORANGE, "//"), "after the end": ("#dddddd", "..")}


def draw_timeline(axis: Axes, names: list[list[str]], masks: list[list[int]], ended: list[int | None]) -> None:
    """A line for every row, a box for every token: sampled, forced, or emitted after the row had ended."""
    for row, (tokens, mask) in enumerate(zip(names, masks, strict=True)):
        for column, (name, own) in enumerate(zip(tokens, mask, strict=True)):
            end = ended[row]
            look = "after the end" if end is not None and column > end else "sampled" if own else "forced"
            colour, hatch = LOOKS[look]
            axis.barh(row, 0.92, left=column, color=colour, hatch=hatch, edgecolor=GREY, linewidth=0.5)
            style = {
                "parse_math": False,
                "fontsize": 7,
                "rotation": 90 if len(name) > 3 else 0,
                "ha": "center",
                "va": "center",
            }
            axis.text(column + 0.46, row, name, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, **style)
        if ended[row] is not None:
            axis.plot([ended[row] + 0.96] * 2, [row - 0.4, row + 0.4], color=BLACK, linewidth=2.5)
    axis.set(
        xlabel="column (a step of the engine)", xlim=(0, max(map(len, names), default=1)), yticks=range(len(names))
    )
    axis.set_yticklabels([f"row {row}" for row in range(len(names))])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.invert_yaxis()
    patches = [Patch(facecolor=c, hatch=h, edgecolor=GREY, label=look) for look, (c, h) in LOOKS.items()]
    axis.figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8)


# %% given="plot-tool_state_machine" tags=["plot"]
with picture(
    "Three rows and their calculators",
    alt="Three rows of boxes, 20 columns. Hatched boxes after } are forced results; a bar marks where a row ends.",
    size=(10.0, 2.6),
) as p:
    offered = ["{12*3}....It is 36.$", "No need of it.$xxxxx", "{6/}{6/4}.....Right$"]
    told = emit_all(offered)["rows"]
    masks = [[int(digit) for digit in row["mask"]] for row in told]
    ends = [row["completed"].find("1") for row in told]
    draw_timeline(p.axes[0], [list(row["emitted"]) for row in told], masks, [end if end >= 0 else None for end in ends])
    thrown_away = sum(row.count(0) for row in masks)
    p.caption = f"{thrown_away} forced tokens, as many sampled ones thrown away. Rows end in columns {ends}."

# %% [markdown]
# ## Part 4 · The loop: prefill once, then step (25 points, 40 minutes)
#
# Now the loop itself. It continues a prompt in `num_samples` rows and gives out a **column** at a time: the next token
# of every row, and its mask. Whoever consumes it can show the text while it grows.
#
# 1. **Prefill, once.** One forward pass of the whole prompt, as a single row, into a cache of one row and the prompt's
#    length. Of the logits `(1, T, V)` only those of the last position matter: they predict the first new token, and the
#    same ones for every row. But every row draws its own token from them, so `sample` is given them `num_samples`
#    times.
# 2. **Replicate.** A cache of `num_samples` rows, with room for the prompt and `max_tokens` more, is prefilled from it.
# 3. **A column.** Draw a token for every row, with one call of `sample`. Offer each row its token with `emit`, which
#    says what is really emitted. Yield the column.
# 4. **Step.** If the column was the last one, that is all. Else one forward pass of what was **emitted**, a token a
#    row, gives the logits for the next column.
#
# It ends after `max_tokens` columns, or with the column in which the last row is completed. Rows that are completed go
# on with the others until then. No forward pass is made whose logits nobody uses, and a column is yielded before the
# pass that follows it: the reader should not wait for it.
#
# To stand alone, this part works on toys (next cell) in the place of the other parts. The toy model says after token
# `t` any of `after[t]`, or `t + 1` where nothing is said. The toy sampler takes, in row `b`, the `b`-th of the
# likeliest tokens. A toy row forces the tokens of its script, by column. And everything is written into a log. Prompt
# `[8, 9]`, 3 rows, `after = {9: [5, 6], 5: [7], 6: [7], 7: [0]}`, 0 ends a row, and row 1 forces a 2 in column 1:
#
# ```
# forward [[8, 9]] at 0                   the prompt, one row, into an empty cache
# sample from (3, 12)                     three rows, 12 tokens to choose from
# column [5, 6, 5] mask [1, 1, 1]
# forward [[5], [6], [5]] at 2            two positions were in the cache
# sample from (3, 12)
# column [7, 2, 7] mask [1, 0, 1]
# forward [[7], [2], [7]] at 3            what was emitted, not what was sampled
# sample from (3, 12)
# column [0, 3, 0] mask [1, 1, 1]         rows 0 and 2 are completed, row 1 is not
# ...
# ```
#
# **Contract.** `generate` is a generator; it yields `(token_column, mask_column)`, two lists of `num_samples` ints, new
# ones each time.
# - `model.forward(ids, kv_cache=cache)` takes ids `(rows, n)` on `model.get_device()` and returns logits `(rows, n,
#   V)`. It moves the cache on by itself.
# - `new_cache(batch_size, seq_len)` makes an empty cache, which has `prefill(other)` of part 2.
# - `sample(logits)` takes `(num_samples, V)` and returns token ids `(num_samples, 1)`. It is called once a column.
# - `new_row()` makes a row, to be called once for each of them in order. It has `completed` and `emit(sampled)`, which
#   takes an int; each row is offered a token exactly once a column.
# - `max_tokens=None` means until the context is full: prompt and answer together have `model.config.sequence_len`
#   tokens. `max_tokens=0` yields nothing.
# - Raises, at the first `next` at the latest: `ValueError` if `tokens` is not a list or holds anything but ints;
#   `IndexError` if it is empty; `ValueError` if `max_tokens` is `None` and the prompt is longer than the context.


# %% given="toys"
class ToyCache:
    """Stands in for a KV cache. Instead of keys and values it keeps the tokens themselves."""

    def __init__(self, batch_size: int, seq_len: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch_size)]
        self.seq_len = seq_len

    def prefill(self, other: "ToyCache") -> None:
        if len(other.rows) != 1 or any(self.rows) or other.seq_len > self.seq_len:
            raise RuntimeError("prefill wants an empty cache that is large enough, and another of one row")
        self.rows = [list(other.rows[0]) for _ in self.rows]


class ToyModel:
    """After token t it says any of after[t], equally likely, or t + 1 where nothing is said. Writes a log."""

    def __init__(self, after: dict[int, list[int]], vocab_size: int, sequence_len: int, device: Any, log: list) -> None:
        self.after, self.vocab_size, self.device, self.log = after, vocab_size, torch.device(device), log
        self.config = SimpleNamespace(sequence_len=sequence_len)
        self.keys_read = 0

    def get_device(self) -> torch.device:
        return self.device

    def forward(self, ids: torch.Tensor, kv_cache: ToyCache) -> torch.Tensor:
        start = len(kv_cache.rows[0])
        self.log.append(f"forward {ids.tolist()} at {start}")
        if len(self.log) > 400:
            raise RuntimeError("the toy model has been asked too often: does your loop end?")
        if ids.device.type != self.device.type:
            raise RuntimeError(f"the tokens are on {ids.device}, the model is on {self.device}")
        if len(ids) != len(kv_cache.rows) or start + ids.size(1) > kv_cache.seq_len:
            raise RuntimeError(f"{tuple(ids.shape)} more tokens do not fit a cache of {len(kv_cache.rows)} rows")
        # every new position of every row looks at all positions up to itself
        self.keys_read += len(ids) * sum(range(start + 1, start + ids.size(1) + 1))
        logits = torch.zeros(*ids.shape, self.vocab_size, device=ids.device)
        for b, row in enumerate(ids.tolist()):
            kv_cache.rows[b].extend(row)
            for t, token in enumerate(row):
                logits[b, t, self.after.get(token, [(token + 1) % self.vocab_size])] = 9.0
        return logits


class ToyRow:
    """Forces the tokens of its script {column: token}; completed after any of `ends`."""

    def __init__(self, script: dict[int, int], ends: set[int]) -> None:
        self.script, self.ends, self.column, self.completed = script, ends, 0, False

    def emit(self, sampled: int) -> tuple[int, int]:
        token = self.script.get(self.column, sampled)
        mask = int(self.column not in self.script)
        self.column += 1
        self.completed = self.completed or token in self.ends
        return token, mask


def toy_sample(logits: torch.Tensor) -> torch.Tensor:
    """In row b, the b-th of the likeliest tokens (counted around)."""
    best = logits == logits.max(dim=-1, keepdim=True).values
    return torch.stack([row.nonzero()[b % int(row.sum())] for b, row in enumerate(best)])


# %% hole="generate"
def generate(
    model: Any,
    tokens: list[int],
    num_samples: int,
    max_tokens: int | None,
    sample: Callable[[torch.Tensor], torch.Tensor],
    new_cache: Callable[[int, int], Any],
    new_row: Callable[[], Any],
) -> Iterator[tuple[list[int], list[int]]]:
    """Continue the prompt `tokens` in `num_samples` rows: yields (token_column, mask_column), an int a row each.

    One forward of the prompt as one row, its cache copied to all rows, then one forward of the emitted tokens between
    columns. Ends after max_tokens columns (None: when the context is full), or once every row is completed.
    Raises ValueError if the prompt is not a list of ints or exceeds the context with max_tokens None, IndexError if it
    is empty.
    """
    ### BEGIN SOLUTION
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ValueError("the prompt must be a list of token ids")
    if not tokens:
        raise IndexError("the prompt is empty")
    if max_tokens is None:
        max_tokens = model.config.sequence_len - len(tokens)
        if max_tokens < 0:
            raise ValueError(f"the prompt of {len(tokens)} tokens is longer than the context")
    device = model.get_device()
    rows = [new_row() for _ in range(num_samples)]

    prompt_cache = new_cache(1, len(tokens))
    logits = model.forward(torch.tensor([tokens], device=device), kv_cache=prompt_cache)[:, -1]
    logits = logits.expand(num_samples, -1)
    cache = new_cache(num_samples, len(tokens) + max_tokens)
    cache.prefill(prompt_cache)

    for column in range(max_tokens):
        sampled = sample(logits)[:, 0].tolist()
        emitted = [row.emit(token) for row, token in zip(rows, sampled, strict=True)]
        token_column = [token for token, _ in emitted]
        yield token_column, [mask for _, mask in emitted]
        if column == max_tokens - 1 or all(row.completed for row in rows):
            return
        logits = model.forward(torch.tensor(token_column, device=device)[:, None], kv_cache=cache)[:, -1]
    ### END SOLUTION


# %% given="check-generate"
def run_toy(
    tokens: Any,
    num_samples: int,
    max_tokens: int | None,
    after: dict[int, list[int]],
    forced: tuple | list = (),
    ends: tuple | list = (0,),
    vocab_size: int = 12,
    sequence_len: int = 32,
    device: Any = "cpu",
) -> dict:
    """Your generate on the toys: its columns, and the log of all that happened until the last of them.
    `forced` has a script {column: token} for each row."""
    log: list[str] = []
    model = ToyModel(after, vocab_size, sequence_len, device, log)
    scripts = iter(forced)

    def sample(logits: torch.Tensor) -> torch.Tensor:
        log.append(f"sample from {tuple(logits.shape)}")
        return toy_sample(logits)

    columns = []
    for token_column, mask_column in islice(
        generate(
            model,
            tokens,
            num_samples,
            max_tokens,
            sample=sample,
            new_cache=ToyCache,
            new_row=lambda: ToyRow(next(scripts, {}), set(ends)),
        ),
        100,
    ):
        log.append(f"column {token_column} mask {mask_column}")
        columns.append((token_column, mask_column))
    return {"columns": columns, "log": log if columns else []}


def toy_log(*arguments: Any, **more: Any) -> list[str]:
    """The log of your generate on the toys."""
    return run_toy(*arguments, **more)["log"]


def toy_columns(*arguments: Any, **more: Any) -> list:
    """The columns of your generate on the toys."""
    return run_toy(*arguments, **more)["columns"]


with check("generate"):
    said = {9: [5, 6], 5: [7], 6: [7], 7: [0]}
    expect(
        toy_log,
        ([8, 9], 3, 2, said),
        [
            "forward [[8, 9]] at 0",
            "sample from (3, 12)",
            "column [5, 6, 5] mask [1, 1, 1]",
            "forward [[5], [6], [5]] at 2",
            "sample from (3, 12)",
            "column [7, 7, 7] mask [1, 1, 1]",
        ],
        "the prompt once, as one row; its logits for three rows; then sample, emit, yield, step; none after the last",
    )
    expect(
        toy_log,
        ([8, 9], 3, 10, said, [{}, {1: 2}]),
        [
            "forward [[8, 9]] at 0",
            "sample from (3, 12)",
            "column [5, 6, 5] mask [1, 1, 1]",
            "forward [[5], [6], [5]] at 2",
            "sample from (3, 12)",
            "column [7, 2, 7] mask [1, 0, 1]",
            "forward [[7], [2], [7]] at 3",
            "sample from (3, 12)",
            "column [0, 3, 0] mask [1, 1, 1]",
            "forward [[0], [3], [0]] at 4",
            "sample from (3, 12)",
            "column [1, 4, 1] mask [1, 1, 1]",
            "forward [[1], [4], [1]] at 5",
            "sample from (3, 12)",
            "column [2, 5, 2] mask [1, 1, 1]",
            "forward [[2], [5], [2]] at 6",
            "sample from (3, 12)",
            "column [3, 7, 3] mask [1, 1, 1]",
            "forward [[3], [7], [3]] at 7",
            "sample from (3, 12)",
            "column [4, 0, 4] mask [1, 1, 1]",
        ],
        "what was emitted goes into the model; rows 0 and 2 are completed early and go on until row 1 is",
    )
    expect(toy_columns, ([4], 2, 3, {}), [([5, 5], [1, 1]), ([6, 6], [1, 1]), ([7, 7], [1, 1])], "max_tokens columns")
    expect(toy_columns, ([4], 1, 1, {}), [([5], [1])], "max_tokens 1 is one column")
    expect(toy_columns, ([4], 2, 0, {}), [], "max_tokens 0 is no column")
    ended = [([7, 7], [1, 1]), ([0, 0], [1, 1])]
    expect(toy_columns, ([8, 5], 2, 9, said), ended, "the column in which the last row is completed is the last")
    filled = [([7], [1]), ([8], [1]), ([9], [1])]
    full = {"tokens": [5, 6], "num_samples": 1, "max_tokens": None, "after": {}, "sequence_len": 5}
    expect(toy_columns, full, filled, "a context of 5 has room for 3 tokens after 2")
    expect(toy_columns, full | {"sequence_len": 2}, [], "a prompt that fills the context leaves no room")
    expect(toy_columns, full | {"sequence_len": 1}, ValueError, "a prompt longer than the context")
    longer = full | {"sequence_len": 1, "max_tokens": 1}
    expect(toy_columns, longer, filled[:1], "with max_tokens given, the context is not looked at")
    for bad, error in (([], IndexError), ((4, 5), ValueError), (["a"], ValueError), ([4, 5.0], ValueError)):
        expect(toy_columns, (bad, 1, 2, {}), error, "the prompt is a list of ints, and not empty")

# %% graded="generate"
# 25 points. The hidden tests are more of the same, with other scripts; `--verify` runs them.
check.visible("generate")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("04_inference_engine", "generate", run_toy)
### END HIDDEN TESTS

# %% given="plot-generate" tags=["plot"]
with picture(
    "Four rows of your loop on the toy model",
    alt="Four rows of numbered boxes. Rows 1 and 3 have a hatched forced box each. A bar marks where each row ends.",
    size=(8.0, 2.8),
) as p:
    branches = {9: [3, 5, 6, 10], 3: [4], 4: [0], 7: [0, 8], 11: [1]}
    columns = toy_columns([8, 9], 4, 24, branches, [{}, {3: 4}, {}, {3: 3}])
    names = [[str(tokens[row]) for tokens, _ in columns] for row in range(4)]
    masks = [[mask[row] for _, mask in columns] for row in range(4)]
    ends = [next((i for i, name in enumerate(row) if name == "0"), None) for row in names]
    draw_timeline(p.axes[0], names, masks, ends)
    p.caption = f"{len(columns)} columns; rows are completed (token 0) in columns {ends}."

# %% given="plot-cost" tags=["plot"]
from nanochat.recipe import build_meta_model, config_from_depth

with picture(
    "What the cache saves",
    alt="Left: keys read by answer length, your engine far below the naive loop. Right: FLOPs a token, the gap widens.",
    columns=2,
    size=(9.5, 3.4),
) as p:
    lengths, prompt_len = (4, 8, 16, 32, 64, 128), 64

    def keys_read(num_samples: int, max_tokens: int) -> int:
        """Counted by the toy model while your generate runs."""
        model = ToyModel({}, 300, 300, "cpu", [])
        prompt, new_row = [1] * prompt_len, partial(ToyRow, {}, set())
        for _ in generate(model, prompt, num_samples, max_tokens, toy_sample, ToyCache, new_row):
            pass
        return model.keys_read

    def naive_keys(num_samples: int, max_tokens: int) -> int:
        """All tokens through the model for every new one, and that for every row."""
        return num_samples * sum(n * (n + 1) // 2 for n in range(prompt_len, prompt_len + max_tokens))

    for num_samples, colour, marker in zip((1, 8), COLOURS, MARKERS, strict=False):
        yours = [keys_read(num_samples, n) for n in lengths]
        naive = [naive_keys(num_samples, n) for n in lengths]
        rows = f"{num_samples} row{'s' * (num_samples > 1)}"
        p.axes[0].loglog(lengths, yours, color=colour, marker=marker, label=f"your engine, {rows}")
        p.axes[0].loglog(lengths, naive, "--", color=colour, marker=marker, fillstyle="none", label=f"naive, {rows}")
    p.axes[0].set(title=f"A prompt of {prompt_len}", xlabel="new tokens", ylabel="keys read, a layer and head")
    p.axes[0].set_xticks(lengths, labels=map(str, lengths), minor=False)
    p.axes[0].legend(fontsize=7)
    d12 = build_meta_model(config_from_depth(12))
    contexts = (16, 64, 256, 512, 1024, 2048)
    step = [d12.estimate_decode_flops(n) for n in contexts]
    whole = [d12.estimate_prefill_flops(n) for n in contexts]
    p.axes[1].loglog(contexts, step, color=BLUE, marker="o", label="with the cache: one position")
    p.axes[1].loglog(contexts, whole, "--", color=ORANGE, marker="s", label="without: all positions")
    p.axes[1].set(title="The next token, depth 12", xlabel="tokens so far", ylabel="FLOPs")
    p.axes[1].set_xticks(contexts, labels=map(str, contexts), minor=False)
    p.axes[1].legend(fontsize=7)
    for axis in p.axes:
        axis.xaxis.set_minor_locator(NullLocator())
    p.caption = (
        f"8 rows of {lengths[-1]} tokens: {naive[-1] / yours[-1]:,.0f} times fewer keys read. "
        f"Depth 12 at 2048 tokens: {whole[-1] / step[-1]:,.0f} times fewer FLOPs."
    )

# %% [markdown]
# ## Part 5 · From columns to answers (15 points, 15 minutes)
#
# Evaluation and reinforcement learning do not want a stream: they want whole sequences, a list of ids a row, with a
# mask that says which of them the model has chosen itself. The prompt comes first, with mask 0. Then, from the columns,
# what the row has emitted **before** its first terminal token. Neither that token nor anything after it is taken,
# whatever its mask: the row only went on because others were not done.
#
# Prompt `[7, 8]`, terminal tokens 0 and 1, two rows:
#
# ```
# column    [5, 6] [1, 1]    [4, 0] [0, 1]    [3, 5] [1, 1]    [1, 5] [1, 1]
# row 0     5, mask 1        4, mask 0        3, mask 1        ends             [7, 8, 5, 4, 3]   [0, 0, 1, 0, 1]
# row 1     6, mask 1        ends             too late         too late         [7, 8, 6]         [0, 0, 1]
# ```
#
# **Contract.** `columns` is an iterable of `(token_column, mask_column)` that can be gone through once. There may be
# none, and rows that never end. Returns `(sequences, masks)`, each a list of `num_samples` lists of ints; no two share
# memory, and `tokens` is left as it is.


# %% hole="generate_batch"
def generate_batch(
    columns: Iterable[tuple[list[int], list[int]]], tokens: list[int], num_samples: int, terminal: frozenset[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Whole answers from the columns of `generate`: (sequences, masks), a list a row, prompt included with mask 0.

    A row is taken up to its first token in `terminal`, without that token.
    """
    ### BEGIN SOLUTION
    sequences = [list(tokens) for _ in range(num_samples)]
    masks = [[0] * len(tokens) for _ in range(num_samples)]
    ended = [False] * num_samples
    for token_column, mask_column in columns:
        for row, (token, mask) in enumerate(zip(token_column, mask_column, strict=True)):
            ended[row] = ended[row] or token in terminal
            if not ended[row]:
                sequences[row].append(token)
                masks[row].append(mask)
    return sequences, masks
    ### END SOLUTION


# %% given="check-generate_batch"
def collect(columns: list, tokens: list[int], num_samples: int, terminal: list[int]) -> dict:
    """Your function's answer. Then a 99 is put to the end of every list, to see whether they are lists of their own."""
    prompt = list(tokens)
    sequences, masks = generate_batch(iter(columns), prompt, num_samples, frozenset(terminal))
    answer = {"sequences": [list(row) for row in sequences], "masks": [list(row) for row in masks]}
    lists = [prompt, *sequences, *masks]
    for each in lists:
        each.append(99)
    lengths = [len(tokens), *map(len, answer["sequences"]), *map(len, answer["masks"])]
    return answer | {"own memory": [len(each) - 1 for each in lists] == lengths, "prompt": prompt[:-1]}


def collected(*arguments: Any) -> list:
    """Your sequences and masks."""
    return list(collect(*arguments).values())[:2]


with check("generate_batch"):
    columns = [([5, 6], [1, 1]), ([4, 0], [0, 1]), ([3, 5], [1, 1]), ([1, 5], [1, 1])]
    expect(
        collected,
        (columns, [7, 8], 2, [0, 1]),
        [[[7, 8, 5, 4, 3], [7, 8, 6]], [[0, 0, 1, 0, 1], [0, 0, 1]]],
        "the prompt with mask 0, then all before the row's first terminal token",
    )
    expect(collected, ([], [7], 3, [0]), [[[7]] * 3, [[0]] * 3], "without columns there is the prompt alone")
    expect(collected, (columns[:2], [7], 2, [9]), [[[7, 5, 4], [7, 6, 0]], [[0, 1, 0], [0, 1, 1]]], "without an end")
    late = [([5], [1]), ([0], [1]), ([5], [1]), ([6], [0])]
    expect(collected, (late, [0, 7], 1, [0]), [[[0, 7, 5]], [[0, 0, 1]]], "ended is ended; the prompt ends nothing")
    expect(collected, ([([5], [1]), ([0], [0]), ([5], [1])], [7], 1, [0]), [[[7, 5]], [[0, 1]]], "forced ends as well")
    expect(
        collect,
        (columns, [7, 8], 2, [0, 1]),
        {
            "sequences": [[7, 8, 5, 4, 3], [7, 8, 6]],
            "masks": [[0, 0, 1, 0, 1], [0, 0, 1]],
            "own memory": True,
            "prompt": [7, 8],
        },
        "the lists share memory with each other or with the prompt",
    )

# %% graded="generate_batch"
# 15 points. The hidden tests are more of the same, with other columns; `--verify` runs them.
check.visible("generate_batch")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("04_inference_engine", "generate_batch", collect)
### END HIDDEN TESTS

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your five parts together. There is nothing to fill in. The constructor, `generate` and `generate_batch`
# take what nanochat's `Engine` takes, so that yours fits wherever that one does.


# %% given="engine"
class Engine:
    """Generates with a KV cache, many samples of one prompt at once, each with its calculator. Made of your parts."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.tools = tools_of(tokenizer, use_calculator)
        self.terminal = self.tools.terminal

    def new_cache(self, batch_size: int, seq_len: int) -> Any:
        """An empty cache that fits the model."""
        config = self.model.config
        return KVCache(
            batch_size=batch_size,
            num_heads=config.n_kv_head,
            seq_len=seq_len,
            head_dim=config.n_embd // config.n_head,
            num_layers=config.n_layer,
            device=self.model.get_device(),
            dtype=common.COMPUTE_DTYPE,
        )

    @torch.inference_mode()
    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Columns of (tokens, masks), one generator of random numbers for all of them."""
        rng = torch.Generator(device=self.model.get_device()).manual_seed(seed)
        sample = partial(sample_next_token, rng=rng, temperature=temperature, top_k=top_k)
        new_row = partial(Row, self.tools)
        yield from generate(self.model, tokens, num_samples, max_tokens, sample, self.new_cache, new_row)

    def generate_batch(self, tokens: list[int], num_samples: int = 1, **kwargs: Any) -> tuple[list, list]:
        """Whole sequences and their masks."""
        columns = self.generate(tokens, num_samples, **kwargs)
        return generate_batch(columns, tokens, num_samples, self.terminal)


# %% [markdown]
# ## On real data: the shipped model does arithmetic
#
# nanochat ships a small model, trained on a toy world until it could chat a little. Sums of two digits it knows by
# heart; for anything larger it has learnt to ask. Below it answers questions which it has never seen, through your
# engine, token by token as they come. What your engine forces on it is put in angle brackets.

# %% given="arithmetic" tags=["plot"]
from nanochat import toyworld
from nanochat.toyworld.tasks import ToyArithmetic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def stream(engine: Engine, prompt: list[int]) -> list[int]:
    """Print the answer while it is generated; returns its tokens."""
    answer = []
    for (token,), (mask,) in engine.generate(prompt, max_tokens=48, temperature=0):
        answer.append(token)
        text = engine.tokenizer.decode([token])
        print(text if mask else f"⟨{text}⟩", end="", flush=True)
    print()
    return answer


with attempt("The shipped model through your engine"):
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    engine, task = Engine(model, tokenizer), ToyArithmetic("test")
    right = 0
    for conversation in (task[i] for i in range(5)):
        print(conversation["messages"][0]["content"])
        answer = stream(engine, tokenizer.render_for_completion(conversation))
        right += task.evaluate(conversation, tokenizer.decode(answer))
    print(f"{right} of 5 are right.")

# %% [markdown]
# Sums are easy for it, and at temperature 1 four samples say the same. So the picture turns the heat up: rows part,
# write nonsense, end early or never, and each gets the result of what it has asked for itself. The signs are those of
# part 3.

# %% given="plot-timeline" tags=["plot"]
with picture(
    "One question, four samples at temperature 2.4: whose token is it?",
    alt="Four rows of boxes with pieces of text. Hatched boxes hold the calculator's results, in output tags.",
    size=(11.0, 3.4),
) as p:
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    conversation = ToyArithmetic("test")[2]
    prompt = tokenizer.render_for_completion(conversation)
    engine = Engine(model, tokenizer)
    columns = list(engine.generate(prompt, num_samples=4, max_tokens=32, temperature=2.4, top_k=50, seed=2))
    signs = {tokenizer.encode_special(name): sign for name, sign in SIGNS.items()}
    rows = [[tokens[row] for tokens, _ in columns] for row in range(4)]
    masks = [[mask[row] for _, mask in columns] for row in range(4)]
    ends = [next((i for i, token in enumerate(row) if token in engine.terminal), None) for row in rows]
    names = [[signs.get(token) or tokenizer.decode([token]) for token in row] for row in rows]
    draw_timeline(p.axes[0], names, masks, ends)
    p.axes[0].set_title(conversation["messages"][0]["content"], fontsize=9)
    forced = [row.count(0) for row in masks]
    p.caption = f"Rows end in columns {ends}; forced tokens by row: {forced}."

# %% [markdown]
# **Does the cache change anything?** It must not. `GPT.generate` is the loop of three lines from the beginning: no
# cache, no rows, no calculator. Until the calculator first speaks, your engine has to give the same tokens.

# %% given="cache-or-not" tags=["plot"]
with attempt("Your engine against the loop without a cache"):
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    same = compared = 0
    for conversation in (ToyArithmetic("test")[i] for i in range(3)):
        prompt = tokenizer.render_for_completion(conversation)
        yours = list(Engine(model, tokenizer).generate(prompt, max_tokens=48, temperature=0))
        spoken = next((i for i, (_, mask) in enumerate(yours) if mask == [0]), len(yours))
        naive = list(model.generate(prompt, max_tokens=spoken, temperature=0))
        same += sum(tokens == [token] for (tokens, _), token in zip(yours, naive, strict=False))
        compared += spoken
    print(f"{same} of {compared} tokens are the same.")

# %% [markdown]
# ## What you have built
#
# nanochat's chat command asks for an `Engine`. Here it gets yours: same command, same flags, your code behind it. Then
# 4 samples of nanochat's engine and of yours, from one seed, must agree to the last token and mask.

# %% given="what-you-have-built" tags=["oracle"]
import os
import tempfile
from unittest.mock import patch

import nanochat.engine
from nanochat.scripts import chat_cli

QUESTIONS = ("Where does Ada live?", "How much is 512 - 87?", "Please multiply 24 by 19.")

with attempt("Your engine in nanochat's chat"), tempfile.TemporaryDirectory() as folder:
    with patch.object(chat_cli, "Engine", Engine), patch.dict(os.environ, NANOCHAT_BASE_DIR=folder):
        for question in QUESTIONS:
            print(f"you: {question}\nmodel: ", end="")
            chat_cli.main(["--toy", "--prompt", question, "--temperature", "0"])
    model, tokenizer, _ = toyworld.load_toy("sft", DEVICE)
    prompt = tokenizer.render_for_completion(ToyArithmetic("test")[1])
    dials = {"num_samples": 4, "max_tokens": 32, "temperature": 0.9, "top_k": 20, "seed": 11}
    yours = Engine(model, tokenizer).generate_batch(prompt, **dials)
    theirs = nanochat.engine.Engine(model, tokenizer).generate_batch(prompt, **dials)
    print(f"4 samples from one seed: {'all the same as' if yours == theirs else 'not the same as'} nanochat's.")

# %% [markdown]
# ## In your own words
#
# A user chats with a depth-12 model (36,864 bytes of cache a token in bfloat16). Before each answer, nanochat's chat
# runs the *whole* conversation so far through the model again. In about ten sentences: (a) how many positions are
# prefilled in total over 10 turns of 200 tokens (question and answer together), against how many would have to be if
# the cache were kept between the turns; (b) what would have to change in `KVCache` and in `generate` to keep it, and
# what about the last token of an answer, the forced tokens and a row that ended early; (c) you keep the caches of 1000
# idle users of 2000 tokens each: what does that cost, and what would you do about it?

# %% [markdown] written="keeping_the_cache"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) Turn $n$ prefills what was said before and the new question, up to $200 n$ positions: at most 200 · (1 + 2 + ... +
# 10) = 11,000. Kept, every position is computed once: 2,000, so 5.5 times less, and the gap grows with the number of
# turns. (Counting only the questions as prefilled, or leaving out the last answer, is right too if it is said.)
#
# (b) `KVCache`: room for more than one answer (grow, or allocate `sequence_len` at once), and a position that can be
# set back. `generate`: take a cache that is not empty and prefill only the new tokens, at the cache's position; with
# more than one token after the first, the mask must be aligned to the end, and the smear needs `prev_embedding`. The
# last token of an answer was emitted but never put through the model, so it is not in the cache and has to lead the
# next prefill. Forced tokens are in it like any other: they went through the model. A row that ended early holds keys
# of tokens that are no part of the conversation: its position must be set back to its end, so positions differ by row
# (that is why `cache_seqlens` is a vector).
#
# (c) 1000 · 2000 · 36,864 bytes = 73.7 GB, about a whole H100. Ways out, one argued is enough: drop the oldest and
# prefill again when they return; move idle ones to CPU memory; share the pages of common beginnings (a system prompt);
# pages instead of one piece a user (PagedAttention, arXiv 2309.06180); fewer key/value heads; keys and values in 8
# bits.
# ### END SOLUTION
