"""nanochat.recipe: from a depth to a model and its training run."""

import dataclasses
import math

import pytest
import torch

from nanochat import recipe
from nanochat.common import InputError
from nanochat.gpt import GPTConfig
from tests.vectors_io import close, load

VECTORS = load("train_recipe")
SHAPE = ("depth", "aspect_ratio", "head_dim", "window_pattern")
BUDGET = ("target_param_data_ratio", "total_batch_size", "num_iterations", "target_flops", "weight_decay")
LEARNING_RATES = ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr")


@pytest.mark.parametrize(
    "case", load("gpt_config")["base_train_cases"], ids=lambda case: "-".join(map(str, case["input"].values()))
)
def test_config_from_depth_matches_vectors(case: dict) -> None:
    given = dict(case["input"])
    config = recipe.config_from_depth(sequence_len=given.pop("max_seq_len"), **given)
    expected = {name: case["expected"][name] for name in ("n_embd", "n_head", "n_kv_head", "n_layer")}
    assert dataclasses.asdict(config) == expected | {
        "sequence_len": case["input"]["max_seq_len"],
        "vocab_size": given["vocab_size"],
        "window_pattern": given["window_pattern"],
    }


@pytest.mark.parametrize("case", VECTORS["base_train"], ids=lambda case: str(case["overrides"]))
def test_training_plan_matches_vectors(case: dict) -> None:
    given = VECTORS["base_train_defaults"] | {"world_size": 1, "vocab_size": 32768} | case["overrides"]
    expected = case["expected"]
    shape = {name: given[name] for name in SHAPE}
    shape |= {"sequence_len": given["max_seq_len"], "vocab_size": given["vocab_size"]}
    plan = recipe.plan_training(**shape, **{name: given[name] for name in BUDGET})

    assert plan.scaling_params == expected["scaling_params"]
    assert plan.flops_per_token == expected["num_flops_per_token"]
    assert plan.target_tokens == expected["target_tokens"]
    assert expected["B_REF"] == recipe.REFERENCE_BATCH_SIZE
    assert plan.total_batch_size == expected["total_batch_size"]
    assert plan.num_iterations == expected["num_iterations"]
    assert plan.total_tokens == expected["total_tokens"]
    close(plan.reference_tokens, expected["D_REF"], "D")
    close(plan.batch_lr_scale, expected["batch_lr_scale"], "D")
    close(plan.weight_decay, expected["weight_decay_scaled"], "D")

    batch = (plan.total_batch_size, given["device_batch_size"], given["max_seq_len"], given["world_size"])
    if expected["grad_accum_steps"] == "AssertionError":
        with pytest.raises(AssertionError, match="total batch size"):
            recipe.grad_accum_steps(*batch)
    else:
        assert recipe.grad_accum_steps(*batch) == expected["grad_accum_steps"]

    model = recipe.build_meta_model(recipe.config_from_depth(**shape))
    groups = recipe.setup_optimizer(model, plan, **{name: given[name] for name in LEARNING_RATES}).param_groups
    assert [group["kind"] for group in groups] == expected["group_kind"]
    close([group["initial_lr"] for group in groups], expected["group_initial_lr"], "D")
    close([group["weight_decay"] for group in groups], expected["group_weight_decay"], "D")


def test_defaults_are_the_originals() -> None:
    defaults = VECTORS["base_train_defaults"]
    case = next(case for case in VECTORS["base_train"] if case["overrides"] == {"depth": 12})
    plan = recipe.plan_training(12)
    assert plan.num_iterations == case["expected"]["num_iterations"]
    close(plan.weight_decay, defaults["weight_decay"], "D")
    groups = recipe.setup_optimizer(recipe.build_meta_model(recipe.config_from_depth(12)), plan).param_groups
    close([group["initial_lr"] for group in groups], case["expected"]["group_initial_lr"], "D")


def test_the_reference_model_follows_the_users_shape() -> None:
    """A d12 is the reference whatever its aspect ratio or vocabulary: it always gets the tuned values unscaled."""
    plan = recipe.plan_training(12, aspect_ratio=32, head_dim=64, vocab_size=1000)
    assert plan.total_batch_size == recipe.REFERENCE_BATCH_SIZE and plan.batch_lr_scale == 1.0
    assert math.isclose(plan.weight_decay, 0.28)


def test_optimal_batch_size_is_the_nearest_power_of_two() -> None:
    assert recipe.optimal_batch_size(1e9, 1e9) == 2**19
    doubling = 2 ** (1 / 0.383)  # this many times the tokens want twice the batch
    assert recipe.optimal_batch_size(1e9 * doubling**0.51, 1e9) == 2**20
    assert recipe.optimal_batch_size(1e9 * doubling**0.49, 1e9) == 2**19


def test_no_tokens_per_parameter_is_refused() -> None:
    with pytest.raises(InputError, match="target_param_data_ratio"):
        recipe.plan_training(4, target_param_data_ratio=-1)


def test_build_model_gives_a_model_that_runs() -> None:
    """Nothing stays on meta or uninitialised: fresh logits are near zero, so the loss is near ln(vocab)."""
    torch.manual_seed(0)
    config = GPTConfig(sequence_len=16, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    model = recipe.build_model(config, "cpu")
    idx = torch.randint(0, 50, (2, 16))
    assert model(idx, idx).item() == pytest.approx(math.log(50), abs=0.05)


def test_target_tokens_are_whole() -> None:
    plan = recipe.plan_training(4, target_param_data_ratio=0.1)
    assert plan.target_tokens == plan.scaling_params // 10 and plan.scaling_params % 10
