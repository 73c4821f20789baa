"""A whole GPT in one file, on the Python standard library alone: it learns names, then invents some.

    python microgpt.py                          # a thousand steps on a list of names, then twenty new ones
    python microgpt.py --data words.txt --steps 2000 --prompt sa

Read it from top to bottom: dataset, tokenizer, autograd, parameters, model, Adam, training, inference. Every number is
a Python float. The algorithm and its constants are those of Andrej Karpathy's microgpt.
"""

import argparse
import math
import os
import random
import string
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from itertools import chain, count
from operator import attrgetter, mul
from pathlib import Path
from typing import NamedTuple

# Dataset

NAMES_URL = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"

BUNDLED_NAMES = """
abigail adam adele adrian aisha albert alfred alice amelia amos amy ana angela anna anton april ariel astrid aurora
axel barbara beatrice bianca boris brian bridget carl caroline cedric charles chloe claire colin daisy daniel daphne
david deborah diana dmitri dora edith edward edwin elaine eleanor eli ella elliot emily enzo eric esther ethan evelyn
ezra fabian fatima felicia flora frank freya gabriel gavin george giulia gloria grace graham greta hannah harry hazel
helen henry holly imogen ingrid irene isaac ivy jack jacob james jamila jasmine jasper jerome john jonas jordan joseph
julian june karen kate keiko keith kenji kofi kurt laila lara laura leila leo leon lewis lily linus lucy luna lydia
magnus malik marcus marina mario matilda matthew max mei mia miguel mila miles miriam monica morgan naomi nathan nina
noah nora octavia olive oliver olivia oscar owen pablo pascal patrick pearl pedro peter philip pierre piper polly priya
quentin ramon raphael raul ravi rebecca rhea rocco roland roman ronan rory ruby rufus rupert ryan sabine samir sandra
sasha sergio sigrid silas sonia sophie stefan stella sunita sven sybil sylvia tamara tariq tessa thomas tilda tina toby
tristan ulla ulrich ursula vanessa victor vincent viola vivian wanda william winona xander xavier xenia yasmin yolanda
yusuf yves zachary zelda zora
"""


