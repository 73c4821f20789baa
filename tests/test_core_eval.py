"""CORE tasks against the golden vectors, batched as one at a time, on one rank and on two."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import base_eval, core_eval
from nanochat.base_eval import evaluate_core
from nanochat.core_eval import (
    TASK_TYPES,
    batch_sequences_lm,
    batch_sequences_mc,
    choose_fewshot,
    evaluate_example,
    evaluate_examples,
    evaluate_task,
    find_common_length,
    forward_model,
    stack_sequences,
)
from nanochat.gpt import GPT, GPTConfig
from tests.vectors_io import VECTORS, arrays, close, load

VECTOR = load("core_eval")
CPU = torch.device("cpu")


class ByteTokenizer:
    """T1 of the vectors: BOS 0, ids 1 + byte mod 96."""

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend] + [1 + byte % 96 for byte in prompt.encode()] for prompt in prompts]

    def get_bos_token_id(self) -> int:
        return 0


class CharTokenizer(ByteTokenizer):
    """That of the scripted vectors: one id a character."""

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend] + [(ord(character) - 32) % 97 for character in prompt] for prompt in prompts]


class Capped:
    """A model with a longest sequence."""

    def __init__(self, model: Any, max_seq_len: int) -> None:
        self.model, self.max_seq_len = model, max_seq_len

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[1] <= self.max_seq_len
        return self.model(ids)


def scripted_model(ids: torch.Tensor) -> torch.Tensor:
    """Always certain that (3x + 1) mod 97 follows x."""
    return 10.0 * torch.nn.functional.one_hot((3 * ids + 1) % 97, 97).float()


def build_tiny() -> GPT:
    meta = json.loads((VECTORS / "checkpoint/meta_000010.json").read_text())
    with torch.device("meta"):
        model = GPT(GPTConfig(**meta["model_config"]))
    model.to_empty(device="cpu")
    model.init_weights()
    model.load_state_dict(torch.load(VECTORS / "checkpoint/model_000010.pt", weights_only=True))
    return model.eval()


@pytest.fixture(scope="module")
def tiny() -> GPT:
    return build_tiny()


def items_of(task_type: str) -> list[dict[str, Any]]:
    return VECTOR["items"][task_type]


def meta_of(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "task_type": case["task_type"],
        "num_fewshot": case["num_fewshot"],
        "continuation_delimiter": case["delimiter"],
    }


def name_of(case: dict[str, Any]) -> str:
    return f"{case['task_type']}-{case['num_fewshot']}-shot-{case['model_max_seq_len']}"


# Prompts and spans


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_prompts_and_spans(task_type: str) -> None:
    render_prompts, batch_sequences = TASK_TYPES[task_type]
    items = items_of(task_type)
    cases = [case for case in VECTOR["prompts"] if case["task_type"] == task_type]
    assert len(cases) > 20
    for case in cases:
        prompts = render_prompts(items[case["item"]], case["delimiter"], [items[i] for i in case["fewshot"]])
        assert prompts == case["prompts"]
        tokens, start, end = batch_sequences(ByteTokenizer(), prompts)
        assert (start, end) == (case["start"], case["end"])
        assert [len(sequence) for sequence in tokens] == case["lengths"]
        assert len(tokens) == case["n_sequences"]


def test_fewshot_examples_may_be_left_out() -> None:
    item = {"query": "q", "choices": ["a", "b"], "gold": 0}
    assert core_eval.render_prompts_mc(item, ":") == ["q:a", "q:b"]


def test_common_length() -> None:
    for case in VECTOR["find_common_length"]:
        assert find_common_length(case["sequences"], case["direction"]) == case["result"]
    assert VECTOR["find_common_length_bad_direction"] == "KeyError"
    with pytest.raises(KeyError, match="middle"):
        find_common_length([[1]], "middle")


@given(st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=4))
def test_common_length_is_the_longest_shared(sequences: list[list[int]]) -> None:
    left, right = find_common_length(sequences), find_common_length(sequences, "right")
    assert len({tuple(sequence[:left]) for sequence in sequences}) == 1
    assert len({tuple(sequence[len(sequence) - right :]) for sequence in sequences}) == 1
    if left < min(map(len, sequences)):
        assert len({sequence[left] for sequence in sequences}) > 1
    if right < min(map(len, sequences)):
        assert len({sequence[-1 - right] for sequence in sequences}) > 1


def test_spans_are_found_on_tokens() -> None:
    """Two choices share the letter a, but not a token."""

    def tokenizer(prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, 2, {"xab": 3, "xac": 4}[prompt]] for prompt in prompts]

    tokenizer.get_bos_token_id = lambda: 0  # type: ignore[attr-defined]
    tokens, start, end = batch_sequences_mc(tokenizer, ["xab", "xac"])
    assert {"tokens": tokens, "start": start, "end": end} == VECTOR["batch_tokens_mc_ab_ac"]


def test_lm_spans_refuse_what_cannot_be_scored() -> None:
    assert set(VECTOR["batch_lm_errors"].values()) == {"AssertionError"}
    for prompts in (["ab", "b"], ["abc", "xbcd"], ["same", "same"]):
        with pytest.raises(AssertionError, match="must begin"):
            batch_sequences_lm(ByteTokenizer(), prompts)


# Forward


def test_stack_sequences() -> None:
    stacked = stack_sequences([[5, 6, 7], [8], [9, 10]], 0)
    close(stacked, arrays("core_eval")["stacked"], "E")
    assert stacked.dtype == torch.int64


def test_forward_model(tiny: GPT) -> None:
    vector = arrays("core_eval")
    losses, predictions = forward_model(tiny, torch.from_numpy(vector["fwd_ids"]))
    close(losses, vector["fwd_losses"], "L")
    close(predictions, vector["fwd_preds"], "E")
    assert not losses.requires_grad


def test_right_padding_changes_no_score(tiny: GPT) -> None:
    sequences = [list(range(1, n)) for n in (4, 30, 90)]
    losses, _ = forward_model(tiny, stack_sequences(sequences, 96))
    for row, sequence in enumerate(sequences):
        alone, _ = forward_model(tiny, torch.tensor([sequence]))
        close(losses[row, : len(sequence) - 1], alone[0, :-1], "L")


# Verdicts


@pytest.mark.parametrize("is_gpt", [True, False], ids=["GPT", "function"])
@pytest.mark.parametrize("case", VECTOR["evaluate"], ids=name_of)
def test_evaluate(case: dict[str, Any], is_gpt: bool, tiny: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT is evaluated by parts, anything else by whole forwards."""
    items, task_meta = items_of(case["task_type"]), meta_of(case)
    limit = case["model_max_seq_len"]
    model: Any = tiny if is_gpt else lambda ids: tiny(ids)
    if limit is not None:
        model = Capped(model, limit)
    seen = record_scores(monkeypatch)
    results = [evaluate_example(i, model, ByteTokenizer(), items, CPU, task_meta) for i in range(len(items))]
    assert results == case["results"]
    if "mean_losses" in case:
        for scores, expected in zip(seen, case["mean_losses"], strict=True):
            close([score.mean_loss for score in scores], expected, "L")
    for max_batch_tokens in (8192, 150, 1):
        accuracy = evaluate_task(model, ByteTokenizer(), items, CPU, task_meta, max_batch_tokens)
        assert accuracy == case["evaluate_task"]


