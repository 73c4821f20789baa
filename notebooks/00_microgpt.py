# %% [markdown]
# # Lab 0: microgpt, a GPT with nothing hidden
#
# **Goal: hold a whole GPT in your head, see that its gradients are right, watch it learn, and know what each of the
# eight puzzles will change about it.**
#
# about 30 minutes to read, under a minute to run · no points · any CPU · `microgpt.py` is all it needs
#
# ## Why first
#
# A language model in production is hidden under kernels, shards and caches. None of them changes what is computed.
# `microgpt.py` computes it with Python floats and nothing else, in some 400 lines, slowly enough to be watched. Once you
# can say what every line is for, the rest of this course is about making it fast, stable and useful.
#
# Open the file beside this notebook: [microgpt.py](../microgpt.py). Afterwards you can
#
# 1. read a gradient off a graph, and say where it stops;
# 2. check any backward pass with nothing but the forward pass, and say how far that check can be trusted;
# 3. tell from a loss curve what a model has learned so far;
# 4. name, for each thing nanochat does differently, what breaks without it.
#
# Run all cells (*Run*, *Run All Cells*). Code that only draws is folded: click the bar beside `•••` to read it.

# %%
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch.nn.utils.rnn import pad_sequence

import microgpt
from microgpt import Value
from nanochat import recipe
from nanochat.gpt import IGNORE_INDEX, GPTConfig
from puzzles import catalog
from puzzles.explore import choice, explore, slider, watch
from puzzles.plots import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY, picture

# %% [markdown]
# ## 1 · A number that remembers where it came from
#
# Training needs one thing from a model: by how much the loss would change if a weight changed a little. For a single
# operation that is school calculus. The trick of *autograd* is to write it down while computing: a `Value` keeps the
# values it was made from and its derivative by each of them, and the chain rule does the rest, from the end to the start.
#
# Move the three numbers. On every arrow stands the derivative of its head by its tail; every box shows its value and,
# below it, how much **y** would change per unit of it: the product of the numbers along the way to y, summed over all ways.


# %%
def expression(a: float, b: float, c: float) -> dict[str, Value]:
    """y = relu(a·b + c)² and all that it is made from, by name."""
    values = {"a": Value(a), "b": Value(b), "c": Value(c)}
    values["a·b"] = values["a"] * values["b"]
    values["a·b + c"] = values["a·b"] + values["c"]
    values["relu"] = values["a·b + c"].relu()
    values["y = relu²"] = values["relu"] ** 2
    return values


# %% tags=["drawing"]
def draw_graph(axes: Axes, named: dict[str, Value]) -> None:
    """Boxes from left to right in the order of computing, arrows with local derivatives."""
    depth: dict[Value, int] = {}
    for value in named.values():
        depth[value] = 1 + max((depth[child] for child in value.children), default=-1)
    places: dict[Value, tuple[float, float]] = {}
    for level in range(max(depth.values()) + 1):
        column = [value for value in named.values() if depth[value] == level]
        places |= {value: (level, (len(column) - 1) / 2 - row) for row, value in enumerate(column)}
    for name, value in named.items():
        dead = value.grad == 0
        style = {"facecolor": "white" if value.children else "#d6ecf8", "edgecolor": GREY if dead else BLACK}
        axes.annotate(
            f"{name}\n{value.data:.3g}\n{'no gradient' if dead else f'grad {value.grad:.3g}'}",
            places[value],
            ha="center",
            va="center",
            fontsize=9,
            bbox=style | {"boxstyle": "round,pad=0.4", "linestyle": ":" if dead else "-"},
            zorder=3,
        )
        for child, local in zip(value.children, value.local_grads, strict=True):
            start, end = places[child], places[value]
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 32, "shrinkB": 34})
            share = 0.5 if end[0] - start[0] == 1 else 0.3  # a long arrow passes boxes: its label stands before them
            x, y = ((1 - share) * tail + share * head for tail, head in zip(start, end, strict=True))
            axes.text(x, y + 0.13, f"×{local:.3g}", color=BLUE, ha="center", fontsize=9)
    rows = [y for _, y in places.values()]
    axes.set(xlim=(-0.5, max(depth.values()) + 0.5), ylim=(min(rows) - 0.6, max(rows) + 0.6))
    axes.axis("off")


