"""Counts of a GPT: parameters by role, FLOPs, bytes of KV cache. They are methods of `nanochat.gpt.GPT`.

They go by the structure of the model, not by the classes of its layers, which an FP8 conversion replaces.
A window (left, 0) is counted as `left` keys.
"""

from typing import TYPE_CHECKING

from torch import nn

from nanochat import common

if TYPE_CHECKING:
    from nanochat.gpt import GPT


def num_scaling_params(model: "GPT") -> dict[str, int]:
    """Parameters by role: wte, value_embeds, lm_head, transformer_matrices, scalars (with smear_gate), total."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    counts = {
        "wte": count(model.transformer.wte),
        "value_embeds": count(model.value_embeds),
        "lm_head": count(model.lm_head),
        "transformer_matrices": count(model.transformer.h),
    }
    total = count(model)
    return counts | {"scalars": total - sum(counts.values()), "total": total}


def num_matmul_params(model: "GPT") -> int:
    """Weights that take part in a matmul: every matrix but the embedding tables, which are looked up."""
    counts = num_scaling_params(model)
    return counts["transformer_matrices"] + counts["lm_head"] + model.smear_gate.weight.numel()


def _keys_read(model: "GPT", context: int) -> int:
    """Keys that one query reads after `context` tokens, summed over the layers."""
    return sum(min(left, context) for left, _ in model.window_sizes)


def _flops_per_key(model: "GPT") -> int:
    """Forward FLOPs of one query on one key in one layer: a dot product with the key, a weighted sum of the value."""
    return 4 * model.config.n_head * model.head_dim


def estimate_flops(model: "GPT") -> int:
    """Training FLOPs per token. The backward pass costs twice the forward pass.

    As in PaLM (arXiv 2204.02311, appendix B) every query counts as reading a full window.
    """
    forward = 2 * num_matmul_params(model) + _flops_per_key(model) * _keys_read(model, model.config.sequence_len)
    return 3 * forward


def estimate_decode_flops(model: "GPT", ctx: int) -> int:
    """FLOPs to decode one token which attends to `ctx` positions."""
    return 2 * num_matmul_params(model) + _flops_per_key(model) * _keys_read(model, ctx)


def estimate_prefill_flops(model: "GPT", n: int) -> int:
    """FLOPs to prefill a prompt of n tokens: the sum of decoding them one by one, after 1, 2, ..., n positions."""
    keys_read = 0
    for left, _ in model.window_sizes:
        growing = min(left, n)  # the first queries read 1, 2, ..., growing keys, all later ones a full window
        keys_read += growing * (growing + 1) // 2 + (n - growing) * growing
    return 2 * num_matmul_params(model) * n + _flops_per_key(model) * keys_read


def _kv_bytes(model: "GPT") -> int:
    """Bytes of one position's key and value in the cache of one layer, in COMPUTE_DTYPE."""
    return 2 * model.config.n_kv_head * model.head_dim * common.COMPUTE_DTYPE.itemsize


def kv_bytes_per_token(model: "GPT") -> int:
    """Bytes that one token occupies in the KV cache."""
    return _kv_bytes(model) * model.config.n_layer


def kv_read_bytes(model: "GPT", ctx: int) -> int:
    """Bytes of KV cache read to decode one token which attends to `ctx` positions."""
    return _kv_bytes(model) * _keys_read(model, ctx)