def record_scores(monkeypatch: pytest.MonkeyPatch) -> list[list[core_eval.Score]]:
    seen: list[list[core_eval.Score]] = []
    score = core_eval._score

    def recorded(*args: Any) -> list[core_eval.Score]:
        seen.append(score(*args))
        return seen[-1]

    monkeypatch.setattr(core_eval, "_score", recorded)
    return seen


@pytest.mark.parametrize("case", [c for c in VECTOR["evaluate"] if "predictions" in c], ids=name_of)
def test_lm_predictions(case: dict[str, Any], tiny: GPT) -> None:
    """Greedy predictions over the span, and what they are compared with."""
    items = items_of("language_modeling")
    for idx, expected in enumerate(case["predictions"]):
        (option,) = core_eval._make_options(idx, ByteTokenizer(), items, meta_of(case), None)
        _, predictions = forward_model(tiny, torch.tensor([option.tokens]))
        assert option.tokens[option.start : option.end] == expected["actual"]
        assert predictions[0, option.start - 1 : option.end - 1].tolist() == expected["predicted"]


@pytest.mark.parametrize("name", ["scripted_lm", "scripted_lm_bad"])
def test_lm_needs_every_token_right(name: str) -> None:
    case = VECTOR[name]
    task_meta = {"task_type": "language_modeling", "num_fewshot": 0, "continuation_delimiter": case["delimiter"]}
    indices = range(len(case["items"]))
    results = evaluate_examples(indices, scripted_model, CharTokenizer(), case["items"], CPU, task_meta)
    assert results == case["results"]


