"""nanochat.fp8: the golden vectors, conversion and its undoing, refusal off-GPU. FP8 matmuls run on the CPU too."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanochat import common, fp8
from nanochat.fp8 import Float8Linear, Float8LinearConfig, convert_to_float8_training, disable_fp8, fp8_module_filter
from nanochat.gpt import GPT, Linear
from nanochat.recipe import build_meta_model, build_model, config_from_depth
from tests.vectors_io import arrays, close, load

VECTORS = load("fp8")
ARRAYS = arrays("fp8")
FORMATS = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def tensor(key: str) -> torch.Tensor:
    return torch.tensor(ARRAYS[key])


def fp8_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Float8Linear)]


# Quantisation


@pytest.mark.parametrize("case", VECTORS["to_fp8"], ids=lambda case: f"{case['name']}-{case['fmt']}")
def test_to_fp8_matches_the_original(case: dict[str, Any]) -> None:
    x = tensor(case["input"])
    if case["input"].endswith("_bf16"):
        x = x.bfloat16()
    quantised, inverse_scale = fp8._to_fp8(x, FORMATS[case["fmt"]])
    assert quantised.dtype == FORMATS[case["fmt"]]
    assert inverse_scale.dtype == torch.float32
    assert inverse_scale.shape == ()
    close(quantised, ARRAYS[case["quantised"]], "E")
    np.testing.assert_allclose(inverse_scale.numpy(), ARRAYS[case["inv_scale"]], rtol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(-30.0, 30.0), st.sampled_from(list(FORMATS)))
def test_quantisation_error_is_half_a_unit_in_the_last_place(seed: int, exponent: float, fmt: str) -> None:
    """With a scale of its own every tensor keeps the format's relative precision, whatever its magnitude."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    quantised, inverse_scale = fp8._to_fp8(x, FORMATS[fmt])
    back = quantised.float() * inverse_scale
    info = torch.finfo(FORMATS[fmt])
    subnormal_step = info.smallest_normal * info.eps * inverse_scale
    assert ((back - x).abs() <= (0.5 * info.eps * x.abs()).clamp_min(0.5 * subnormal_step) * 1.001).all()
    assert quantised.float().abs().max() == info.max


# The layer


