"""How learning rate, Muon momentum and weight decay move over a run, as plain functions of the step."""

import math

import torch

MUON_MOMENTUM_WARMUP_STEPS = 400
SFT_MOMENTUM_WARMUP_STEPS = 300


def _interpolate(start: float, end: float, fraction: float) -> float:
    return (1 - fraction) * start + fraction * end


def lr_multiplier(
    it: int, num_iterations: int, warmup_steps: int = 40, warmdown_ratio: float = 0.65, final_lr_frac: float = 0.05
) -> float:
    """Pretraining: what to multiply every learning rate with at step `it` (0-based) of `num_iterations`.

    Trapezoid: (it + 1) / warmup_steps while it < warmup_steps, then 1, then over the last
    round(warmdown_ratio * num_iterations) steps linearly down to final_lr_frac, reached at it = num_iterations.
    """
    warmdown_steps = round(warmdown_ratio * num_iterations)
    if it < warmup_steps:
        return (it + 1) / warmup_steps
    if it <= num_iterations - warmdown_steps:
        return 1.0
    return _interpolate(final_lr_frac, 1.0, (num_iterations - it) / warmdown_steps)


def muon_momentum(it: int, num_iterations: int, warmdown_ratio: float = 0.65) -> float:
    """Pretraining: Muon's momentum. 0.85 to 0.97 over the first 400 steps, then 0.97, down to 0.90 in the warmdown.

    The first 400 steps come before the warmdown even where the two overlap: the momentum then jumps at step 400.
    """
    if it < MUON_MOMENTUM_WARMUP_STEPS:
        return _interpolate(0.85, 0.97, it / MUON_MOMENTUM_WARMUP_STEPS)
    warmdown_steps = round(warmdown_ratio * num_iterations)
    warmdown_start = num_iterations - warmdown_steps
    if warmdown_steps == 0 or it < warmdown_start:
        return 0.97
    return _interpolate(0.97, 0.90, (it - warmdown_start) / warmdown_steps)


def muon_weight_decay(it: int, num_iterations: int, weight_decay: float) -> float:
    """Pretraining: Muon's weight decay, half a cosine from `weight_decay` at step 0 to 0 at num_iterations."""
    return weight_decay * 0.5 * (1 + math.cos(math.pi * it / num_iterations))


def sft_lr_multiplier(
    progress: float, warmup_ratio: float = 0.0, warmdown_ratio: float = 0.5, final_lr_frac: float = 0.0
) -> float:
    """SFT: the learning-rate multiplier as a function of the share of the run that is done (0 to 1).

    Linear warmup over the first warmup_ratio, 1, linear warmdown to final_lr_frac over the last warmdown_ratio.
    The line goes on falling past progress 1.
    """
    if progress < warmup_ratio:
        return (progress + 1e-8) / warmup_ratio  # not 0 at the first step
    if warmdown_ratio == 0 or progress <= 1 - warmdown_ratio:
        return 1.0
    return _interpolate(1.0, final_lr_frac, (progress - (1 - warmdown_ratio)) / warmdown_ratio)


def sft_muon_momentum(it: int) -> float:
    """SFT: Muon's momentum, 0.85 to 0.95 over the first 300 steps."""
    return _interpolate(0.85, 0.95, min(1.0, it / SFT_MOMENTUM_WARMUP_STEPS))


def rl_lr_multiplier(it: int, num_steps: int) -> float:
    """RL: the learning-rate multiplier, linear from 1 at step 0 to 0 at num_steps."""
    return 1.0 - it / num_steps


def scale_initial_lr(optimizer: torch.optim.Optimizer, init_lr_frac: float) -> None:
    """Start fine-tuning from a fraction of the base learning rates (0.8 for SFT, 0.05 for RL)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = group["initial_lr"] * init_lr_frac


def apply_schedules(
    optimizer: torch.optim.Optimizer,
    lr_multiplier: float,
    muon_momentum: float | None = None,
    muon_weight_decay: float | None = None,
) -> None:
    """Set a step's values on the optimizer: lr = initial_lr * multiplier everywhere, the others on Muon groups only.

    None leaves a value as it is.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * lr_multiplier
        if group["kind"] == "muon":
            if muon_momentum is not None:
                group["momentum"] = muon_momentum
            if muon_weight_decay is not None:
                group["weight_decay"] = muon_weight_decay
