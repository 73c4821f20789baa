"""CORE tasks, items batched against one item at a time: same verdicts, how much faster, and how much there was to gain.

    python -m benchmarks.core_eval [--layers 4] [--width 64] [--items 200] [--shots 0 3] [--repeat 3] [--device cpu]
    python -m benchmarks.core_eval --toy      the tasks and the base model of the toy world

"One at a time" is nanochat's way: the options of an item are one padded forward, with the logits of every token. A
randomly initialised model answers made-up items of all three kinds. Each repetition measures both ways back to back;
the ratio printed is the median over the repetitions. The column FLOPs counts the matrix products of both ways and gives
their ratio: what can be gained where arithmetic is all that takes time. A small model gains more, as it spends its time
on calls and on what is done with the logits; a large one gains no more.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.optim import clock_of
from nanochat.base_eval import read_items
from nanochat.core_eval import TASK_TYPES, evaluate_example, evaluate_examples
from nanochat.gpt import GPT, GPTConfig
from nanochat.recipe import build_model
from nanochat.toyworld import load_toy, write_world

Way = Callable[..., list[bool]]
Task = tuple[str, dict[str, Any], list[Any]]
WORDS = ["tide", "gull", "lamp", "rope", "boat", "buoy", "salt", "wind", "harbour", "keel", "sail", "anchor", "storm"]


class WordTokenizer:
    """An id a word, about as many tokens as BPE would make of English."""

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *(1 + WORDS.index(word) for word in prompt.split())] for prompt in prompts]

    def get_bos_token_id(self) -> int:
        return 0


def make_items(task_type: str, count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)

    def words(shortest: int, longest: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest)))

    if task_type == "multiple_choice":
        return [{"query": words(3, 12), "choices": [words(1, 4) for _ in range(4)], "gold": 0} for _ in range(count)]
    if task_type == "schema":
        return [
            {"context_options": [words(3, 8), words(3, 8)], "continuation": words(2, 5), "gold": 0}
            for _ in range(count)
        ]
    return [{"context": words(5, 20), "continuation": words(1, 1)} for _ in range(count)]


def make_tasks(items: int, shots: list[int]) -> list[Task]:
    """(name, task_meta, items) of every kind of task with every number of solved examples."""
    return [
        (
            f"{task_type} {num_fewshot}-shot",
            {"task_type": task_type, "num_fewshot": num_fewshot, "continuation_delimiter": " "},
            make_items(task_type, items),
        )
        for task_type in TASK_TYPES
        for num_fewshot in shots
    ]


def toy_tasks(items: int) -> list[Task]:
    """The CORE bundle of the toy world."""
    with tempfile.TemporaryDirectory() as folder:
        write_world(folder)
        bundle = Path(folder) / "eval_bundle"
        return [
            (
                f"{task['label']} {task['num_fewshot'][0]}-shot",
                {
                    "task_type": task["icl_task_type"],
                    "num_fewshot": task["num_fewshot"][0],
                    "continuation_delimiter": task.get("continuation_delimiter", " "),
                },
                read_items(bundle / "eval_data" / task["dataset_uri"], items),
            )
            for task in yaml.safe_load((bundle / "core.yaml").read_text())["icl_tasks"]
        ]


def make_model(layers: int, width: int, vocab_size: int, device: str) -> GPT:
    torch.manual_seed(0)
    heads = max(1, width // 64)
    config = GPTConfig(vocab_size=vocab_size, n_layer=layers, n_head=heads, n_kv_head=heads, n_embd=width)
    model = build_model(config, device)
    for parameter in model.parameters():  # some are zero at first, which would make every answer equally likely
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def one_at_a_time(model: GPT, tokenizer: Any, data: list[Any], device: str, task_meta: dict[str, Any]) -> list[bool]:
    def logits(ids: torch.Tensor) -> torch.Tensor:  # a function has no KV cache to share
        return model(ids)

    return [evaluate_example(i, logits, tokenizer, data, device, task_meta) for i in range(len(data))]


def batched(model: GPT, tokenizer: Any, data: list[Any], device: str, task_meta: dict[str, Any]) -> list[bool]:
    return evaluate_examples(range(len(data)), model, tokenizer, data, device, task_meta)


def count_flops(way: Way, model: GPT, *arguments: Any) -> int:
    """FLOPs of the matrix products of weights: 2 a weight, for every position that goes through it."""
    flops = 0

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal flops
        weights = sum(p.numel() for p in layer.parameters())
        flops += 2 * weights * inputs[0][..., 0].numel()

    hooks = [layer.register_forward_pre_hook(count) for layer in (*model.transformer.h, model.lm_head)]
    way(model, *arguments)
    for hook in hooks:
        hook.remove()
    return flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--items", type=int, default=200, help="items a task")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 3], help="solved examples before each item")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--toy", action="store_true", help="the toy world's tasks, answered by its base model")
    arguments = parser.parse_args()
    device = arguments.device
    tasks: list[Task]
    tokenizer: Any
    if arguments.toy:
        (model, tokenizer, _), tasks = load_toy("base", device), toy_tasks(arguments.items)
    else:
        model = make_model(arguments.layers, arguments.width, arguments.vocab_size, device)
        tokenizer, tasks = WordTokenizer(), make_tasks(arguments.items, arguments.shots)
    config = model.config
    clock = clock_of(device)
    print(
        f"{config.n_layer} layers of {config.n_embd} channels, vocabulary of {config.vocab_size}, on {device} "
        f"({torch.get_num_threads()} threads, {clock.__name__})"
    )
    print(f"{'task':26} {'items':>5} {'one at a time':>14} {'batched':>10} {'ratio':>7} {'FLOPs':>7}  verdicts")
    ratios, totals = [], {"one_at_a_time": 0.0, "batched": 0.0}
    for name, task_meta, data in tasks:
        seconds: dict[str, list[float]] = {way: [] for way in totals}
        verdicts = []
        for _ in range(arguments.repeat):
            for way in (one_at_a_time, batched):
                begin = clock()
                verdicts.append(
                    way(model, tokenizer, data, device, task_meta)
                )  # on the CPU at the end: no need to wait
                seconds[way.__name__].append(clock() - begin)
        alone, together = (statistics.median(times) for times in seconds.values())
        totals["one_at_a_time"] += alone
        totals["batched"] += together
        ratios.append(statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)))
        flops = [count_flops(way, model, tokenizer, data, device, task_meta) for way in (one_at_a_time, batched)]
        same = all(verdict == verdicts[0] for verdict in verdicts)
        print(
            f"{name:26} {len(data):5} {alone:12.2f} s {together:8.2f} s {ratios[-1]:6.1f}x "
            f"{flops[0] / flops[1]:6.1f}x  {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
    print(
        f"all: {totals['one_at_a_time'] / totals['batched']:.1f}x; "
        f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.1f}x"
    )


if __name__ == "__main__":
    main()
