"""nanochat.schedules: learning rate, momentum and weight decay over a run."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import schedules
from tests.vectors_io import close, load

VECTORS = load("train_recipe")


@pytest.mark.parametrize(
    "case", VECTORS["base_schedules"], ids=lambda c: f"{c['num_iterations']}-{c['warmdown_ratio']}"
)
def test_pretraining_schedules_match_vectors(case: dict) -> None:
    N, ratio = case["num_iterations"], case["warmdown_ratio"]
    lr = [schedules.lr_multiplier(it, N, case["warmup_steps"], ratio, case["final_lr_frac"]) for it in case["it"]]
    close(lr, case["lr_multiplier"], "D")
    momentum = {it: schedules.muon_momentum(it, N, ratio) for it in case["it"]}
    for it, expected in zip(case["it"], case["muon_momentum"], strict=True):
        # With no warmdown the original divides by zero at the last step; ours stays on the plateau.
        close(momentum[it], 0.97 if expected == "ZeroDivisionError" else expected, "D")
    decay = [schedules.muon_weight_decay(it, N, case["weight_decay_scaled"]) for it in case["it"]]
    # At the last step cos(pi) + 1 leaves nothing but rounding.
    assert decay == pytest.approx(case["weight_decay"], rel=1e-12, abs=1e-15)


def test_pretraining_defaults() -> None:
    case = VECTORS["base_schedules"][0]
    defaults = VECTORS["base_train_defaults"]
    assert all(case[name] == defaults[name] for name in ("warmup_steps", "warmdown_ratio", "final_lr_frac"))
    close([schedules.lr_multiplier(it, 1000) for it in case["it"]], case["lr_multiplier"], "D")
    close([schedules.muon_momentum(it, 1000) for it in case["it"]], case["muon_momentum"], "D")


@pytest.mark.parametrize("case", VECTORS["sft_lr"], ids=lambda c: f"{c['warmup_ratio']}-{c['warmdown_ratio']}")
def test_sft_lr_matches_vectors(case: dict) -> None:
    for progress, expected in zip(case["progress"], case["lr_multiplier"], strict=True):
        actual = schedules.sft_lr_multiplier(
            progress, case["warmup_ratio"], case["warmdown_ratio"], case["final_lr_frac"]
        )
        # With no warmdown the original divides by zero past the end; ours stays at 1.
        assert actual == pytest.approx(1.0 if expected == "ZeroDivisionError" else expected, rel=1e-12, abs=1e-15)
    if case == VECTORS["sft_lr"][0]:
        assert schedules.sft_lr_multiplier(0.75) == 0.5


def test_sft_momentum_matches_vectors() -> None:
    case = VECTORS["sft_muon_momentum"]
    close([schedules.sft_muon_momentum(it) for it in case["it"]], case["muon_momentum"], "D")


@pytest.mark.parametrize("case", VECTORS["rl_lr"], ids=lambda c: str(c["num_steps"]))
def test_rl_lr_matches_vectors(case: dict) -> None:
    close([schedules.rl_lr_multiplier(it, case["num_steps"]) for it in case["it"]], case["lr_multiplier"], "D")


@given(
    N=st.integers(1, 3000),
    warmup_steps=st.integers(0, 100),
    warmdown_ratio=st.floats(0, 1),
    final_lr_frac=st.floats(0, 1),
    data=st.data(),
)
def test_lr_rises_then_falls_to_the_final_fraction(
    N: int, warmup_steps: int, warmdown_ratio: float, final_lr_frac: float, data: st.DataObject
) -> None:
    def multiplier(it: int) -> float:
        return schedules.lr_multiplier(it, N, warmup_steps, warmdown_ratio, final_lr_frac)

    it = data.draw(st.integers(0, N - 1))
    assert 0 < multiplier(it) <= 1 or it >= warmup_steps
    if it + 1 < warmup_steps:
        assert multiplier(it) < multiplier(it + 1)
    elif it >= warmup_steps:
        assert multiplier(it) >= multiplier(it + 1) - 1e-12
        assert final_lr_frac - 1e-12 <= multiplier(it) <= 1
    if warmup_steps <= N and round(warmdown_ratio * N) > 0:
        assert multiplier(N) == pytest.approx(final_lr_frac)


def optimizer() -> torch.optim.Optimizer:
    """Two groups as GPT.setup_optimizer makes them; the schedules only look at the group dictionaries."""
    groups: list[dict[str, Any]] = [
        {"params": [torch.zeros(2)], "kind": "adamw", "lr": 0.5, "initial_lr": 0.5, "weight_decay": 0.05},
        {
            "params": [torch.zeros(2)],
            "kind": "muon",
            "lr": 0.02,
            "initial_lr": 0.02,
            "weight_decay": 0.28,
            "momentum": 0.95,
        },
    ]
    return torch.optim.SGD(groups)


def values(optimizer: torch.optim.Optimizer) -> list[tuple[float, ...]]:
    return [tuple(g[name] for name in ("lr", "initial_lr", "weight_decay", "momentum")) for g in optimizer.param_groups]


def test_apply_schedules_sets_momentum_and_decay_on_muon_only() -> None:
    opt = optimizer()
    schedules.apply_schedules(opt, 0.5, muon_momentum=0.9, muon_weight_decay=0.1)
    assert values(opt) == [(0.25, 0.5, 0.05, 0), (0.01, 0.02, 0.1, 0.9)]
    schedules.apply_schedules(opt, 1.0)
    assert values(opt) == [(0.5, 0.5, 0.05, 0), (0.02, 0.02, 0.1, 0.9)]


def test_scale_initial_lr_moves_the_base() -> None:
    opt = optimizer()
    schedules.scale_initial_lr(opt, 0.8)
    schedules.apply_schedules(opt, 0.5)
    assert [(g["initial_lr"], g["lr"]) for g in opt.param_groups] == [(0.4, 0.2), (0.016, 0.008)]