def draw_expression(a: float, b: float, c: float) -> None:
    values = expression(a, b, c)
    y = values["y = relu²"]
    y.backward()
    moved = expression(a + 0.1, b, c)["y = relu²"].data - y.data
    alt = f"Graph from a, b and c over a·b, a·b + c and relu to y = {y.data:.3g}, with a gradient in every box."
    with picture("The graph of y = relu(a·b + c)²", alt, size=(10, 3.6)) as p:
        draw_graph(p.axes[0], values)
        p.caption = (
            f"dy/da is {values['a'].grad:.3g}. So a + 0.1 should change y by about {values['a'].grad * 0.1:.3g}; "
            f"it does change it by {moved:.3g}."
        )


# %%
explore(
    draw_expression,
    a=slider("a", -3.0, 3.0, 1.5, 0.1),
    b=slider("b", -3.0, 3.0, 2.0, 0.1),
    c=slider("c", -3.0, 3.0, -1.0, 0.1),
)

# %% [markdown]
# Now drag c to −3, so that a·b + c is not above zero: the ReLU closes, its local derivative is 0, and **every** box behind
# it loses its gradient at once. A neuron whose ReLU is closed for all data never learns again. That is one reason why
# nanochat norms the input of every layer.
#
# ### Fewer, fatter nodes
#
# A node may have any number of children. `microgpt.dot` makes a dot product one node, and `softmax` and `cross_entropy`
# know their own derivatives. The gradients are the same; the bookkeeping shrinks. This is what "fused kernel" means on a GPU.


# %%
def nodes_under(value: Value) -> set[Value]:
    """Every value that `value` was computed from, and itself."""
    found, frontier = set(), {value}
    while frontier:
        found |= frontier
        frontier = {child for node in frontier for child in node.children} - found
    return found


def dot_one_by_one() -> dict[str, Value]:
    """x·w over three channels, a node an operation."""
    named = {f"{letter}{i}": Value(0.5 * i + shift) for i in (1, 2, 3) for letter, shift in (("x", 0), ("w", 1))}
    for i in (1, 2, 3):
        named[f"x{i}·w{i}"] = named[f"x{i}"] * named[f"w{i}"]
    named["sum 1, 2"] = named["x1·w1"] + named["x2·w2"]
    named["x·w"] = named["sum 1, 2"] + named["x3·w3"]
    return named


def dot_fused() -> dict[str, Value]:
    """The same as one node."""
    named = {name: Value(value.data) for name, value in dot_one_by_one().items() if not value.children}
    xs, ws = ([named[f"{letter}{i}"] for i in (1, 2, 3)] for letter in "xw")
    return named | {"x·w": microgpt.dot(xs, ws)}


docs = microgpt.BUNDLED_NAMES.split()
random.Random(42).shuffle(docs)
held_out, train_docs = docs[:27], docs[27:]
tokenizer = microgpt.Tokenizer(docs)
config = microgpt.Config()
fresh = partial(microgpt.init_params, config, tokenizer.vocab_size)

with picture(
    "x·w: an operation a node, and fused into one",
    "Two graphs of a dot product of three channels: five inner nodes on the left, one on the right, equal gradients.",
    columns=2,
    size=(12, 6),
) as p:
    for axes, named, title in zip(
        p.axes, (dot_one_by_one(), dot_fused()), ("5 nodes, 10 edges", "1 node, 6 edges"), strict=True
    ):
        named["x·w"].backward()
        draw_graph(axes, named)
        axes.set_title(title)
    params = fresh(random.Random(42))
    loss = microgpt.document_loss(tokenizer.encode_document("gabriel"), params, config)
    inner = nodes_under(loss) - set(microgpt.all_weights(params))
    p.caption = (
        f"The loss of one name, 'gabriel', is a graph of {len(inner):,} fused nodes and "
        f"{sum(len(node.children) for node in inner):,} edges over {len(microgpt.all_weights(params)):,} weights. "
        "`python -m benchmarks.microgpt` measures what an operation a node would cost."
    )

