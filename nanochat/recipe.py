"""From one number, the depth, to a model and its whole training run.

Depth sets the width; the parameters set the tokens (a fixed number of tokens per parameter, as in Chinchilla,
arXiv 2203.15556); the tokens set the batch size; batch size and tokens set learning rates and weight decay. The
constants were tuned at depth 12 and are carried to other depths by the scaling rules here.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanochat.common import InputError, round_up
from nanochat.gpt import GPT, GPTConfig

if TYPE_CHECKING:
    from nanochat.optim import MuonAdamW

REFERENCE_DEPTH = 12
REFERENCE_BATCH_SIZE = 2**19  # tokens per optimizer step
BATCH_SIZE_EXPONENT = 0.383  # best batch size ~ tokens^0.383 (Power Lines, arXiv 2505.13738)


def config_from_depth(
    depth: int,
    aspect_ratio: int = 64,
    head_dim: int = 128,
    sequence_len: int = 2048,
    vocab_size: int = 32768,
    window_pattern: str = "SSSL",
) -> GPTConfig:
    """The model of a depth: width depth * aspect_ratio rounded up to whole heads, as many KV heads as query heads."""
    n_embd = round_up(depth * aspect_ratio, head_dim)
    n_head = n_embd // head_dim
    return GPTConfig(
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        n_layer=depth,
        n_head=n_head,
        n_kv_head=n_head,
        n_embd=n_embd,
        window_pattern=window_pattern,
    )


def build_meta_model(config: GPTConfig) -> GPT:
    """The model on the meta device: shapes without memory, enough for every count."""
    with torch.device("meta"):
        return GPT(config)


def build_model(config: GPTConfig, device: torch.device | str) -> GPT:
    """The model on `device` with fresh weights. Built on meta first, so that no weight is ever filled twice."""
    model = build_meta_model(config)
    model.to_empty(device=device)
    model.init_weights()
    return model


def count_scaling_params(model: GPT) -> int:
    """The parameter count that scaling laws go by: the matrices of the blocks and the unembedding."""
    counts = model.num_scaling_params()
    return counts["transformer_matrices"] + counts["lm_head"]


@dataclass(frozen=True)
class TrainingPlan:
    """What a pretraining run follows."""

    scaling_params: int
    flops_per_token: int
    target_tokens: int  # the data that suits this many parameters
    reference_tokens: float  # the same for the reference model
    total_batch_size: int  # tokens per optimizer step, over all ranks
    batch_lr_scale: float  # every learning rate is multiplied by this
    weight_decay: float  # Muon's
    num_iterations: int

    @property
    def total_tokens(self) -> int:
        """Tokens the run will see."""
        return self.num_iterations * self.total_batch_size


def plan_training(
    depth: int,
    aspect_ratio: int = 64,
    head_dim: int = 128,
    sequence_len: int = 2048,
    vocab_size: int = 32768,
    window_pattern: str = "SSSL",
    *,
    target_param_data_ratio: float = 12,
    total_batch_size: int = -1,
    num_iterations: int = -1,
    target_flops: float = -1.0,
    weight_decay: float = 0.28,
) -> TrainingPlan:
    """Derive a pretraining run from a depth. A number <= 0 for batch size, iterations or FLOPs means: derive it.

    Iterations: `num_iterations` if given, else what `target_flops` buys, else the target tokens once.
    Raises InputError if target_param_data_ratio is not positive.
    """
    if target_param_data_ratio <= 0:
        raise InputError(f"target_param_data_ratio is {target_param_data_ratio}, but tokens per parameter must be > 0.")

    def meta_model(depth: int) -> GPT:
        return build_meta_model(
            config_from_depth(depth, aspect_ratio, head_dim, sequence_len, vocab_size, window_pattern)
        )

    model = meta_model(depth)
    scaling_params = count_scaling_params(model)
    flops_per_token = model.estimate_flops()
    target_tokens = int(target_param_data_ratio * scaling_params)
    reference_tokens = target_param_data_ratio * count_scaling_params(meta_model(REFERENCE_DEPTH))

    if total_batch_size <= 0:
        total_batch_size = optimal_batch_size(target_tokens, reference_tokens)
    batch_lr_scale = math.sqrt(total_batch_size / REFERENCE_BATCH_SIZE)
    if num_iterations <= 0:
        if target_flops > 0:
            num_iterations = round(target_flops / (flops_per_token * total_batch_size))
        else:
            num_iterations = target_tokens // total_batch_size
    return TrainingPlan(
        scaling_params=scaling_params,
        flops_per_token=flops_per_token,
        target_tokens=target_tokens,
        reference_tokens=reference_tokens,
        total_batch_size=total_batch_size,
        batch_lr_scale=batch_lr_scale,
        weight_decay=weight_decay * batch_lr_scale * reference_tokens / target_tokens,
        num_iterations=num_iterations,
    )


def setup_optimizer(
    model: GPT,
    plan: TrainingPlan,
    embedding_lr: float = 0.3,
    unembedding_lr: float = 0.008,
    matrix_lr: float = 0.02,
    scalar_lr: float = 0.5,
) -> "MuonAdamW":
    """The model's optimizer for a planned run: the base learning rates times the plan's factor for its batch size."""
    scale = plan.batch_lr_scale
    return model.setup_optimizer(
        unembedding_lr=unembedding_lr * scale,
        embedding_lr=embedding_lr * scale,
        matrix_lr=matrix_lr * scale,
        weight_decay=plan.weight_decay,
        scalar_lr=scalar_lr * scale,
    )


def optimal_batch_size(target_tokens: float, reference_tokens: float) -> int:
    """Tokens per step for a run of target_tokens, to the nearest power of two. Power Lines, arXiv 2505.13738."""
    batch_size = REFERENCE_BATCH_SIZE * (target_tokens / reference_tokens) ** BATCH_SIZE_EXPONENT
    return 2 ** round(math.log2(batch_size))


def grad_accum_steps(total_batch_size: int, device_batch_size: int, sequence_len: int, world_size: int = 1) -> int:
    """Forward-backward passes per optimizer step, for total_batch_size tokens in rows of sequence_len.

    Raises InputError if the batch is no multiple of what all ranks do in one pass.
    """
    tokens_per_pass = device_batch_size * sequence_len * world_size
    if total_batch_size % tokens_per_pass:
        raise InputError(
            f"total batch size {total_batch_size} is no multiple of {tokens_per_pass} tokens per pass "
            f"({device_batch_size} rows of {sequence_len} tokens on {world_size} ranks): change one of them."
        )
    return total_batch_size // tokens_per_pass
