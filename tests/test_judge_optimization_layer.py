"""Puzzle 2's judges: the oracle agrees with the golden vectors, and the cases ask what they should."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from autograder.judges import optimization_layer as judges
from autograder.judges.optimization_layer import fp8, groups, muon, schedules, steps
from nanochat import optim
from puzzles import wire
from tests import vectors_io

VECTORS, ARRAYS = vectors_io.load("optim"), vectors_io.arrays("optim")


def tensor(key: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(ARRAYS[key], dtype=dtype)


# the oracle against the golden vectors


def test_families_and_groups_agree_with_the_vectors() -> None:
    for case in VECTORS["param_groups"]:
        size = {key: case["config"][key] for key in ("n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size")}
        shapes = groups.parameter_shapes(**size)
        families = groups.param_families(shapes=shapes)
        rates = dict(zip(groups.RATES, groups.USUAL, strict=True)) | case["kwargs"]
        got = groups.param_groups(families=families, shapes=shapes, n_embd=size["n_embd"], **rates)
        assert len(got) == len(case["groups"])
        for mine, expected in zip(got, case["groups"], strict=True):
            assert all(name in families[mine["family"]] for name in expected["params"])
            for key in mine.keys() - {"family"}:
                value = list(mine[key]) if key == "betas" else mine[key]
                assert value == (pytest.approx(expected[key], rel=1e-12) if "lr" in key else expected[key]), key
            assert mine.keys() - {"family"} == expected.keys() - {"shapes"}


@pytest.mark.parametrize("case", VECTORS["adamw"], ids=lambda case: case["name"])
def test_adamw_agrees_with_the_vectors(case: dict) -> None:
    dtype, key = getattr(torch, case["dtype"]), f"adamw_{case['name']}"
    p = tensor(f"{key}_p0", dtype)
    report = {"p": p, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    rates = {name: case[name] for name in ("lr", "beta1", "beta2", "eps")} | {"weight_decay": case["wd"]}
    for step in range(1, case["steps"] + 1):
        report = steps.adamw_step(**report | {"grad": tensor(f"{key}_g{step}", dtype)}, step=step, **rates)
        for name, letter in (("p", "p"), ("exp_avg", "m"), ("exp_avg_sq", "v")):
            rtol = 2**-7 if dtype == torch.bfloat16 else 2e-5
            np.testing.assert_allclose(report[name].float(), ARRAYS[f"{key}_{letter}{step}"], rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("name", ["tall", "wide", "square"])
def test_orthogonalisation_agrees_with_the_vectors(name: str) -> None:
    """Polar Express as the notebook makes it of its parameters, on the vectors' equilibrated gradients."""
    for count, key in ((5, "raw"), (3, "raw_ns3"), (2, "raw_ns2"), (1, "raw_ns1")):
        got = steps.orthogonalize(tensor(f"polar_{name}_roweq"), steps.POLAR_EXPRESS[:count], 1.01, 1e-6)["result"]
        np.testing.assert_allclose(got, ARRAYS[f"polar_{name}_{key}"], rtol=0, atol=1e-4)


def test_both_recipes_are_nanochats() -> None:
    """The constants in the notebook give nanochat's two functions."""
    x = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    for coefficients, (margin, eps), expected in (
        (steps.NEWTON_SCHULZ, steps.CLASSIC, optim.newton_schulz(x)),
        (steps.POLAR_EXPRESS, steps.EXPRESS, optim.polar_express(x)),
    ):
        got = steps.orthogonalize(x=x, coefficients=coefficients, margin=margin, eps=eps)["result"]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("case", VECTORS["muon"], ids=lambda case: case["name"])
def test_the_parts_of_muon_make_up_its_step(case: dict) -> None:
    """Direction, orthogonalisation and update, one after the other, are the step that the vectors record. There the
    factor for the shape is the caller's, so it is divided out."""
    key, (_, m, n) = f"muon_{case['name']}", case["shape"]
    p, buffer = tensor(f"{key}_p0"), torch.zeros(case["shape"])
    second = torch.zeros(case["second_buffer_shape"])
    lr = case["lr"] / muon.rate_by_shape(m, n)
    for step in range(1, case["steps"] + 1):
        first = muon.muon_direction(tensor(f"{key}_g{step}"), buffer, case["momentum"])
        buffer, x = first["momentum_buffer"], optim.polar_express(first["direction"], case["ns_steps"])
        report = muon.muon_update(p, x, second, lr=lr, weight_decay=case["wd"], beta2=case["beta2"])
        p, second = report["p"], report["second_momentum_buffer"]
        np.testing.assert_allclose(p, ARRAYS[f"{key}_p{step}"], rtol=1e-4, atol=5e-6)
        np.testing.assert_allclose(buffer, ARRAYS[f"{key}_mb{step}"], rtol=1e-4, atol=5e-6)
        np.testing.assert_allclose(second, ARRAYS[f"{key}_sb{step}"], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("shape", [(8, 2), (2, 8), (5, 5)])
def test_the_rate_by_shape_is_that_of_the_optimizer(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.randn(shape, generator=generator))
    p.grad = torch.randn(shape, generator=generator)
    rates: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "beta2": 0.8}
    first = muon.muon_direction(p.grad[None], torch.zeros(1, *shape), 0.9)
    second = torch.zeros(1, shape[0], 1) if shape[0] >= shape[1] else torch.zeros(1, 1, shape[1])
    expected = muon.muon_update(p.detach()[None], optim.polar_express(first["direction"]), second, **rates)
    optim.Muon([p], momentum=0.9, **rates).step()
    torch.testing.assert_close(p.detach()[None], expected["p"])


