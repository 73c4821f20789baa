"""Bits per byte against the original's numbers, and over two real processes."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat import recipe
from nanochat.checkpoint_manager import load_checkpoint
from nanochat.gpt import GPTConfig
from nanochat.loss_eval import evaluate_bpb
from tests.vectors_io import VECTORS, arrays, load

VECTOR = load("loss_eval")
ARRAYS = {name: torch.from_numpy(array) for name, array in arrays("loss_eval").items()}


class RecordedLosses:
    """Returns the stored losses of the batches, in their order."""

    def __init__(self, batches: list[int]) -> None:
        self.batches = list(batches)
        self.calls = 0

    def __call__(self, x: torch.Tensor, y: torch.Tensor, loss_reduction: str) -> torch.Tensor:
        assert loss_reduction == "none"
        i = self.batches[self.calls]
        assert torch.equal(x, ARRAYS[f"x{i}"])
        self.calls += 1
        return ARRAYS[f"loss{i}"].flatten()


def pairs(batches: list[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return ((ARRAYS[f"x{i}"], ARRAYS[f"y{i}"]) for i in batches)


@pytest.mark.parametrize("case", VECTOR["cases"], ids=lambda case: case["name"])
def test_bpb_of_recorded_losses(case: dict[str, Any]) -> None:
    model = RecordedLosses(case["batches"])
    bpb = evaluate_bpb(model, pairs(case["batches"]), case["steps"], ARRAYS["token_bytes"])
    assert bpb == pytest.approx(float(case["bpb"]), rel=1e-6)
    assert model.calls == case["model_calls"]


def test_too_few_batches() -> None:
    assert VECTOR["too_few_batches"] == "StopIteration"
    with pytest.raises(StopIteration):
        evaluate_bpb(RecordedLosses([0]), pairs([0]), 2, ARRAYS["token_bytes"])


def test_bpb_of_a_real_model() -> None:
    state, _, meta = load_checkpoint(VECTORS / "checkpoint", 10, "cpu")
    model = recipe.build_model(GPTConfig(**meta["model_config"]), "cpu")
    model.load_state_dict(state)
    batches = list(zip(ARRAYS["tiny_x"], ARRAYS["tiny_y"], strict=True))
    bpb = evaluate_bpb(model, batches, len(batches), ARRAYS["tiny_token_bytes"])
    assert bpb == pytest.approx(VECTOR["tiny_bpb"], rel=1e-5)


def test_uncounted_losses_cannot_spoil_the_sum() -> None:
    """A NaN on an ignored or zero-byte target is dropped, not multiplied by zero."""
    y = torch.tensor([[1, -1, 0]])
    bpb = evaluate_bpb(
        lambda *_, **__: torch.tensor([math.log(2), math.nan, math.nan]), [(y, y)], 1, torch.tensor([0, 4])
    )
    assert bpb == pytest.approx(0.25)


def _rank_bpb(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    batches = [[0], [1]][rank]
    bpb = evaluate_bpb(RecordedLosses(batches), pairs(batches), 1, ARRAYS["token_bytes"])
    Path(directory, f"bpb{rank}").write_text(repr(bpb))
    dist.destroy_process_group()


def test_ranks_are_summed_not_averaged(tmp_path: Path) -> None:
    """Two processes with a batch each report what one process with both does."""
    mp.spawn(_rank_bpb, args=(str(tmp_path),), nprocs=2)
    expected = next(case["bpb"] for case in VECTOR["cases"] if case["name"] == "two")
    for rank in range(2):
        assert float((tmp_path / f"bpb{rank}").read_text()) == pytest.approx(expected, rel=1e-6)
