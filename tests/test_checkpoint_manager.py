"""Saving, finding and loading checkpoints: the original's files and numbers, old formats, and damage."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager as cm
from nanochat.common import InputError
from tests.vectors_io import VECTORS, arrays, close, load

VECTOR = load("gpt_forward")
ARRAYS = arrays("gpt_forward")
STEP = 10
IDX = torch.from_numpy(ARRAYS["ckpt_idx"])

State = dict[str, torch.Tensor]
Meta = dict[str, Any]


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A tokenizer of the model's vocabulary size, in place of a trained one."""
    stub = SimpleNamespace(get_vocab_size=lambda: 97)
    monkeypatch.setattr(cm, "get_tokenizer", lambda: stub)
    return stub


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the original's checkpoint, to be damaged."""
    return shutil.copytree(VECTORS / "checkpoint", tmp_path / "d4")


def edited(checkpoint: Path, edit: Callable[[State, Meta], None]) -> Path:
    state, _, meta = cm.load_checkpoint(checkpoint, STEP, "cpu")
    edit(state, meta)
    cm.save_checkpoint(checkpoint, STEP, state, None, meta)
    return checkpoint


def logits_after(checkpoint: Path, edit: Callable[[State, Meta], None]) -> torch.Tensor:
    model, _, _ = cm.build_model(edited(checkpoint, edit), STEP, "cpu", "eval")
    with torch.no_grad():
        return model(IDX)


# Building models, the original's and older ones


@torch.no_grad()
def test_a_checkpoint_of_the_original_gives_its_logits(tokenizer: SimpleNamespace) -> None:
    model, loaded_tokenizer, meta = cm.build_model(VECTORS / "checkpoint", STEP, "cpu", "eval")
    assert loaded_tokenizer is tokenizer
    assert meta["model_config"] == vars(model.config)
    assert list(model.state_dict()) == VECTOR["ckpt_state_keys"]
    assert sorted({str(p.dtype) for p in model.parameters()}) == VECTOR["ckpt_dtypes"]
    close(model(IDX), ARRAYS["ckpt_logits"], "L")


def test_phase_sets_the_mode() -> None:
    assert not cm.build_model(VECTORS / "checkpoint", STEP, "cpu", "eval")[0].training
    model = cm.build_model(VECTORS / "checkpoint", STEP, "cpu", "train")[0]
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_compiled_names_load(checkpoint: Path) -> None:
    def prefix_names(state: State, meta: Meta) -> None:
        for name in list(state):
            state[f"_orig_mod.{name}"] = state.pop(name)

    assert VECTOR["ckpt_orig_mod_prefix_equal"]
    close(logits_after(checkpoint, prefix_names), ARRAYS["ckpt_logits"], "L")


def test_missing_residual_scalars_are_neutral(checkpoint: Path) -> None:
    def drop(state: State, meta: Meta) -> None:
        del state["resid_lambdas"], state["x0_lambdas"]

    close(logits_after(checkpoint, drop), ARRAYS["ckpt_missing_lambdas_logits"], "L")
    model, _, _ = cm.build_model(checkpoint, STEP, "cpu", "eval")
    for name, values in VECTOR["ckpt_missing_lambdas_values"].items():
        assert model.get_parameter(name).tolist() == values


@torch.no_grad()
def test_missing_window_pattern_means_long_windows(checkpoint: Path) -> None:
    edited(checkpoint, lambda state, meta: meta["model_config"].pop("window_pattern"))
    model, _, _ = cm.build_model(checkpoint, STEP, "cpu", "eval")
    assert model.config.window_pattern == VECTOR["ckpt_missing_pattern_default"]
    logits = model(torch.from_numpy(ARRAYS["idx640"]))[:, -8:]
    close(logits, ARRAYS["ckpt_missing_pattern_logits640_last8"], "L")


def test_bf16_tensors_become_float32_on_cpu(checkpoint: Path) -> None:
    def to_bf16(state: State, meta: Meta) -> None:
        state.update({name: tensor.bfloat16() for name, tensor in state.items()})

    close(logits_after(checkpoint, to_bf16), ARRAYS["ckpt_bf16_stored_logits"], "L")
    model, _, _ = cm.build_model(checkpoint, STEP, "cpu", "eval")
    assert sorted({str(p.dtype) for p in model.parameters()}) == VECTOR["ckpt_bf16_loaded_dtypes"]


