"""Fine-tuning batches equal the original's, and settings are inherited from the checkpoint."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanochat import sft
from nanochat.packing import BestFitBuffer
from tests.vectors_io import arrays, close, load

VECTORS = load("sft_packing")
# Their data sets hold conversations longer than a row: the original yields rows of nothing, ours raises.
OVERLONG = {"main_T16", "long_T32", "clog_T32"}
CASES = {case["name"]: case for case in VECTORS["cases"]}
FITTING = [name for name in CASES if name not in OVERLONG]


class ReadyRendered:
    """A tokenizer for conversations that are rendered already: {ids, mask}."""

    def get_bos_token_id(self) -> int:
        return 0

    def render_conversation(self, conversation: dict[str, list[int]]) -> tuple[list[int], list[int]]:
        return conversation["ids"], conversation["mask"]


def conversation(*ids: int, trained: int = 1) -> dict[str, list[int]]:
    """Token ids of which the last `trained` are to be learnt."""
    return {"ids": list(ids), "mask": [0] * (len(ids) - trained) + [1] * trained}


def generate(conversations: Any, n: int, B: int = 1, T: int = 8, **options: Any) -> list[Any]:
    return list(islice(sft.SFTLoader(conversations, ReadyRendered(), B, T, **options), n))


def generate_case(case: dict[str, Any]) -> list[Any]:
    options = {name: case[name] for name in ("rank", "world_size", "buffer_size", "num_iterations")}
    return generate(VECTORS["datasets"][case["dataset"]], case["n_batches"], case["B"], case["T"], **options)


@pytest.mark.parametrize("name", FITTING)
def test_batches_equal_the_original(name: str) -> None:
    batches = generate_case(CASES[name])
    close(torch.stack([inputs for inputs, _, _ in batches]), arrays("sft_packing")[f"{name}_inputs"], "E")
    close(torch.stack([targets for _, targets, _ in batches]), arrays("sft_packing")[f"{name}_targets"], "E")
    assert {inputs.dtype for inputs, _, _ in batches} == {torch.int32}
    assert {targets.dtype for _, targets, _ in batches} == {torch.int64}


@pytest.mark.parametrize("name", [name for name in FITTING if CASES[name]["split"] == "train"])
def test_state_equals_the_original(name: str) -> None:
    """The original's progress goes past 1 after the last step; ours stops at 1."""
    case, states = CASES[name], [state for _, _, state in generate_case(CASES[name])]
    assert [state.last_step for state in states] == case["last_step"]
    assert [state.epoch for state in states] == case["current_epoch"]
    close([state.progress for state in states], np.minimum(case["approx_progress"], 1.0), "D")


@pytest.mark.parametrize("name", [name for name in FITTING if CASES[name]["split"] == "val"])
def test_the_original_keeps_no_state_for_validation(name: str) -> None:
    """So there is none to compare: what it records is untouched, and ours belongs to each generator."""
    case = CASES[name]
    assert (set(case["last_step"]), set(case["approx_progress"]), set(case["current_epoch"])) == ({False}, {0.0}, {1})


def test_packing_without_the_length_check_equals_the_original_on_overlong_conversations() -> None:
    """In main_T16 over-long conversations fill the buffer until a row holds nothing: packing itself agrees."""
    for name in sorted(OVERLONG):
        case = CASES[name]
        rendered = [np.array([c["ids"], c["mask"]]) for c in VECTORS["datasets"][case["dataset"]]]
        buffer: BestFitBuffer[np.ndarray] = BestFitBuffer()
        stream = iter(rendered * 10)

        def refill(
            buffer: BestFitBuffer[np.ndarray] = buffer, stream: Any = stream, size: int = case["buffer_size"]
        ) -> None:
            while len(buffer) < size:
                item = next(stream)
                buffer.add(item, item.shape[1])

        rows = np.stack(
            [sft.pack_row(buffer, case["T"] + 1, refill, 0)[0] for _ in range(case["n_batches"] * case["B"])]
        )
        shape = (case["n_batches"], case["B"], case["T"])
        close(rows[:, 0, :-1].reshape(shape), arrays("sft_packing")[f"{name}_inputs"], "E")
        targets = np.where(rows[:, 1, 1:] == 1, rows[:, 0, 1:], -1)
        close(targets.reshape(shape), arrays("sft_packing")[f"{name}_targets"], "E")


@pytest.mark.parametrize(("name", "index", "tokens"), [("main_T16", 1, 18), ("long_T32", 21, 34), ("clog_T32", 0, 60)])
def test_an_overlong_conversation_is_named(name: str, index: int, tokens: int) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=f"Conversation {index} has {tokens} tokens and a row holds {case['T'] + 1}"):
        generate_case(case)


