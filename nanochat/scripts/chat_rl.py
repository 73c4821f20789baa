"""Reinforcement learning on questions with a reward. Ctrl-C saves a checkpoint; --resume-from-step continues it."""

import argparse
import time
from collections.abc import Sequence

import torch

from nanochat import command, resume, rl, schedules, train
from nanochat.checkpoint_manager import SOURCE_DIRS, load_model
from nanochat.common import InputError, get_base_dir, get_dist_info, print0
from nanochat.engine import Engine
from nanochat.metrics import MetricsLog, start_wandb
from nanochat.progress import Progress


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("chat_rl", __doc__)
    parser.add_argument("--run", default="dummy", help="name of the run on Weights & Biases; dummy: don't log there")
    command.add_device_type(parser)
    parser.add_argument("--model-tag", help="directory of the checkpoints, such as d12; none: the largest SFT model")
    parser.add_argument("--model-step", type=int, help="step of the SFT model; none: the last one")
    parser.add_argument("--num-epochs", type=int, default=1, help="passes over the questions")
    parser.add_argument("--num-steps", type=int, default=-1, help="optimizer steps instead; -1: what the epochs make")
    # Rollouts
    parser.add_argument("--device-batch-size", type=int, default=8, help="answers in a forward on one device")
    parser.add_argument("--examples-per-step", type=int, default=16, help="questions in a step, over all ranks")
    parser.add_argument("--num-samples", type=int, default=16, help="answers to a question")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="tokens of an answer at most")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=50, help="sample among so many likeliest tokens; 0: all")
    # Optimization
    parser.add_argument("--embedding-lr", type=float, default=0.2)
    parser.add_argument("--unembedding-lr", type=float, default=0.004)
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--init-lr-frac", type=float, default=0.05, help="share of the learning rates to start from")
    # Evaluation and checkpoints
    parser.add_argument("--eval-every", type=int, default=60, help="steps between evaluations; -1: never")
    parser.add_argument("--eval-examples", type=int, default=400, help="questions in one of them")
    parser.add_argument("--save-every", type=int, default=60, help="steps between checkpoints; -1: at the end only")
    parser.add_argument("--resume-from-step", type=int, default=-1, help="continue a checkpoint of this run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = command.parse(build_parser(), argv)
    device = command.start(args)
    _, rank, _, world_size = get_dist_info()
    first_step = max(0, args.resume_from_step)
    if args.examples_per_step % world_size:
        raise InputError(f"{args.examples_per_step} examples a step cannot be dealt out evenly to {world_size} ranks.")
    examples_per_rank = args.examples_per_step // world_size
    rl.num_passes(args.num_samples, args.device_batch_size)  # refuses what cannot be split, before anything is loaded

    model, tokenizer, _ = load_model("sft", device, "train", args.model_tag, args.model_step)
    checkpoint_dir = get_base_dir() / SOURCE_DIRS["rl"] / (args.model_tag or f"d{model.config.n_layer}")
    optimizer = model.setup_optimizer(args.unembedding_lr, args.embedding_lr, args.matrix_lr, args.weight_decay)
    schedules.scale_initial_lr(optimizer, args.init_lr_frac)
    scaler = torch.amp.GradScaler(enabled=False)  # the loss of a rollout is not scaled
    if first_step:
        resume.resume_run(checkpoint_dir, first_step, model, optimizer, scaler, loader=None)

    curriculum = command.curriculum(args)
    task, val_task = curriculum.rl_train(), curriculum.rl_val()
    num_steps = rl.num_rl_steps(len(task), args.examples_per_step, args.num_epochs)
    if args.num_steps > 0:
        num_steps = args.num_steps
    engine = Engine(model, tokenizer)
    sampling = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_k": args.top_k}
    ranks = {"rank": rank, "world_size": world_size}
    rollouts = rl.rollout_batches(
        task,
        tokenizer,
        engine,
        args.num_samples,
        args.device_batch_size,
        examples_per_rank,
        first_step=first_step,
        **sampling,
        **ranks,
    )
    log = MetricsLog(checkpoint_dir, first_step, start_wandb(args.run, "nanochat-rl", vars(args)))
    progress = Progress("chat_rl", first_step / num_steps)
    print0(f"{len(task):,} questions, {num_steps:,} steps of {args.examples_per_step} x {args.num_samples} answers")

    def train_step(step: int) -> None:
        started = time.monotonic()
        loss = reward = tokens = 0.0
        for _ in range(examples_per_rank):
            batch = next(rollouts)
            loss += sum(rl.accumulate_gradients(model, batch, args.device_batch_size, examples_per_rank))
            reward += batch.rewards.mean().item() / examples_per_rank
            tokens += (batch.targets >= 0).sum().item()
        multiplier = schedules.rl_lr_multiplier(step, num_steps)
        schedules.apply_schedules(optimizer, multiplier)
        train.update_weights(optimizer, scaler)
        loss, reward, tokens = (train.mean_over_ranks(value, device) for value in (loss, reward, tokens))
        tokens_per_second = tokens * world_size / (time.monotonic() - started)
        log.log(step, loss=loss, reward=reward, lr_multiplier=multiplier, tokens_per_second=tokens_per_second)
        text = f"step {step + 1:,} | reward {reward:.3f} | loss {loss:.4f} | {tokens_per_second:,.0f} tok/s"
        progress.update((step + 1) / num_steps, text)

    def evaluate(step: int, last: bool) -> None:
        if train.is_due(step, args.eval_every, last):
            solved = rl.evaluate_pass_at_k(
                val_task, tokenizer, engine, args.device_batch_size, args.eval_examples, **sampling, **ranks
            )
            values = {f"pass@{k}": share for k, share in enumerate(solved.tolist(), start=1)}
            log.log(step, **values)
            print0(f"step {step:,}: " + ", ".join(f"{name} {share:.3f}" for name, share in values.items()), flush=True)

    def save(step: int) -> None:
        resume.save_run(checkpoint_dir, step, model, optimizer, scaler, None, {"user_config": vars(args)})

    with progress:
        return train.run_steps(
            train_step, evaluate, save, lambda step: step >= num_steps, first_step, args.save_every, device
        )


if __name__ == "__main__":
    command.run(main)
