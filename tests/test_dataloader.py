# ruff: noqa: F811 -- a test asks for a fixture by the name under which it is imported
"""The pretraining loader yields the original's batches, on any rank, after any resume."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import dataloader
from tests.test_dataset import VECTORS, data_dir, shards, write_shard  # noqa: F401
from tests.vectors_io import arrays, close

BOS = 0
CASES = {case["name"]: case for case in VECTORS["cases"]}


class Bytes:
    """A tokenizer whose ids are UTF-8 bytes + 1; BOS is 0. It counts the documents it has encoded."""

    encoded = 0

    def get_bos_token_id(self) -> int:
        return BOS

    def encode(self, texts: list[str], prepend: int, num_threads: int) -> list[list[int]]:
        self.encoded += len(texts)
        return [[prepend, *(byte + 1 for byte in text.encode())] for text in texts]


def loader(split: str = "train", tokenizer: Bytes | None = None, B: int = 2, T: int = 48, **options: Any) -> Any:
    options = {"device": "cpu", "tokenizer_threads": 1, **options}
    make = dataloader.tokenizing_distributed_data_loader_with_state_bos_bestfit
    return make(tokenizer or Bytes(), B, T, split, **options)


def set_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("name", CASES)
def test_batches_and_states_equal_the_original(
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    case = CASES[name]
    if case["world_size"] > 1:
        set_rank(monkeypatch, case["rank"], case["world_size"])
    options = {key: case[key] for key in ("tokenizer_batch_size", "resume_state_dict", "buffer_size", "B", "T")}
    inputs, targets, states = [], [], []
    for x, y, state in islice(loader(case["split"], **options), case["n_batches"]):
        assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
        inputs.append(x.clone())
        targets.append(y.clone())
        states.append(state)
    assert states == case["state_dicts"]
    recorded = arrays("dataloader")
    # The long case records states alone.
    assert (f"{name}_inputs" in recorded) == (name != "long_epochs")
    if name != "long_epochs":
        close(torch.stack(inputs), recorded[f"{name}_inputs"], "E")
        close(torch.stack(targets), recorded[f"{name}_targets"], "E")


def test_batches_share_their_storage(shards: Path) -> None:
    """Callers must copy; a loader that allocates anew each time would cost a device allocation a step."""
    (x, y, _), (x2, y2, _) = islice(loader(), 2)
    assert VECTORS["buffers_reused"]
    assert (x.data_ptr(), y.data_ptr()) == (x2.data_ptr(), y2.data_ptr())
    assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert x.is_contiguous()
    assert y.is_contiguous()


def test_the_loader_without_state_yields_the_same_batches(shards: Path) -> None:
    stateless = dataloader.tokenizing_distributed_data_loader_bos_bestfit(Bytes(), 2, 48, "train", device="cpu")
    for batch, (inputs, targets, _) in zip(islice(stateless, 3), loader(), strict=False):
        assert len(batch) == VECTORS["stateless_yield_len"]
        assert (batch[0].tolist(), batch[1].tolist()) == (inputs.tolist(), targets.tolist())


def test_every_row_starts_with_bos_and_targets_follow_inputs(shards: Path) -> None:
    for inputs, targets, _ in islice(loader(), 10):
        assert (inputs[:, 0] == BOS).all()
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_documents_are_tokenized_only_as_needed(shards: Path) -> None:
    """Nothing before the first batch is asked for; then the buffer and one tokenizer batch, not the whole shard."""
    tokenizer = Bytes()
    batches = loader(tokenizer=tokenizer, B=1, T=4, buffer_size=8, tokenizer_batch_size=4)
    assert tokenizer.encoded == 0
    next(batches)
    assert tokenizer.encoded <= 12


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_on_all_ranks_reads_each_document_once(shards: Path, world_size: int) -> None:
    read: list[str] = []
    for rank in range(world_size):
        for documents, state in dataloader.document_batches("train", rank, world_size, batch_size=7):
            if state["epoch"] > 1:
                break
            read += documents
    train = [doc for shard in VECTORS["shards"][:-1] for group in shard["row_groups"] for doc in group]
    assert sorted(read) == sorted(train)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resuming_reads_exactly_the_row_groups_that_were_to_come(shards: Path, world_size: int) -> None:
    """At whatever row group a rank stops, resuming goes on with its next one: none repeated, none skipped."""
    for rank in range(world_size):
        stream = dataloader.document_batches("train", rank, world_size, batch_size=1000)
        states = [state for _, state in islice(stream, 12)]
        for i, state in enumerate(states[:-1]):
            resumed = dataloader.document_batches("train", rank, world_size, 1000, resume=state)
            assert [state for _, state in islice(resumed, 11 - i)] == states[i + 1 :]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("options", [{}, {"tokenizer_batch_size": 3, "buffer_size": 5}])
def test_a_saved_loader_continues_exactly(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, options: dict[str, Any]
) -> None:
    """Saved after any number of batches, it yields the last one again and then what the uninterrupted one yields."""
    set_rank(monkeypatch, rank, 2)
    uninterrupted = [(x.clone(), y.clone(), state) for x, y, state in islice(loader(**options), 14)]
    running = loader(**options)
    for i in range(10):
        next(running)
        torch.save(running.state_dict(), tmp_path / "state.pt")
        resumed = loader(**options)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for (x, y, state), expected in zip(islice(resumed, 4), uninterrupted[i:], strict=False):
            assert (x.tolist(), y.tolist(), state) == (expected[0].tolist(), expected[1].tolist(), expected[2])


def test_a_rank_without_row_groups_is_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original loops for ever."""
    for i in range(3):
        write_shard(data_dir / f"shard_{i:05d}.parquet", [["a"], ["b"]])
    set_rank(monkeypatch, 1, 3)
    assert next(loader(B=1, T=1, buffer_size=1))
    set_rank(monkeypatch, 2, 3)
    for resume in (None, {"pq_idx": 1, "rg_idx": 0, "epoch": 4}):
        with pytest.raises(ValueError, match=r"Rank 2 of 3 has no documents in the train split.*at least 3 row groups"):
            next(loader(B=1, T=1, resume_state_dict=resume))


