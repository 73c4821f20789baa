"""The KV cache, sampling, the calculator and the engine's tool state machine, against the original's numbers."""

import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nanochat import recipe
from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import InputError
from nanochat.engine import Engine, KVCache, sample_next_token, use_calculator
from nanochat.gpt import GPT, GPTConfig
from tests.vectors_io import VECTORS, arrays, close, load

VECTOR = load("engine")
ARRAYS = arrays("engine")


class ToyTokenizer:
    """Bytes, and specials above them, as in the vectors' scenarios."""

    def __init__(self, special: dict[str, int], offset: int = 0) -> None:
        self.special, self.offset = special, offset

    def encode_special(self, text: str) -> int:
        return self.special[text]

    def get_bos_token_id(self) -> int:
        return self.special["<|bos|>"]

    def encode(self, text: str) -> list[int]:
        return [byte - self.offset for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i + self.offset for i in ids if i + self.offset < 256).decode(errors="replace")


class ScriptedModel:
    """Logits looked up by position, else by token, else a default; counts its forwards."""

    config = SimpleNamespace(n_kv_head=1, n_head=2, n_embd=8, n_layer=1, sequence_len=40)

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.scenario = scenario
        self.calls: list[tuple[int, ...]] = []

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, ids: torch.Tensor, kv_cache: KVCache) -> torch.Tensor:
        B, T = ids.shape
        start = kv_cache.get_pos()
        assert start + T <= kv_cache.max_seq_len, "the engine's cache is too short"
        kv_cache.advance(T)
        self.calls.append((B, T, start))
        logits = torch.full((B, T, 262), -1e4)
        for b in range(B):
            for t in range(T):
                by_tok = self.scenario["by_tok"].get(str(int(ids[b, t])), self.scenario["default"])
                for token, logit in self.scenario["by_pos"].get(str(start + t), by_tok):
                    logits[b, t, token] = logit
        return logits


@cache
def tiny_model() -> GPT:
    state, _, meta = load_checkpoint(VECTORS / "checkpoint", 10, "cpu")
    model = recipe.build_model(GPTConfig(**meta["model_config"]), "cpu")
    model.load_state_dict(state)
    return model.eval()


def toy_engine(scenario: dict[str, Any]) -> Engine:
    return Engine(ScriptedModel(scenario), ToyTokenizer(VECTOR["special_tokens"]))


# Calculator


@pytest.mark.parametrize("case", VECTOR["use_calculator"], ids=lambda case: case["expr"])
def test_calculator_gives_the_recorded_results(case: dict[str, str]) -> None:
    result = use_calculator(case["expr"])
    assert (type(result).__name__, str(result)) == (case["type"], case["str"])


def test_calculator_never_runs_long() -> None:
    """The original gives up on this after 3 s; a loop is refused at once, and the next call works."""
    started = time.perf_counter()
    result = use_calculator(VECTOR["use_calculator_timeout"]["expr"])
    assert type(result).__name__ == VECTOR["use_calculator_timeout"]["result_type"]
    assert time.perf_counter() - started < 3
    after = use_calculator("1+1")
    assert (type(after).__name__, str(after)) == tuple(VECTOR["use_calculator_after_timeout"].values())


@pytest.mark.parametrize(
    "expr",
    [
        "'ab'.join('ab'.join('ab'.join('abcdefgh'))).count('a')",  # grows exponentially with the nesting
        "'a'.zfill(99999999999).count('a')",
        "'a'.center(99999999999).count('a')",
        "*".join(["9" * 4000] * 3),  # an integer too long to print
        "(" * 5000 + "1" + ")" * 5000,
        "-" * 50000 + "1",
        "9" * 5000,
        "(lambda x.count('a') x)('a')",
        "('a' for a in 'a'.count('a'))",
        "''.count('a').bit_length()",
        "\n1+1",
    ],
    ids=lambda expr: expr[:24],
)
def test_calculator_refuses_what_could_run_long_or_cannot_be_printed(expr: str) -> None:
    started = time.perf_counter()
    assert use_calculator(expr) is None
    assert time.perf_counter() - started < 1