def read_documents(path: str | Path) -> list[str]:
    """The documents of a UTF-8 text file: its lines, stripped, without the blank ones.

    Raises OSError if the file cannot be read and ValueError if it is not UTF-8 or holds no document, in one sentence.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): give a text file, one document a line."
        ) from error
    except OSError as error:
        raise type(error)(
            f"{path} cannot be read ({error.strerror}): give a text file, one document a line."
        ) from error
    docs = [line.strip() for line in lines if line.strip()]
    if not docs:
        raise ValueError(f"{path} holds no document: give a text file, one document a line.")
    return docs


def download_names(target: Path) -> None:
    """Fetch the 32,033 names of Karpathy's makemore into the file `target`, whole or not at all."""
    with urllib.request.urlopen(NAMES_URL, timeout=5) as reply:
        text = reply.read().decode()
    # A hotel's log-in page is a successful download too.
    if set("".join(text.split())) != set(string.ascii_lowercase):
        raise ValueError(f"{NAMES_URL} answered with something else than names.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load_names() -> list[str]:
    """The names, downloaded on first use into the user's cache directory; the bundled ones if that fails."""
    try:
        cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microgpt" / "names.txt"
        if not cached.exists():
            download_names(cached)
        return read_documents(cached)
    except (OSError, ValueError, HTTPException, RuntimeError) as error:  # RuntimeError: this user has no home
        names = BUNDLED_NAMES.split()
        print(f"No downloaded names ({error}): using the {len(names)} in this file.", file=sys.stderr)
        return names


# Tokenizer


class Tokenizer:
    """One token for each character of the documents, in sorted order, and BOS, which opens and closes a document."""

    def __init__(self, docs: Sequence[str]) -> None:
        self.vocab = sorted(set("".join(docs)))
        self.bos = len(self.vocab)
        self.vocab_size = len(self.vocab) + 1
        self._ids = {char: i for i, char in enumerate(self.vocab)}

    def encode(self, text: str) -> list[int]:
        """The ids of the characters of `text`; ValueError names one that no document had."""
        for char in text:
            if char not in self._ids:
                raise ValueError(f"{char!r} in {text!r} is in no document: use only {''.join(self.vocab)!r}.")
        return [self._ids[char] for char in text]

    def encode_document(self, doc: str) -> list[int]:
        """The ids of a whole document, between two BOS."""
        return [self.bos, *self.encode(doc), self.bos]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, none of them BOS."""
        return "".join(self.vocab[i] for i in ids)


# Autograd

_next_serial = count().__next__


class Value:
    """A number that remembers what it was computed from, so that `backward` can apply the chain rule.

    `children` are the values it was computed from and `local_grads[i]` is its derivative by `children[i]`. One node may
    have any number of children: a whole dot product is one node, which keeps the graph small.
    """

    __slots__ = ("children", "data", "grad", "local_grads", "serial")

    def __init__(self, data: float, children: Sequence["Value"] = (), local_grads: Sequence[float] = ()) -> None:
        self.data = data
        self.grad = 0.0
        self.children = children
        self.local_grads = local_grads
        self.serial = _next_serial()

    def __repr__(self) -> str:
        return f"Value(data={self.data:.4g}, grad={self.grad:.4g})"

    def __add__(self, other: "Number") -> "Value":
        if isinstance(other, Value):
            return Value(self.data + other.data, (self, other), (1.0, 1.0))
        return Value(self.data + other, (self,), (1.0,))

    def __mul__(self, other: "Number") -> "Value":
        if isinstance(other, Value):
            return Value(self.data * other.data, (self, other), (other.data, self.data))
        return Value(self.data * other, (self,), (other,))

    def __pow__(self, exponent: float) -> "Value":
        return Value(self.data**exponent, (self,), (exponent * self.data ** (exponent - 1),))

    def log(self) -> "Value":
        return Value(math.log(self.data), (self,), (1.0 / self.data,))

    def exp(self) -> "Value":
        power = math.exp(self.data)
        return Value(power, (self,), (power,))

    def relu(self) -> "Value":
        return Value(max(self.data, 0.0), (self,), (float(self.data > 0),))

    def __neg__(self) -> "Value":
        return self * -1.0

    def __sub__(self, other: "Number") -> "Value":
        return self + -other

    def __truediv__(self, other: "Number") -> "Value":
        return self * other**-1.0

    def __rsub__(self, other: float) -> "Value":
        return -self + other

    def __rtruediv__(self, other: float) -> "Value":
        return self**-1.0 * other

    __radd__ = __add__
    __rmul__ = __mul__

    def backward(self) -> None:
        """Add the derivative of this value by v to `v.grad`, for every v that it was computed from."""
        reached: set[Value] = set()
        frontier = {self}
        while frontier:
            reached |= frontier
            frontier = set(chain.from_iterable(node.children for node in frontier)) - reached
        # A node is younger than its children: from young to old, each gradient is complete before it is passed on.
        inner = sorted((node for node in reached if node.children), key=attrgetter("serial"), reverse=True)
        for node in inner:
            node.grad = 0.0
        self.grad += 1.0
        for node in inner:
            grad = node.grad
            if grad:  # behind a closed ReLU there is nothing to pass on
                for child, local_grad in zip(node.children, node.local_grads, strict=True):
                    child.grad += local_grad * grad


Number = Value | float
Vector = list[Value]
Matrix = list[Vector]


def dot(a: Sequence[Value], b: Sequence[Value]) -> Value:
    """The sum of a[i] * b[i], as one node."""
    a_data = [v.data for v in a]
    b_data = [v.data for v in b]
    return Value(sum(map(mul, a_data, b_data)), (*a, *b), b_data + a_data)


def mean(xs: Sequence[Value]) -> Value:
    """The mean of `xs`, as one node."""
    return Value(sum(x.data for x in xs) / len(xs), tuple(xs), [1 / len(xs)] * len(xs))


def log_sum_exp(scores: Sequence[float]) -> float:
    """log(sum(exp(score))), with the largest score taken out first so that no exp overflows."""
    largest = max(scores)
    return largest + math.log(sum(math.exp(score - largest) for score in scores))


def probabilities(scores: Sequence[float]) -> list[float]:
    """exp(score), normalised to sum to one."""
    norm = log_sum_exp(scores)
    return [math.exp(score - norm) for score in scores]


def softmax(xs: Sequence[Value]) -> Vector:
    """The probabilities of `xs`, one node each; the derivative of p[i] by x[j] is p[i] * ((i == j) - p[j])."""
    children = tuple(xs)
    p = probabilities([x.data for x in xs])
    return [Value(p_i, children, [p_i * ((i == j) - p_j) for j, p_j in enumerate(p)]) for i, p_i in enumerate(p)]


def cross_entropy(logits: Sequence[Value], target: int) -> Value:
    """-log softmax(logits)[target] as one node; its derivative by logit j is softmax(logits)[j] - (j == target)."""
    scores = [logit.data for logit in logits]
    p = probabilities(scores)
    loss = log_sum_exp(scores) - scores[target]
    return Value(loss, tuple(logits), [p_j - (j == target) for j, p_j in enumerate(p)])


# Parameters


class Config(NamedTuple):
    """The shape of the model. A head is n_embd / n_head wide."""

    n_layer: int = 1
    n_embd: int = 16
    block_size: int = 16
    n_head: int = 4


# (rows, columns) of each weight matrix of a layer, in units of n_embd.
LAYER_WEIGHTS = {
    "attn_wq": (1, 1),
    "attn_wk": (1, 1),
    "attn_wv": (1, 1),
    "attn_wo": (1, 1),
    "mlp_fc1": (4, 1),
    "mlp_fc2": (1, 4),
}

Params = dict[str, Matrix]


def init_params(config: Config, vocab_size: int, rng: random.Random, std: float = 0.08) -> Params:
    """Every weight of the model by name, drawn from a normal distribution; a matrix is a list of its rows.

    Raises ValueError if the heads do not share the embedding evenly.
    """
    width = config.n_embd
    if width % config.n_head:
        raise ValueError(f"n_embd is {width} and n_head {config.n_head}: choose n_embd as a multiple of n_head.")

    def matrix(n_out: int, n_in: int) -> Matrix:
        return [[Value(rng.gauss(0, std)) for _ in range(n_in)] for _ in range(n_out)]

    params = {
        "wte": matrix(vocab_size, width),
        "wpe": matrix(config.block_size, width),
        "lm_head": matrix(vocab_size, width),
    }
    for layer in range(config.n_layer):
        for name, (n_out, n_in) in LAYER_WEIGHTS.items():
            params[f"layer{layer}.{name}"] = matrix(n_out * width, n_in * width)
    return params


def all_weights(params: Params) -> list[Value]:
    """The weights one after another, in the order in which they were drawn."""
    return [weight for matrix in params.values() for row in matrix for weight in row]


# Model

Cache = list[tuple[Matrix, Matrix]]


def new_cache(config: Config) -> Cache:
    """For each layer the keys and the values of the positions so far: none yet."""
    return [([], []) for _ in range(config.n_layer)]


def linear(x: Vector, weight: Matrix) -> Vector:
    return [dot(row, x) for row in weight]


def add(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def rmsnorm(x: Vector) -> Vector:
    """`x` scaled to a root mean square of one (RMSNorm, arXiv 1910.07467), without a gain."""
    scale = (dot(x, x) / len(x) + 1e-5) ** -0.5
    return [v * scale for v in x]


def attention(query: Vector, keys: Matrix, values: Matrix, n_head: int) -> Vector:
    """In each head, the mean of `values` weighted by how well their keys match the query (arXiv 1706.03762)."""
    head_dim = len(query) // n_head
    out: Vector = []
    for start in range(0, len(query), head_dim):
        head = slice(start, start + head_dim)
        weights = softmax([dot(query[head], key[head]) / head_dim**0.5 for key in keys])
        out += [dot(weights, column) for column in zip(*(value[head] for value in values), strict=True)]
    return out


def gpt(token: int, position: int, cache: Cache, params: Params, config: Config) -> Vector:
    """The logits of the token that follows `token`, which stands at `position`.

    `cache` holds the keys and values of the positions before and gains those of this one: with nothing but the past in
    it, attention needs no mask.
    """
    x = rmsnorm(add(params["wte"][token], params["wpe"][position]))
    for layer, (keys, values) in enumerate(cache):
        wq, wk, wv, wo, fc1, fc2 = (params[f"layer{layer}.{name}"] for name in LAYER_WEIGHTS)
        h = rmsnorm(x)
        keys.append(linear(h, wk))
        values.append(linear(h, wv))
        x = add(x, linear(attention(linear(h, wq), keys, values, config.n_head), wo))
        h = [v.relu() for v in linear(rmsnorm(x), fc1)]
        x = add(x, linear(h, fc2))
    return linear(x, params["lm_head"])


def document_loss(tokens: Sequence[int], params: Params, config: Config) -> Value:
    """The mean cross-entropy, in nats, of each of the first block_size tokens that follow the first of `tokens`."""
    cache = new_cache(config)
    steps = zip(range(config.block_size), tokens, tokens[1:], strict=False)
    return mean([cross_entropy(gpt(token, t, cache, params, config), target) for t, token, target in steps])


# Adam


class Adam:
    """Adam (arXiv 1412.6980): `m` averages the gradients, `v` their squares, and a step is m over the root of v."""

    def __init__(self, weights: list[Value], beta1: float = 0.85, beta2: float = 0.99, eps: float = 1e-8) -> None:
        self.weights, self.beta1, self.beta2, self.eps = weights, beta1, beta2, eps
        self.m = [0.0] * len(weights)
        self.v = [0.0] * len(weights)
        self.steps = 0

    def step(self, lr: float) -> None:
        """Move every weight against its gradient, and clear the gradient."""
        self.steps += 1
        # Both averages started at zero; dividing by these makes up for it.
        m_share = 1 - self.beta1**self.steps
        v_share = 1 - self.beta2**self.steps
        for i, weight in enumerate(self.weights):
            m = self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * weight.grad
            v = self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * weight.grad**2
            weight.data -= lr * (m / m_share) / (math.sqrt(v / v_share) + self.eps)
            weight.grad = 0.0


# Training


def train(
    params: Params, docs: Sequence[str], tokenizer: Tokenizer, config: Config, steps: int, lr: float = 0.01
) -> Iterator[float]:
    """Train `params` in place, one document a step, at a rate that falls from `lr` to zero; yields the losses."""
    optimizer = Adam(all_weights(params))
    for step in range(steps):
        loss = document_loss(tokenizer.encode_document(docs[step % len(docs)]), params, config)
        loss.backward()
        optimizer.step(lr * (1 - step / steps))
        yield loss.data


# Inference


def open_document(prompt: str, tokenizer: Tokenizer, config: Config) -> list[int]:
    """The ids of a document that begins with `prompt` and goes on; ValueError if the prompt leaves no room for more."""
    if len(prompt) >= config.block_size:
        raise ValueError(f"The prompt {prompt!r} is too long: use at most {config.block_size - 1} characters.")
    return [tokenizer.bos, *tokenizer.encode(prompt)]


def sample(
    params: Params, tokenizer: Tokenizer, config: Config, rng: random.Random, temperature: float = 0.5, prompt: str = ""
) -> str:
    """A new document that begins with `prompt`, drawn token by token until BOS or block_size tokens."""
    tokens = open_document(prompt, tokenizer, config)
    cache = new_cache(config)
    for position in range(config.block_size):
        logits = gpt(tokens[position], position, cache, params, config)
        if position < len(tokens) - 1:  # still reading the prompt
            continue
        chances = probabilities([logit.data / temperature for logit in logits])
        [token] = rng.choices(range(tokenizer.vocab_size), weights=chances)
        if token == tokenizer.bos:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[1:])


def run(args: argparse.Namespace) -> None:
    """Train and sample as the command line says: progress to stderr, samples to stdout."""
    if args.steps < 0 or args.samples < 0 or not args.temperature > 0:
        raise ValueError("Give --steps and --samples of 0 or more and a --temperature above 0.")
    rng = random.Random(args.seed)
    docs = load_names() if args.data is None else read_documents(args.data)
    rng.shuffle(docs)
    tokenizer = Tokenizer(docs)
    config = Config()
    params = init_params(config, tokenizer.vocab_size, rng)
    open_document(args.prompt, tokenizer, config)  # a bad prompt is refused before the training, not after it
    print(f"{len(docs)} documents, {tokenizer.vocab_size} tokens, {len(all_weights(params))} weights", file=sys.stderr)

    live = sys.stderr.isatty()
    for step, loss in enumerate(train(params, docs, tokenizer, config, args.steps), start=1):
        if live or step == args.steps or step % 100 == 0:
            end = "\r" if live and step < args.steps else "\n"
            print(f"step {step:4d} of {args.steps}, loss {loss:.4f}", end=end, file=sys.stderr, flush=True)

    for _ in range(args.samples):
        print(sample(params, tokenizer, config, rng, args.temperature, args.prompt))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="microgpt", description="Train a tiny GPT on lines of text and sample from it."
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps, one document each (default 1000)")
    parser.add_argument("--seed", type=int, default=42, help="of the shuffle, the weights and the samples (default 42)")
    parser.add_argument("--data", metavar="FILE", help="text file, one document a line (default: names)")
    parser.add_argument("--samples", type=int, default=20, help="documents to invent (default 20)")
    parser.add_argument("--temperature", type=float, default=0.5, help="above 0; higher is bolder (default 0.5)")
    parser.add_argument("--prompt", default="", help="what every sample begins with (default: nothing)")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError) as error:
        print(f"microgpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
