"""Puzzle 4's judges: the oracle agrees with the golden vectors, and the cases ask what they should."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from autograder.judges import inference_engine
from autograder.judges.inference_engine import cache, loop, rows
from tests import vectors_io

JUDGES = inference_engine.JUDGES
VECTOR = vectors_io.load("engine")
SPECIAL = [VECTOR["special_tokens"][name] for name in rows.SIGNS]


# the cases ask what they should ask


def test_a_random_exam_meets_every_fate_of_a_row():
    """Values, zeros, refusals, forced tokens cut off, rows completed early and rows that never are."""
    cases = rows.row_cases(random.Random(3))
    told = [(case, rows.emitted_by()(**case)) for case in cases]
    asked = [text for _, answer in told for text in answer["asked"]]
    assert len(asked) > 40
    lines = [row for _, answer in told for row in answer["rows"]]
    assert any("[0]" in row["emitted"] for row in lines)
    assert any(row["mask"].endswith("0") for row in lines)
    assert any(row["completed"].startswith("0") and row["completed"].endswith("1") for row in lines)
    assert any("1" not in row["completed"] for row in lines)


def test_a_random_exam_ends_loops_in_both_ways():
    """By max_tokens and by completion, with rows that differ and tokens that are forced."""
    early = full = forced = 0
    for case in loop.loop_cases(random.Random(3))[-10:]:
        columns = loop.run_with()(**case)["columns"]
        room = case["sequence_len"] - len(case["tokens"]) if case["max_tokens"] is None else case["max_tokens"]
        early += len(columns) < room
        full += len(columns) == room
        forced += any(0 in mask for _, mask in columns)
    assert early
    assert full
    assert forced


def test_ties_are_the_only_place_where_the_order_of_equal_logits_matters():
    """Which of equal logits top-k keeps is PyTorch's affair: where it could show, only their number is asked for."""
    for seed in range(3):
        for case in JUDGES["sample_next_token"].cases(random.Random(seed)):
            tied = any(len(set(row)) < len(row) for row in case["logits"])
            assert not tied or case["report"] == "variety" or case["temperature"] == 0


# the oracle against the golden vectors


def test_sampling_agrees_with_the_vectors():
    logits = vectors_io.arrays("engine")["sample_logits"].tolist()
    for case in VECTOR["sample"]:
        answer = JUDGES["sample_next_token"].oracle(
            logits=logits,
            temperature=case["temperature"],
            top_k=case["top_k"],
            seed=case["seed"],
            draws=len(case["draws"]),
            report="tokens",
        )
        assert answer["tokens"].T.tolist() == case["draws"]


def test_the_cache_agrees_with_the_vectors():
    arrays = vectors_io.arrays("engine")
    one, many = cache.size_of(1, 2, 6, 3, 2), cache.size_of(3, 2, 9, 3, 2)
    k = torch.from_numpy(arrays["kv_src_k"])[:, :, :4]
    prompt = [*(("write", layer, k[layer], -k[layer]) for layer in (0, 1)), ("advance", 4)]
    prompt.append(("remember", torch.arange(5.0).view(1, 1, 5)))
    steps: list[tuple] = [("prefill", one, prompt)]
    state = JUDGES["kv_cache"].oracle(size=many, dtype=torch.float32, steps=steps)[-1]
    vectors_io.close(state["keys"], arrays["kv_dst_k"][:, :, :4], "E")
    vectors_io.close(state["values"], arrays["kv_dst_v"][:, :, :4], "E")
    vectors_io.close(state["cache_seqlens"], arrays["kv_dst_seqlens"], "E")
    vectors_io.close(state["prev_embedding"], arrays["kv_dst_prev"], "E")


SCENARIOS = {scenario["name"]: scenario for scenario in VECTOR["scenarios"]}
# the vectors' tokenizer has no text for a special token, the puzzle's has its sign
ONE_ROW = [name for name in SCENARIOS if not name.startswith("rows") and name != "tool_special_inside_block"]


def sampled_in(scenario: dict[str, Any]) -> list[int]:
    """What the scenario's model would say at each position after the prompt, chosen greedily."""
    start, length = len(scenario["prompt"]) - 1, len(scenario["yields"])
    said = [scenario["by_pos"].get(str(start + i), scenario["default"]) for i in range(length)]
    return [max(pairs, key=lambda pair: pair[1])[0] for pairs in said]


@pytest.mark.parametrize("name", ONE_ROW)
def test_rows_agree_with_the_vectors(name):
    """The engine's scenarios of one row, given token by token."""
    scenario = SCENARIOS[name]
    signs = rows.SignTokenizer(SPECIAL, 0)
    answer = rows.emitted_by()(sampled=[signs.show(sampled_in(scenario))], special=SPECIAL, first=0)["rows"][0]
    assert signs.read(answer["emitted"]) == [token for (token,), _ in scenario["yields"]]
    assert answer["mask"] == "".join(str(mask) for _, (mask,) in scenario["yields"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_batches_agree_with_the_vectors(name):
    scenario = SCENARIOS[name]
    answer = loop.collect(
        columns=[tuple(column) for column in scenario["yields"]],
        tokens=scenario["prompt"],
        num_samples=scenario["num_samples"],
        terminal=[VECTOR["special_tokens"]["<|assistant_end|>"], VECTOR["special_tokens"]["<|bos|>"]],
    )
    assert answer["sequences"] == scenario["batch_results"]
    assert answer["masks"] == scenario["batch_masks"]


@pytest.mark.parametrize("name", [name for name in ONE_ROW if not name.startswith(("tool", "prompt"))])
def test_the_loop_agrees_with_the_vectors(name):
    """Scenarios without a tool: columns, and a forward pass less than the original's last one."""
    scenario = SCENARIOS[name]
    said = [scenario["prompt"][-1], *sampled_in(scenario)]
    terminal = [VECTOR["special_tokens"]["<|assistant_end|>"], VECTOR["special_tokens"]["<|bos|>"]]
    answer = loop.run_with()(
        tokens=scenario["prompt"],
        num_samples=1,
        max_tokens=scenario["kwargs"].get("max_tokens"),
        after={token: [following] for token, following in pairwise(said)},
        forced=[],
        ends=terminal,
        vocab_size=262,
        sequence_len=40,
    )
    assert [[list(tokens), list(mask)] for tokens, mask in answer["columns"]] == scenario["yields"]
    forwards = [line for line in answer["log"] if line.startswith("forward")]
    assert len(forwards) == max(0, len(scenario["model_calls_B_T_pos_cachelen"]) - 1)