def test_resuming_at_the_very_end_goes_on_with_the_next_epoch(data_dir: Path) -> None:
    """The pass that is left is empty, which is no reason to say that the rank has nothing."""
    for i in range(2):
        write_shard(data_dir / f"shard_{i:05d}.parquet", [["a"], ["b"]])
    resumed = dataloader.document_batches("train", 0, 1, 128, resume={"pq_idx": 0, "rg_idx": 1, "epoch": 5})
    assert next(resumed) == (["a"], {"pq_idx": 0, "rg_idx": 0, "epoch": 6})


def test_resuming_with_fewer_shards_than_before_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="Cannot resume from shard number 2 of the train split: there are only 2"):
        next(loader(resume_state_dict={"pq_idx": 2, "rg_idx": 0, "epoch": 1}))


def test_an_unknown_split_is_refused_as_in_the_original(shards: Path) -> None:
    assert VECTORS["errors"]["bad_split"] == "AssertionError"
    with pytest.raises(AssertionError, match="'test': it must be"):
        next(loader("test"))


def test_no_shards_names_the_command_that_gets_them(data_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run `python -m nanochat\.dataset -n 8`"):
        next(loader())


def test_an_empty_buffer_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="`buffer_size` is 0"):
        next(loader(buffer_size=0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_cuda_equal_those_on_the_cpu_while_the_device_is_behind(shards: Path) -> None:
    """The staging buffer must not be overwritten while a copy from it is still queued behind a long kernel."""
    expected = [(x.clone(), y.clone()) for x, y, _ in islice(loader(), 8)]
    received = []
    for x, y, _ in islice(loader(device="cuda"), 8):
        received.append((x.clone(), y.clone()))
        torch.cuda._sleep(50_000_000)
    for (x, y), (expected_x, expected_y) in zip(received, expected, strict=True):
        assert torch.equal(x.cpu(), expected_x)
        assert torch.equal(y.cpu(), expected_y)