def test_an_empty_answer_wins_in_first_place_only(tiny: GPT) -> None:
    """A choice that begins another has no token of its own, and a NaN for a mean loss."""
    case = VECTOR["mc_choice_is_prefix_of_other"]
    task_meta = {"task_type": "multiple_choice", "num_fewshot": 0, "continuation_delimiter": case["delimiter"]}
    assert evaluate_examples(range(3), tiny, ByteTokenizer(), case["items"], CPU, task_meta) == case["results"]


def test_the_first_of_equal_options_wins() -> None:
    def indifferent(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, 97)

    items = [{"query": "q", "choices": ["a", "b", "c"], "gold": gold} for gold in range(3)]
    task_meta = {"task_type": "multiple_choice", "num_fewshot": 0, "continuation_delimiter": " "}
    assert evaluate_examples(range(3), indifferent, ByteTokenizer(), items, CPU, task_meta) == [True, False, False]


def test_fewshot_choice() -> None:
    for case in VECTOR["fewshot_indices"]:
        assert choose_fewshot(case["idx"], case["n"], case["k"]) == case["indices"]


@given(n=st.integers(2, 30), data=st.data())
def test_fewshot_never_shows_the_item_itself(n: int, data: st.DataObject) -> None:
    idx, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    chosen = choose_fewshot(idx, n, k)
    assert idx not in chosen and len(set(chosen)) == k


def test_errors() -> None:
    assert VECTOR["errors"] == {"unknown_task_type": "ValueError", "too_many_fewshot": "ValueError"}
    items = items_of("multiple_choice")
    good = {"task_type": "multiple_choice", "num_fewshot": 0, "continuation_delimiter": " "}
    for change, message in (({"task_type": "poetry"}, "poetry"), ({"num_fewshot": len(items)}, "num_fewshot")):
        with pytest.raises(ValueError, match=message):
            evaluate_example(0, scripted_model, ByteTokenizer(), items, CPU, good | change)
    with pytest.raises(ValueError, match="more than max_seq_len 2"):
        evaluate_example(0, Capped(scripted_model, 2), ByteTokenizer(), items, CPU, good)