# %% [markdown]
# ## 2 · Are the gradients right?
#
# ### Against the definition
#
# Move one weight by h, both ways, and see how the loss moves: (loss(w + h) − loss(w − h)) / 2h. No derivative is needed,
# so no mistake in one can hide. But how small should h be? Choose a weight and look before you answer.


# %%
def numeric_gradient(weight: Value, h: float, params: microgpt.Params, tokens: list[int]) -> float:
    """The central difference of the document's loss by `weight`."""
    at = weight.data
    losses = []
    for weight.data in (at + h, at - h):
        losses.append(microgpt.document_loss(tokens, params, config).data)
    weight.data = at
    return (losses[0] - losses[1]) / (2 * h)


TOKENS = tokenizer.encode_document("gabriel")
STEPS = [10 ** (-exponent / 2) for exponent in range(2, 27)]


# %% tags=["drawing"]
def draw_check(matrix: str, row: int, column: int) -> None:
    params = fresh(random.Random(42))
    microgpt.document_loss(TOKENS, params, config).backward()
    rows = params[matrix]
    weight = rows[row % len(rows)][column % len(rows[0])]
    errors = [abs(numeric_gradient(weight, h, params, TOKENS) - weight.grad) for h in STEPS]
    relative = [max(error / abs(weight.grad), 1e-16) if weight.grad else error for error in errors]
    best = min(range(len(STEPS)), key=relative.__getitem__)
    alt = (
        f"A V on logarithmic axes: the error falls with h to {relative[best]:.0e} at h = {STEPS[best]:.0e}, then rises."
    )
    with picture(f"One weight of {matrix}: difference quotient against backward()", alt, size=(9, 3.8)) as p:
        axes = p.axes[0]
        axes.loglog(STEPS, relative, marker="o", color=BLUE, label="measured")
        axes.loglog(
            STEPS, [relative[0] * (h / STEPS[0]) ** 2 for h in STEPS], "--", color=GREEN, label="∝ h²: the curve"
        )
        rounding = [2e-16 / h / max(abs(weight.grad), 1e-12) for h in STEPS]
        axes.loglog(STEPS, rounding, ":", color=RED, label="∝ 1/h: rounding of the loss")
        axes.set(xlabel="h, the step of the weight", ylabel="error, as a share of the gradient", ylim=(1e-13, 10))
        axes.invert_xaxis()
        axes.legend(frameon=False)
        p.caption = (
            f"backward() says {weight.grad:.9f}. The best quotient, at h = {STEPS[best]:.1e}, differs by "
            f"{relative[best]:.1e} of it; the smallest h, {STEPS[-1]:.0e}, by {relative[-1]:.1e}."
        )


# %%
explore(
    draw_check,
    matrix=choice("matrix", list(params), "layer0.mlp_fc1"),
    row=slider("row", 0, 15, 2),
    column=slider("column", 0, 15, 3),
)

# %% [markdown]
# Both ends are bad. With a large h the loss is no straight line between the two points (that error shrinks like h²); with
# a small one the two losses agree in nearly all their digits, and what is left of the subtraction is rounding (it grows
# like 1/h). The two meet where the error is about ε^⅔, ε being the rounding of the number format: 4e-11 in float64 (and
# worse where the gradient is small beside the loss, as here), 2e-5 in float32, 2e-2 in bfloat16, where the check is
# worthless. That is why nanochat's tests compare gradients with another *implementation*, not with differences.
#
# A row of `wte` whose letter does not occur in "gabriel" has no gradient at all: choose `wte`, row 2 ("c").
#
# ### Against PyTorch
#
# The same model, written with PyTorch's own operations and float64, gives all 4192 gradients at once.


