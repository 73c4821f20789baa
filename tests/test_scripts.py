"""The commands, from raw documents to a chat, each as a user starts it; and their flags."""

import argparse
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.metrics import read_metrics
from tests import tiny_data
from tests.vectors_io import load

CLI = load("train_recipe")["cli"]
# tok_eval compares tokenizers with those of OpenAI, which would have to be downloaded; it is not part of this package.
COMMANDS = [name for name in CLI if name != "tok_eval"]


def parser_of(name: str) -> argparse.ArgumentParser:
    return importlib.import_module(f"nanochat.scripts.{name}").build_parser()


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_a_superset_of_the_originals_with_its_defaults(name: str) -> None:
    ours = {flag: action for action in parser_of(name)._actions for flag in action.option_strings}
    for theirs in CLI[name]:
        for flag in theirs["flags"]:
            action = ours[flag]
            assert action.default == theirs.get("default", False if "action" in theirs else None), flag
            assert action.required == theirs.get("required", False), flag
            assert (list(action.choices) if action.choices else None) == theirs.get("choices"), flag
            is_switch = theirs.get("action") == "store_true"
            assert (action.nargs == 0) == is_switch, flag
            if not is_switch:
                assert (action.type or str).__name__ == theirs["type"], flag  # type: ignore[union-attr]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_toy_and_explains_itself(name: str) -> None:
    help_text = re.sub(r"\s+", " ", parser_of(name).format_help())
    assert "--toy" in help_text
    assert (importlib.import_module(f"nanochat.scripts.{name}").__doc__ or "?")[:40] in help_text


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base_dir = tmp_path_factory.mktemp("scripts") / "base"
    tiny_data.write_all(base_dir)
    return base_dir


def run(base_dir: Path, *command: str, stdin: str = "") -> str:
    code, stdout, stderr = tiny_data.run(base_dir, *command, stdin=stdin)
    assert code == 0, stderr
    assert "Traceback" not in stderr
    return stdout


def meta_of(folder: Path) -> dict[str, Any]:
    return json.loads(next(folder.glob("meta_*.json")).read_text())


# The tests that follow are one road: each needs what the one before it has made.


def test_tok_train_writes_tokenizer_and_byte_counts(base_dir: Path) -> None:
    assert "Saved in" in run(base_dir, "tok_train", "--vocab-size", "400")
    names = {path.name for path in (base_dir / "tokenizer").iterdir()}
    assert names == {"tokenizer.pkl", "tokenizer.json", "token_bytes.pt"}


def test_base_train_learns_and_leaves_a_checkpoint_with_its_settings(base_dir: Path) -> None:
    flags = ["--num-iterations", "30", "--eval-every", "10", "--core-metric-every", "20", "--sample-every", "15"]
    stdout = run(base_dir, "base_train", *tiny_data.MODEL, *flags, "--save-every", "20")
    folder = base_dir / "base_checkpoints" / "d2"
    assert sorted(path.name for path in folder.glob("model_*")) == ["model_000020.pt", "model_000030.pt"]
    losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    evaluated = [line["step"] for line in read_metrics(folder) if "val_bpb" in line]
    assert evaluated == [0, 10, 20, 30]
    assert [line["step"] for line in read_metrics(folder) if "core_metric" in line] == [20, 30]
    assert "Water is made of hydrogen and" in stdout
    assert re.search(r"base_train 100% \| step 30 \| loss \d\.\d+ \| [\d,]+ tok/s \| 0:00:\d\d so far", stdout)
    meta = json.loads((folder / "meta_000030.json").read_text())
    assert (meta["step"], meta["max_seq_len"], meta["device_batch_size"], meta["total_batch_size"]) == (30, 64, 4, 256)
    assert meta["model_config"]["n_embd"] == 32
    assert meta["user_config"]["matrix_lr"] == 0.02
    assert meta["dataloader_state_dict"].keys() == {"pq_idx", "rg_idx", "epoch"}
    assert meta["val_bpb"] == meta["loop_state"]["min_val_bpb"]