def test_schedules_agree_with_the_vectors() -> None:
    for case in vectors_io.load("train_recipe")["base_schedules"]:
        settings = {key: case[key] for key in ("num_iterations", "warmup_steps", "warmdown_ratio", "final_lr_frac")}
        for i, it in enumerate(case["it"]):
            got = schedules.schedules(it=it, weight_decay=case["weight_decay_scaled"], **settings)
            for mine, theirs in (("lr_multiplier",) * 2, ("muon_momentum",) * 2, ("muon_weight_decay", "weight_decay")):
                if case[theirs][i] != "ZeroDivisionError":  # the original's, at the end of a run without warmdown
                    assert got[mine] == pytest.approx(case[theirs][i], rel=1e-12, abs=1e-15)


def test_the_filter_agrees_with_the_vectors() -> None:
    kinds = {"nn.Linear": "Linear", "gpt.Linear": "CastingLinear", "nn.Embedding": "Embedding"}
    seen = 0
    for case in vectors_io.load("fp8")["filter"]:
        if case["type"] in kinds:
            size = case["in_features"], case["out_features"]
            assert fp8.fp8_filter(kinds[case["type"]], *size, fqn="layer") == case["decision"], case
            seen += 1
    assert seen >= 10


# what an answer may be


def stepped(dtype: torch.dtype, **case: Any) -> dict[str, torch.Tensor]:
    """AdamW's step computed in `dtype`, with its operations in another order than nanochat's."""
    p, grad, m, v = (case[key].to(dtype) for key in ("p", "grad", "exp_avg", "exp_avg_sq"))
    m = m + (grad - m) * (1 - case["beta1"])
    v = v + (grad * grad - v) * (1 - case["beta2"])
    size = case["lr"] / (1 - case["beta1"] ** case["step"])
    root = (v / (1 - case["beta2"] ** case["step"])).sqrt() + case["eps"]
    p = p - case["lr"] * case["weight_decay"] * p - size * (m / root)
    result = {"p": p, "grad": grad, "exp_avg": m, "exp_avg_sq": v}
    return {key: value.to(case["p"].dtype) for key, value in result.items()}


@pytest.mark.parametrize("seed", range(20))
def test_adamw_in_another_order_is_right(seed: int) -> None:
    for case in steps.adamw_cases(random.Random(seed)):
        assert steps.examine_adamw(steps.adamw_step(**case), stepped(torch.float32, **case)) is None


def test_bfloat16_must_be_rounded_once() -> None:
    for case in steps.adamw_cases(random.Random(0)):
        if case["p"].dtype == torch.bfloat16:
            assert steps.examine_adamw(steps.adamw_step(**case), stepped(torch.bfloat16, **case))


@pytest.mark.parametrize("seed", range(20))
def test_orthogonalisation_by_other_products_is_right(seed: int) -> None:
    """The tolerance leaves room for another order of multiplication, and for the other Gram matrix of a tall x."""
    for case in steps.orthogonalize_cases(random.Random(seed)):
        expected = wire.plain(steps.orthogonalize(**case))
        x = case["x"]
        x = x / (case["margin"] * x.float().norm(dim=(-2, -1), keepdim=True) + case["eps"]).to(x.dtype)
        for a, b, c in case["coefficients"]:
            if x.size(-2) > x.size(-1):
                gram = x.mT @ x
                cube = x @ gram
                x = a * x + b * cube + c * (cube @ gram)
            else:
                gram = x @ x.mT
                cube = gram @ x
                x = a * x + b * cube + c * (gram @ cube)
        assert steps.examine_orthogonalize(expected, steps.reported(x)) is None


def test_a_report_that_is_none_is_refused() -> None:
    for part in ("adamw_step", "orthogonalize", "muon_update", "disable_fp8"):
        judge = judges.JUDGES[part]
        expected = wire.plain(judge.oracle(**judge.cases(random.Random(0))[0]))
        for got in (None, wire.Raised("TypeError", "no"), {}, dict.fromkeys(expected)):
            found = judge.examine(expected, got) if judge.examine else steps.difference(expected, got)
            assert found, (part, got)
