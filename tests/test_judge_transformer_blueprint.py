"""Puzzle 1's judges: the oracle agrees with the golden vectors, and the cases ask what they should."""

import contextlib
import io
import random
import re
from functools import cache
from unittest.mock import patch

import pytest
import torch

from autograder import variants
from autograder.judges.cases import asked
from autograder.judges.transformer_blueprint import flops, layout, parameters, positions, weights
from autograder.pipeline import graded_part
from nanochat import common
from nanochat.gpt import GPTConfig
from nanochat.recipe import build_meta_model
from puzzles import wire
from tests import vectors_io

PUZZLE = "01_transformer_blueprint"
CHECKPOINTS = vectors_io.VECTORS / "checkpoint"


# the oracle against the golden vectors


def test_widths_and_windows_agree_with_the_vectors():
    for case in vectors_io.load("gpt_config")["base_train_cases"]:
        given, expected = case["input"], case["expected"]
        depth, head_dim = given["depth"], given["head_dim"]
        size = layout.widths(depth=depth, aspect_ratio=given["aspect_ratio"], head_dim=head_dim, n_kv_head=None)
        assert size == {key: expected[key] for key in ("n_embd", "n_head", "n_kv_head")}
        pattern, sequence_len = given["window_pattern"], given["max_seq_len"]
        windows = layout.window_sizes(n_layer=depth, sequence_len=sequence_len, window_pattern=pattern)
        assert [list(pair) for pair in windows] == expected["window_sizes"]


def test_flops_agree_with_the_vectors():
    cases = vectors_io.load("gpt_config")
    for case in [*cases["base_train_cases"], *cases["direct_cases"]]:
        given, expected = case.get("config", case.get("input")), case["expected"]
        counted = flops.flops_per_token(
            matmul_params=expected["num_matmul_params"],
            n_head=expected["n_head"],
            head_dim=expected["n_embd"] // expected["n_head"],
            window_sizes=expected["window_sizes"],
            sequence_len=given.get("max_seq_len", given.get("sequence_len", 2048)),
        )
        assert counted == expected["estimate_flops"]


def test_shapes_and_counts_agree_with_the_vectors():
    """One case of each size: neither depends on the windows."""
    cases = vectors_io.load("gpt_config")
    seen = set()
    for case in [*cases["direct_cases"], *cases["base_train_cases"]]:
        given, expected = case.get("config", case.get("input")), case["expected"]
        size = {key: expected[key] for key in ("n_layer", "n_embd", "n_head", "n_kv_head")}
        size["vocab_size"] = given.get("vocab_size", 32768)
        if tuple(size.values()) in seen:
            continue
        seen.add(tuple(size.values()))
        shapes = parameters.parameter_shapes(**size)
        assert shapes["transformer.wte.weight"][0] == expected["padded_vocab_size"]
        with_table = {name.split(".")[1] for name in shapes if name.startswith("value_embeds.")}
        assert with_table == {str(i) for i in expected["ve_layers"]}
        assert parameters.param_counts(shapes) == expected["num_scaling_params"]
    assert len(seen) > 10


def test_the_shapes_of_depth_4_agree_with_the_vectors():
    expected = {name: tuple(shape) for name, shape in vectors_io.load("gpt_config")["depth4_state_dict"]}
    assert parameters.parameter_shapes(n_layer=4, n_embd=256, n_head=2, n_kv_head=2, vocab_size=32768) == expected


def test_rotary_agrees_with_the_vectors():
    rope = vectors_io.arrays("rope")
    for name in (key.removesuffix("_pos") for key in rope if key.endswith("_pos")):
        head_dim, sequence_len = (int(field[2:].lstrip("l")) for field in name.replace("hd", "hd ").split("_"))
        position = torch.from_numpy(rope[f"{name}_pos"]).long()
        for code, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            if f"{name}_{code}_cos" not in rope:
                continue
            tables = positions.rotary(seq_len=10 * sequence_len, head_dim=head_dim, dtype=dtype)
            for table, what in zip(tables, ("cos", "sin"), strict=True):
                expected = torch.from_numpy(rope[f"{name}_{code}_{what}"])
                slack = 8e-3 if dtype == torch.bfloat16 else 1e-6 + 1.2e-7 * position[:, None]
                assert ((table[0, position, 0].float() - expected).abs() <= slack).all(), (name, code, what)


def test_masks_agree_with_the_vectors():
    arrays = vectors_io.arrays("attention")
    for case in vectors_io.load("attention")["visibility"]:
        mask = positions.attention_mask(Tq=case["Tq"], Tk=case["Tk"], left=case["window"])
        vectors_io.close(mask, arrays[case["key"]], "E")


def test_fresh_weights_agree_with_the_vectors():
    """The distributions `build` is compared with are those measured on the original."""
    stats = vectors_io.load("init_stats")
    shapes = {name: tuple(row["shape"]) for name, row in stats["params"].items()}
    state = weights.build(seed=3, shapes=shapes, n_layer=4, n_embd=256, device="cpu")["state"]
    assert state.keys() == shapes.keys()
    for name, row in stats["params"].items():
        tensor = state[name].double()
        if row["kind"] != "random":
            vectors_io.close(tensor, torch.tensor(row.get("values", 0.0)).expand(tensor.shape), "F")
            continue
        error = row["numel"] ** -0.5
        assert abs(tensor.mean() - row["mean"]) < 10 * error * row["std"], name
        assert abs(tensor.std() / row["std"] - 1) < 10 * error, name