EXCEPTIONS: dict[str, type[Exception]] = {
    error.__name__: error for error in (AssertionError, RuntimeError, FileNotFoundError)
}


@pytest.mark.parametrize(
    ("name", "key"), [("ckpt_missing_smear_gate", "smear_gate.weight"), ("ckpt_missing_backout", "backout_lambda")]
)
def test_a_missing_weight_is_an_error(checkpoint: Path, name: str, key: str) -> None:
    with pytest.raises(EXCEPTIONS[VECTOR["errors"][name]], match=key):
        logits_after(checkpoint, lambda state, meta: state.__delitem__(key))


def test_another_vocabulary_is_an_error(tokenizer: SimpleNamespace) -> None:
    tokenizer.get_vocab_size = lambda: 98
    with pytest.raises(EXCEPTIONS[VECTOR["errors"]["ckpt_vocab_mismatch"]], match=r"98 tokens .* 97"):
        cm.build_model(VECTORS / "checkpoint", STEP, "cpu", "eval")


def test_an_unknown_phase_is_an_error() -> None:
    with pytest.raises(EXCEPTIONS[VECTOR["errors"]["build_model_bad_phase"]], match='"test"'):
        cm.build_model(VECTORS / "checkpoint", STEP, "cpu", "test")


# Finding


@pytest.mark.parametrize("case", VECTOR["find_largest_model"], ids=lambda c: "-".join(c["dirs_in_mtime_order"]))
def test_find_largest_model(tmp_path: Path, case: dict[str, Any]) -> None:
    for age, name in enumerate(case["dirs_in_mtime_order"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    for name in case["files"]:
        (tmp_path / name).touch()
    if case["result"] in EXCEPTIONS:
        with pytest.raises(EXCEPTIONS[case["result"]], match="no model in"):
            cm.find_largest_model(tmp_path)
    else:
        assert cm.find_largest_model(tmp_path) == case["result"]


@pytest.mark.parametrize("case", VECTOR["find_last_step"], ids=lambda c: str(c["result"]))
def test_find_last_step(tmp_path: Path, case: dict[str, Any]) -> None:
    for name in case["files"]:
        (tmp_path / name).touch()
    if case["result"] in EXCEPTIONS:
        with pytest.raises(EXCEPTIONS[case["result"]], match="no checkpoint in"):
            cm.find_last_step(tmp_path)
    else:
        assert cm.find_last_step(tmp_path) == case["result"]


@pytest.mark.parametrize(
    ("source", "directory"),
    [("base", "base_checkpoints"), ("sft", "chatsft_checkpoints"), ("rl", "chatrl_checkpoints")],
)
def test_load_model_guesses_tag_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, directory: str
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    small, large = tmp_path / directory / "d2", tmp_path / directory / "d4"
    state, _, meta = cm.load_checkpoint(VECTORS / "checkpoint", STEP, "cpu")
    cm.save_checkpoint(small, 900, {"not": torch.zeros(1)}, None, {})
    cm.save_checkpoint(large, 5, state, None, meta | {"saved_at": 5})
    cm.save_checkpoint(large, 20, state, {"momentum": torch.ones(3)}, meta | {"saved_at": 20}, rank=0)
    assert cm.load_model(source, "cpu", "eval")[2]["saved_at"] == 20
    assert cm.load_model(source, "cpu", "eval", model_tag="d4", step=5)[2]["saved_at"] == 5
    assert cm.load_model_from_dir(tmp_path / directory, "cpu", phase="eval", step=5)[2]["saved_at"] == 5
    optimizer = cm.load_optimizer_state(source, "cpu", rank=0)
    assert optimizer is not None and optimizer["momentum"].tolist() == [1, 1, 1]
    assert cm.load_optimizer_state(source, "cpu", rank=1) is None
    with pytest.raises(FileNotFoundError, match="d7"):
        cm.load_model(source, "cpu", "eval", model_tag="d7")
    with pytest.raises(InputError, match="base, sft, rl"):
        cm.load_model("mid", "cpu", "eval")


# Saving


@pytest.mark.parametrize("rank", [0, 3])
def test_each_rank_writes_its_files(tmp_path: Path, rank: int) -> None:
    cm.save_checkpoint(tmp_path / "new" / "d1", STEP, {}, {}, {}, rank=rank)
    assert sorted(path.name for path in (tmp_path / "new" / "d1").iterdir()) == VECTOR[f"save_rank{rank}_files"]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Also an optimizer's state dict, which must pass the weights-only reader."""
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.9))
    weight.sum().backward()
    optimizer.step()
    cm.save_checkpoint(tmp_path, STEP, {"weight": weight}, optimizer.state_dict(), {"step": STEP, "note": "é"}, rank=0)
    model_data, optimizer_data, meta = cm.load_checkpoint(tmp_path, STEP, "cpu", load_optimizer=True, rank=0)
    assert torch.equal(model_data["weight"], weight)
    assert meta == {"step": STEP, "note": "é"}
    assert optimizer_data is not None
    assert optimizer_data["param_groups"][0]["betas"] == (0.8, 0.9)
    assert torch.equal(optimizer_data["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert cm.load_checkpoint(tmp_path, STEP, "cpu")[1] is None


@pytest.mark.parametrize("fails_at", ["optim", "meta", "model"])
def test_a_save_that_dies_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    """Killed anywhere, the run resumes from the last complete step, and no half-written file has a final name."""
    cm.save_checkpoint(tmp_path, 1, {"w": torch.ones(2)}, {}, {})
    write_atomically = cm.write_atomically

    def dying_write(path: Path, write: Callable[[Path], object]) -> None:
        def half_write(temporary: Path) -> None:
            write(temporary)
            if path.name.startswith(fails_at):
                temporary.write_bytes(temporary.read_bytes()[:7])
                raise KeyboardInterrupt

        write_atomically(path, half_write)

    monkeypatch.setattr(cm, "write_atomically", dying_write)
    with pytest.raises(KeyboardInterrupt):
        cm.save_checkpoint(tmp_path, 2, {"w": torch.ones(2)}, {}, {})
    assert cm.find_last_step(tmp_path) == 1
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(f"{fails_at}_000002*"))


def test_meta_that_is_not_json_changes_nothing(tmp_path: Path) -> None:
    cm.save_checkpoint(tmp_path, STEP, {"w": torch.ones(2)}, None, {"note": "old"})
    with pytest.raises(TypeError):
        cm.save_checkpoint(tmp_path, STEP, {"w": torch.zeros(2)}, None, {"note": object()})
    model_data, _, meta = cm.load_checkpoint(tmp_path, STEP, "cpu")
    assert (model_data["w"].tolist(), meta["note"]) == ([1, 1], "old")


# Damage


@pytest.mark.parametrize("size", [0, 1, 100, 20_000, -1])
def test_a_truncated_model_is_named(checkpoint: Path, size: int) -> None:
    path = checkpoint / "model_000010.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model_000010\.pt is truncated or damaged"):
        cm.build_model(checkpoint, STEP, "cpu", "eval")


