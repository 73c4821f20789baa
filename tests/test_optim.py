"""nanochat.optim in one process: the golden vectors, the rules that hold for every matrix, bad input."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import common, optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import Muon, MuonAdamW
from tests.vectors_io import arrays, close, load

VECTORS = load("optim")
ARRAYS = arrays("optim")

pytestmark = pytest.mark.filterwarnings("error")


def tensor(key: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(ARRAYS[key], dtype=dtype)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def by_name(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def assert_close(actual: torch.Tensor, key: str, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(actual.float().numpy(), ARRAYS[key], rtol=rtol, atol=atol, err_msg=key)


@contextmanager
def compute_dtype(dtype: torch.dtype) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "COMPUTE_DTYPE", dtype)
        yield


# The steps against the vectors


@by_name(VECTORS["adamw"])
def test_adamw_step_matches_the_original(case: dict[str, Any]) -> None:
    dtype = getattr(torch, case["dtype"])
    key = f"adamw_{case['name']}"
    p = tensor(f"{key}_p0", dtype)
    exp_avg, exp_avg_sq = torch.zeros_like(p), torch.zeros_like(p)
    hyperparameters = [scalar(case[name]) for name in ("lr", "beta1", "beta2", "eps", "wd")]
    for s in range(1, case["steps"] + 1):
        optim.adamw_step_fused(p, tensor(f"{key}_g{s}", dtype), exp_avg, exp_avg_sq, scalar(s), *hyperparameters)
        for actual, letter in ((p, "p"), (exp_avg, "m"), (exp_avg_sq, "v")):
            assert actual.dtype == dtype
            if dtype == torch.bfloat16:  # one unit in the last of 8 significant bits
                assert_close(actual, f"{key}_{letter}{s}", rtol=2**-7, atol=0.0)
            else:
                close(actual, ARRAYS[f"{key}_{letter}{s}"], "F")


def run_muon(case: dict[str, Any], key: str, grads: list[str]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Feed the gradients one by one; yields parameters and both buffers after each step."""
    p = tensor(f"{key}_p0")
    momentum_buffer, second_buffer = torch.zeros(case["shape"]), torch.zeros(case["second_buffer_shape"])
    options: dict[str, Any] = {name: scalar(case[name]) for name in ("momentum", "lr", "wd", "beta2")}
    options |= {name: case[name] for name in ("ns_steps", "red_dim")}
    for grad in grads:
        optim.muon_step_fused(tensor(grad), p, momentum_buffer, second_buffer, **options)
        yield p, momentum_buffer, second_buffer


@by_name(VECTORS["muon"])
def test_muon_step_matches_the_original(case: dict[str, Any]) -> None:
    key = f"muon_{case['name']}"
    grads = [f"{key}_g{s}" for s in range(1, case["steps"] + 1)]
    for s, (p, momentum_buffer, second_buffer) in enumerate(run_muon(case, key, grads), start=1):
        assert_close(p, f"{key}_p{s}", rtol=1e-4, atol=5e-6)
        assert_close(momentum_buffer, f"{key}_mb{s}", rtol=1e-4, atol=5e-6)
        assert_close(second_buffer, f"{key}_sb{s}", rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["tall", "wide", "square"])
def test_muon_step_in_bf16_matches_the_original(name: str) -> None:
    key = f"bf16_muon_{name}"
    case = next(case for case in VECTORS["muon"] if case["name"] == name) | VECTORS["bf16_muon"]
    with compute_dtype(torch.bfloat16):
        for s, (p, *_) in enumerate(run_muon(case, key, [f"{key}_g{i}" for i in range(3)]), start=1):
            assert_close(p, f"{key}_p{s}", rtol=0.0, atol=4e-3)  # tighter than needed: a step moves entries by 2e-2
        *_, (p, momentum_buffer, second_buffer) = run_muon(case, key, [f"{key}_g{i}" for i in range(3)])
    assert momentum_buffer.dtype == second_buffer.dtype == p.dtype == torch.float32
    close(momentum_buffer, ARRAYS[f"{key}_mb3"], "B")
    close(second_buffer, ARRAYS[f"{key}_sb3"], "B")


