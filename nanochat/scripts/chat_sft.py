"""Fine-tune a base model on conversations. Ctrl-C saves a checkpoint; --resume-from-step continues it."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from nanochat import command, resume, schedules, train
from nanochat.chat_eval import chatcore_metric, run_chat_eval
from nanochat.checkpoint_manager import SOURCE_DIRS, load_model, load_optimizer_state, meta_path, read_meta
from nanochat.common import get_base_dir, get_dist_info, print0
from nanochat.engine import Engine
from nanochat.loss_eval import count_batches, evaluate_bpb
from nanochat.metrics import MetricsLog, start_wandb
from nanochat.progress import Progress
from nanochat.recipe import grad_accum_steps
from nanochat.report import Report
from nanochat.sft import SFTLoader, resolve_hyperparameters
from nanochat.tokenizer import get_token_bytes


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("chat_sft", __doc__)
    parser.add_argument("--run", default="dummy", help="name of the run on Weights & Biases; dummy: don't log there")
    command.add_device_type(parser)
    parser.add_argument("--model-tag", help="directory of the checkpoints, such as d12; none: the largest base model")
    parser.add_argument("--model-step", type=int, help="step of the base model; none: the last one")
    parser.add_argument("--load-optimizer", type=int, default=1, help="1: go on with the base model's momentum; 0: not")
    # None of these: as the base model was trained
    parser.add_argument("--max-seq-len", type=int, help="context length in tokens")
    parser.add_argument("--device-batch-size", type=int, help="rows in a forward on one device")
    parser.add_argument("--total-batch-size", type=int, help="tokens in a step")
    parser.add_argument("--embedding-lr", type=float)
    parser.add_argument("--unembedding-lr", type=float)
    parser.add_argument("--matrix-lr", type=float)
    # Schedule
    parser.add_argument("--num-iterations", type=int, default=-1, help="batches; -1: every conversation once")
    parser.add_argument(
        "--init-lr-frac", type=float, default=0.8, help="share of the base learning rates to start from"
    )
    parser.add_argument("--warmup-ratio", type=float, default=0.0, help="share of the run with rising rates")
    parser.add_argument("--warmdown-ratio", type=float, default=0.5, help="share of the run with falling rates")
    parser.add_argument("--final-lr-frac", type=float, default=0.0, help="rates at the end, as a share of the first")
    parser.add_argument("--save-every", type=int, default=-1, help="steps between checkpoints; -1: at the end only")
    parser.add_argument("--resume-from-step", type=int, default=-1, help="continue a checkpoint of this run")
    # Evaluation, every so many steps; -1: never
    parser.add_argument("--eval-every", type=int, default=200, help="steps between evaluations of bits per byte")
    parser.add_argument("--eval-tokens", type=int, default=40 * 2**19, help="validation tokens in one of them")
    parser.add_argument("--chatcore-every", type=int, default=200, help="steps between evaluations on the chat tasks")
    parser.add_argument("--chatcore-max-cat", type=int, default=-1, help="multiple-choice questions of a task; -1: all")
    parser.add_argument("--chatcore-max-sample", type=int, default=24, help="other questions of a task; -1: all")
    # Data
    parser.add_argument("--mmlu-epochs", type=int, default=3, help="times that multiple choice is in the data")
    parser.add_argument("--gsm8k-epochs", type=int, default=4, help="times that arithmetic is in the data")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = command.parse(build_parser(), argv)
    device = command.start(args)
    _, rank, _, world_size = get_dist_info()
    first_step = max(0, args.resume_from_step)

    model, tokenizer, base_meta = load_model("base", device, "train", args.model_tag, args.model_step)
    checkpoint_dir = get_base_dir() / SOURCE_DIRS["sft"] / (args.model_tag or f"d{model.config.n_layer}")
    settings = resolve_hyperparameters(vars(args), base_meta)
    B, T, total_batch_size = (settings[name] for name in ("device_batch_size", "max_seq_len", "total_batch_size"))
    passes = grad_accum_steps(total_batch_size, B, T, world_size)
    eval_steps = count_batches(args.eval_tokens, B, T, world_size) if args.eval_every > 0 else 0
    token_bytes = get_token_bytes(device)

    optimizer = model.setup_optimizer(
        settings["unembedding_lr"], settings["embedding_lr"], settings["matrix_lr"], weight_decay=0.0
    )
    if args.load_optimizer and not first_step:
        state = load_optimizer_state("base", device, rank, args.model_tag, args.model_step)
        if state is None or base_meta.get("world_size", world_size) != world_size:
            print0("The base model has no optimizer state for this number of ranks: starting with fresh momentum")
        else:
            own_groups = optimizer.state_dict()["param_groups"]  # keep our learning rates, take only the moments
            optimizer.load_state_dict({"state": state["state"], "param_groups": own_groups})
    schedules.scale_initial_lr(optimizer, args.init_lr_frac)
    scaler = train.make_grad_scaler(device)

    curriculum = command.curriculum(args)
    conversations = curriculum.sft_train(args.mmlu_epochs, args.gsm8k_epochs)
    shard: dict[str, Any] = {"rank": rank, "world_size": world_size, "device": device}
    loader = SFTLoader(conversations, tokenizer, B, T, num_iterations=args.num_iterations, **shard)
    meta: dict[str, Any] = read_meta(meta_path(checkpoint_dir, first_step)) if first_step else {}
    if first_step:
        resume.resume_run(checkpoint_dir, first_step, model, optimizer, scaler, loader)
    batches = train.Ahead(loader)
    compiled = train.compile_model(model, device)
    engine = Engine(model, tokenizer)
    log = MetricsLog(checkpoint_dir, first_step, start_wandb(args.run, "nanochat-sft", vars(args)))
    progress = Progress("chat_sft", batches.latest.progress if first_step else 0.0)
    report = Report(log, progress, total_batch_size, model.estimate_flops(), device, meta.get("loop_state"))
    print0(f"{len(conversations):,} conversations, {total_batch_size:,} tokens a step, on {world_size} x {device.type}")

    def train_step(step: int) -> None:
        started = time.monotonic()
        batch_loss = train.accumulate_gradients(compiled, batches, passes, scaler)
        # Ranks pack different conversations, so each knows another progress: all go by the largest.
        done = train.max_over_ranks(batches.latest.progress, device)
        multiplier = schedules.sft_lr_multiplier(done, args.warmup_ratio, args.warmdown_ratio, args.final_lr_frac)
        schedules.apply_schedules(optimizer, multiplier, schedules.sft_muon_momentum(step))
        train.update_weights(optimizer, scaler)
        loss = train.mean_over_ranks(batch_loss.item(), device)
        report.step(step, done, loss, multiplier, time.monotonic() - started)

    def evaluate(step: int, last: bool) -> None:
        if train.is_due(step, args.eval_every, last):
            val_loader = SFTLoader(curriculum.sft_val(), tokenizer, B, T, **shard)
            pairs = ((inputs, targets) for inputs, targets, _ in val_loader)
            report.evaluation(step, val_bpb=evaluate_bpb(compiled, pairs, eval_steps, token_bytes))
        if step > 0 and train.is_due(step, args.chatcore_every, last):
            accuracies = {}
            for name, (make_task, _) in curriculum.chat_tasks.items():
                task = make_task()
                limit = args.chatcore_max_cat if task.eval_type == "categorical" else args.chatcore_max_sample
                max_problems = limit if limit > 0 else None
                accuracies[name] = run_chat_eval(task, model, tokenizer, engine, B, max_problems=max_problems)
            chatcore = chatcore_metric(accuracies, curriculum.chat_tasks)
            report.evaluation(step, chatcore=chatcore, **accuracies)

    def is_last(step: int) -> bool:
        return train.max_over_ranks(float(batches.latest.last_step), device) > 0

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
                "user_config": {**vars(args), **settings},
                "max_seq_len": T,
                "device_batch_size": B,
                "total_batch_size": total_batch_size,
            },
        )

    with progress:
        return train.run_steps(train_step, evaluate, save, is_last, first_step, args.save_every, device)


if __name__ == "__main__":
    command.run(main)
