"""What the commands use instead of their own defaults when they are given `--toy`."""

from typing import Any

# command -> {flag: value}. Every command's flags are its own (`--max-seq-len` is max_seq_len); what is not listed here
# keeps the default the command has without --toy.
RECIPE: dict[str, dict[str, Any]] = {
    "tok_train": {"vocab_size": 768},
    "base_train": {
        "depth": 4,
        "aspect_ratio": 32,
        "head_dim": 32,
        "max_seq_len": 256,
        "device_batch_size": 8,
        "total_batch_size": 8 * 256,
        "num_iterations": 600,
        # plan_training multiplies these by sqrt(2048 / 2^19), 1/16, for the small batch
        "embedding_lr": 4.8,
        "unembedding_lr": 0.128,
        "matrix_lr": 0.64,
        "scalar_lr": 8.0,
        "weight_decay": 0.0,
        "warmup_steps": 20,
        "eval_every": 100,
        "eval_tokens": 8 * 8 * 256,
        "core_metric_every": -1,
        "sample_every": -1,
    },
    "chat_sft": {
        "num_iterations": 500,
        "init_lr_frac": 0.15,  # Muon does not slow down as the loss does: at 0.8 it forgets the facts
        "mmlu_epochs": 3,
        "gsm8k_epochs": 2,
        "eval_every": 100,
        "eval_tokens": 4 * 8 * 256,
        "chatcore_every": -1,
    },
    "chat_rl": {
        "num_steps": 40,
        "init_lr_frac": 0.15,
        "examples_per_step": 8,
        "num_samples": 16,
        "device_batch_size": 16,
        "max_new_tokens": 40,
        "eval_every": 20,
        "save_every": -1,
        "eval_examples": 100,
    },
    "chat_eval": {"max_new_tokens": 40},
}