@pytest.mark.parametrize("case", VECTORS["linear"], ids=lambda case: case["name"])
def test_float8_linear_matches_the_original(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compute_dtype = getattr(torch, case["compute_dtype"])
    monkeypatch.setattr(common, "COMPUTE_DTYPE", compute_dtype)
    key = f"lin_{case['name']}"
    plain = nn.Linear(case["x_shape"][-1], case["out_features"], bias=case["bias"])
    plain.weight.data = tensor(f"{key}_w")
    if case["bias"]:
        plain.bias.data = tensor(f"{key}_b")
    layer = Float8Linear.from_float(plain)
    x = tensor(f"{key}_x").requires_grad_()
    y = layer(x)
    y.backward(tensor(f"{key}_dy").to(y.dtype))
    results = {"y": y, "dx": x.grad, "dw": plain.weight.grad}
    for name, value in results.items():
        assert value is not None
        assert str(value.dtype) == case[f"{name}_dtype"]
        close(value, ARRAYS[f"{key}_{name}"], "F" if compute_dtype == torch.float32 else "B")
    if case["bias"]:
        close(plain.bias.grad, ARRAYS[f"{key}_db"], "F")


def test_float8_linear_multiplies_the_quantised_operands() -> None:
    """Forward rounds to e4m3, gradients to e5m2; against matmuls of what the quantised operands stand for."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 16, 32, generator=rng, requires_grad=True)
    plain = nn.Linear(32, 16, bias=False)
    dy = torch.randn(3, 16, 16, generator=rng)
    y = Float8Linear.from_float(plain)(x)
    y.backward(dy)

    def rounded(t: torch.Tensor, fmt: str) -> torch.Tensor:
        quantised, inverse_scale = fp8._to_fp8(t.detach(), FORMATS[fmt])
        return quantised.float() * inverse_scale

    x8, w8, dy8 = rounded(x, "e4m3fn"), rounded(plain.weight, "e4m3fn"), rounded(dy, "e5m2")
    assert x.grad is not None
    assert plain.weight.grad is not None
    torch.testing.assert_close(y, x8 @ w8.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, dy8 @ w8, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.weight.grad, dy8.flatten(0, 1).T @ x8.flatten(0, 1), rtol=1e-5, atol=1e-4)


# Conversion


LAYERS = {"nn.Linear": nn.Linear, "gpt.Linear": Linear, "nn.Embedding": nn.Embedding}


@pytest.mark.parametrize("case", VECTORS["filter"], ids=lambda c: f"{c['type']}-{c['in_features']}x{c['out_features']}")
def test_filter_decides_like_the_original(case: dict[str, Any]) -> None:
    with torch.device("meta"):
        layer_type = LAYERS.get(case["type"])
        module = nn.ReLU() if layer_type is None else layer_type(case["in_features"], case["out_features"])
    assert fp8_module_filter(module, "any.name") is case["decision"]


def meta_model(kwargs: dict[str, Any]) -> GPT:
    return build_meta_model(config_from_depth(**kwargs))


@pytest.mark.parametrize("case", VECTORS["conversion"], ids=lambda case: str(case["kwargs"]))
def test_conversion_swaps_the_layers_the_original_swaps(case: dict[str, Any]) -> None:
    model = meta_model(case["kwargs"])
    parameters = dict(model.named_parameters())
    assert model.num_matmul_params() == case["num_matmul_params_before"]
    assert model.estimate_flops() == case["estimate_flops_before"]
    returned = convert_to_float8_training(
        model, config=Float8LinearConfig.from_recipe_name("tensorwise"), module_filter_fn=fp8_module_filter
    )
    assert returned is model
    assert fp8_names(model) == case["converted"]
    left = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, Float8Linear)]
    assert left == case["left"]
    assert list(model.state_dict()) == list(meta_model(case["kwargs"]).state_dict())
    converted_parameters = dict(model.named_parameters())
    assert list(converted_parameters) == list(parameters)
    assert all(p is converted_parameters[name] for name, p in parameters.items())
    # Unlike the original, whose counters lose the converted layers (num_matmul_params_after in the vector).
    assert model.num_matmul_params() == case["num_matmul_params_before"]
    assert model.estimate_flops() == case["estimate_flops_before"]


def test_conversion_without_filter_takes_every_linear_and_keeps_the_bias() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU()))
    bias = model[0].bias
    convert_to_float8_training(model)
    assert fp8_names(model) == VECTORS["convert_without_filter"]
    assert (model[0].bias is bias) is VECTORS["convert_keeps_bias"]
    layers = list(model.modules())
    convert_to_float8_training(model)
    assert list(model.modules()) == layers, "converting twice changes nothing"


def test_filter_sees_the_layer_and_its_full_name() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    seen: dict[str, nn.Module] = {}
    convert_to_float8_training(model, module_filter_fn=lambda m, name: seen.update({name: m}) or name == "1.0")
    assert seen == linears
    assert fp8_names(model) == ["1.0"]


@pytest.mark.parametrize("recipe", VECTORS["errors"])
def test_other_recipes_are_refused(recipe: str) -> None:
    assert VECTORS["errors"][recipe] == "ValueError"
    with pytest.raises(ValueError, match=f"got '{recipe}'"):
        Float8LinearConfig.from_recipe_name(recipe)


# Switching FP8 off and on


@pytest.fixture(scope="module")
def small_model() -> GPT:
    """Two layers of width 128 with weights that make a difference (fresh projections are zero)."""
    torch.manual_seed(0)
    model = build_model(config_from_depth(2, sequence_len=16, vocab_size=128), "cpu")
    for p in model.parameters():
        p.data.normal_(std=0.1)
    return model


def test_disable_fp8_evaluates_in_full_precision_and_restores(small_model: GPT) -> None:
    idx = torch.arange(16)[None]
    with torch.no_grad():
        plain = small_model(idx)
        convert_to_float8_training(small_model, module_filter_fn=fp8_module_filter)
        converted, layers = small_model(idx), list(small_model.modules())
        assert not torch.allclose(converted, plain, atol=1e-3), "FP8 must be visible for this test to mean anything"
        with disable_fp8(small_model):
            assert fp8_names(small_model) == []
            assert all(type(m) is Linear for m in small_model.modules() if isinstance(m, nn.Linear))
            assert torch.equal(small_model(idx), plain)
        assert list(small_model.modules()) == layers
        assert torch.equal(small_model(idx), converted)


def test_disable_fp8_restores_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(8, 4)))
    convert_to_float8_training(model)
    layers = list(model.modules())
    with pytest.raises(KeyError), disable_fp8(model):
        assert fp8_names(model) == []
        raise KeyError
    assert list(model.modules()) == layers


def test_disable_fp8_shares_the_weights() -> None:
    """What changes the weights inside the context is there afterwards; train or eval mode is kept too."""
    linear = nn.Linear(16, 16)
    model = nn.Sequential(linear).eval()
    convert_to_float8_training(model)
    assert not model[0].training
    with disable_fp8(model):
        assert not model[0].training
        assert model[0].weight is linear.weight
    assert model[0].weight is linear.weight


def test_disable_fp8_nests_and_ignores_models_without_fp8() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    layers = list(model.modules())
    with disable_fp8(model):
        assert list(model.modules()) == layers
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name == "1")
    with disable_fp8(model):
        with disable_fp8(model):
            assert fp8_names(model) == []
        assert fp8_names(model) == []
    assert fp8_names(model) == ["1"]


def test_fp8_is_refused_with_a_warning_where_it_cannot_run() -> None:
    model = meta_model({"depth": 4})
    with pytest.warns(UserWarning, match="going on without it"):
        assert not fp8.enable_fp8(model, "cpu")
    assert fp8_names(model) == []
    with pytest.raises(ValueError, match="rowwise"):
        fp8.enable_fp8(model, "cpu", "rowwise")


@pytest.mark.parametrize(("capability", "enabled"), [((7, 5), False), ((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_needs_a_recent_gpu(capability: tuple[int, int], enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    model = meta_model({"depth": 4})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fp8.enable_fp8(model, "cuda") is enabled
    assert len(fp8_names(model)) == (25 if enabled else 0)
    assert len(caught) == (0 if enabled else 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs FP8 tensor cores")
    monkeypatch.setattr(common, "COMPUTE_DTYPE", torch.bfloat16)
    torch.manual_seed(0)
    layer = Float8Linear.from_float(nn.Linear(128, 64))
    x, dy = torch.randn(32, 128), torch.randn(32, 64)
    results = {}
    for device in ("cpu", "cuda"):
        on_device = layer.to(device)
        on_device.zero_grad()
        input = x.to(device, copy=True).requires_grad_()
        y = on_device(input)
        y.backward(dy.to(y))
        assert input.grad is not None
        assert on_device.weight.grad is not None
        results[device] = [t.float().cpu() for t in (y, input.grad, on_device.weight.grad)]
    for cpu, cuda in zip(results["cpu"], results["cuda"], strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=5e-2, atol=5e-2)
