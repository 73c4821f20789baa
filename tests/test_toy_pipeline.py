"""The toy pipeline, cut down to seconds: every stage, the report, and the models it would ship."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager, command, toyworld
from nanochat.common import get_base_dir
from nanochat.scripts import chat_cli, toy_pipeline
from nanochat.toyworld.recipe import RECIPE

SMALL: dict[str, dict[str, Any]] = {
    "base_train": {
        "depth": 2,
        "aspect_ratio": 16,
        "head_dim": 16,
        "device_batch_size": 2,
        "total_batch_size": 512,
        "num_iterations": 4,
        "eval_every": 2,
        "eval_tokens": 512,
    },
    "chat_sft": {"num_iterations": 4, "eval_every": 2, "eval_tokens": 512, "chatcore_every": -1, "save_every": -1},
    "chat_rl": {
        "num_steps": 2,
        "num_samples": 2,
        "device_batch_size": 2,
        "examples_per_step": 2,
        "max_new_tokens": 6,
        "eval_every": 1,
        "eval_examples": 2,
    },
    "chat_eval": {"max_new_tokens": 6, "max_problems": 3},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base directory after a run with --assets, which are in its folder `assets`."""
    base_dir = tmp_path_factory.mktemp("toy") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
        for name, values in SMALL.items():
            patch.setitem(RECIPE, name, RECIPE.get(name, {}) | values)
        patch.setattr(toy_pipeline, "SAMPLED_QUESTIONS", 2)
        assert toy_pipeline.main(["--assets", str(base_dir / "assets")]) == 0
    return base_dir


def test_every_stage_has_a_curve_with_words_beside_it(report: Path) -> None:
    for source, measured in (("base", "validation loss"), ("sft", "training loss"), ("rl", "training reward")):
        picture = report / "report" / f"{source}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        alt = picture.with_suffix(".txt").read_text()
        assert "by optimizer step" in alt
        assert f"{measured} goes from" in alt


def test_figures_name_accuracy_with_and_without_the_calculator_before_and_after_rl(report: Path) -> None:
    record = json.loads((report / "report" / "figures.json").read_text())
    assert record == json.loads((report / "assets" / "figures.json").read_text())
    assert set(record["seconds"]) == {"tok_train", "base_train", "chat_sft", "chat_rl", "measuring"}
    assert record["figures"]["base"].keys() >= {"val_bpb", "CORE"}
    names = {*toy_pipeline.TOY.chat_tasks, "ToyArithmetic without calculator", "RL questions, sampled"}
    assert record["figures"]["sft"].keys() == record["figures"]["rl"].keys() == names
    table = toy_pipeline.format_table(record["figures"]).splitlines()
    assert table[0] == "| figure | base | sft | rl |"
    assert len({row.count("|") for row in table}) == 1


def test_the_assets_are_a_base_directory(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are stored in bfloat16 and without optimizer, and load as the models that were trained."""
    assets = report / "assets"
    assert not list(assets.rglob("optim_*")) and not list(assets.rglob("*.pkl"))
    for source, folder in checkpoint_manager.SOURCE_DIRS.items():
        stored = torch.load(next((assets / folder).rglob("model_*.pt")), weights_only=True)
        assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(assets))
        model, tokenizer, _ = checkpoint_manager.load_model(source, "cpu", "eval")
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(report))
        trained, _, _ = checkpoint_manager.load_model(source, "cpu", "eval")
        assert tokenizer.get_vocab_size() == model.config.vocab_size
        for name, weight in trained.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight.bfloat16().float())


def test_a_model_kept_from_the_calculator_never_calls_it(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(report))
    model, tokenizer, _ = checkpoint_manager.load_model("sft", "cpu", "eval")
    python_start = tokenizer.encode_special("<|python_start|>")
    with torch.no_grad():  # a model that wants nothing else
        model.lm_head.weight.zero_()
        model.lm_head.weight[python_start] = 1
    engine = toy_pipeline.Engine(toy_pipeline.WithoutCalculator(model, tokenizer), tokenizer)
    prompt = tokenizer.encode("1+1", prepend="<|bos|>")
    for seed in range(3):
        assert python_start not in engine.generate_batch(prompt, max_tokens=8, seed=seed)[0][0]


def test_the_shipped_model_calls_the_calculator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a newcomer tries first, with nothing trained and nothing downloaded."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "empty"))
    chat_cli.main(["--toy", "-t", "0", "-p", "What is 417 times 36?"])
    assert "[calculator: 417*36] [= 15012] That makes 15012." in capsys.readouterr().out


def test_toy_commands_say_how_to_make_a_model_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing trained and nothing shipped: one sentence, and nothing is left behind."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(toyworld, "assets_dir", lambda: tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="toy_pipeline --assets"):
        chat_cli.main(["--toy", "-t", "0", "-p", "What is 417 times 36?"])
    assert list((tmp_path / "empty").iterdir()) == []


def test_without_a_base_directory_of_its_own_the_toy_world_has_a_folder_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "")  # for monkeypatch to restore
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    command.use_toy_world(needs_data=False)
    assert get_base_dir() == tmp_path / ".cache" / "nanochat" / "toy"
