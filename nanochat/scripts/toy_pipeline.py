"""Train on the toy world, from nothing to a chat: tokenizer, base model, fine-tuning, reinforcement learning.

Curves and a table of figures go to `report` in the base directory; --assets also writes the models that come with the
package.
"""

import argparse
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from nanochat import command, rl
from nanochat.base_eval import evaluate_core
from nanochat.chat_eval import run_chat_eval
from nanochat.checkpoint_manager import SOURCE_DIRS, load_checkpoint, load_model, locate, save_checkpoint
from nanochat.common import get_base_dir, write_atomically
from nanochat.curriculum import TOY
from nanochat.curves import plot_metrics
from nanochat.engine import Engine, KVCache
from nanochat.gpt import GPT
from nanochat.metrics import read_metrics
from nanochat.scripts import base_train, chat_cli, chat_rl, chat_sft, tok_train
from nanochat.toyworld.recipe import RECIPE

STAGES: dict[str, Callable[[Sequence[str]], int | None]] = {
    "tok_train": tok_train.main,
    "base_train": base_train.main,
    "chat_sft": chat_sft.main,
    "chat_rl": chat_rl.main,
}

SAMPLED_QUESTIONS = 200

LOSSES = {
    "cross-entropy (nats per token)": {"loss": "training loss"},
    "bits per byte": {"val_bpb": "validation loss"},
}
REWARDS = {
    "mean reward (0 to 1)": {"reward": "training reward"},
    "share of questions solved (0 to 1)": {"pass@1": "pass@1 on test questions"},
}
# By stage: title of the picture, and its panels
CURVES = {"base": ("Pretraining", LOSSES), "sft": ("Fine-tuning", LOSSES), "rl": ("Reinforcement learning", REWARDS)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nanochat.scripts.toy_pipeline", description=__doc__)
    parser.add_argument("--assets", type=Path, metavar="DIR", help="also write the models, without optimizer, to DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    command.use_toy_world()
    print(f"The toy world is in {get_base_dir()}")
    seconds = {}
    for name, stage in STAGES.items():
        print(f"\n# {name}", flush=True)
        started = time.monotonic()
        if code := stage(["--toy"]):
            return code
        seconds[name] = round(time.monotonic() - started, 1)

    print("\n# What it can do", flush=True)
    started = time.monotonic()
    figures = measure()
    seconds["measuring"] = round(time.monotonic() - started, 1)
    print(format_table(figures))
    print("\n# A chat")
    for make_task, _ in TOY.chat_tasks.values():
        question = make_task()[0]["messages"][0]["content"]
        print(f"you: {question}\nmodel: ", end="")
        chat_cli.main(["--toy", "-i", "rl", "-t", "0", "-p", question])

    report = get_base_dir() / "report"
    for source, (title, panels) in CURVES.items():
        plot_metrics(read_metrics(find(source)[0]), panels, f"{title} on the toy world", report / f"{source}.png")
    record = {"figures": figures, "seconds": seconds, "machine": describe_machine()}
    for folder in [report, *([args.assets] if args.assets else [])]:
        write_json(folder / "figures.json", record)
    print(f"\nCurves and figures are in {report}; it took {sum(seconds.values()):.0f} s on {record['machine']}")
    if args.assets:
        write_assets(args.assets)
    return 0


def find(source: str) -> tuple[Path, int]:
    """Directory and step of the checkpoint of a stage."""
    return locate(get_base_dir() / SOURCE_DIRS[source], None, None)


# Figures


class WithoutCalculator:
    """A model kept from calling the calculator: it has to do sums in its head."""

    def __init__(self, model: GPT, tokenizer: Any) -> None:
        self.model, self.config, self.get_device = model, model.config, model.get_device
        self.banned = tokenizer.encode_special("<|python_start|>")

    def forward(self, ids: torch.Tensor, kv_cache: KVCache) -> torch.Tensor:
        logits = self.model(ids, kv_cache=kv_cache)
        logits[..., self.banned] = -torch.inf
        return logits


def measure() -> dict[str, dict[str, float]]:
    """By stage: name of a figure -> value. Everything is measured on test questions."""
    figures: dict[str, dict[str, float]] = {}
    for source in SOURCE_DIRS:
        model, tokenizer, meta = load_model(source, "cpu", "eval")
        if source == "base":
            core = cast(dict[str, Any], evaluate_core(model, tokenizer, "cpu"))
            figures[source] = {"val_bpb": meta["val_bpb"], "CORE": core["core_metric"], **core["results"]}
        else:
            figures[source] = measure_chat(model, tokenizer)
    return figures


def measure_chat(model: GPT, tokenizer: Any) -> dict[str, float]:
    settings = RECIPE["chat_eval"]
    values = {}
    for name, (make_task, _) in TOY.chat_tasks.items():
        values[name] = run_chat_eval(make_task(), model, tokenizer, Engine(model, tokenizer), 32, **settings)
    in_its_head = Engine(WithoutCalculator(model, tokenizer), tokenizer)
    values["ToyArithmetic without calculator"] = run_chat_eval(
        TOY.chat_tasks["ToyArithmetic"][0](), model, tokenizer, in_its_head, 32, **settings
    )
    max_new_tokens = RECIPE["chat_rl"]["max_new_tokens"]
    engine = Engine(model, tokenizer)
    solved = rl.evaluate_pass_at_k(TOY.rl_val(), tokenizer, engine, 4, SAMPLED_QUESTIONS, max_new_tokens)
    values["RL questions, sampled"] = solved[0].item()
    return values


def format_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table, a row a figure, a column a stage."""
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    cells = [[f"{values[name]:.3f}" if name in values else "" for values in figures.values()] for name in names]
    rows = [
        ["figure", *figures],
        ["---"] * (1 + len(figures)),
        *([name, *row] for name, row in zip(names, cells, strict=True)),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def describe_machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


# Files


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def write_assets(folder: Path) -> None:
    """Make `folder` a base directory of the last checkpoints, weights in bfloat16 and no optimizer, and the tokenizer.

    Checkpoints of other steps that are there from an earlier run are removed.
    """
    for source, name in SOURCE_DIRS.items():
        trained, step = find(source)
        weights, _, meta = load_checkpoint(trained, step, "cpu")
        target = folder / name / trained.name
        shutil.rmtree(target, ignore_errors=True)
        save_checkpoint(target, step, {key: weight.bfloat16() for key, weight in weights.items()}, None, meta)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "token_bytes.pt"):
        shutil.copyfile(get_base_dir() / "tokenizer" / name, tokenizer / name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder} holds the three models and the tokenizer in {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    command.run(main)
