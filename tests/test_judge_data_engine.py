"""Puzzle 3's judges: the oracle agrees with the golden vectors, and the
notebook's pieces, put together, deliver the batches of the original."""

import contextlib
import io
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autograder import variants
from autograder.judges.data_engine import buffer, dealing, fine_tuning, mixing, splits
from nanochat.packing import BestFitBuffer
from puzzles import wire
from tests import vectors_io

PUZZLE = "03_data_engine"


# the buffer's examination


def test_the_scan_that_mistakes_are_made_from_is_right():
    """So that each of them differs from the oracle in what its sentence says."""
    for case in buffer.buffer_cases(random.Random(3)):
        if not case["counted"]:
            right = buffer.replay(BestFitBuffer(), case["operations"])
            assert buffer.replay(buffer.MistakenBuffer(), case["operations"]) == right


def counted_answer() -> tuple[dict, dict]:
    """What the oracle says to a counted case, and a right answer to it."""
    case = buffer.buffer_cases(random.Random(3))[-1]
    expected = buffer.best_fit_buffer(**case)
    return expected, expected | {"comparisons": dict.fromkeys(expected["comparisons"], 24.0)}


def test_few_comparisons_are_right():
    expected, right = counted_answer()
    assert buffer.examine_buffer(expected, right) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comparisons": {"add": 24.0, "pop_largest": 24.0, "pop_shortest": 700.0}}, "pop_shortest takes 700"),
        ({"comparisons": {"add": 2000.0, "pop_largest": 24.0, "pop_shortest": 24.0}}, "add takes 2000"),
        ({"comparisons": {"add": 24.0, "pop_largest": 0.0, "pop_shortest": 24.0}}, "compares no lengths at all"),
        ({"comparisons": {"add": 24.0, "pop_largest": 24.0}}, "pop_shortest were not counted"),
        ({"comparisons": None}, "were not counted"),
        ({"answers": []}, "expected 160 items"),
    ],
)
def test_too_many_comparisons_are_told(change, words):
    expected, right = counted_answer()
    assert words in (buffer.examine_buffer(expected, right | change) or "")


def test_an_answer_that_is_no_answer_is_refused():
    expected, _ = counted_answer()
    assert buffer.examine_buffer(expected, None)
    assert buffer.examine_buffer(expected, wire.Raised("TypeError", "no"))


# the oracle against the golden vectors


def test_dealing_agrees_with_the_vectors():
    """One pass with step world_size from start rank, a row group at a time."""
    vectors = vectors_io.load("dataloader")
    shards = [shard["row_groups"] for shard in vectors["shards"]]
    for case in vectors["parquets_iter_batched"]:
        of_split = shards[-1:] if case["split"] == "val" else shards[:-1]
        dealt = dealing.deal_documents(
            shards=of_split, rank=case["start"], world_size=case["step"], batch_size=1000, resume=None, n=20
        )
        first_pass = [[documents[0], len(documents)] for documents, position in dealt if position["epoch"] == 1]
        assert first_pass == case["batches_first_doc_and_len"]


def test_splits_agree_with_the_vectors():
    listed = vectors_io.load("dataloader")["list_parquet_filter"]
    paths = [f"FOLDER/{name}" for name in listed["result"]]
    assert splits.split_shards(names=listed["files"], split="train") == paths[:-1]
    assert splits.split_shards(names=listed["files"], split="val") == paths[-1:]


def test_mixtures_agree_with_the_vectors():
    for case in vectors_io.load("mixture")["mixture"]:
        tasks = [[f"{task} {i}" for i in range(length)] for task, length in enumerate(case["lengths"])]
        indices = list(range(case["length"]))
        mixed = mixing.task_mixture(tasks=tasks, listed=list(range(len(tasks))), indices=indices)
        assert mixed["examples"] == [f"{task} {i}" for task, i in case["index_map"]]
        assert mixed["length"] == case["length"]


SFT = vectors_io.load("sft_packing")
OVERLONG = {"main_T16", "long_T32", "clog_T32"}


@pytest.mark.parametrize(
    "case", [case for case in SFT["cases"] if case["world_size"] == 1], ids=lambda case: case["name"]
)
def test_fine_tuning_rows_agree_with_the_vectors(case):
    conversations = [(each["ids"], each["mask"]) for each in SFT["datasets"][case["dataset"]]]
    sizes = {key: case[key] for key in ("B", "T", "buffer_size")}
    if case["name"] in OVERLONG:
        with pytest.raises(ValueError, match="can never be placed"):
            fine_tuning.sft_batches(conversations=conversations, bos=0, n=case["n_batches"], **sizes)
        return
    batches = fine_tuning.sft_batches(conversations=conversations, bos=0, n=case["n_batches"], **sizes)
    for number, what in enumerate(("inputs", "targets")):
        expected = vectors_io.arrays("sft_packing")[f"{case['name']}_{what}"]
        vectors_io.close(torch.stack([batch[number] for batch in batches]), expected, "E")