def test_calculator_understands_a_counted_method_chain() -> None:
    assert use_calculator("'Strawberry'.lower().count('r')") == 3
    assert use_calculator("'a b a'.split().count('a')") == 2


def test_calculator_works_off_the_main_thread() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(use_calculator("'banana'.count('a')")))
    thread.start()
    thread.join()
    assert results == [3]


@given(st.text(alphabet="0123456789*+-/.() ", max_size=12))
def test_calculator_agrees_with_python_on_arithmetic(expr: str) -> None:
    """Whatever Python makes of it, without powers, or None where Python fails."""
    assume("**" not in expr)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = eval(expr)
    except Exception:
        expected = None
    assert repr(use_calculator(expr)) == repr(expected)


@given(st.text(alphabet="abcount.'\"() ", max_size=40))
def test_calculator_never_raises(text: str) -> None:
    use_calculator(text)
    use_calculator(f"'{text}'.count('a')")


# KV cache


def test_kv_cache_layout_and_positions() -> None:
    expected = VECTOR["kvcache"]
    kv = KVCache(batch_size=2, num_heads=3, seq_len=10, head_dim=4, num_layers=5, device="cpu", dtype=torch.float32)
    assert list(kv.k_cache.shape) == expected["k_shape"]
    assert list(kv.v_cache.shape) == expected["v_shape"]
    assert bool((kv.k_cache == 0).all() and (kv.v_cache == 0).all()) == expected["all_zero"]
    assert str(kv.cache_seqlens.dtype) == expected["seqlens_dtype"]
    assert list(kv.cache_seqlens.shape) == expected["seqlens_shape"]
    assert (kv.get_pos(), type(kv.get_pos()).__name__) == (expected["pos0"], expected["pos_type"])
    assert (kv.prev_embedding is None) == expected["prev_embedding_is_none"]
    for name, value in expected["attrs"].items():
        assert getattr(kv, name) == value, name

    k, v = kv.get_layer_cache(1)
    assert list(k.shape) == list(v.shape) == expected["layer_shape"]
    k.fill_(7)
    assert bool((kv.k_cache[1] == 7).all()) == expected["layer_cache_is_view"]
    assert not kv.v_cache.any()

    kv.advance(4)
    assert kv.get_pos() == expected["pos_after_advance4"]
    kv.advance(3)
    assert kv.get_pos() == expected["pos_after_advance3"]
    assert kv.cache_seqlens.tolist() == expected["seqlens"]

    kv.prev_embedding = torch.ones(2, 1, 4)
    kv.reset()
    after = expected["after_reset"]
    assert kv.get_pos() == after["pos"]
    assert (kv.prev_embedding is None) == after["prev_embedding_is_none"]
    assert bool((kv.k_cache[1] == 7).all()) == after["keeps_stale_values"]


def make_cache(
    batch_size: int = 1, num_heads: int = 2, seq_len: int = 6, head_dim: int = 3, layers: int = 2
) -> KVCache:
    return KVCache(batch_size, num_heads, seq_len, head_dim, layers, "cpu", torch.float32)


def filled_source() -> KVCache:
    source = make_cache()
    source.k_cache.copy_(torch.from_numpy(ARRAYS["kv_src_k"]))
    source.v_cache.copy_(-torch.from_numpy(ARRAYS["kv_src_k"]))
    source.advance(4)
    return source


def test_prefill_copies_one_row_into_all() -> None:
    source = filled_source()
    source.prev_embedding = torch.arange(5.0).view(1, 1, 5)
    kv = make_cache(batch_size=3, seq_len=9)
    kv.prefill(source)
    close(kv.k_cache, ARRAYS["kv_dst_k"], "E")
    close(kv.v_cache, ARRAYS["kv_dst_v"], "E")
    close(kv.cache_seqlens, ARRAYS["kv_dst_seqlens"], "E")
    assert kv.cache_seqlens.dtype == torch.int32
    close(kv.prev_embedding, ARRAYS["kv_dst_prev"], "E")
    assert kv.prev_embedding is not None
    kv.prev_embedding[0] += 1
    assert kv.prev_embedding[1, 0, 0] == 0, "rows share their memory"