def test_base_eval_prints_samples_bits_per_byte_and_core(base_dir: Path) -> None:
    stdout = run(base_dir, "base_eval", "--split-tokens", "2048")
    assert re.search(r"train bpb: \d\.\d{4}\nval bpb: \d\.\d{4}\nCORE: -?\d\.\d{4}", stdout)
    assert "from nothing:" in stdout


def test_chat_sft_inherits_settings_and_takes_every_conversation_once(base_dir: Path) -> None:
    flags = ["--max-seq-len", "128", "--device-batch-size", "2", "--eval-tokens", "512", "--chatcore-every", "5"]
    run(base_dir, "chat_sft", *flags, "--chatcore-max-cat", "4", "--chatcore-max-sample", "1", "--eval-every", "5")
    folder = base_dir / "chatsft_checkpoints" / "d2"
    settings = meta_of(folder)["user_config"]
    assert (settings["total_batch_size"], settings["matrix_lr"], settings["max_seq_len"]) == (256, 0.02, 128)
    metrics = read_metrics(folder)
    multipliers = [line["lr_multiplier"] for line in metrics if "loss" in line]
    assert multipliers[0] == 1
    assert multipliers[-1] < 0.2
    assert {"chatcore", "MMLU", "GSM8K", "HumanEval"} <= metrics[-1].keys()
    assert min(line["val_bpb"] for line in metrics[1:] if "val_bpb" in line) < metrics[0]["val_bpb"] / 2


def test_chat_rl_samples_and_saves(base_dir: Path) -> None:
    run(base_dir, "chat_rl", *tiny_data.CHAT_RL, "--eval-every", "2", "--eval-examples", "3")
    metrics = read_metrics(base_dir / "chatrl_checkpoints" / "d2")
    assert [line["step"] for line in metrics if "reward" in line] == [0, 1, 2, 3]
    assert [line["step"] for line in metrics if "pass@2" in line] == [0, 2, 4]


@pytest.mark.parametrize("source", ["sft", "rl"])
def test_chat_eval_gives_the_accuracy_of_each_task(base_dir: Path, source: str) -> None:
    tasks = "MMLU|GSM8K" if source != "rl" else None
    stdout = run(base_dir, "chat_eval", "-i", source, "-m", "4", "-x", "3", *(["-a", tasks] if tasks else []))
    names = re.findall(r"^([\w-]+): (?:accuracy )?-?\d\.\d{4}$", stdout, re.MULTILINE)
    everything = ["ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "ChatCORE"]
    assert names == (tasks.split("|") if tasks else everything)


def test_chat_cli_answers_one_prompt_or_many(base_dir: Path) -> None:
    first = run(base_dir, "chat_cli", "-p", "What colour is the cat?", "-t", "0")
    stdout = run(base_dir, "chat_cli", "-t", "0", stdin=f"What colour is the cat?\nclear\n{'word ' * 400}\nquit\n")
    assert f"model: {first}" in stdout
    assert "(a new conversation)" in stdout
    assert "(the conversation has" in stdout


def test_infer_bench_prints_a_line_for_each_batch_size(base_dir: Path) -> None:
    flags = ["--prompt-tokens", "16", "--decode-tokens", "4", "--batch-sizes", "1,3"]
    lines = run(base_dir, "infer_bench", *flags).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]
    assert all(float(line.split()[1].replace(",", "")) > 0 for line in lines[2:])


def test_checkpoints_hold_plain_weights_by_their_usual_names(base_dir: Path) -> None:
    for stage in ("base", "chatsft", "chatrl"):
        path = max((base_dir / f"{stage}_checkpoints" / "d2").glob("model_*.pt"))
        state = torch.load(path, weights_only=True)
        assert {"lm_head.weight", "transformer.h.1.attn.c_q.weight"} <= state.keys()
        assert not any(name.startswith("_orig_mod") for name in state)