@pytest.mark.parametrize("position", range(0, 4000, 331))
def test_a_flipped_byte_is_named_or_harmless(checkpoint: Path, position: int) -> None:
    path = checkpoint / "model_000010.pt"
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    try:
        cm.load_checkpoint(checkpoint, STEP, "cpu")
    except InputError as error:
        assert "model_000010.pt is truncated or damaged" in str(error)


@pytest.mark.parametrize("text", ["", '{"model_config": {"n_la', "\xff"])
def test_a_truncated_meta_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "meta_000010.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"meta_000010\.json is truncated or damaged"):
        cm.build_model(checkpoint, STEP, "cpu", "eval")


def test_meta_without_a_model_config_is_named(checkpoint: Path) -> None:
    (checkpoint / "meta_000010.json").write_text(json.dumps({"step": 10}))
    with pytest.raises(InputError, match=r'meta_000010\.json has no "model_config"'):
        cm.build_model(checkpoint, STEP, "cpu", "eval")


@pytest.mark.parametrize("name", ["model_000010.pt", "meta_000010.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        cm.build_model(checkpoint, STEP, "cpu", "eval")


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_loading_runs_no_code(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"w": Evil(tmp_path / "marker")}, checkpoint / "model_000010.pt")
    with pytest.raises(InputError, match="more than tensors"):
        cm.build_model(checkpoint, STEP, "cpu", "eval")
    assert not (tmp_path / "marker").exists()
