"""nanochat.flash_attention: what a query sees, the SDPA path with and without a cache, the choice of FA3."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import flash_attention
from nanochat.common import InputError
from nanochat.flash_attention import flash_attn, visible_mask
from tests.vectors_io import arrays, close, load

CASES = load("attention")
ARRAYS = arrays("attention")


def tensor(name: str) -> torch.Tensor:
    return torch.tensor(ARRAYS[name])


def reference_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, left: int) -> torch.Tensor:
    """Attention written out: heads repeated, scores, mask by two loops, softmax."""
    group = q.size(2) // k.size(2)
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.size(-1) ** 0.5
    Tq, Tk = q.size(1), k.size(1)
    for i in range(Tq):
        position = i + Tk - Tq
        for j in range(Tk):
            if j > position or (left >= 0 and j < position - left):
                scores[..., i, j] = -torch.inf
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


@pytest.mark.parametrize("case", CASES["visibility"], ids=lambda case: case["key"])
def test_visible_mask_matches_vectors(case: dict) -> None:
    mask = visible_mask(case["Tq"], case["Tk"], case["window"], "cpu")
    assert mask.dtype == torch.bool
    close(mask, ARRAYS[case["key"]], "E")


@given(Tq=st.integers(1, 12), cached=st.integers(0, 12), left=st.integers(-1, 30))
def test_visible_mask_is_the_rule(Tq: int, cached: int, left: int) -> None:
    """Query i at position p sees exactly the keys p - left .. p: left + 1 keys, fewer only at the start."""
    mask = visible_mask(Tq, Tq + cached, left)
    assert mask.shape == (Tq, Tq + cached)
    for i, row in enumerate(mask.tolist()):
        position = cached + i
        first = 0 if left < 0 else max(0, position - left)
        assert [j for j, visible in enumerate(row) if visible] == list(range(first, position + 1))


@given(Tq=st.integers(1, 8), cached=st.integers(0, 8), left=st.integers(-1, 20))
def test_visible_mask_is_aligned_to_the_end(Tq: int, cached: int, left: int) -> None:
    """The last queries of a long sequence see what they see when the keys before them come from a cache."""
    full = visible_mask(Tq + cached, Tq + cached, left)
    assert torch.equal(visible_mask(Tq, Tq + cached, left), full[cached:])


@pytest.mark.parametrize("case", CASES["func"], ids=lambda case: case["key"])
def test_func_matches_vectors(case: dict) -> None:
    q, k, v = tensor(case["q"]), tensor(case["k"]), tensor(case["v"])
    y = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=tuple(case["window_size"]))
    close(y, ARRAYS[case["key"]], "F")


def test_func_in_bf16_matches_vectors() -> None:
    q, k, v = (tensor(f"func_gqa_{x}").bfloat16() for x in "qkv")
    y = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(5, 0))
    assert y.dtype == torch.bfloat16
    close(y, ARRAYS["func_gqa_w5_bf16"], "B")


def test_func_gradients_match_vectors() -> None:
    q, k, v = (tensor(f"func_gqa_{x}").requires_grad_() for x in "qkv")
    flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(5, 0)).backward(tensor("grad_gqa_w5_dy"))
    for x, name in ((q, "dq"), (k, "dk"), (v, "dv")):
        close(x.grad, ARRAYS[f"grad_gqa_w5_{name}"], "G")


@settings(max_examples=40, deadline=None)
@given(
    Tq=st.integers(1, 9),
    cached=st.integers(0, 6),
    left=st.integers(-1, 16),
    n_kv_head=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
)
def test_func_is_attention(Tq: int, cached: int, left: int, n_kv_head: int, seed: int) -> None:
    """Every path (causal flag, slice for one query, mask) is the same attention."""
    rng = torch.Generator().manual_seed(seed)
    q = torch.randn(2, Tq, 4, 8, generator=rng)
    k, v = torch.randn(2, 2, Tq + cached, n_kv_head, 8, generator=rng)
    y = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))
    torch.testing.assert_close(y, reference_attention(q, k, v, left), rtol=1e-5, atol=1e-5)


def test_sdpa_path_is_always_causal() -> None:
    """`causal` and the right window are ignored, and without a window everything earlier is seen."""
    assert CASES["causal_flag_ignored"] and CASES["right_window_ignored"] and CASES["default_window_is_full_causal"]
    q, k, v = (tensor(f"func_gqa_{x}") for x in "qkv")
    y = flash_attn.flash_attn_func(q, k, v)
    close(y, ARRAYS["func_gqa_wm1_m1"], "F")
    y = flash_attn.flash_attn_func(q, k, v, causal=False, window_size=(5, 3))
    close(y, ARRAYS["func_gqa_w5_0"], "F")


@pytest.mark.parametrize("case", CASES["kvcache"], ids=lambda case: case["name"])
def test_kvcache_matches_vectors(case: dict) -> None:
    """New keys and values land in the cache in place; cache_seqlens is the caller's to advance."""
    shape = (case["B"], case["T_max"], case["H_kv"], case["D"])
    k_cache, v_cache = torch.zeros(shape), torch.zeros(shape)
    for call in case["calls"]:
        q, k, v = (tensor(call["prefix"] + x) for x in "qkv")
        cache_seqlens = torch.full((case["B"],), call["pos"], dtype=torch.int32)
        y = flash_attn.flash_attn_with_kvcache(
            q,
            k_cache,
            v_cache,
            k=k,
            v=v,
            cache_seqlens=cache_seqlens,
            causal=True,
            window_size=tuple(case["window_size"]),
        )
        close(y, ARRAYS[call["prefix"] + "y"], "F")
        assert cache_seqlens.tolist() == [call["pos"]] * case["B"]
    close(k_cache, ARRAYS[case["final_k"]], "E")
    close(v_cache, ARRAYS[case["final_v"]], "E")