# the notebook's own solution, put together, against the golden vectors


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    """What the source notebook defines: its given cells and holes, without plots, tests and the oracle."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in variants.source(PUZZLE).cells:
        skipped = {"plot", "oracle"} & set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and not skipped and not cell.metadata.get("nbgrader", {}).get("grade"):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(cell.source, cell.id, "exec"), namespace)
    return namespace


class Bytes:
    """A tokenizer whose ids are UTF-8 bytes + 1, and whose conversations are rendered already. BOS is 0."""

    def get_bos_token_id(self) -> int:
        return 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[byte + 1 for byte in text.encode()] for text in texts]

    def render_conversation(self, conversation: dict[str, list[int]]) -> tuple[list[int], list[int]]:
        return conversation["ids"], conversation["mask"]


@pytest.fixture(scope="module")
def shards(notebook, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("shards")
    written = vectors_io.load("dataloader")["shards"]
    notebook["write_shards"](str(folder), [shard["row_groups"] for shard in written])
    assert sorted(path.name for path in Path(folder).iterdir()) == [shard["name"] for shard in written]
    yield str(folder)


# without an epoch: the contract of the puzzle has one in every position
PRETRAINING = [case for case in vectors_io.load("dataloader")["cases"] if case["name"] != "resume_noepoch"]


@pytest.mark.parametrize("case", PRETRAINING, ids=lambda case: case["name"])
def test_the_assembled_loader_delivers_the_pretraining_batches_of_the_original(notebook, shards, case):
    given = {key: case[key] for key in ("split", "rank", "world_size", "buffer_size")}
    batch_size = case["tokenizer_batch_size"]
    loader = notebook["UniversalDataLoader"](
        Bytes(), case["B"], case["T"], folder=shards, batch_size=batch_size, **given
    )
    paths = notebook["split_shards"](shards, case["split"])
    loader.bookmark = notebook["Bookmark"](
        lambda resume: notebook["deal_documents"](
            paths, case["rank"], case["world_size"], batch_size, resume or case["resume_state_dict"]
        )
    )
    inputs, targets, states = zip(*islice(loader, case["n_batches"]), strict=True)
    assert list(states) == case["state_dicts"]
    recorded = vectors_io.arrays("dataloader")
    if case["name"] != "long_epochs":  # which records states alone
        vectors_io.close(torch.stack(inputs), recorded[f"{case['name']}_inputs"], "E")
        vectors_io.close(torch.stack(targets), recorded[f"{case['name']}_targets"], "E")


FITTING = [case for case in SFT["cases"] if case["name"] not in OVERLONG]


@pytest.mark.parametrize("case", FITTING, ids=lambda case: case["name"])
def test_the_assembled_loader_delivers_the_fine_tuning_batches_of_the_original(notebook, case):
    given = {key: case[key] for key in ("rank", "world_size", "buffer_size", "num_iterations")}
    loader = notebook["UniversalDataLoader"](Bytes(), case["B"], case["T"], tasks=[], **given)
    loader.mixture = SFT["datasets"][case["dataset"]]  # the vectors' conversations come in order
    inputs, targets, states = zip(*islice(loader, case["n_batches"]), strict=True)
    vectors_io.close(torch.stack(inputs), vectors_io.arrays("sft_packing")[f"{case['name']}_inputs"], "E")
    vectors_io.close(torch.stack(targets), vectors_io.arrays("sft_packing")[f"{case['name']}_targets"], "E")
    if case["split"] == "train":  # the original keeps no state for validation
        assert [state["last_step"] for state in states] == case["last_step"]
        assert [state["epoch"] for state in states] == case["current_epoch"]
        progress = np.minimum(case["approx_progress"], 1.0)  # the original's goes on past 1
        vectors_io.close([state["progress"] for state in states], progress, "D")


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_the_assembled_loader_resumes_exactly(notebook, shards, stop):
    def make() -> list[Any]:
        dataset = SFT["datasets"]["main"]
        return [
            notebook["UniversalDataLoader"](
                Bytes(), 2, 48, folder=shards, rank=1, world_size=2, batch_size=4, buffer_size=9
            ),
            notebook["UniversalDataLoader"](Bytes(), 2, 48, tasks=[dataset], rank=1, world_size=2, buffer_size=9),
        ]

    for loader, resumed in zip(make(), make(), strict=True):
        for _ in range(stop):
            next(loader)
        resumed.load_state_dict(notebook["json"].loads(notebook["json"].dumps(loader.state_dict())))
        for (x, y, state), (inputs, targets, progress) in zip(islice(loader, 6), resumed, strict=False):
            assert torch.equal(x, inputs)
            assert torch.equal(y, targets)
            assert state == progress
