# ruff: noqa: F811 -- a test asks for a fixture by the name under which it is imported
"""A run stopped by Ctrl-C and resumed has the losses of one that was never stopped."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import resume, train
from nanochat.checkpoint_manager import SOURCE_DIRS, find_last_step
from nanochat.common import DummyWandb, InputError
from nanochat.gpt import GPTConfig
from nanochat.metrics import FILE_NAME, MetricsLog, read_metrics
from nanochat.recipe import build_model
from nanochat.scripts import base_train, chat_rl, chat_sft
from tests import tiny_data
from tests.tiny_data import tiny  # noqa: F401

MEASURED = ("loss", "val_bpb", "lr_multiplier", "reward", "pass@1", "pass@2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started: sums in another order would be other sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def curve(folder: Path) -> list[dict[str, Any]]:
    """What was measured at which step, without what depends on the clock."""
    lines = [{name: line[name] for name in ("step", *MEASURED) if name in line} for line in read_metrics(folder)]
    return [line for line in lines if len(line) > 1]


def interrupt(base_dir: Path, folder: Path, after_steps: int, *command: str) -> int:
    """Start a command, send it SIGINT once it has done so many steps, and return the step that it saved."""
    process = tiny_data.start(base_dir, *command)
    deadline = time.monotonic() + 120
    while len(read_metrics(folder)) <= after_steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == train.STOPPED
    assert "Stopping after this step" in stderr
    assert "Traceback" not in stderr
    step = find_last_step(folder)
    assert f"--resume-from-step {step}" in stdout
    return step


def test_pretraining_goes_on_exactly_where_ctrl_c_stopped_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even though documents wait in the loader's buffer, which the state in the meta alone would lose."""
    flags = [*tiny_data.BASE_TRAIN, "--num-iterations", "200", "--eval-every", "100"]
    folder = tiny / "base_checkpoints"
    step = interrupt(tiny, folder / "cut", 15, "base_train", *flags, "--model-tag", "cut")
    assert 10 < step < 200, "interrupted too late to tell anything"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tiny))
    for more in (["--model-tag", "cut", "--resume-from-step", str(step)], ["--model-tag", "whole"]):
        assert base_train.main([*flags, *more]) == 0
    assert curve(folder / "cut") == curve(folder / "whole")
    weights = [torch.load(folder / tag / "model_000200.pt", weights_only=True) for tag in ("cut", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


SFT_FLAGS = ["--gsm8k-epochs", "40", "--mmlu-epochs", "40", "--eval-every", "50", "--chatcore-every", "-1"]
RL_FLAGS = ["--num-steps", "60", "--eval-every", "20", "--eval-examples", "2"]


@pytest.mark.parametrize(
    ("name", "main", "flags", "source"),
    [
        ("chat_sft", chat_sft.main, [*tiny_data.CHAT_SFT, *SFT_FLAGS], "sft"),
        ("chat_rl", chat_rl.main, [*tiny_data.CHAT_RL, *RL_FLAGS], "rl"),
    ],
)
def test_later_stages_go_on_where_ctrl_c_stopped_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, main: Any, flags: list[str], source: str
) -> None:
    base_dir = shutil.copytree(tiny, tmp_path / "base")
    shutil.rmtree(base_dir / SOURCE_DIRS[source], ignore_errors=True)
    if source == "rl":  # from the base model: any model will do
        shutil.copytree(base_dir / SOURCE_DIRS["base"], base_dir / SOURCE_DIRS["sft"], dirs_exist_ok=True)
    folder = base_dir / SOURCE_DIRS[source] / "d2"
    step = interrupt(base_dir, folder, 5, name, *flags)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    assert main([*flags, "--resume-from-step", str(step)]) == 0
    resumed, last_step = curve(folder), find_last_step(folder)
    assert 5 < step < last_step, "interrupted too late to tell anything"
    shutil.rmtree(folder)
    assert main(flags) == 0
    assert (curve(folder), find_last_step(folder)) == (resumed, last_step)


def in_steps(
    monkeypatch: pytest.MonkeyPatch, base_dir: Path, folder: Path, main: Any, flags: list[str], at: int
) -> None:
    """Run `main` whole, then resume it from its checkpoint of step `at`, and compare."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    assert main([*flags, "--save-every", str(at)]) == 0
    whole = curve(folder)
    last_step = find_last_step(folder)
    weights = torch.load(folder / f"model_{last_step:06d}.pt", weights_only=True)
    (folder / f"model_{last_step:06d}.pt").unlink()
    assert main([*flags, "--resume-from-step", str(at)]) == 0
    assert curve(folder) == whole
    resumed = torch.load(folder / f"model_{last_step:06d}.pt", weights_only=True)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_fine_tuning_goes_on_exactly(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*tiny_data.CHAT_SFT, "--eval-every", "4", "--chatcore-every", "-1"]
    in_steps(monkeypatch, tiny, tiny / "chatsft_checkpoints" / "d2", chat_sft.main, flags, at=5)


def test_reinforcement_learning_goes_on_exactly(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reward that the untrained model earns, or nothing would be learnt that could differ."""
    monkeypatch.setattr("nanochat.tasks.gsm8k.GSM8K.reward", lambda self, conversation, answer: float(len(answer) % 3))
    flags = [*tiny_data.CHAT_RL, "--eval-every", "2", "--eval-examples", "2", "--init-lr-frac", "1.0"]
    in_steps(monkeypatch, tiny, tiny / "chatrl_checkpoints" / "d2", chat_rl.main, flags, at=2)
    losses = [line["loss"] for line in curve(tiny / "chatrl_checkpoints" / "d2") if "loss" in line]
    assert any(losses)


def save(folder: Path, step: int = 3, **config: int) -> list[Any]:
    """Save a tiny run without a loader; returns what `resume_run` takes."""
    shape = {"sequence_len": 8, "vocab_size": 16, "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 16} | config
    model = build_model(GPTConfig(**shape), "cpu")  # type: ignore[arg-type]
    optimizer = model.setup_optimizer()
    scaler = train.make_grad_scaler(torch.device("cpu"))
    resume.save_run(folder, step, model, optimizer, scaler, None, {})
    return [folder, step, model, optimizer, scaler, None]


def test_random_numbers_go_on_too(tmp_path: Path) -> None:
    run = save(tmp_path)
    expected = torch.rand(3)
    torch.manual_seed(7)
    resume.resume_run(*run)
    assert torch.equal(torch.rand(3), expected)


def test_another_model_or_number_of_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "one")
    other = save(tmp_path / "other", n_embd=32, sequence_len=16)
    with pytest.raises(InputError, match=r"'sequence_len': 8, 'n_embd': 16.*'sequence_len': 16, 'n_embd': 32"):
        resume.resume_run(tmp_path / "one", *other[1:])
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"saved by 1 ranks and this run has 2"):
        resume.resume_run(*other)


def test_a_checkpoint_without_our_files_resumes_weights_and_optimizer(tmp_path: Path) -> None:
    """One of the original: its meta does not name the number of ranks and there is no train_ file."""
    run = save(tmp_path)
    (tmp_path / "train_000003_rank0.pt").unlink()
    with pytest.raises(FileNotFoundError, match="train_000003_rank0"):
        resume.resume_run(*run)
    meta = tmp_path / "meta_000003.json"
    meta.write_text(meta.read_text().replace('"world_size"', '"other"'))
    with torch.no_grad():
        run[2].lm_head.weight.zero_()
    resume.resume_run(*run)
    assert run[2].lm_head.weight.any()


def test_metrics_of_an_interrupted_run_read_as_if_there_had_been_none(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"step": 0, "loss": 3}\n{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"st')
    log = MetricsLog(tmp_path, 2, DummyWandb())
    log.log(2, loss=9.0)
    assert [line["loss"] for line in read_metrics(tmp_path)] == [3, 2, 9]