@pytest.mark.parametrize("left, name", [(-1, "ro_wm1_y"), (2, "ro_w2_y")])
def test_kvcache_read_only(left: int, name: str) -> None:
    """Without k and v, the queries attend to what the cache holds up to their own positions."""
    y = flash_attn.flash_attn_with_kvcache(
        tensor("ro_q"),
        tensor("ro_kcache"),
        tensor("ro_vcache"),
        cache_seqlens=torch.tensor([4], dtype=torch.int32),
        causal=True,
        window_size=(left, 0),
    )
    close(y, ARRAYS[name], "F")


def test_kvcache_rows_share_the_first_position() -> None:
    k_cache, v_cache = tensor("nu_kcache0"), tensor("nu_vcache0")
    seqlens = torch.tensor([3, 6], dtype=torch.int32)
    y = flash_attn.flash_attn_with_kvcache(
        tensor("nu_q"), k_cache, v_cache, k=tensor("nu_k"), v=tensor("nu_v"), cache_seqlens=seqlens, causal=True
    )
    close(y, ARRAYS["nu_y"], "F")
    close(k_cache, ARRAYS["nu_kcache1"], "E")
    close(v_cache, ARRAYS["nu_vcache1"], "E")


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.integers(1, 4), min_size=1, max_size=5), left=st.integers(-1, 12))
def test_kvcache_in_pieces_equals_the_whole(pieces: list[int], left: int) -> None:
    T = sum(pieces)
    rng = torch.Generator().manual_seed(T)
    q = torch.randn(1, T, 4, 8, generator=rng)
    k, v = torch.randn(2, 1, T, 2, 8, generator=rng)
    whole = flash_attn.flash_attn_func(q, k, v, causal=True, window_size=(left, 0))
    k_cache, v_cache = torch.zeros(2, 1, T, 2, 8)
    outputs, start = [], 0
    for n in pieces:
        new = slice(start, start + n)
        seqlens = torch.tensor([start], dtype=torch.int32)
        outputs.append(
            flash_attn.flash_attn_with_kvcache(
                q[:, new], k_cache, v_cache, k[:, new], v[:, new], seqlens, causal=True, window_size=(left, 0)
            )
        )
        start += n
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_kvcache_overflow_is_refused() -> None:
    x = torch.zeros(1, 3, 1, 4)
    cache = torch.zeros(1, 4, 1, 4)
    with pytest.raises(InputError, match="positions 2 to 4"):
        flash_attn.flash_attn_with_kvcache(x, cache, cache.clone(), x, x, torch.tensor([2], dtype=torch.int32))


