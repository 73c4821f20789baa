"""Which optimizer, learning rate and decay each parameter of a GPT gets."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nanochat.gpt import GPT


def _adamw(params: list[torch.Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> dict[str, Any]:
    return {"kind": "adamw", "params": params, "lr": lr, "betas": betas, "eps": 1e-10, "weight_decay": weight_decay}


def _muon(params: list[torch.Tensor], lr: float, weight_decay: float) -> dict[str, Any]:
    hyperparameters = {"lr": lr, "momentum": 0.95, "ns_steps": 5, "beta2": 0.9, "weight_decay": weight_decay}
    return {"kind": "muon", "params": params, **hyperparameters}


def build_param_groups(
    model: "GPT",
    *,
    unembedding_lr: float,
    embedding_lr: float,
    matrix_lr: float,
    weight_decay: float,
    scalar_lr: float,
) -> list[dict[str, Any]]:
    """The parameter groups for `nanochat.optim.MuonAdamW`: Muon for all matrices of the blocks, AdamW for the rest.

    The learning rates of embeddings and unembedding are tuned at width 768 and scale with width^-0.5. `weight_decay` is
    Muon's. Each group keeps its base learning rate as `initial_lr`, for the schedules.
    """
    scale = (model.config.n_embd / 768) ** -0.5
    value_embeds: list[torch.Tensor] = list(model.value_embeds.parameters())
    mixers = [model.smear_gate.weight, model.smear_lambda, model.backout_lambda]
    groups = [
        _adamw([model.lm_head.weight], unembedding_lr * scale, betas=(0.8, 0.96), weight_decay=0.01),
        _adamw([model.transformer.wte.weight], embedding_lr * scale, betas=(0.8, 0.995), weight_decay=0.001),
        _adamw(value_embeds, 0.5 * embedding_lr * scale, betas=(0.8, 0.995), weight_decay=0.01),
        _adamw([model.resid_lambdas], 0.01 * scalar_lr, betas=(0.8, 0.95), weight_decay=0.05),
        _adamw([model.x0_lambdas], scalar_lr, betas=(0.96, 0.95), weight_decay=0.0),
        _adamw(mixers, 0.2, betas=(0.8, 0.95), weight_decay=0.0),
    ]
    matrices: list[torch.Tensor] = list(model.transformer.h.parameters())
    for shape in sorted({matrix.shape for matrix in matrices}):
        # One group for each shape, because Muon works on a group as one stack of matrices.
        groups += [_muon([matrix for matrix in matrices if matrix.shape == shape], matrix_lr, weight_decay)]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return groups
