"""What every judge of every puzzle keeps to: it passes the oracle, catches each mistake it knows and tells it from the
others, and its cases follow from the seed. What a puzzle's judges ask in particular is in test_judge_<puzzle>.py."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from autograder.exam import Exam, outcome
from autograder.judges import Judge, judges_of
from nanochat import common
from puzzles import catalog, wire

PUZZLES = catalog.puzzles()
PARTS = [pytest.param(p.id, part.id, id=f"{p.name}-{part.id}") for p in PUZZLES for part in p.parts]
MISTAKES = [
    pytest.param(p.id, part, sentence, id=f"{p.name}-{part}-{sentence}")
    for p in PUZZLES
    for part, judge in judges_of(p).items()
    for sentence in judge.mistakes
]
SEED = 5
# What the oracle raises in an exam, by part, where a refusal is part of the question. A puzzle that is not listed may
# refuse with ValueError wherever it likes.
RAISED: dict[str, dict[str, set[str]]] = {
    "01_transformer_blueprint": {"widths": {"ValueError"}, "window_sizes": {"ValueError"}},
    "02_optimization_layer": {},
    "03_data_engine": {
        "split_shards": {"ValueError", "FileNotFoundError"},
        "deal_documents": {"ValueError"},
        "pack_sft": {"ValueError"},
    },
    "04_inference_engine": {"sample_next_token": {"ValueError"}, "generate": {"ValueError", "IndexError"}},
    "05_rl_loop": {"rollout": {"ValueError"}, "train_step": {"ValueError"}},
    "06_evaluator": {
        "choose_fewshot": {"ValueError"},
        "render_prompts": {"ValueError"},
        "answer_spans": {"ValueError"},
        "crop_to_context": {"ValueError"},
        "core_metric": {"KeyError"},
    },
    "07_sandbox_tokenizer": {
        "train_tokenizer": {"ValueError"},
        "tokenizer": {"ValueError"},
        "render_conversation": {"ValueError"},
        "render_for_completion": {"ValueError"},
    },
    "08_mini_gpt": {},
}


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "COMPUTE_DTYPE", torch.float32)


@cache
def exam_of(puzzle_id: str, seed: int) -> Exam:
    return Exam(puzzle_id, seed)


def judge_of(puzzle_id: str, part: str) -> Judge:
    return judges_of(catalog.puzzle(puzzle_id))[part]


def answers(exam: Exam, part: str, answer: Callable[..., Any]) -> dict[int, list[Any]]:
    """What `answer` says to every case of a part, as a submission hands it in."""
    return {number: [outcome(answer, case)] for number, (case, _) in enumerate(exam.paper(part))}


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: puzzle.name)
def test_every_part_has_a_judge(puzzle: catalog.Puzzle) -> None:
    assert list(judges_of(puzzle)) == [part.id for part in puzzle.parts]


@pytest.mark.parametrize(("puzzle_id", "part", "sentence"), MISTAKES)
def test_a_mistake_is_caught_and_told(puzzle_id: str, part: str, sentence: str) -> None:
    """Every mistake differs from the oracle on some case, and the first wrong case names this one and no other."""
    exam = exam_of(puzzle_id, SEED)
    verdict = exam.mark(part, answers(exam, part, judge_of(puzzle_id, part).mistakes[sentence]))
    assert verdict.status == "wrong"
    # one that answers where an exception was wanted, or the other way round, explains itself
    assert verdict.message.endswith((f"Likely mistake: {sentence}.", "to be raised, got dict."))


@pytest.mark.parametrize(("puzzle_id", "part"), PARTS)
def test_the_oracle_passes_its_own_exam_and_raises_only_what_it_should(puzzle_id: str, part: str) -> None:
    for seed in range(2):
        exam = exam_of(puzzle_id, seed)
        verdict = exam.mark(part, answers(exam, part, judge_of(puzzle_id, part).oracle))
        assert verdict.status == "passed", verdict.message
        raised = {expected.type_name for _, expected in exam.paper(part) if isinstance(expected, wire.Raised)}
        assert raised == RAISED[puzzle_id].get(part, set()) if puzzle_id in RAISED else raised <= {"ValueError"}


@pytest.mark.parametrize(("puzzle_id", "part"), PARTS)
def test_cases_follow_from_the_seed_and_survive_the_wire(puzzle_id: str, part: str) -> None:
    def told(seed: int) -> bytes:
        return wire.encode(judge_of(puzzle_id, part).cases(random.Random(seed)))

    assert told(1) == told(1)
    assert told(1) != told(2)
    assert b"$opaque" not in told(1)
