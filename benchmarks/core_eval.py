"""CORE tasks, items batched against one item at a time: same verdicts, how much faster.

    python -m benchmarks.core_eval [--layers 4] [--width 64] [--items 200] [--repeat 3] [--device cpu]

A randomly initialised model answers made-up items of all three kinds. Each repetition measures both ways back to back;
the ratio printed is the median over the repetitions.
"""

import argparse
import random
import statistics
import time
from typing import Any

import torch

from nanochat.core_eval import TASK_TYPES, evaluate_example, evaluate_examples
from nanochat.gpt import GPT, GPTConfig

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


def make_model(layers: int, width: int, device: str) -> GPT:
    torch.manual_seed(0)
    heads = max(1, width // 64)
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=4096, n_layer=layers, n_head=heads, n_kv_head=heads, n_embd=width))
    model.to_empty(device=device)
    model.init_weights()
    for parameter in model.parameters():  # some are zero at first, which would make every answer equally likely
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def one_at_a_time(model: GPT, data: list[dict[str, Any]], device: str, task_meta: dict[str, Any]) -> list[bool]:
    return [evaluate_example(i, model, WordTokenizer(), data, device, task_meta) for i in range(len(data))]


def batched(model: GPT, data: list[dict[str, Any]], device: str, task_meta: dict[str, Any]) -> list[bool]:
    return evaluate_examples(range(len(data)), model, WordTokenizer(), data, device, task_meta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--items", type=int, default=200, help="items a task")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    model = make_model(arguments.layers, arguments.width, device)
    print(
        f"{arguments.layers} layers of {arguments.width} channels on {device} ({torch.get_num_threads()} threads), "
        f"{arguments.items} items a task"
    )
    print(f"{'task':20} {'shots':>5} {'one at a time':>14} {'batched':>10} {'ratio':>7}  verdicts")
    ratios = []
    for task_type in TASK_TYPES:
        data = make_items(task_type, arguments.items)
        for num_fewshot in (0, 3):
            task_meta = {"task_type": task_type, "num_fewshot": num_fewshot, "continuation_delimiter": " "}
            seconds: dict[str, list[float]] = {"one_at_a_time": [], "batched": []}
            verdicts = []
            for _ in range(arguments.repeat):
                for way in (one_at_a_time, batched):
                    begin = time.perf_counter()
                    verdicts.append(way(model, data, device, task_meta))  # on the CPU at the end: no need to wait
                    seconds[way.__name__].append(time.perf_counter() - begin)
            alone, together = (statistics.median(times) for times in seconds.values())
            ratios.append(statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)))
            same = all(verdict == verdicts[0] for verdict in verdicts)
            print(
                f"{task_type:20} {num_fewshot:5} {alone:12.2f} s {together:8.2f} s {ratios[-1]:6.1f}x  "
                f"{'identical' if same else 'DIFFERENT'}"
            )
    print(f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.1f}x")


if __name__ == "__main__":
    main()