# the notebook's closing cells, which no judge sees


@pytest.fixture(scope="module")
def closing_output() -> str:
    """What the reference notebook prints, run on the checkpoint among the vectors, without graded cells and plots."""
    printed = io.StringIO()
    namespace: dict = {"__name__": "__main__"}
    for cell in variants.source(PUZZLE).cells:
        if cell.cell_type != "code" or graded_part(cell) or variants.PLOT_TAG in cell.metadata.get("tags", []):
            continue
        with contextlib.redirect_stdout(printed), patch.object(common, "COMPUTE_DTYPE", torch.float32):
            if cell.id == "real-checkpoint":
                assert 'CHECKPOINTS = Path(nanochat.__file__).parent / "assets"' in cell.source
                exec(
                    cell.source.replace('Path(nanochat.__file__).parent / "assets"', f"Path({str(CHECKPOINTS)!r})"),
                    namespace,
                )
            else:
                exec(cell.source, namespace)
    return printed.getvalue()


def test_the_blueprint_names_every_tensor_of_a_real_checkpoint(closing_output):
    assert "model_000010.pt: 35 of 35 tensors named with the right shape, 0 invented." in closing_output


def test_the_blueprint_runs_inside_nanochat(closing_output):
    """Its weights load strictly, training lowers the loss, and its tables and masks give nanochat's logits."""
    ((before, after),) = re.findall(r"loss ([\d.]+) .* after 30 steps ([\d.]+)", closing_output)
    assert float(before) == pytest.approx(5.55, abs=0.02)
    assert float(after) < 1.0
    (error,) = re.findall(r"largest difference .*: (\S+)", closing_output)
    assert float(error) < 1e-3


# the distributions of `build`


@cache
def built(seed: int) -> tuple[dict, dict]:
    """A case, and nanochat's answer to it with another seed."""
    case = weights.build_cases(random.Random(seed))[2]
    return wire.plain(weights.build(**case)), wire.plain(weights.build(**case | {"seed": case["seed"] + 1}))


def test_another_draw_is_right():
    for seed in range(12):
        expected, got = built(seed)
        assert weights.examine_build(expected, got) is None


DAMAGE = {
    "wte.weight": lambda w: 0.02 / 0.8 * w,
    "lm_head.weight": lambda w: torch.empty_like(w).uniform_(-0.00173, 0.00173),
    "h.0.attn.c_q.weight": lambda w: w.std() * torch.randn_like(w),
    "h.1.attn.c_k.weight": lambda w: 1.2 * w,
    "h.2.attn.c_v.weight": lambda w: w + 0.03,
    "h.1.mlp.c_fc.weight": lambda w: 2.5 * w,
    "h.2.mlp.c_proj.weight": lambda w: w + 1e-6,
    "h.0.attn.ve_gate.weight": lambda w: torch.empty_like(w).uniform_(-0.02, 0.02),
    "smear_gate.weight": lambda w: torch.zeros_like(w),
    "value_embeds.0.weight": lambda w: w.to(torch.bfloat16),
    "value_embeds.2.weight": lambda w: w.T,
    "resid_lambdas": lambda w: w.flip(0),
    "x0_lambdas": lambda w: w + 0.01,
    "backout_lambda": lambda w: w * float("nan"),
    "smear_lambda": lambda w: w + 0.2,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_parameter_filled_otherwise_is_found(name):
    for seed in range(3):
        expected, got = built(seed)
        full_name = next(each for each in got["state"] if each.endswith(name))
        torch.manual_seed(seed)
        damaged = got["state"] | {full_name: DAMAGE[name](got["state"][full_name])}
        found = weights.examine_build(expected, got | {"state": damaged})
        assert found
        assert full_name in found


def test_a_build_that_is_no_build_is_refused():
    expected, got = built(0)
    copied = got["state"] | {"transformer.h.1.attn.c_q.weight": got["state"]["transformer.h.0.attn.c_q.weight"]}
    wrong = {
        "made on cpu": got | {"born_on": "cpu"},
        "device asked for": got | {"on_device": False},
        "no memory": got | {"state": got["state"] | {"lm_head.weight": wire.Opaque("Parameter")}},
        "missing key": got | {"state": {k: v for k, v in got["state"].items() if k != "lm_head.weight"}},
        "unexpected": got | {"state": got["state"] | {"bias": torch.zeros(3)}},
        "draw afresh": got | {"state": copied},
        "raised TypeError": wire.Raised("TypeError", "no"),
        "expected a dict": None,
    }
    for words, answer in wrong.items():
        assert words in (weights.examine_build(expected, answer) or ""), words


def test_model_of_is_the_inverse_of_parameter_shapes():
    """The counts' oracle rebuilds the model from its table of shapes."""
    rng = random.Random(0)
    for _ in range(10):
        (size,) = asked("n_layer n_embd n_head n_kv_head vocab_size", parameters.random_size(rng))
        again = parameters.model_of(parameters.parameter_shapes(**size))
        model = build_meta_model(GPTConfig(sequence_len=8, **size))
        assert again.num_scaling_params() == model.num_scaling_params()
