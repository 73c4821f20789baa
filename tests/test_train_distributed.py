"""torchrun with two real gloo processes trains as one process does with the same total batch."""

import importlib
import os
import random
import signal
import string
import time
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import find_last_step
from nanochat.metrics import read_metrics
from nanochat.scripts import tok_train
from tests import tiny_data

T = 32
ROWS = 2  # a rank's batch, and a row group: ranks and one process then see the same rows in the same order
PLAIN_BYTES = "265"  # a vocabulary without merges: a text has as many tokens as bytes
MODEL = ["--depth", "2", "--aspect-ratio", "16", "--head-dim", "16", "--max-seq-len", str(T)]
BATCH = ["--device-batch-size", str(ROWS), "--total-batch-size", str(2 * ROWS * T)]
BASE_TRAIN = [*MODEL, *BATCH, "--num-iterations", "6", "--eval-every", "3", "--eval-tokens", str(4 * ROWS * T)]
BASE_TRAIN += ["--core-metric-every", "-1", "--sample-every", "-1"]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of exactly one row each, so that packing has no choice, and conversations of one length."""
    base_dir = tmp_path_factory.mktemp("distributed") / "base"
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices(string.ascii_lowercase, weights=[20, 9, *[1] * 24], k=length))

    for shard in range(2):
        tiny_data.write_shard(base_dir, shard, [[text(T) for _ in range(ROWS)] for _ in range(20)])
    chats = [
        {"messages": [{"role": "user", "content": text(10)}, {"role": "assistant", "content": text(10)}]}
        for _ in range(24)
    ]
    for split in ("train", "test"):
        tiny_data.write_hub(base_dir, "HuggingFaceTB/smol-smoltalk", "default", split, chats)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
        tok_train.main(["--vocab-size", PLAIN_BYTES])
    return base_dir


def run(base_dir: Path, name: str, *flags: str, ranks: int) -> None:
    """Run a command under torchrun, or for one rank, to save the start of a process, here."""
    if ranks == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
            assert importlib.import_module(f"nanochat.scripts.{name}").main(flags) == 0
    else:
        code, _, stderr = tiny_data.run(base_dir, name, *flags, ranks=ranks)
        assert code == 0, stderr


def measured(folder: Path, name: str) -> torch.Tensor:
    return torch.tensor([line[name] for line in read_metrics(folder) if name in line])


def test_pretraining_on_two_ranks_equals_one_process(base_dir: Path) -> None:
    """Losses, validation, and weights: row groups are dealt out, gradients averaged, optimizer state sharded."""
    folders = [base_dir / "base_checkpoints" / f"ranks{ranks}" for ranks in (1, 2)]
    for ranks, folder in enumerate(folders, start=1):
        run(base_dir, "base_train", *BASE_TRAIN, "--model-tag", folder.name, ranks=ranks)
    for name, count in (("loss", 6), ("val_bpb", 3)):
        one, two = (measured(folder, name) for folder in folders)
        assert len(one) == count
        torch.testing.assert_close(two, one, rtol=1e-5, atol=0)
    one, two = (torch.load(folder / "model_000006.pt", weights_only=True) for folder in folders)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=f"{name} differs")
    assert measured(folders[0], "loss")[-1] < measured(folders[0], "loss")[0]
    states = [torch.load(folders[1] / f"optim_000006_rank{rank}.pt", weights_only=True)["state"] for rank in (0, 1)]
    whole = torch.load(folders[0] / "optim_000006_rank0.pt", weights_only=True)["state"]
    assert all(len(state[0]["exp_avg"]) == len(whole[0]["exp_avg"]) / 2 for state in states), "state is not sharded"


def test_fine_tuning_on_two_ranks_equals_one_process(base_dir: Path) -> None:
    flags = ["--device-batch-size", "1", "--total-batch-size", str(2 * T), "--mmlu-epochs", "0", "--gsm8k-epochs", "0"]
    flags += ["--load-optimizer", "0", "--warmdown-ratio", "0", "--eval-every", "-1", "--chatcore-every", "-1"]
    losses = []
    for ranks in (1, 2):
        more = ["--model-tag", "ranks1", "--num-iterations", str(1 + 12 // ranks)]
        run(base_dir, "chat_sft", *flags, *more, ranks=ranks)
        losses.append(measured(base_dir / "chatsft_checkpoints" / "ranks1", "loss"))
    assert len(losses[0]) == len(losses[1]) == 6
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def test_ctrl_c_stops_all_ranks_at_one_step_and_they_resume(base_dir: Path) -> None:
    """A terminal sends SIGINT to torchrun and to every rank, and torchrun passes its own on."""
    flags = [*BASE_TRAIN, "--num-iterations", "1000", "--eval-every", "-1", "--model-tag", "cut"]
    folder = base_dir / "base_checkpoints" / "cut"
    process = tiny_data.start(base_dir, "base_train", *flags, ranks=2, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(read_metrics(folder)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    step = find_last_step(folder)
    assert 5 <= step < 1000
    assert {path.name for path in folder.iterdir()} == {
        f"model_{step:06d}.pt",
        f"meta_{step:06d}.json",
        "metrics.jsonl",
        *[f"{kind}_{step:06d}_rank{rank}.pt" for kind in ("optim", "train") for rank in (0, 1)],
    }
    flags[flags.index("1000")] = str(step + 1)
    run(base_dir, "base_train", *flags, "--resume-from-step", str(step), ranks=2)
    assert len(measured(folder, "loss")) == step + 1


def test_a_rank_without_data_is_one_sentence(base_dir: Path, tmp_path: Path) -> None:
    for shard in range(2):
        tiny_data.write_shard(tmp_path, shard, [["one row group only"] * 8])
    (tmp_path / "tokenizer").symlink_to(base_dir / "tokenizer")
    code, _, stderr = tiny_data.run(tmp_path, "base_train", *BASE_TRAIN, ranks=2)
    assert code != 0
    assert "error on rank 1: Rank 1 of 2 has no documents in the train split" in stderr
    assert "use fewer ranks" in stderr
    assert not list(tmp_path.glob("base_checkpoints/*/model_*"))