def test_a_conversation_of_exactly_a_row_is_placed() -> None:
    inputs, targets, state = generate([conversation(*range(9), trained=2)], 1, T=8, buffer_size=1)[0]
    assert inputs.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert targets.tolist() == [[-1, -1, -1, -1, -1, -1, 7, 8]]
    assert state == (True, 1.0, 2)


def test_targets_are_one_ahead_of_inputs_with_the_mask_of_the_target() -> None:
    """And the first padding position is where the last token would have to say what follows it."""
    inputs, targets, _ = generate([conversation(0, 5, 6, 7, trained=2)], 1, T=6, buffer_size=1)[0]
    assert inputs.tolist() == [[0, 5, 6, 7, 0, 0]]
    assert targets.tolist() == [[-1, 6, 7, -1, -1, -1]]


def test_ranks_read_disjoint_conversations_that_cover_all() -> None:
    """With a size that the world size does not divide, every pass still hands each conversation to one rank."""
    conversations = [conversation(0, 100 + i) for i in range(7)]
    seen: list[int] = []
    for rank in range(3):
        batches = generate(conversations, 7, B=1, T=1, rank=rank, world_size=3, buffer_size=1)
        seen += [int(targets) for _, targets, _ in batches]
    assert sorted(seen) == sorted([100 + i for i in range(7)] * 3)


def test_more_ranks_than_conversations() -> None:
    inputs, _, state = generate([conversation(0, 1)], 1, T=1, rank=2, world_size=4, buffer_size=1)[0]
    assert inputs.tolist() == [[0]]
    assert state.last_step


def test_one_pass_ends_the_run_even_if_more_iterations_are_asked_for() -> None:
    states = [state for _, _, state in generate([conversation(0, 1)] * 2, 3, T=1, buffer_size=1, num_iterations=100)]
    assert [state.last_step for state in states] == [False, True, True]


def test_batches_can_be_kept() -> None:
    (first, *_), (second, *_) = generate([conversation(0, 1), conversation(5, 6)], 2, T=1, buffer_size=1)
    assert (first.tolist(), second.tolist()) == ([[0]], [[5]])


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 3, "num_iterations": 4}])
def test_a_saved_loader_continues_exactly(tmp_path: Path, options: dict[str, Any]) -> None:
    """Saved after any number of batches, it yields the last one again and then what the uninterrupted one yields."""

    def make() -> sft.SFTLoader:
        return sft.SFTLoader(VECTORS["datasets"]["main"], ReadyRendered(), 2, 32, buffer_size=7, **options)

    uninterrupted = [(x.tolist(), y.tolist(), state) for x, y, state in islice(make(), 14)]
    running = make()
    for i in range(10):
        next(running)
        torch.save(running.state_dict(), tmp_path / "state.pt")
        resumed = make()
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [(x.tolist(), y.tolist(), state) for x, y, state in islice(resumed, 4)] == uninterrupted[i : i + 4]


@pytest.mark.parametrize(
    ("conversations", "options", "message"),
    [([], {}, "no conversations"), ([conversation(0, 1)], {"buffer_size": 0}, "`buffer_size` is 0")],
)
def test_bad_input_is_explained(conversations: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(conversations, 1, **options)


@pytest.mark.parametrize("case", load("train_recipe")["sft_inherit"])
def test_hyperparameters_are_inherited_from_the_checkpoint(case: dict[str, Any]) -> None:
    assert sft.resolve_hyperparameters(case["cli"], case["checkpoint_meta"]) == case["resolved"]


def test_zero_is_a_value_and_none_is_not() -> None:
    meta = {"max_seq_len": None, "user_config": {"matrix_lr": 0.03, "embedding_lr": None}}
    resolved = sft.resolve_hyperparameters({"matrix_lr": 0.0, "device_batch_size": None}, meta)
    assert resolved == {**sft.RUN_DEFAULTS, **sft.LR_DEFAULTS, "matrix_lr": 0.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_cuda_equal_those_on_the_cpu() -> None:
    conversations = VECTORS["datasets"]["main"]
    on_cpu = generate(conversations, 20, 3, 32)
    for (inputs, targets, state), expected in zip(
        generate(conversations, 20, 3, 32, device="cuda"), on_cpu, strict=True
    ):
        assert inputs.is_cuda
        assert (inputs.tolist(), targets.tolist(), state) == (expected[0].tolist(), expected[1].tolist(), expected[2])