def fake_fa3(calls: list[tuple[str, dict[str, Any]]], as_tuple: bool) -> SimpleNamespace:
    """FA3's interface, recording its calls; some releases return the log-sum-exp as well."""

    def record(name: str) -> Any:
        def attention(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, kwargs))
            return (q + 1, None) if as_tuple else q + 1

        return attention

    return SimpleNamespace(**{name: record(name) for name in vars(flash_attn)})


@pytest.mark.parametrize("as_tuple", [False, True])
def test_fa3_is_called_when_forced(as_tuple: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setitem(vars(flash_attention), "_fa3", fake_fa3(calls, as_tuple))
    monkeypatch.setattr(flash_attention, "_override_impl", "fa3")
    x = torch.zeros(1, 3, 1, 4)
    seqlens = torch.zeros(1, dtype=torch.int32)
    assert flash_attention.USE_FA3
    assert torch.equal(flash_attn.flash_attn_func(x, x, x, causal=True, window_size=(2, 0)), x + 1)
    assert torch.equal(flash_attn.flash_attn_with_kvcache(x, x, x, x, x, seqlens, True, (2, 0)), x + 1)
    assert [name for name, _ in calls] == ["flash_attn_func", "flash_attn_with_kvcache"]
    assert all(kwargs["causal"] is True and kwargs["window_size"] == (2, 0) for _, kwargs in calls)
    assert calls[1][1]["k"] is x and calls[1][1]["v"] is x and calls[1][1]["cache_seqlens"] is seqlens


def test_fa3_is_not_used_for_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(flash_attention), "_fa3", fake_fa3([], False))
    assert flash_attention.USE_FA3
    x = torch.zeros(1, 3, 1, 4, dtype=torch.bfloat16)
    assert torch.equal(flash_attn.flash_attn_func(x, x, x), x)


def test_forcing_fa3_where_there_is_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(flash_attention), "_fa3", None)
    monkeypatch.setattr(flash_attention, "_override_impl", "fa3")
    x = torch.zeros(1, 3, 1, 4)
    with pytest.raises(RuntimeError, match="not available"):
        flash_attn.flash_attn_func(x, x, x)


def pretend_hardware(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, get_kernel: Callable[[str], Any]
) -> None:
    """A CUDA device of that capability (None: no device), and a `kernels` package with that get_kernel."""
    monkeypatch.setitem(vars(flash_attention), "_fa3", None)  # so that what a test resolves is undone after it
    monkeypatch.delitem(vars(flash_attention), "_fa3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=get_kernel))


@pytest.mark.parametrize("capability, used", [(None, False), ((8, 0), False), ((9, 0), True), ((10, 0), False)])
def test_fa3_is_for_hopper_only(
    capability: tuple[int, int] | None, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_hardware(monkeypatch, capability, lambda name: SimpleNamespace())
    assert flash_attention.USE_FA3 is used


def test_a_failing_kernels_package_means_sdpa(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get_kernel(name: str) -> None:
        raise OSError("no network")

    pretend_hardware(monkeypatch, (9, 0), get_kernel)
    assert flash_attention.USE_FA3 is False
    assert "no network" in caplog.text


def test_overriding_decides_without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_kernel(name: str) -> None:
        raise AssertionError("looked for FA3")

    pretend_hardware(monkeypatch, (9, 0), get_kernel)
    monkeypatch.setattr(flash_attention, "_override_impl", "sdpa")
    x = torch.zeros(1, 3, 1, 4)
    assert flash_attention.USE_FA3 is False
    assert torch.equal(flash_attn.flash_attn_func(x, x, x), x)
    assert "_fa3" not in vars(flash_attention)