# Batches


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    max_tokens=st.integers(1, 200),
)
def test_batches_hold_everything_once_within_the_bound(lengths: list[int], max_tokens: int) -> None:
    batches = list(core_eval._batches(lengths, max_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens


def test_items_share_forwards(tiny: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batched across items and windows of items, with the verdicts of one at a time."""
    shapes: list[Sequence[int]] = []

    def model(ids: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return tiny(ids)

    items = items_of("multiple_choice") * 6
    task_meta = {"task_type": "multiple_choice", "num_fewshot": 1, "continuation_delimiter": " "}
    alone = [evaluate_example(i, tiny, ByteTokenizer(), items, CPU, task_meta) for i in range(len(items))]
    assert evaluate_examples(range(len(items)), model, ByteTokenizer(), items, CPU, task_meta, 2**20) == alone
    assert len(shapes) == 1
    monkeypatch.setattr(core_eval, "EXAMPLES_AT_ONCE", 5)
    assert evaluate_examples(range(len(items)), model, ByteTokenizer(), items, CPU, task_meta, 2**20) == alone
    assert len(shapes) == 1 + -(-len(items) // 5)


# Shared beginnings


families = st.lists(
    st.tuples(
        st.lists(st.integers(0, 96), min_size=1, max_size=40),  # what the options share
        st.lists(  # of each option: more context, answer
            st.tuples(st.lists(st.integers(0, 96), max_size=4), st.lists(st.integers(0, 96), max_size=4)),
            min_size=1,
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=5,
)


def options_of(family: tuple[list[int], list[tuple[list[int], list[int]]]]) -> list[core_eval.Option]:
    prefix, tails = family
    options = [
        core_eval.Option([0, *prefix, *context, *answer], 1 + len(prefix + context), 1 + len(prefix + context + answer))
        for context, answer in tails
    ]
    shared = core_eval._shared_length(options)
    return [option._replace(shared=shared) for option in options]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(families=families, max_batch_tokens=st.sampled_from([1, 60, 2**20]))
def test_scores_by_parts_are_those_of_whole_forwards(tiny: GPT, families: list[Any], max_batch_tokens: int) -> None:
    """Whatever the options share, and whichever of them share a batch."""
    options = [option for family in families for option in options_of(family)]
    by_parts = core_eval._score(options, tiny, 0, "cpu", max_batch_tokens)
    for option, score in zip(options, by_parts, strict=True):
        (whole,) = core_eval._score([option], lambda ids: tiny(ids), 0, "cpu", 1)
        close([score.mean_loss], [whole.mean_loss], "L")
        assert score.is_greedy == whole.is_greedy


def test_what_options_share_is_read_once_and_logits_are_made_of_answers_only(tiny: GPT) -> None:
    positions = {"layers": 0, "logits": 0}

    def count(name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            positions[name] += inputs[0][..., 0].numel()

        return hook

    hooks = [
        tiny.transformer.h[0].register_forward_pre_hook(count("layers")),
        tiny.lm_head.register_forward_pre_hook(count("logits")),
    ]
    items = [{"query": letter * 40, "choices": ["one", "two", "six", "ten"], "gold": 0} for letter in "abc"]
    task_meta = {"task_type": "multiple_choice", "num_fewshot": 0, "continuation_delimiter": " "}
    evaluate_examples(range(3), tiny, ByteTokenizer(), items, CPU, task_meta, 2**20)
    for hook in hooks:
        hook.remove()
    # BOS, query and space are 42 tokens: 40 are read once, two and the choice by every option.
    assert positions == {"layers": 3 * (40 + 4 * 5), "logits": 3 * 4 * 3}


def test_equal_contexts_are_a_draw(tiny: GPT) -> None:
    """The whole sequence is their common suffix: there is nothing to score, and the first wins."""
    items = [{"context_options": ["same", "same"], "continuation": "end", "gold": gold} for gold in (0, 1)]
    task_meta = {"task_type": "schema", "num_fewshot": 0, "continuation_delimiter": " "}
    for model in (tiny, lambda ids: tiny(ids)):
        assert evaluate_examples(range(2), model, ByteTokenizer(), items, CPU, task_meta) == [True, False]


@pytest.mark.parametrize(("limit", "fits"), [(7, True), (6, False), (5, False)])
def test_an_answer_needs_a_token_before_it(limit: int, fits: bool, tiny: GPT) -> None:
    """An answer that fills the context would be scored without its first token, or not at all: it is refused."""
    items = [{"context": "a long story about", "continuation": "answer"}]
    task_meta = {"task_type": "language_modeling", "num_fewshot": 0, "continuation_delimiter": " "}
    answer = "answer"

    class Tokenizer(ByteTokenizer):
        def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
            return super().__call__([prompts[0] + " ", prompts[1]], prepend)

    model = Capped(lambda ids: tiny(ids), limit)
    if fits:
        (verdict,) = evaluate_examples([0], model, Tokenizer(), items, CPU, task_meta)
        assert verdict is False
        return
    sentence = f"fills max_seq_len {limit}" if limit == len(answer) else f"more than max_seq_len {limit}"
    with pytest.raises(ValueError, match=f"the answer of item 0 .*{sentence}"):
        evaluate_examples([0], model, Tokenizer(), items, CPU, task_meta)


# Ranks


def evaluate_on_rank(rank: int, world_size: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    case = next(case for case in VECTOR["evaluate"] if case["task_type"] == "schema" and case["num_fewshot"] == 2)
    asked: list[int] = []
    make_options = core_eval._make_options

    def recorded(idx: int, *args: Any) -> list[core_eval.Option]:
        asked.append(idx)
        return make_options(idx, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_eval, "_make_options", recorded)
        accuracy = evaluate_task(build_tiny(), ByteTokenizer(), items_of("schema"), CPU, meta_of(case))
    assert accuracy == case["evaluate_task"]
    Path(results, str(rank)).write_text(json.dumps(asked))
    dist.destroy_process_group()
    os._exit(0)  # torch 2.13 now and then aborts ("terminate called") while the interpreter takes gloo's threads down


def test_two_ranks_share_the_items_and_agree(tmp_path: Path) -> None:
    """Five items on two ranks: a mean of the ranks' means would be wrong."""
    results = tmp_path / "results"
    results.mkdir()
    multiprocessing.spawn(evaluate_on_rank, args=(2, str(tmp_path / "rendezvous"), str(results)), nprocs=2)
    assert [json.loads((results / rank).read_text()) for rank in "01"] == [[0, 2, 4], [1, 3]]


# The whole metric


def write_bundle(base: Path) -> None:
    vector = VECTOR["evaluate_core"]
    bundle = base / "eval_bundle"
    for uri, task_type in vector["data"].items():
        path = bundle / "eval_data" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items_of(task_type)))
    (bundle / "core.yaml").write_text(json.dumps({"icl_tasks": vector["icl_tasks"]}))  # JSON is YAML
    rows = [f"{task},some category,{baseline}" for task, baseline in vector["eval_meta_data_rows"]]
    (bundle / "eval_meta_data.csv").write_text("\n".join(["Eval Task,Task Category,Random baseline", *rows]))


@pytest.mark.parametrize("run", VECTOR["evaluate_core"]["runs"], ids=lambda run: str(run["max_per_task"]))
def test_evaluate_core(run: dict[str, Any], tiny: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    write_bundle(tmp_path)
    result = evaluate_core(tiny, ByteTokenizer(), CPU, max_per_task=run["max_per_task"])
    for name in ("results", "centered_results"):
        assert result[name] == pytest.approx(run[name], rel=1e-5)
    assert result["core_metric"] == pytest.approx(run["core_metric"], rel=1e-5)


def test_bundle_is_downloaded_and_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    write_bundle(made)
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in made.rglob("*"):
            file.write(path, path.relative_to(made))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(base_eval, "EVAL_BUNDLE_URL", archive.as_uri())
    bundle = base_eval.ensure_eval_bundle()
    assert base_eval.read_baselines(bundle / "eval_meta_data.csv")["toy_schema"] == 0.5
    archive.unlink()
    assert base_eval.ensure_eval_bundle() == bundle
    assert len(base_eval.read_items(bundle / "eval_data" / "schema.jsonl", 2)) == 2


def test_items_are_shuffled_before_they_are_capped(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    for case in VECTOR["shuffle_1337"]:
        path.write_text("".join(f"{i}\n" for i in range(case["n"])))
        assert base_eval.read_items(path) == case["order"]
        assert base_eval.read_items(path, 3) == case["order"][:3]


def test_items_may_contain_unicode_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"context": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert base_eval.read_items(path) == [{"context": "a\u2028b\u0085c"}]
