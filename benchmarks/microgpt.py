"""What the fused nodes of microgpt.py buy: the same training with a node for every add and multiply, and the ratio.

    python -m benchmarks.microgpt --steps 20

The plain engine takes the place of the fused one inside `microgpt`, so that data, model and Adam are the same code in
both runs and only the graph differs. The losses of the two runs are compared before any ratio is printed.
"""

import argparse
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import mul
from unittest.mock import patch

import microgpt


class PlainValue(microgpt.Value):
    """The textbook engine: an operation is a node of at most two children, constants are nodes, the sort recurses.

    What it inherits (pow, log, exp, relu, and what follows from them) makes plain nodes too while `plain_engine` is on.
    """

    __slots__ = ()

    def __init__(self, data: float, children: Sequence[microgpt.Value] = (), local_grads: Sequence[float] = ()) -> None:
        # Not super().__init__: this engine neither needs nor pays for serial numbers.
        self.data = data
        self.grad = 0.0
        self.children = children
        self.local_grads = local_grads

    def __add__(self, other: microgpt.Number) -> microgpt.Value:
        other = as_node(other)
        return PlainValue(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other: microgpt.Number) -> microgpt.Value:
        other = as_node(other)
        return PlainValue(self.data * other.data, (self, other), (other.data, self.data))

    __radd__ = __add__
    __rmul__ = __mul__

    def backward(self) -> None:
        self.grad = 1.0
        for node in reversed(children_first(self)):
            for child, local_grad in zip(node.children, node.local_grads, strict=True):
                child.grad += local_grad * node.grad


def as_node(x: microgpt.Number) -> microgpt.Value:
    return x if isinstance(x, microgpt.Value) else PlainValue(x)


def children_first(root: microgpt.Value) -> list[microgpt.Value]:
    """Every node of the graph under `root`, each after its children."""
    nodes: list[microgpt.Value] = []
    visited: set[microgpt.Value] = set()

    def visit(node: microgpt.Value) -> None:
        if node not in visited:
            visited.add(node)
            for child in node.children:
                visit(child)
            nodes.append(node)

    visit(root)
    return nodes


def plain_sum(xs: Iterable[microgpt.Value]) -> microgpt.Value:
    return sum(xs, start=as_node(0.0))


def plain_dot(a: Sequence[microgpt.Value], b: Sequence[microgpt.Value]) -> microgpt.Value:
    return plain_sum(map(mul, a, b))


def plain_mean(xs: Sequence[microgpt.Value]) -> microgpt.Value:
    return plain_sum(xs) / len(xs)


def plain_softmax(xs: Sequence[microgpt.Value]) -> list[microgpt.Value]:
    largest = max(x.data for x in xs)
    exps = [(x - largest).exp() for x in xs]
    total = plain_sum(exps)
    return [e / total for e in exps]


def plain_cross_entropy(logits: Sequence[microgpt.Value], target: int) -> microgpt.Value:
    return -plain_softmax(logits)[target].log()


@contextmanager
def plain_engine() -> Iterator[None]:
    """Inside the block, `microgpt` computes with plain nodes; weights must be made inside it too."""
    with patch.multiple(
        microgpt,
        Value=PlainValue,
        dot=plain_dot,
        mean=plain_mean,
        softmax=plain_softmax,
        cross_entropy=plain_cross_entropy,
    ):
        yield


@dataclass
class Run:
    """One training: its losses, the CPU seconds of each step, and the size of the first document's graph."""

    losses: list[float]
    seconds: list[float]
    nodes: int
    edges: int


def graph_size(loss: microgpt.Value, params: microgpt.Params) -> tuple[int, int]:
    """How many nodes, apart from the weights, and edges are under `loss`."""
    nodes = set(children_first(loss)) - set(microgpt.all_weights(params))
    return len(nodes), sum(len(node.children) for node in nodes)


def measure(steps: int) -> Run:
    """Train on the bundled names with whichever engine is on, as `microgpt` does by default."""
    rng = random.Random(42)
    docs = microgpt.BUNDLED_NAMES.split()
    rng.shuffle(docs)
    tokenizer = microgpt.Tokenizer(docs)
    config = microgpt.Config()
    params = microgpt.init_params(config, tokenizer.vocab_size, rng)
    run = Run([], [], *graph_size(microgpt.document_loss(tokenizer.encode_document(docs[0]), params, config), params))
    started = time.process_time()
    for step_loss in microgpt.train(params, docs, tokenizer, config, steps):
        run.seconds.append(time.process_time() - started)
        run.losses.append(step_loss)
        started = time.process_time()
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both engines and print the ratio; 1 if they do not agree."""
    parser = argparse.ArgumentParser(description="Time microgpt's fused graph against the plain scalar graph.")
    parser.add_argument("--steps", type=int, default=20, help="training steps with each engine (default 20)")
    steps = parser.parse_args(argv).steps
    if steps < 1:
        parser.error("--steps must be 1 or more.")

    fused = measure(steps)
    with plain_engine():
        plain = measure(steps)
    difference = max(abs(a - b) for a, b in zip(fused.losses, plain.losses, strict=True))
    if difference > 1e-9:
        print(f"the two engines disagree: their losses differ by up to {difference}", file=sys.stderr)
        return 1

    print(f"Python {platform.python_version()}, {platform.machine()}, {steps} steps, CPU time of a step (median)")
    for name, run in (("plain", plain), ("fused", fused)):
        print(f"{name}  {statistics.median(run.seconds) * 1e3:7.1f} ms  {run.nodes:6d} nodes  {run.edges:6d} edges")
    faster, smaller = sum(plain.seconds) / sum(fused.seconds), plain.nodes / fused.nodes
    print(f"ratio  {faster:.1f} times as fast, on a graph of {smaller:.1f} times fewer nodes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
