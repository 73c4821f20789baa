# ruff: noqa: F811 -- a test asks for a fixture by the name under which it is imported
"""Bad input to a command: a sentence that says what, where and what to do, exit code 2, and nothing changed on disk."""

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat import command
from nanochat.common import InputError
from tests import tiny_data
from tests.tiny_data import BASE_TRAIN, CHAT_RL, CHAT_SFT, tiny, write_hub  # noqa: F401

Files = dict[Path, bytes | None]


@pytest.fixture
def base_dir(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a trained base directory, to be damaged."""
    copy = shutil.copytree(tiny, tmp_path / "base")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(copy))
    return copy


def files(folder: Path) -> Files:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(capsys: pytest.CaptureFixture[str], name: str, *flags: str) -> str:
    """Run a command that has to fail; its sentence."""
    main = importlib.import_module(f"nanochat.scripts.{name}").main
    with pytest.raises(SystemExit) as exit_info:
        command.run(lambda: main(flags))
    stderr = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr


def no_shards(base_dir: Path) -> None:
    shutil.rmtree(base_dir / "base_data_climbmix")


def no_tokenizer(base_dir: Path) -> None:
    shutil.rmtree(base_dir / "tokenizer")


def cut_shard(base_dir: Path) -> None:
    shard = base_dir / "base_data_climbmix" / "shard_00000.parquet"
    shard.write_bytes(shard.read_bytes()[:1000])


def other_vocabulary(base_dir: Path) -> None:
    importlib.import_module("nanochat.scripts.tok_train").main(["--vocab-size", "300"])


def model_file(base_dir: Path) -> Path:
    return base_dir / "base_checkpoints" / "d2" / "model_000008.pt"


def cut_checkpoint(base_dir: Path) -> None:
    path = model_file(base_dir)
    path.write_bytes(path.read_bytes()[:-1000])


def missing_weight(base_dir: Path) -> None:
    state = torch.load(model_file(base_dir), weights_only=True)
    del state["smear_gate.weight"]
    torch.save(state, model_file(base_dir))


def wider_model(base_dir: Path) -> None:
    meta = model_file(base_dir).with_name("meta_000008.json")
    content = json.loads(meta.read_text())
    content["model_config"]["n_embd"] = 64
    meta.write_text(json.dumps(content))


def cut_meta(base_dir: Path) -> None:
    meta = model_file(base_dir).with_name("meta_000008.json")
    meta.write_text(meta.read_text()[:50])


def no_checkpoint(base_dir: Path) -> None:
    shutil.rmtree(base_dir / "base_checkpoints")


def long_conversation(base_dir: Path) -> None:
    messages = [{"role": "user", "content": "why? " * 200}, {"role": "assistant", "content": "so."}]
    shutil.rmtree(base_dir / "task_data" / "HuggingFaceTB--smol-smoltalk")
    for split in ("train", "test"):
        write_hub(base_dir, "HuggingFaceTB/smol-smoltalk", "default", split, [{"messages": messages}])


def checkpoints_are_a_file(base_dir: Path) -> None:
    shutil.rmtree(base_dir / "base_checkpoints")
    (base_dir / "base_checkpoints").write_text("")


def nothing(base_dir: Path) -> None:
    pass


CASES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "missing shards, tokenizer": (no_shards, ["tok_train"], r"No train data in .*: there are no parquet shards; run `"),
    "missing shards, training": (no_shards, ["base_train", *BASE_TRAIN], "No train data in"),
    "damaged shard": (cut_shard, ["tok_train"], r"shard_00000\.parquet cannot be read .* delete it and run `"),
    "no tokenizer": (no_tokenizer, ["base_train", *BASE_TRAIN], "there is no tokenizer in .* train one with `"),
    "another vocabulary": (
        other_vocabulary,
        ["chat_sft", *CHAT_SFT],
        "tokenizer has 300 tokens but the model in .* 364",
    ),
    "truncated checkpoint": (cut_checkpoint, ["chat_sft", *CHAT_SFT], "model_000008.pt is truncated or damaged"),
    "truncated meta": (cut_meta, ["chat_eval", "-i", "base"], "meta_000008.json is truncated or damaged"),
    "missing weight": (missing_weight, ["base_eval"], r'do not fit the model \(Missing key.*"smear_gate\.weight"'),
    "weights of another model": (wider_model, ["base_eval"], r"do not fit the model \(size mismatch for "),
    "no checkpoint": (no_checkpoint, ["chat_sft", *CHAT_SFT], "no model in .*base_checkpoints: train one first"),
    "no such stage": (nothing, ["chat_eval", "-i", "best"], 'unknown model source "best": choose one of base, sft, rl'),
    "no such step": (nothing, ["chat_cli", "-i", "base", "-s", "9", "-p", "x"], "model_000009.pt does not exist"),
    "no such step to resume": (
        nothing,
        ["base_train", *BASE_TRAIN, "--resume-from-step", "5"],
        "meta_000005.json does",
    ),
    "resume another model": (
        nothing,
        ["base_train", *BASE_TRAIN, "--resume-from-step", "8", "--head-dim", "32"],
        r"step 8 in .*d2 is of another model, with \{'n_head': 2.*'n_head': 1",
    ),
    "over-long conversation": (
        long_conversation,
        ["chat_sft", *CHAT_SFT],
        r"Conversation \d+ has \d+ tokens and a row holds 129",
    ),
    "over-long question": (
        nothing,
        ["chat_cli", "-i", "base", "-p", "why? " * 200],
        r"the conversation has \d+ tokens and the model reads 64: start a new one",
    ),
    "unwritable checkpoints": (
        checkpoints_are_a_file,
        ["base_train", *BASE_TRAIN],
        "base_checkpoints/d2: Not a directory: check the path",
    ),
    "batch of no whole passes": (
        nothing,
        ["base_train", *BASE_TRAIN, "--total-batch-size", "300"],
        "300 is no multiple",
    ),
    "too few tokens to evaluate": (nothing, ["base_train", *BASE_TRAIN, "--eval-tokens", "9"], "make it 256 or more"),
    "samples that cannot be split": (nothing, ["chat_rl", *CHAT_RL, "--num-samples", "3"], "3 samples cannot be split"),
    "no such task": (nothing, ["chat_eval", "-i", "base", "-a", "MMLU|X"], "there is no task X: choose among ARC-Easy"),
    "no such evaluation": (nothing, ["base_eval", "--eval", "bpb,x"], "knows no x: choose among core, bpb, sample"),
    "no such device": (nothing, ["base_train", *BASE_TRAIN, "--device-type", "tpu"], "device type 'tpu' is unknown"),
    "fp8 recipe": (nothing, ["base_train", *BASE_TRAIN, "--fp8", "--fp8-recipe", "rowwise"], "FP8 recipe must be"),
    "batch sizes": (nothing, ["infer_bench", "--batch-sizes", "1,many"], "'1,many' must be whole numbers"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(base_dir: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    damage, (command_name, *flags), sentence = CASES[name]
    damage(base_dir)
    capsys.readouterr()
    before = files(base_dir)
    message = refusal(capsys, command_name, *flags)
    assert re.search(sentence, message), message
    assert files(base_dir) == before


def test_a_base_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """In a process of its own, as a user sees it."""
    (tmp_path / "file").write_text("")
    code, stdout, stderr = tiny_data.run(tmp_path / "file" / "base", "base_train", *BASE_TRAIN)
    assert (code, stdout) == (2, "")
    assert stderr == (
        f"error: {tmp_path}/file/base: Not a directory: check the path, its permissions and the space left "
        "(NANOCHAT_BASE_DIR).\n"
    )


def test_fp8_without_a_gpu_warns_and_trains(base_dir: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert importlib.import_module("nanochat.scripts.base_train").main([*BASE_TRAIN, "--fp8"]) == 0
    assert any("FP8 needs a CUDA GPU" in str(warning.message) for warning in recwarn)


def test_a_bug_keeps_its_traceback() -> None:
    """Only errors that this package raises are sentences; the same type from elsewhere is not hidden."""

    def bug() -> None:
        int("x")

    def ours() -> None:
        command.curriculum(None)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="invalid literal"):
        command.run(bug)
    assert command.explain(OSError("no space")) == "no space"
    with pytest.raises(AttributeError):
        ours()


def test_what_was_trained_is_saved_when_an_evaluation_fails(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_train = importlib.import_module("nanochat.scripts.base_train")

    def fail(*args: object) -> float:
        raise InputError("the evaluation data are damaged.")

    monkeypatch.setattr(base_train, "evaluate_core", fail)
    flags = [*BASE_TRAIN, "--core-metric-every", "5", "--model-tag", "failing"]
    with pytest.raises(InputError, match="data are damaged"):
        base_train.main(flags)
    assert (base_dir / "base_checkpoints" / "failing" / "model_000005.pt").exists()
    monkeypatch.undo()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    assert base_train.main([*flags, "--resume-from-step", "5"]) == 0