# %%
def torch_loss(tokens: list[int], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a document by PyTorch: every position at once, and a causal mask instead of a growing cache."""
    ids = torch.tensor(tokens)
    T = min(config.block_size, len(ids) - 1)
    norm = partial(F.rms_norm, normalized_shape=(config.n_embd,), eps=1e-5)
    x = norm(weights["wte"][ids[:T]] + weights["wpe"][:T])
    for layer in range(config.n_layer):
        wq, wk, wv, wo, fc1, fc2 = (weights[f"layer{layer}.{name}"] for name in microgpt.LAYER_WEIGHTS)
        h = norm(x)
        q, k, v = (F.linear(h, w).view(T, config.n_head, -1).transpose(0, 1) for w in (wq, wk, wv))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(y.transpose(0, 1).reshape(T, -1), wo)
        x = x + F.linear(F.relu(F.linear(norm(x), fc1)), fc2)
    return F.cross_entropy(F.linear(x, weights["lm_head"]), ids[1 : T + 1])


started = time.perf_counter()
params = fresh(random.Random(42))
loss = microgpt.document_loss(TOKENS, params, config)
loss.backward()
seconds_micro = time.perf_counter() - started

weights = {
    name: torch.tensor([[w.data for w in row] for row in rows], dtype=torch.float64, requires_grad=True)
    for name, rows in params.items()
}
torch_loss(TOKENS, weights).backward()  # the first call sets PyTorch up
for weight in weights.values():
    weight.grad = None
started = time.perf_counter()
other_loss = torch_loss(TOKENS, weights)
other_loss.backward()
seconds_torch = time.perf_counter() - started

theirs = {name: weight.grad for name, weight in weights.items()}
ours = {
    name: torch.tensor([[w.grad for w in row] for row in rows], dtype=torch.float64) for name, rows in params.items()
}
difference = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
assert max(difference.values()) < 1e-12, "the two disagree"

with picture(
    "4192 gradients: microgpt against PyTorch",
    f"Left: all gradients on a diagonal. Right: the largest difference by matrix, at most {max(difference.values()):.0e}.",
    columns=2,
    size=(11, 3.8),
) as p:
    left, right = p.axes
    x, y = (torch.cat([gradients[name].flatten() for name in ours]) for gradients in (theirs, ours))
    left.plot(x, y, ".", color=BLUE, markersize=3)
    left.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle="--")
    left.set(xlabel="PyTorch's gradient", ylabel="microgpt's gradient", title="one dot a weight")
    right.barh(list(difference), [max(d, 1e-20) for d in difference.values()], color=SKY, edgecolor=BLACK)
    right.set(xscale="log", xlabel="largest absolute difference", xlim=(1e-20, 1e-12), title="by matrix")
    right.invert_yaxis()
    p.caption = (
        f"The losses differ by {abs(loss.data - other_loss.item()):.1e} nats, the gradients by at most "
        f"{max(difference.values()):.1e}. One name took microgpt {seconds_micro * 1e3:.1f} ms, PyTorch "
        f"{seconds_torch * 1e3:.1f} ms. The model is so small that PyTorch mostly pays for being called."
    )

# %% [markdown]
# ## 3 · Watch it learn
#
# 400 steps, one name each, drawn as they happen. Two lines help to read the loss:
#
# - **uniform**: what you pay if you know nothing, ln 27 = 3.30 nats a letter.
# - **letter counts**: the entropy of the letters. A model below it has learned more than how frequent each letter is.
#
# On the right, what the model expects after a "j", next to what follows "j" in the names it is trained on. Before the
# first step all bars are equal. (*Interrupt the kernel* to stop early: the notebook goes on with what it has.)

# %%
STEPS_OF_TRAINING = 400
letters = Counter(token for name in train_docs for token in tokenizer.encode_document(name)[1:])
total = sum(letters.values())
letter_entropy = -sum(n / total * math.log(n / total) for n in letters.values())
names_of_tokens = [*tokenizer.vocab, "end"]


def next_chances(params: microgpt.Params, prompt: str, temperature: float = 1.0) -> list[float]:
    """The probabilities of the token that follows `prompt`."""
    cache = microgpt.new_cache(config)
    for position, token in enumerate([tokenizer.bos, *tokenizer.encode(prompt)]):
        logits = microgpt.gpt(token, position, cache, params, config)
    return microgpt.probabilities([logit.data / temperature for logit in logits])


# %% tags=["drawing"]
def draw_training(losses: list[float], params: microgpt.Params, prompt: str = "j") -> None:
    window = 20
    smooth = [sum(losses[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
    alt = f"Left: the loss by step, from {losses[0]:.2f} to {smooth[-1]:.2f} nats. Right: bars of the next letter after j."
    with picture(f"microgpt after {len(losses)} names", alt, columns=2, size=(12, 3.8)) as p:
        left, right = p.axes
        left.plot(losses, ".", color=SKY, markersize=4, label="one name")
        left.plot(smooth, color=BLUE, linewidth=2, label=f"mean of {window}")
        for level, name, line in ((math.log(27), "uniform", "--"), (letter_entropy, "letter counts", ":")):
            left.axhline(level, color=BLACK, linestyle=line, linewidth=1, label=f"{name}, {level:.2f}")
        left.set(xlabel="step", ylabel="loss (nats per letter)", ylim=(1, 4.2), xlim=(0, STEPS_OF_TRAINING))
        left.legend(frameon=False, fontsize=8, ncols=2)
        follows = Counter(name[len(prompt)] for name in train_docs if name.startswith(prompt) and name != prompt)
        share = [follows[name] / follows.total() for name in names_of_tokens]
        right.bar(names_of_tokens, next_chances(params, prompt), color=SKY, edgecolor=BLUE, label="microgpt expects")
        right.plot(names_of_tokens, share, "D", color=ORANGE, markeredgecolor=BLACK, markersize=5, label="in the names")
        right.set(xlabel=f"token after '{prompt}'", ylabel="probability", ylim=(0, 0.8))
        right.tick_params(axis="x", labelsize=8)
        right.legend(frameon=False)
        p.caption = (
            f"Step {len(losses)}: mean loss {smooth[-1]:.3f} nats; the likeliest letter after '{prompt}' is "
            f"'{names_of_tokens[max(range(27), key=next_chances(params, prompt).__getitem__)]}'."
        )


# %%
params = fresh(random.Random(42))
spent: list[float] = []  # seconds after each step, for section 4


def timed(losses: Iterator[float]) -> Iterator[float]:
    while True:
        started = time.perf_counter()
        try:
            loss = next(losses)
        except StopIteration:
            return
        spent.append(sum(spent[-1:]) + time.perf_counter() - started)
        yield loss


losses = watch(
    timed(microgpt.train(params, train_docs, tokenizer, config, STEPS_OF_TRAINING)),
    lambda losses: draw_training(losses, params),
)

# %% [markdown]
# ### Temperature
#
# Sampling draws a letter from the probabilities, divided (as logits) by the temperature first. Low: the same few safe
# names. High: noise. ★ marks a name that is in the training data: at a low temperature, is it inventing or reciting?


# %% tags=["drawing"]
def draw_samples(temperature: float, prompt: str, seed: int) -> None:
    rng = random.Random(seed)
    names = [microgpt.sample(params, tokenizer, config, rng, temperature, prompt) for _ in range(21)]
    chances = next_chances(params, prompt, temperature)
    entropy = -sum(chance * math.log2(chance) for chance in chances if chance > 0)
    alt = (
        f"Bars: probability of each letter after '{prompt}' at temperature {temperature}; {entropy:.1f} bits of choice."
    )
    with picture(f"The next letter after '{prompt}' at temperature {temperature:g}", alt, size=(9, 2.8)) as p:
        p.axes[0].bar(names_of_tokens, chances, color=SKY, edgecolor=BLUE)
        p.axes[0].set(xlabel="token", ylabel="probability", ylim=(0, 1))
        known = sum(name in train_docs for name in names)
        marked = ", ".join(f"{name}★" if name in train_docs else name for name in names)
        p.caption = f"{entropy:.2f} bits of choice; {known} of {len(names)} samples are training names.\n{marked}"


# %%
explore(
    draw_samples,
    temperature=slider("temperature", 0.1, 2.0, 0.5, 0.1),
    prompt=choice("begins with", ["a", "j", "mar", "s", "z"]),
    seed=slider("seed", 0, 20, 1),
)

# %% [markdown]
# ### Where it looks
#
# Nothing in the file returns the attention weights, but they pass through `softmax`. Wrap it, run a name through, and read
# them: a row is a position that asks, a column one that answers, and a row sums to one. The upper triangle is empty without
# any mask: at position t the cache holds nothing later.


# %%
def attention_of(name: str) -> torch.Tensor:
    """The attention weights (heads, T, T) of every letter of `name` on those before it."""
    seen: list[list[float]] = []

    def recording(xs: list[Value]) -> list[Value]:
        weights = plain_softmax(xs)
        seen.append([weight.data for weight in weights])
        return weights

    plain_softmax = microgpt.softmax
    tokens = [tokenizer.bos, *tokenizer.encode(name)]
    cache = microgpt.new_cache(config)
    with patch.object(microgpt, "softmax", recording):
        for position, token in enumerate(tokens):
            microgpt.gpt(token, position, cache, params, config)
    rows = [torch.tensor(weights) for weights in seen]
    T = len(tokens)
    padded = torch.stack([F.pad(row, (0, T - len(row)), value=math.nan) for row in rows])
    return padded.view(T, config.n_head, T).transpose(0, 1)


# %% tags=["drawing"]
def draw_attention(name: str) -> None:
    maps = attention_of(name)
    labels = ["‹", *name]
    alt = f"Four heat maps, one a head: how much each letter of {name} attends to each letter before it."
    with picture(f"Attention on '{name}' (‹ is the start)", alt, columns=config.n_head, size=(13, 3.6)) as p:
        for head, axes in enumerate(p.axes):
            image = axes.imshow(maps[head], cmap="cividis", vmin=0, vmax=1)
            axes.set(title=f"head {head}", xlabel="looks at", xticks=range(len(labels)), yticks=range(len(labels)))
            axes.set_xticklabels(labels)
            axes.set_yticklabels(labels)
        p.axes[0].set_ylabel("position that looks")
        p.figure.colorbar(image, ax=p.axes, label="weight")
        on_itself = maps.diagonal(dim1=1, dim2=2)[:, 1:].mean(dim=1)
        told = ", ".join(f"{share:.2f}" for share in on_itself)
        p.caption = f"Mean weight of a letter on itself, head 0 to 3: {told}. Rows sum to {maps.nansum(-1).mean():.4f}."


# %%
explore(draw_attention, name=choice("name", [*held_out[:4], *train_docs[:4]]))

# %% [markdown]
# ## 4 · What nanochat changes, and why
#
# First the size of it. Here is nanochat's own model at about the same size, on the same names and the same CPU, all names in
# one batch a step. Both panels have seconds of training on the axis, in powers of ten.

# %%
nano_config = GPTConfig(
    sequence_len=config.block_size,
    vocab_size=tokenizer.vocab_size,
    n_layer=config.n_layer,
    n_head=config.n_head,
    n_kv_head=config.n_head,
    n_embd=32,
    window_pattern="L",
)


def batch_of(names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """All names as one batch of inputs and targets; what is missing at the end of a row is ignored."""
    rows = [torch.tensor(tokenizer.encode_document(name)) for name in names]
    inputs = pad_sequence([row[:-1] for row in rows], batch_first=True, padding_value=tokenizer.bos)
    return inputs, pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORE_INDEX)


def train_nanochat(steps: int) -> Iterator[tuple[float, float, float]]:
    """(seconds so far, training loss, loss on held-out names) after every step."""
    seconds = 0.0
    (inputs, targets), test = batch_of(train_docs), batch_of(held_out)
    for _ in range(steps):
        started = time.perf_counter()
        loss = nano(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - started
        with torch.no_grad():
            yield seconds, loss.item(), nano(*test).item()


def held_out_loss() -> float:
    """microgpt's loss on the held-out names."""
    lengths = [len(name) + 1 for name in held_out]
    each = [microgpt.document_loss(tokenizer.encode_document(name), params, config).data for name in held_out]
    return sum(loss * n for loss, n in zip(each, lengths, strict=True)) / sum(lengths)


micro_held_out = held_out_loss()
tokens_of_names = sum(len(name) + 1 for name in train_docs)


# %% tags=["drawing"]
def draw_race(points: list[tuple[float, float, float]]) -> None:
    seconds, train, test = (list(column) for column in zip(*points, strict=True))
    best = min(range(len(test)), key=test.__getitem__)
    alt = (
        f"nanochat's training loss falls to {train[-1]:.2f}, its held-out loss to {test[best]:.2f} after "
        f"{seconds[best]:.1f} s and rises again; microgpt needs {spent[-1]:.0f} s. Right: tokens a second."
    )
    with picture("The same names, the same CPU", alt, columns=2, size=(12, 3.8)) as p:
        left, right = p.axes
        smooth = [sum(losses[max(0, i - 19) : i + 1]) / min(20, i + 1) for i in range(len(losses))]
        left.plot(spent[: len(smooth)], smooth, color=ORANGE, linestyle="-.", label="microgpt, training")
        left.plot(spent[-1], micro_held_out, "D", color=ORANGE, markeredgecolor=BLACK, label="microgpt, held out")
        left.plot(seconds, train, color=BLUE, label="nanochat, training")
        left.plot(seconds, test, color=BLUE, linestyle="--", label="nanochat, held out")
        left.plot(seconds[best], test[best], "v", color=BLACK, label="its best")
        left.set(xscale="log", xlabel="seconds of training", ylabel="loss (nats per letter)", ylim=(0, 6))
        left.legend(frameon=False, fontsize=8)
        speeds = {
            "microgpt": tokens_of_names / len(train_docs) * len(losses) / spent[-1],
            "nanochat": tokens_of_names * len(points) / seconds[-1],
        }
        right.barh(list(speeds), list(speeds.values()), color=[ORANGE, BLUE], edgecolor=BLACK)
        right.set(xscale="log", xlabel="tokens trained on in a second", xlim=(10, 10 * max(speeds.values())))
        for row, speed in enumerate(speeds.values()):
            right.text(speed * 1.2, row, f"{speed:,.0f}", va="center")
        p.caption = (
            f"nanochat: {speeds['nanochat'] / speeds['microgpt']:,.0f} times the tokens a second. Held out, it is best "
            f"after {seconds[best]:.2f} s ({test[best]:.2f} nats), then worse: {test[-1]:.2f}. "
            f"microgpt: {micro_held_out:.2f}."
        )


# %%
torch.manual_seed(42)
nano = recipe.build_model(nano_config, "cpu")
optimizer = nano.setup_optimizer()
race = watch(train_nanochat(120), draw_race)

# %% [markdown]
# The point is where the dashed line turns. A machine hundreds of times as fast does not give a model hundreds of times as
# good: in less than a second it knows the names by heart, and from there on every step makes it *worse* at names it has not
# seen. What is short now is data. Hence a recipe that ties model size, data and steps together, and evaluation on what was
# held out: this course is about both halves.
#
# | microgpt | nanochat | what breaks without it | puzzle |
# |---|---|---|---|
# | a number a node | a tensor a node | speed: see above | |
# | a letter a token | byte pairs, and special tokens that say who speaks | sequences several times as long; no chats | 7 |
# | one document a step | rows packed full from many documents | the GPU computes padding | 3 |
# | learnt positions | rotary positions | no text longer than those trained on | 8 |
# | scores ÷ √d | queries and keys normed; logits capped | scores grow until a softmax sees one key only | 8 |
# | a key and value for every head | fewer of them, shared (GQA) | the cache fills the GPU at a few long chats | 1 |
# | every position sees all before it | windows, and a full view now and then | cost grows with the length squared | 1 |
# | x + f(x) | learnt weights on x and on the first x, value embeddings | deep layers see little of the token itself | 8 |
# | every weight drawn alike | what writes to x starts at zero | the first steps undo the noise of the start | 1 |
# | Adam, one rate | Muon for matrices, AdamW for the rest, a rate for each kind | more steps to the same loss | 2 |
# | the rate falls in a line | up, flat, down; momentum and decay move too | a rough start, or an end that never settles | 2 |
# | lists that grow | a cache laid out for the kernel; many answers share a prompt | a prompt paid for again and again | 4 |
# | draws until the end | may stop to use a calculator | it makes up the result of 417 × 36 | 4 |
# | the loss is all you see | bits per byte, then tasks (CORE) | models with other tokens cannot be compared | 6 |
# | stops at names | conversations, then rewards | it goes on with your question instead of answering | 5 |
#
# The attention windows and their price can be played with in `attention_masks`, rates and Muon in `lr_schedules`, and
# `pipeline` goes the whole way from raw text to a chat.

# %%
for puzzle in catalog.puzzles():
    print(f"{puzzle.id:28s} {puzzle.difficulty:6s} {puzzle.goal}")