def test_bf16_compute_dtype_changes_the_orthogonalisation() -> None:
    """Without this the test above would pass for an implementation that ignores the compute dtype."""
    key = "bf16_muon_square"
    case = next(case for case in VECTORS["muon"] if case["name"] == "square") | VECTORS["bf16_muon"]
    in_float32 = next(run_muon(case, key, [f"{key}_g0"]))[0]
    with compute_dtype(torch.bfloat16):
        in_bfloat16 = next(run_muon(case, key, [f"{key}_g0"]))[0]
    assert 1e-4 < (in_bfloat16 - in_float32).abs().max() < 1e-2


def test_only_the_orthogonalisation_runs_in_bf16() -> None:
    """What follows it is float32 again: an update from zero isn't rounded to bfloat16."""
    p, second_buffer = torch.zeros(1, 8, 6), torch.zeros(1, 8, 1)
    grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    zero, one = scalar(0.0), scalar(1.0)
    with compute_dtype(torch.bfloat16):
        optim.muon_step_fused(grad, p, torch.zeros_like(p), second_buffer, zero, one, zero, scalar(0.9), 5, -1)
    assert not torch.equal(p, p.bfloat16().float())


def test_polar_express_coefficients() -> None:
    assert [list(abc) for abc in optim.polar_express_coeffs] == VECTORS["polar_express_coeffs"]


