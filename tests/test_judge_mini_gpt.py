"""Puzzle 8's judges: the oracle agrees with the golden vectors, and the cases ask what they should."""

import random

import pytest
import torch

from autograder.exam import Exam
from autograder.judges import mini_gpt
from autograder.judges.mini_gpt import attention, dissected, ends, layers, stream
from nanochat import common, gpt
from puzzles import catalog
from tests import vectors_io

PUZZLE = "08_mini_gpt"
JUDGES = mini_gpt.JUDGES
PARTS = [part.id for part in catalog.puzzle(PUZZLE).parts]
F32 = torch.float32


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(common, "COMPUTE_DTYPE", F32)


def test_taking_nanochat_apart_leaves_it_whole():
    """The oracles run altered copies; nanochat.gpt itself stays what it is, for every other thread."""
    before = dict(vars(gpt))
    for part in PARTS:
        Exam(PUZZLE, 3).paper(part)
    assert dict(vars(gpt)) == before


# the cases ask what they should ask


def test_a_random_exam_refuses_for_all_three_reasons_and_goes_on():
    """A single token, the tables, the room; and after a refusal something that is right."""
    cases = [(case, stream.run_with()(**case)) for case in stream.stream_cases(random.Random(3))]
    alone = tables = room = later = 0
    for case, told in cases:
        refused = [answer["x"] == "ValueError" for answer in told]
        rows = case["weights"]["cos"].size(1)
        for number, idx in enumerate(case["calls"]):
            if refused[number]:
                end = (told[number]["position"] or 0) + idx.size(1)
                alone += case["room"] is None and idx.size(1) == 1
                tables += end > rows
                room += case["room"] is not None and end > case["room"]
                later += not all(refused[number:])
    assert min(alone, tables, room, later) > 0


def test_the_norm_after_the_rotation_can_be_told_from_the_norm_before():
    """For a pure rotation both are the same: some tables must be none."""
    cases = layers.rotary_cases(random.Random(3))
    lengths = torch.stack([(case["cos"].float() ** 2 + case["sin"].float() ** 2).mean() for case in cases])
    assert ((lengths - 1).abs() > 0.1).sum() >= 3
    assert ((lengths - 1).abs() < 1e-3).sum() >= 3


# the oracle against the golden vectors

CONFIG = {"sequence_len": 640, "vocab_size": 97, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return torch.load(vectors_io.VECTORS / "checkpoint" / "model_000010.pt", weights_only=True)


def test_the_pieces_put_together_are_the_original(weights):
    """Every oracle in the place of its part, and the rest written here: the vectors' logits and losses, whole and from
    the cache. So no oracle shows something else than what the original does."""
    arrays = {name: torch.tensor(array) for name, array in vectors_io.arrays("gpt_forward").items()}
    idx = arrays["idx48"].long()
    lefts = [left for left, _ in gpt.compute_window_sizes(4, 640, "SSSL")]
    cos, sin = gpt.precompute_rotary(48, 16, dtype=F32)

    def through_layers(pieces: list[torch.Tensor]) -> torch.Tensor:
        embedded = [gpt.norm(weights["transformer.wte.weight"][piece]) for piece in pieces]
        smear = (weights["smear_gate.weight"], weights["smear_lambda"])
        told = ends.smeared()(embedded, *smear, cached=True)
        cache = dissected.KVCache(
            batch_size=2, num_heads=2, seq_len=48, head_dim=16, num_layers=4, device="cpu", dtype=F32
        )
        out = []
        for piece, answer in zip(pieces, told, strict=True):
            rows = slice(cache.get_pos(), cache.get_pos() + piece.size(1))
            x = x0 = answer["smeared"]
            streams = []
            for i in range(4):
                x = weights["resid_lambdas"][i] * x + weights["x0_lambdas"][i] * x0
                x = block(i, x, piece, cos[:, rows], sin[:, rows], cache)
                streams.append(x)
            out.append(gpt.norm(x - weights["backout_lambda"] * streams[2]))
            cache.advance(piece.size(1))
        return torch.cat(out, dim=1)

    def block(
        i: int, x: torch.Tensor, piece: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache
    ) -> torch.Tensor:
        own = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"transformer.h.{i}.")}
        normed = gpt.norm(x)
        q, k, v = ((normed @ own[f"attn.c_{name}.weight"].T).unflatten(-1, (-1, 16)) for name in "qkv")
        has_ve = i in layers.values_of(4, v, normed, None, None)["layers"]
        ve = weights[f"value_embeds.{i}.weight"][piece] if has_ve else None
        v = layers.values_of(4, v, normed, ve, own["attn.ve_gate.weight"] if has_ve else None)["values"]
        q, k = layers.queries_of(q, cos, sin), layers.queries_of(k, cos, sin)
        y = dissected.attention(q, k, v, window=(lefts[i], 0), layer_idx=i, kv_cache=cache, **dissected.UNTURNED)
        x = x + y @ own["attn.c_proj.weight"].T
        return x + layers.norm_and_mlp(gpt.norm(x), own["mlp.c_fc.weight"], own["mlp.c_proj.weight"])["mlp"]

    lm_head = weights["lm_head.weight"]
    whole = through_layers([idx])
    vectors_io.close(ends.head(whole, lm_head, 97)["answer"], arrays["logits48"], "L")
    pieces = through_layers(list(idx.split([20, *[1] * 28], dim=1)))
    vectors_io.close(ends.head(pieces, lm_head, 97)["answer"], arrays["logits48"], "L")
    for reduction in ("mean", "sum", "none"):
        for name in ("full", "masked"):
            targets = arrays["targets48" if name == "full" else "targets48_masked"].long()
            loss = ends.head(whole, lm_head, 97, targets, reduction)["answer"]
            torch.testing.assert_close(loss, arrays[f"loss48_{name}_{reduction}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", vectors_io.load("attention")["visibility"], ids=lambda case: case["key"])
def test_the_map_sees_what_the_vectors_see(case):
    """Where the weight is not 0."""
    visible = torch.tensor(vectors_io.arrays("attention")[case["key"]])
    Tq, Tk = visible.shape
    left = case["window"]
    q, k = torch.zeros(1, Tq, 2, 4), torch.zeros(1, Tk, 1, 4)
    assert torch.equal(attention.map_of(q, k, left)[0, 0] > 0, visible)