def test_prefill_without_prev_embedding() -> None:
    kv = make_cache(batch_size=3, seq_len=9)
    kv.prefill(filled_source())
    assert (kv.prev_embedding is None) == VECTOR["kvcache"]["prefill_without_prev_embedding"]


@pytest.mark.parametrize("name", sorted(VECTOR["kvcache"]["errors"]))
def test_prefill_refuses(name: str) -> None:
    other_shape = {"non_empty": {}, "shorter": {"seq_len": 3}, "heads": {"num_heads": 3}}
    other_shape |= {"head_dim": {"head_dim": 4}, "layers": {"layers": 3}}
    kv = make_cache(**other_shape[name])
    if name == "non_empty":
        kv.advance(1)
    assert VECTOR["kvcache"]["errors"][name] == "AssertionError"
    with pytest.raises(AssertionError):
        kv.prefill(filled_source())


def test_prefill_refuses_a_cache_of_several_rows() -> None:
    with pytest.raises(InputError, match="one row"):
        make_cache(batch_size=2).prefill(make_cache(batch_size=2))


# Sampling


@pytest.mark.parametrize("case", VECTOR["sample"], ids=lambda c: f"t{c['temperature']}_k{c['top_k']}_s{c['seed']}")
def test_sampling_draws_the_recorded_tokens(case: dict[str, Any]) -> None:
    logits = torch.from_numpy(ARRAYS["sample_logits"])
    rng = torch.Generator().manual_seed(case["seed"])
    draws = [sample_next_token(logits, rng, case["temperature"], case["top_k"]) for _ in case["draws"]]
    assert all(draw.shape == (len(logits), 1) for draw in draws)
    assert [draw[:, 0].tolist() for draw in draws] == case["draws"]


def test_greedy_sampling_breaks_ties_and_leaves_the_generator_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    tokens = sample_next_token(torch.from_numpy(ARRAYS["sample_tie_logits"]), rng, temperature=0.0)
    assert tokens[:, 0].tolist() == VECTOR["sample_tie_argmax"]
    assert torch.equal(rng.get_state(), before) == VECTOR["sample_temp0_leaves_rng_untouched"]


def test_negative_temperature_is_an_error() -> None:
    assert VECTOR["sample_errors"] == {"negative_temperature": "AssertionError"}
    with pytest.raises(AssertionError, match="temperature"):
        sample_next_token(torch.zeros(1, 3), torch.Generator(), temperature=-0.5)


@given(st.integers(1, 20), st.integers(1, 30), st.floats(0.1, 3.0))
def test_top_k_only_draws_among_the_k_largest(vocab: int, top_k: int, temperature: float) -> None:
    rng = torch.Generator().manual_seed(vocab)
    logits = torch.randn(4, vocab, generator=rng)
    tokens = sample_next_token(logits, rng, temperature, top_k)
    rank = (logits > logits.gather(1, tokens)).sum(dim=1)
    assert bool((rank < top_k).all())


# Engine


@pytest.mark.parametrize("scenario", VECTOR["scenarios"], ids=lambda s: s["name"])
def test_engine_follows_the_recorded_scenario(scenario: dict[str, Any]) -> None:
    engine = toy_engine(scenario)
    columns = engine.generate(scenario["prompt"], num_samples=scenario["num_samples"], **scenario["kwargs"])
    assert [[tokens, mask] for tokens, mask in columns] == scenario["yields"]

    prompt_length = len(scenario["prompt"])
    calls = engine.model.calls
    assert calls[0] == (1, prompt_length, 0), "one prefill of a single row"
    decodes = [(scenario["num_samples"], 1, prompt_length + i) for i in range(max(0, len(scenario["yields"]) - 1))]
    assert calls[1:] == decodes, "one forward a column, and none after the last"

    results, masks = toy_engine(scenario).generate_batch(
        scenario["prompt"], num_samples=scenario["num_samples"], **scenario["kwargs"]
    )
    assert results == scenario["batch_results"]
    assert masks == scenario["batch_masks"]