@by_name(VECTORS["polar"])
def test_the_pieces_of_the_muon_step_match_the_original(case: dict[str, Any]) -> None:
    key = f"polar_{case['name']}"
    balanced = optim.equilibrate_rows(tensor(f"{key}_G"))
    close(balanced, ARRAYS[f"{key}_roweq"], "F")
    for steps in (1, 2, 3):
        assert_close(optim.polar_express(balanced, steps), f"{key}_raw_ns{steps}", rtol=1e-5, atol=2e-6)
    raw = optim.polar_express(balanced)
    assert_close(raw, f"{key}_raw", rtol=1e-5, atol=2e-6)
    singular_values = torch.linalg.svdvals(raw[0])
    np.testing.assert_allclose(singular_values.numpy(), case["singular_values_raw"], rtol=1e-5)
    renormalized = optim.renormalize(raw)
    assert_close(renormalized, f"{key}_renorm", rtol=1e-5, atol=2e-6)

    p, buffer = torch.zeros(case["shape"]), torch.zeros(case["shape"])
    second_buffer = torch.ones_like(p.sum(case["red_dim"], keepdim=True))
    zero, one = scalar(0.0), scalar(1.0)
    optim.muon_step_fused(tensor(f"{key}_G"), p, buffer, second_buffer, zero, one, zero, one, 5, case["red_dim"])
    assert_close(-p, f"{key}_via_step", rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(-p, renormalized, rtol=0, atol=1e-5)


# The optimizer against the vectors


def build(config: dict[str, Any], device: str = "cpu") -> GPT:
    with torch.device(device):
        return GPT(GPTConfig(**config))


@pytest.mark.parametrize("case", VECTORS["param_groups"])
def test_setup_optimizer_builds_the_original_groups(case: dict[str, Any]) -> None:
    model = build(case["config"], "meta")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = model.setup_optimizer(**case["kwargs"]).param_groups
    for group, expected in zip(groups, case["groups"], strict=True):
        params = group["params"]
        actual = group | {"params": [names[id(p)] for p in params], "shapes": [list(p.shape) for p in params]}
        expected = dict(expected)
        close([actual.pop("lr"), actual.pop("initial_lr")], [expected.pop("lr"), expected.pop("initial_lr")], "D")
        assert json.loads(json.dumps(actual)) == expected
    assert sum(len(group["params"]) for group in groups) == len(names)


def run_full() -> tuple[GPT, MuonAdamW, dict[int, dict[str, torch.Tensor]]]:
    """The recorded model and schedule for three steps: model, optimizer, parameters after each step."""
    full = VECTORS["full"]
    model = build(full["config"])
    names = dict(model.named_parameters())
    assert list(names) == full["param_order"]
    for name, p in names.items():
        p.data = tensor(f"full_p0:{name}")
    optimizer = model.setup_optimizer(**full["setup_kwargs"])
    after = {}
    for s, schedule in enumerate(full["schedule"], start=1):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule["lrm"]
            if group["kind"] == "muon":
                group |= {key: schedule[key] for key in ("momentum", "weight_decay")}
        for name, p in names.items():
            p.grad = tensor(f"full_g{s}:{name}")
        optimizer.step()
        after[s] = {name: p.detach().clone() for name, p in names.items()}
    return model, optimizer, after


def test_three_steps_of_a_model_match_the_original() -> None:
    _, _, after = run_full()
    for s in (1, 3):
        for name, value in after[s].items():
            assert_close(value, f"full_p{s}:{name}", rtol=1e-4, atol=1e-5)


def test_state_dict_layout_is_the_originals() -> None:
    expected = VECTORS["state_dict_layout"]
    state_dict = run_full()[1].state_dict()

    def describe(value: Any) -> Any:
        return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__

    described = {
        str(index): {name: describe(value) for name, value in state.items()}
        for index, state in state_dict["state"].items()
    }
    assert described == expected["state"]
    tensors = [x for state in state_dict["state"].values() for x in state.values() if isinstance(x, torch.Tensor)]
    assert sorted({str(x.dtype) for x in tensors}) == expected["state_dtypes"]
    for group, expected_group in zip(state_dict["param_groups"], expected["param_groups"], strict=True):
        group, expected_group = dict(group), dict(expected_group)
        close([group.pop("lr"), group.pop("initial_lr")], [expected_group.pop(k) for k in ("lr", "initial_lr")], "D")
        assert json.loads(json.dumps(group)) == expected_group


# One optimizer, plain references


def make_groups(seed: int = 0) -> list[dict[str, Any]]:
    """Every kind of parameter: table, bf16 table, scalar vector, and wide, tall, square and single-row matrices."""
    rng = torch.Generator().manual_seed(seed)

    def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(shape, generator=rng).to(dtype))

    adamw = {"kind": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    muon = {"kind": "muon", "lr": 0.02, "momentum": 0.9, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.1}
    return [
        adamw | {"params": [parameter(40, 8), parameter(40, 8, dtype=torch.bfloat16)]},
        adamw | {"params": [parameter(3), parameter()]},
        *(muon | {"params": [parameter(*shape) for _ in range(3)]} for shape in ((4, 9), (9, 4), (6, 6), (1, 12))),
    ]


def set_gradients(groups: list[dict[str, Any]], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for group in groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)


def parameters_of(groups: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [p for group in groups for p in group["params"]]


@pytest.mark.parametrize("max_numel_stacked", [1, 100, 2**16], ids=["one by one", "two and one", "all at once"])
def test_stacked_muon_is_muon_on_each_matrix(max_numel_stacked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of three must not mix its matrices, however it is cut; `Muon` takes them one by one."""
    monkeypatch.setattr(optim, "MAX_NUMEL_STACKED_ON_CPU", max_numel_stacked)
    stacked, single = make_groups()[2:], make_groups()[2:]
    optimizer = MuonAdamW(stacked)
    one_by_one = Muon(parameters_of(single), lr=0.02, momentum=0.9, weight_decay=0.1)
    for seed in range(3):
        set_gradients(stacked, seed)
        set_gradients(single, seed)
        optimizer.step()
        one_by_one.step()
    for a, b in zip(parameters_of(stacked), parameters_of(single), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_adamw_agrees_with_pytorch() -> None:
    """torch.optim.AdamW is the same algorithm, written by others."""
    ours, theirs = make_groups()[:2], make_groups()[:2]
    for groups in (ours, theirs):
        groups[0]["params"].pop()  # PyTorch does bf16 arithmetic in bf16
    optimizer = MuonAdamW(ours)
    reference = torch.optim.AdamW(parameters_of(theirs), lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    for seed in range(3):
        set_gradients(ours, seed)
        set_gradients(theirs, seed)
        optimizer.step()
        reference.step()
    for a, b in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_tall_matrices_step_further() -> None:
    """The lr of a tall matrix is multiplied by sqrt(m / n), that of a wide one is not."""
    moved = {}
    for shape in ((16, 4), (4, 16)):
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=1.0).step()
        moved[shape] = p.norm().item()
    assert moved[4, 16] == pytest.approx(2.0, rel=1e-4)  # sqrt(min(m, n))
    assert moved[16, 4] == pytest.approx(4.0, rel=1e-4)  # twice that


def test_a_saved_optimizer_goes_on_as_if_never_stopped() -> None:
    straight, resumed = make_groups(), make_groups()
    first, second = MuonAdamW(straight), MuonAdamW(resumed)
    for groups, optimizer in ((straight, first), (resumed, second)):
        for seed in range(2):
            set_gradients(groups, seed)
            optimizer.step()
    reloaded = MuonAdamW(resumed)
    reloaded.load_state_dict(second.state_dict())
    for groups, optimizer in ((straight, first), (resumed, reloaded)):
        set_gradients(groups, 2)
        optimizer.step()
    for a, b in zip(parameters_of(straight), parameters_of(resumed), strict=True):
        assert torch.equal(a, b)


def test_step_leaves_gradients_as_they_were() -> None:
    groups = make_groups()
    optimizer = MuonAdamW(groups)
    set_gradients(groups, 0)
    before = [p.grad.clone() for p in parameters_of(groups) if p.grad is not None]
    optimizer.step()
    for p, grad in zip(parameters_of(groups), before, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, grad)


# Rules that hold for every matrix

matrices = st.builds(
    lambda k, m, n, scale, seed: torch.randn(k, m, n, generator=torch.Generator().manual_seed(seed)) * scale,
    st.integers(1, 3),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.integers(0, 2**31),
)
quick = settings(max_examples=40, deadline=None, derandomize=True)


@quick
@given(matrices)
def test_row_equilibration_keeps_the_norm_and_levels_the_rows(x: torch.Tensor) -> None:
    y = optim.equilibrate_rows(x)
    torch.testing.assert_close(optim.frobenius_norm(y), optim.frobenius_norm(x), rtol=1e-4, atol=0)
    row_norms = y.norm(dim=-1)
    torch.testing.assert_close(row_norms, row_norms.mean(-1, keepdim=True).expand_as(row_norms), rtol=1e-4, atol=0)


@quick
@given(matrices, st.sampled_from([optim.polar_express, optim.newton_schulz]))
def test_orthogonalisation_keeps_singular_vectors_and_commutes_with_transposing(x: torch.Tensor, f: Any) -> None:
    y = f(x)
    torch.testing.assert_close(f(x.mT), y.mT, rtol=1e-4, atol=1e-4)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    core = u.mT @ y.double() @ vh.mT  # diagonal if the singular vectors are kept
    diagonal = core.diagonal(dim1=-2, dim2=-1)
    assert (core - torch.diag_embed(diagonal)).abs().max() < 1e-3
    well_conditioned = s > 0.02 * s.square().sum(-1, keepdim=True).sqrt()
    assert ((diagonal > 0.6) & (diagonal < 1.25))[well_conditioned].all()


@quick
@given(matrices, st.sampled_from([-1, -2]), st.floats(0.0, 1.0))
def test_variance_reduction_keeps_the_norm(x: torch.Tensor, red_dim: int, beta2: float) -> None:
    second_momentum = torch.rand_like(x.sum(red_dim, keepdim=True)) + 0.1
    y = optim.reduce_variance(x, second_momentum, scalar(beta2), red_dim)
    torch.testing.assert_close(optim.frobenius_norm(y), optim.frobenius_norm(x), rtol=1e-4, atol=0)


@quick
@given(matrices)
def test_decay_never_fights_the_update(x: torch.Tensor) -> None:
    """An entry decays exactly where lr·update already pulls it towards zero, or the update is zero."""
    update = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).relu()
    decayed, plain = x.clone(), x.clone()
    optim.cautious_update(decayed, update, scalar(0.1), scalar(0.5))
    optim.cautious_update(plain, update, scalar(0.1), scalar(0.0))
    expected = torch.where(update * x >= 0, plain - 0.05 * x, plain)
    torch.testing.assert_close(decayed, expected, rtol=1e-5, atol=1e-5 * float(x.abs().max()))


def test_quintic_iteration_is_a_polynomial_in_the_singular_values() -> None:
    a, b, c = optim.NEWTON_SCHULZ_COEFFS
    s = torch.tensor([0.9, 0.5, 0.1])
    x = torch.diag(s)[None]
    torch.testing.assert_close(
        optim.quintic_iterations(x, [(a, b, c)])[0].diagonal(), a * s + b * s**3 + c * s**5, rtol=1e-5, atol=1e-6
    )


# Bad input


def test_missing_gradients_are_refused_before_anything_moves() -> None:
    assert VECTORS["none_grad_raises"] == {"adamw": True, "muon": True}
    for i in range(len(make_groups())):
        groups = make_groups()
        optimizer = MuonAdamW(groups)
        set_gradients(groups, 0)
        groups[i]["params"][-1].grad = None
        before = [p.detach().clone() for p in parameters_of(groups)]
        with pytest.raises(ValueError, match="no gradient"):
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(parameters_of(groups), before, strict=True))
    with pytest.raises(ValueError, match="no gradient"):
        Muon([torch.nn.Parameter(torch.ones(2, 2))]).step()


def test_malformed_groups_are_refused() -> None:
    assert VECTORS["errors"] == {"unknown_kind": "ValueError"}
    adamw, *_, muon = make_groups()
    without_kind = {key: value for key, value in adamw.items() if key != "kind"}
    without_lr = {key: value for key, value in muon.items() if key != "lr"}
    vector, other_shape = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))
    for group, message in [
        (adamw | {"kind": "sgd"}, "parameter group 0: kind must be 'adamw' or 'muon', got 'sgd'"),
        (without_kind, "got None"),
        (without_lr, "lacks lr"),
        (muon | {"params": [vector]}, "matrices of one shape"),
        (muon | {"params": [*muon["params"], other_shape]}, "matrices of one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            MuonAdamW([group])
    with pytest.raises(ValueError, match=r"give a parameter of shape \(3,\) to AdamW"):
        Muon([vector])
    for ns_steps in (-1, 6):
        with pytest.raises(ValueError, match=r"ns_steps must be in 0\.\.5"):
            optim.polar_express(torch.eye(2), ns_steps)


def test_state_of_another_number_of_ranks_is_refused() -> None:
    groups = make_groups()
    optimizer = MuonAdamW(groups)
    set_gradients(groups, 0)
    optimizer.step()
    state_dict = optimizer.state_dict()
    state_dict["state"][0]["exp_avg"] = state_dict["state"][0]["exp_avg"][:20]
    resumed = MuonAdamW(groups)
    resumed.load_state_dict(state_dict)
    with pytest.raises(ValueError, match="resume with the number of ranks that saved it"):
        resumed.step()


# Compiled code


def test_steps_can_be_compiled_without_recompiling_for_a_schedule() -> None:
    """On CUDA the steps run through torch.compile: here the tracer sees them, with a backend that needs no compiler."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(step: Any) -> Any:
        return torch.compile(step.__wrapped__, backend=backend, dynamic=False, fullgraph=True)

    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    cases: list[tuple[Any, tuple[int, ...], dict[str, float], dict[str, int]]] = [
        (optim.adamw_step_fused, (2, 6, 4), {"step": 1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-10, "wd": 0.1}, {}),
        (optim.muon_step_fused, (2, 6, 1), {"momentum": 0.9, "wd": 0.1, "beta2": 0.9}, {"ns_steps": 5, "red_dim": -1}),
    ]
    for eager, second_shape, hyperparameters, constants in cases:
        step = compiled(eager)
        for lr in (0.1, 0.2):
            scalars = {name: scalar(value) for name, value in (hyperparameters | {"lr": lr}).items()}
            results = []
            for run in (step, eager):
                tensors = [x.clone(), x.clone(), torch.zeros_like(x), torch.zeros(second_shape)]
                run(*tensors, **scalars, **constants)
                results.append(tensors)
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)
    assert len(graphs) == len(cases)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    with compute_dtype(torch.float32):
        cpu, cuda = make_groups(), make_groups()
        for group in cuda:
            group["params"] = [torch.nn.Parameter(p.detach().cuda()) for p in group["params"]]
        optimizers = MuonAdamW(cpu), MuonAdamW(cuda)
        for seed in range(3):
            set_gradients(cpu, seed)
            for p, q in zip(parameters_of(cpu), parameters_of(cuda), strict=True):
                assert p.grad is not None
                q.grad = p.grad.cuda()
            for optimizer in optimizers:
                optimizer.step()
    for p, q in zip(parameters_of(cpu), parameters_of(cuda), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=2e-2, atol=2e-3)
