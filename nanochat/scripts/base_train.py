"""Pretrain a model whose depth decides everything else. Ctrl-C saves a checkpoint; --resume-from-step continues it."""

import argparse
import time
from collections.abc import Sequence
from typing import Any, cast

from nanochat import command, common, fp8, recipe, resume, schedules, train
from nanochat.base_eval import ensure_eval_bundle, evaluate_core
from nanochat.chat import complete
from nanochat.checkpoint_manager import SOURCE_DIRS, meta_path, read_meta
from nanochat.common import get_base_dir, get_dist_info, print0
from nanochat.dataloader import BestFitLoader
from nanochat.engine import Engine
from nanochat.loss_eval import count_batches, evaluate_bpb
from nanochat.metrics import MetricsLog, start_wandb
from nanochat.progress import Progress
from nanochat.report import Report
from nanochat.tokenizer import get_token_bytes, get_tokenizer


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("base_train", __doc__)
    parser.add_argument("--run", default="dummy", help="name of the run on Weights & Biases; dummy: don't log there")
    command.add_device_type(parser)
    parser.add_argument("--fp8", action="store_true", help="train in FP8 where the GPU can")
    parser.add_argument("--fp8-recipe", default="tensorwise", choices=("rowwise", "tensorwise"))
    # The model
    parser.add_argument("--depth", type=int, default=20, help="number of layers")
    parser.add_argument("--aspect-ratio", type=int, default=64, help="width per layer of depth")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--max-seq-len", type=int, default=2048, help="context length in tokens")
    parser.add_argument("--window-pattern", default="SSSL", help="attention windows by layer: S short, L long")
    # How long: the first of these that is positive counts
    parser.add_argument("--num-iterations", type=int, default=-1, help="optimizer steps")
    parser.add_argument("--target-flops", type=float, default=-1.0, help="train for so many FLOPs")
    parser.add_argument("--target-param-data-ratio", type=float, default=12, help="tokens per scaling parameter")
    # Optimization
    parser.add_argument("--device-batch-size", type=int, default=32, help="rows in a forward on one device")
    parser.add_argument("--total-batch-size", type=int, default=-1, help="tokens in a step; -1: what suits the depth")
    parser.add_argument("--embedding-lr", type=float, default=0.3)
    parser.add_argument("--unembedding-lr", type=float, default=0.008)
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--scalar-lr", type=float, default=0.5)
    parser.add_argument("--weight-decay", type=float, default=0.28, help="Muon's, at the reference depth")
    parser.add_argument("--warmup-steps", type=int, default=40)
    parser.add_argument("--warmdown-ratio", type=float, default=0.65, help="share of the run with falling rates")
    parser.add_argument("--final-lr-frac", type=float, default=0.05, help="rates at the end, as a share of the peak")
    parser.add_argument("--resume-from-step", type=int, default=-1, help="continue a checkpoint of this run")
    # Evaluation, every so many steps; -1: never
    parser.add_argument("--eval-every", type=int, default=250, help="steps between evaluations of bits per byte")
    parser.add_argument("--eval-tokens", type=int, default=80 * 2**19, help="validation tokens in one of them")
    parser.add_argument("--core-metric-every", type=int, default=2000, help="steps between evaluations of CORE")
    parser.add_argument("--core-metric-max-per-task", type=int, default=500, help="examples of a task in one of them")
    parser.add_argument("--sample-every", type=int, default=2000, help="steps between sampled texts")
    parser.add_argument("--save-every", type=int, default=-1, help="steps between checkpoints; -1: at the end only")
    parser.add_argument("--model-tag", help="directory of the checkpoints; none: d<depth>")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = command.parse(build_parser(), argv)
    device = command.start(args)
    _, rank, _, world_size = get_dist_info()
    B, T, first_step = args.device_batch_size, args.max_seq_len, max(0, args.resume_from_step)
    checkpoint_dir = get_base_dir() / SOURCE_DIRS["base"] / (args.model_tag or f"d{args.depth}")
    if args.core_metric_every > 0:
        ensure_eval_bundle()  # now, not after hours of training

    tokenizer = get_tokenizer()
    token_bytes = get_token_bytes(device)
    shape = (args.depth, args.aspect_ratio, args.head_dim, T, tokenizer.get_vocab_size(), args.window_pattern)
    plan = recipe.plan_training(
        *shape,
        target_param_data_ratio=args.target_param_data_ratio,
        total_batch_size=args.total_batch_size,
        num_iterations=args.num_iterations,
        target_flops=args.target_flops,
        weight_decay=args.weight_decay,
    )
    num_iterations = plan.num_iterations
    grad_accum_steps = recipe.grad_accum_steps(plan.total_batch_size, B, T, world_size)
    eval_steps = count_batches(args.eval_tokens, B, T, world_size) if args.eval_every > 0 else 0

    model = recipe.build_model(recipe.config_from_depth(*shape), device)
    learning_rates = (args.embedding_lr, args.unembedding_lr, args.matrix_lr, args.scalar_lr)
    optimizer = recipe.setup_optimizer(model, plan, *learning_rates)
    scaler = train.make_grad_scaler(device)
    meta: dict[str, Any] = read_meta(meta_path(checkpoint_dir, first_step)) if first_step else {}
    loader = BestFitLoader(tokenizer, B, T, "train", device=device, resume_state_dict=meta.get("dataloader_state_dict"))
    if first_step:
        resume.resume_run(checkpoint_dir, first_step, model, optimizer, scaler, loader)
    batches = train.Ahead(loader)
    uses_fp8 = args.fp8 and fp8.enable_fp8(model, device, args.fp8_recipe)
    compiled = train.compile_model(model, device)
    engine = Engine(model, tokenizer)
    log = MetricsLog(checkpoint_dir, first_step, start_wandb(args.run, "nanochat", vars(args)))
    progress = Progress("base_train", first_step / num_iterations)
    report = Report(log, progress, plan.total_batch_size, plan.flops_per_token, device, meta.get("loop_state"))
    print0(
        f"{model.num_scaling_params()['total']:,} parameters, {num_iterations:,} steps of {plan.total_batch_size:,} "
        f"tokens, computing in {common.COMPUTE_DTYPE} ({common.COMPUTE_DTYPE_REASON}) on {world_size} x {device.type}"
    )

    def train_step(step: int) -> None:
        started = time.monotonic()
        multiplier = schedules.lr_multiplier(
            step, num_iterations, args.warmup_steps, args.warmdown_ratio, args.final_lr_frac
        )
        momentum = schedules.muon_momentum(step, num_iterations, args.warmdown_ratio)
        weight_decay = schedules.muon_weight_decay(step, num_iterations, plan.weight_decay)
        schedules.apply_schedules(optimizer, multiplier, momentum, weight_decay)
        batch_loss = train.accumulate_gradients(compiled, batches, grad_accum_steps, scaler)
        train.update_weights(optimizer, scaler)
        loss = train.mean_over_ranks(batch_loss.item(), device)
        report.step(step, (step + 1) / num_iterations, loss, multiplier, time.monotonic() - started)

    def evaluate(step: int, last: bool) -> None:
        with fp8.disable_fp8(model):
            if train.is_due(step, args.eval_every, last):
                val_loader = BestFitLoader(tokenizer, B, T, "val", device=device)
                pairs = ((inputs, targets) for inputs, targets, _ in val_loader)
                val_bpb = evaluate_bpb(model if uses_fp8 else compiled, pairs, eval_steps, token_bytes)
                report.evaluation(step, val_bpb=val_bpb)
            if step > 0 and train.is_due(step, args.core_metric_every, last):
                core = evaluate_core(model, tokenizer, device, args.core_metric_max_per_task)
                report.evaluation(step, core_metric=cast(float, core["core_metric"]))
            if rank == 0 and step > 0 and train.is_due(step, args.sample_every, last):
                for prompt in command.curriculum(args).prompts:
                    print0(complete(engine, prompt, max_tokens=16, temperature=0))

    def save(step: int) -> None:
        resume.save_run(
            checkpoint_dir,
            step,
            model,
            optimizer,
            scaler,
            batches,
            {
                **report.meta(),
                "user_config": vars(args),
                "max_seq_len": T,
                "device_batch_size": B,
                "total_batch_size": plan.total_batch_size,
                "dataloader_state_dict": batches.latest,
            },
        )

    with progress:
        return train.run_steps(
            train_step, evaluate, save, lambda step: step >= num_iterations, first_step, args.save_every, device
        )


if __name__ == "__main__":
    command.run(main)
