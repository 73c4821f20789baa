"""Evaluate a base model: the CORE metric, bits per byte on both splits, and samples."""

import argparse
from collections.abc import Sequence

from nanochat import command
from nanochat.base_eval import evaluate_core
from nanochat.chat import complete
from nanochat.common import InputError, get_dist_info, print0
from nanochat.dataloader import BestFitLoader
from nanochat.engine import Engine
from nanochat.loss_eval import count_batches, evaluate_bpb
from nanochat.tokenizer import compute_token_bytes

EVALUATIONS = ("core", "bpb", "sample")


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("base_eval", __doc__)
    command.add_model_choice(parser, default="base")
    command.add_device_type(parser)
    parser.add_argument("--eval", default=",".join(EVALUATIONS), help="evaluations, joined by commas")
    parser.add_argument("--max-per-task", type=int, default=-1, help="examples of a CORE task; -1: all")
    parser.add_argument("--device-batch-size", type=int, default=32, help="rows in a forward, for bits per byte")
    parser.add_argument("--split-tokens", type=int, default=40 * 2**19, help="tokens of a split, for bits per byte")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = command.parse(build_parser(), argv)
    evaluations = args.eval.split(",")
    if unknown := set(evaluations) - set(EVALUATIONS):
        raise InputError(f"--eval knows no {', '.join(sorted(unknown))}: choose among {', '.join(EVALUATIONS)}.")
    device = command.start(args)
    _, rank, _, world_size = get_dist_info()
    model, tokenizer, meta = command.load_model(args, device)
    print0(f"{args.source} model of depth {model.config.n_layer}, step {meta.get('step')}")

    if "sample" in evaluations and rank == 0:
        engine = Engine(model, tokenizer)
        for prompt in command.curriculum(args).prompts:
            print(complete(engine, prompt, max_tokens=16, temperature=0))
        for seed in range(4):
            print(f"from nothing: {complete(engine, '', max_tokens=64, temperature=1.0, seed=seed)}")
    if "bpb" in evaluations:
        B, T = args.device_batch_size, model.config.sequence_len
        steps = count_batches(args.split_tokens, B, T, world_size)
        token_bytes = compute_token_bytes(tokenizer).to(device)
        for split in ("train", "val"):
            loader = BestFitLoader(tokenizer, B, T, split, device=device)
            pairs = ((inputs, targets) for inputs, targets, _ in loader)
            print0(f"{split} bpb: {evaluate_bpb(model, pairs, steps, token_bytes):.4f}", flush=True)
    if "core" in evaluations:
        core = evaluate_core(model, tokenizer, device, args.max_per_task)
        print0(f"CORE: {core['core_metric']:.4f}")


if __name__ == "__main__":
    command.run(main)