def test_a_result_of_zero_is_forced_and_a_block_closes_once() -> None:
    """1-1 gives 0, which is a result; a second <|python_end|> has no block left to evaluate."""
    start, end, output_start, output_end, assistant_end = 256, 257, 258, 259, 260
    script = [start, ord("1"), ord("-"), ord("1"), end, None, None, None, end, ord("x"), assistant_end]
    by_pos = {str(i): [[token, 10.0]] for i, token in enumerate(script) if token is not None}
    engine = toy_engine({"by_pos": by_pos, "by_tok": {}, "default": [[97, 10.0]]})
    results, masks = engine.generate_batch([261], max_tokens=20, temperature=0.0)
    assert results == [[261, *script[:5], output_start, ord("0"), output_end, end, ord("x")]]
    assert masks == [[0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1]]


def test_engine_without_max_tokens_stops_when_the_context_is_full() -> None:
    endless = {"by_pos": {}, "by_tok": {}, "default": [[97, 10.0]]}
    columns = list(toy_engine(endless).generate([261] * 10))
    assert len(columns) == ScriptedModel.config.sequence_len - 10
    with pytest.raises(InputError, match="context"):
        next(toy_engine(endless).generate([261] * 41))


PROMPTS: dict[str, Any] = {"tuple_prompt": (261, 72), "str_token": ["a"], "empty": []}


@pytest.mark.parametrize("name", sorted(VECTOR["engine_errors"]))
def test_engine_refuses_a_prompt_that_is_no_list_of_ids(name: str) -> None:
    expected: dict[str, type[Exception]] = {"AssertionError": AssertionError, "IndexError": IndexError}
    with pytest.raises(expected[VECTOR["engine_errors"][name]]):
        next(toy_engine(VECTOR["scenarios"][0]).generate(PROMPTS[name]))


@pytest.mark.parametrize("case", VECTOR["tiny"], ids=lambda c: str(c["kwargs"]))
def test_engine_on_a_real_model(case: dict[str, Any]) -> None:
    engine = Engine(tiny_model(), ToyTokenizer(VECTOR["tiny_special_tokens"], offset=40))
    results, masks = engine.generate_batch(VECTOR["tiny_prompt"], num_samples=case["num_samples"], **case["kwargs"])
    assert results == case["results"]
    assert masks == case["masks"]


def test_engine_equals_naive_generation() -> None:
    """The cache and the naive road give the same greedy tokens, and those are the recorded ones."""
    prompt, expected = VECTOR["tiny_prompt"], VECTOR["tiny_naive_greedy"]
    assert list(tiny_model().generate(prompt, max_tokens=len(expected), temperature=0.0)) == expected
    engine = Engine(tiny_model(), ToyTokenizer(VECTOR["tiny_special_tokens"], offset=40))
    results, _ = engine.generate_batch(prompt, max_tokens=len(expected), temperature=0.0)
    assert results[0] == prompt + expected


@pytest.mark.parametrize("make_rows", [lambda e: list(e.generate([261], 3, 7)), lambda e: e.generate_batch([261], 3)])
def test_a_one_token_prompt_is_accepted(make_rows: Callable[[Engine], Any]) -> None:
    assert make_rows(toy_engine({"by_pos": {}, "by_tok": {}, "default": [[97, 10.0], [260, 9.0]]}))


def test_generation_leaves_the_model_trainable() -> None:
    """Inference mode must not leak out of the generator, not even between two columns."""
    model = tiny_model()
    engine = Engine(model, ToyTokenizer(VECTOR["tiny_special_tokens"], offset=40))
    columns = engine.generate(VECTOR["tiny_prompt"], max_tokens=4)
    next(columns)
    assert not torch.is_inference_mode_enabled()
    idx = torch.tensor([VECTOR["tiny_prompt"]])
    model(idx[:, :-1], idx[:, 1:]).backward()
    model.zero_grad()
    assert len(list(columns)) == 3
