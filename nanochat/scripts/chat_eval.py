"""Evaluate a chat model on tasks with right answers."""

import argparse
from collections.abc import Sequence
from typing import Any

from nanochat import command
from nanochat.chat_eval import chatcore_metric, run_chat_eval
from nanochat.common import InputError, print0
from nanochat.engine import Engine
from nanochat.progress import Progress, Watched


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("chat_eval", __doc__)
    command.add_model_choice(parser, required=True)
    command.add_device_type(parser, choices=("cuda", "cpu", "mps"))
    parser.add_argument("-a", "--task-name", help="tasks, joined by |; none: all")
    parser.add_argument("-t", "--temperature", type=float, default=0.0)
    parser.add_argument("-m", "--max-new-tokens", type=int, default=512, help="tokens of an answer at most")
    parser.add_argument("-n", "--num-samples", type=int, default=1, help="answers to a question, one has to be right")
    parser.add_argument("-k", "--top-k", type=int, default=50, help="sample among so many likeliest tokens; 0: all")
    parser.add_argument("-b", "--batch-size", type=int, default=8, help="multiple-choice questions in a forward")
    parser.add_argument("-x", "--max-problems", type=int, help="questions of a task; none: all")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = command.parse(build_parser(), argv)
    device = command.start(args, needs_data=False)
    tasks = command.curriculum(args).chat_tasks
    names = args.task_name.split("|") if args.task_name else list(tasks)
    if unknown := [name for name in names if name not in tasks]:
        raise InputError(f"there is no task {', '.join(unknown)}: choose among {', '.join(tasks)}.")

    model, tokenizer, _ = command.load_model(args, device)
    engine = Engine(model, tokenizer)
    accuracies = {}
    for name in names:
        task = tasks[name][0]()
        num_problems = min(len(task), args.max_problems or len(task))
        with Progress(name) as progress:
            watched: Any = Watched(task, num_problems, progress)
            accuracies[name] = run_chat_eval(
                watched,
                model,
                tokenizer,
                engine,
                args.batch_size,
                args.num_samples,
                args.max_new_tokens,
                args.temperature,
                args.top_k,
                args.max_problems,
            )
        print0(f"{name}: accuracy {accuracies[name]:.4f}", flush=True)
    if set(names) == set(tasks):
        print0(f"ChatCORE: {chatcore_metric(accuracies, tasks):.4f}")


if __name__ == "__main__":
    command.run(main)
