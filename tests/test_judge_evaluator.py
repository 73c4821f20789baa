"""Puzzle 6's judges: the oracle agrees with the golden vectors, and the
notebook's pieces, put together, evaluate as the original does, on one rank and on two real ones."""

import contextlib
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from autograder import variants
from autograder.exam import outcome
from autograder.judges import evaluator as judges
from autograder.judges.evaluator import batching, metric, prompts, spans, verdicts
from nanochat import core_eval
from nanochat.gpt import GPT, GPTConfig
from puzzles import catalog
from puzzles.peek import excerpts
from tests import vectors_io

PUZZLE = "06_evaluator"
VECTOR = vectors_io.load("core_eval")


def test_every_part_can_be_peeked_at():
    """The template among them, which is a constant and no function."""
    shown = {excerpt.name: excerpt for part in catalog.puzzle(PUZZLE).parts for excerpt in excerpts(part)}
    assert "{%- for context, continuation in solved -%}" in shown["nanochat.core_eval:PROMPT"].code
    for excerpt in shown.values():
        lines = (catalog.ROOT / excerpt.file).read_text().splitlines(keepends=True)
        assert "".join(lines[excerpt.first - 1 :]).startswith(excerpt.code)


# the cases ask what they should ask


def test_a_random_exam_has_texts_that_share_more_than_their_tokens_do():
    for seed in range(3):
        cases = [
            case for case in spans.span_cases(random.Random(seed))[-18:] if case["task_type"] != "language_modeling"
        ]
        on_text = [outcome(spans.spans_by(spans.found_on_text), case) for case in cases]
        assert sum(outcome(spans.spans_by(), case) != told for case, told in zip(cases, on_text, strict=True)) >= 2


def test_a_random_exam_has_greedy_answers_and_others():
    for seed in range(3):
        cases = verdicts.choice_cases(random.Random(seed))
        marks = [greedy for case in cases for _, greedy in verdicts.scored_by()(**case)["scores"]]
        assert 5 < sum(marks) < len(marks) - 5


def test_no_two_logits_are_equal_where_the_likeliest_decides():
    """Which of equal logits argmax takes is PyTorch's affair."""
    for case in verdicts.choice_cases(random.Random(4)):
        ordered = case["logits"].sort(dim=-1, descending=True).values
        assert bool((ordered[..., 0] > ordered[..., 1]).all())


def test_no_prompt_with_an_empty_context_is_asked_for():
    """Stripping would then reach into the delimiter, which neither the original nor the puzzle says anything about."""
    for seed in range(3):
        for case in prompts.prompt_cases(random.Random(seed)):
            if case["task_type"] == "language_modeling":
                contexts = [item["context"] for item in [case["item"], *case["shots"]] if "context" in item]
                assert all(map(str.strip, contexts))


# the oracle against the golden vectors


def test_fewshot_choice_agrees_with_the_vectors():
    for case in VECTOR["fewshot_indices"]:
        told = judges.JUDGES["choose_fewshot"].oracle(idx=case["idx"], num_items=case["n"], num_fewshot=case["k"])
        assert told["shown"] == case["indices"]


class Bytes:
    """T1 of the vectors: BOS 0, ids 1 + byte mod 96."""

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend] + [1 + byte % 96 for byte in prompt.encode()] for prompt in prompts]

    def get_bos_token_id(self) -> int:
        return 0


def test_prompts_and_spans_agree_with_the_vectors():
    for case in VECTOR["prompts"]:
        items = VECTOR["items"][case["task_type"]]
        shots = [items[i] for i in case["fewshot"]]
        rendered = judges.JUDGES["render_prompts"].oracle(
            case["task_type"], items[case["item"]], case["delimiter"], shots
        )
        assert rendered == case["prompts"]
        _, starts, ends = spans.nanochat_spans(case["task_type"], rendered, Bytes())
        assert (starts, ends) == (case["start"], case["end"])


def test_stacking_agrees_with_the_vectors():
    ((indices, input_ids),) = judges.JUDGES["batch_options"].oracle([[5, 6, 7], [8], [9, 10]], 100, 0)
    vectors_io.close(input_ids, vectors_io.arrays("core_eval")["stacked"][indices], "E")


def test_losses_agree_with_the_vectors(tiny):
    """A span of one token at a time gives the losses and predictions of the whole forward."""
    arrays = vectors_io.arrays("core_eval")
    input_ids = torch.from_numpy(arrays["fwd_ids"])
    with torch.no_grad():
        logits = tiny(input_ids)
    for t in range(1, input_ids.size(1)):
        rows = len(input_ids)
        scores = verdicts.nanochat_scores(logits, input_ids, [t] * rows, [t + 1] * rows)
        vectors_io.close([loss for loss, _ in scores], arrays["fwd_losses"][:, t - 1], "L")
        greedy = arrays["fwd_preds"][:, t - 1] == arrays["fwd_ids"][:, t]
        assert [mark for _, mark in scores] == greedy.tolist()


def test_the_stand_ins_reach_what_they_should():
    """nanochat is asked through items and models that are made up: its own cut, accuracy and baselines come out."""
    sequences, starts, ends = [[1, 2, 3, 4], [5, 6]], [3, 2], [4, 2]
    assert batching.nanochat_crop(sequences, starts, ends, 2) == ([[3, 4], [5, 6]], [1, 2], [2, 2])
    assert metric.nanochat_accuracy("0111") == 0.75
    assert metric.read("Random baseline,Eval Task\n25,a\n") == {"a": 0.25}


# the notebook's own solution, put together


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


@pytest.fixture(scope="module")
def tiny() -> GPT:
    meta = json.loads((vectors_io.VECTORS / "checkpoint/meta_000010.json").read_text())
    with torch.device("meta"):
        model = GPT(GPTConfig(**meta["model_config"]))
    model.to_empty(device="cpu")
    model.init_weights()
    model.load_state_dict(torch.load(vectors_io.VECTORS / "checkpoint/model_000010.pt", weights_only=True))
    return model.eval()


class Capped:
    """A model with a longest sequence."""

    def __init__(self, model: GPT, max_seq_len: int | None) -> None:
        self.model, self.max_seq_len = model, max_seq_len

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.max_seq_len is None or ids.shape[1] <= self.max_seq_len
        return self.model(ids)


def name_of(case: dict[str, Any]) -> str:
    return f"{case['task_type']}-{case['num_fewshot']}-shot-{case['model_max_seq_len']}"


@pytest.mark.parametrize("case", VECTOR["evaluate"], ids=name_of)
def test_the_assembled_evaluator_agrees_with_the_vectors(notebook, tiny, case):
    data = VECTOR["items"][case["task_type"]]
    task_meta = {
        "task_type": case["task_type"],
        "num_fewshot": case["num_fewshot"],
        "continuation_delimiter": case["delimiter"],
    }
    own = notebook["CORE_Evaluator"](Capped(tiny, case["model_max_seq_len"]), Bytes(), max_batch_tokens=150)
    indices = list(range(len(data)))
    assert own.verdicts(indices, data, task_meta) == case["results"]
    assert own.evaluate_task(data, task_meta) == pytest.approx(case["evaluate_task"])
    if "mean_losses" in case:
        for scores, expected in zip(own.score(indices, data, task_meta), case["mean_losses"], strict=True):
            vectors_io.close([loss for loss, _ in scores], expected, "L")


def test_the_assembled_evaluator_lets_an_empty_answer_win_in_first_place_only(notebook, tiny):
    case = VECTOR["mc_choice_is_prefix_of_other"]
    task_meta = {"task_type": "multiple_choice", "num_fewshot": 0, "continuation_delimiter": case["delimiter"]}
    own = notebook["CORE_Evaluator"](tiny, Bytes())
    assert own.verdicts([0, 1, 2], case["items"], task_meta) == case["results"]


@pytest.mark.parametrize("name", ["scripted_lm", "scripted_lm_bad"])
def test_the_assembled_evaluator_wants_every_token_right(notebook, name):
    """A model that is certain (3x + 1) mod 97 follows x."""

    class Characters(Bytes):
        def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
            return [[prepend] + [(ord(character) - 32) % 97 for character in prompt] for prompt in prompts]

    def scripted(ids: torch.Tensor) -> torch.Tensor:
        return 10.0 * torch.nn.functional.one_hot((3 * ids + 1) % 97, 97).float()

    case = VECTOR[name]
    task_meta = {"task_type": "language_modeling", "num_fewshot": 0, "continuation_delimiter": case["delimiter"]}
    own = notebook["CORE_Evaluator"](scripted, Characters())
    assert own.verdicts(list(range(len(case["items"]))), case["items"], task_meta) == case["results"]


def write_bundle(folder: Path) -> Path:
    vector = VECTOR["evaluate_core"]
    for uri, task_type in vector["data"].items():
        path = folder / "eval_data" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in VECTOR["items"][task_type]))
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": vector["icl_tasks"]}))  # JSON is YAML
    rows = [f"{task},some category,{baseline}" for task, baseline in vector["eval_meta_data_rows"]]
    (folder / "eval_meta_data.csv").write_text("\n".join(["Eval Task,Task Category,Random baseline", *rows]))
    return folder


@pytest.mark.parametrize("run", VECTOR["evaluate_core"]["runs"], ids=lambda run: str(run["max_per_task"]))
def test_the_assembled_evaluator_gives_the_core_metric_of_the_original(notebook, tiny, tmp_path, run):
    own = notebook["CORE_Evaluator"](tiny, Bytes()).evaluate_core(write_bundle(tmp_path), run["max_per_task"])
    for name in ("results", "centered_results"):
        assert own[name] == pytest.approx(run[name], rel=1e-5)
    assert own["core_metric"] == pytest.approx(run["core_metric"], rel=1e-5)


# ranks, simulated and real


@pytest.mark.parametrize(
    ("leaving", "words"),
    [
        ("one rank does not call", "rank 1 waits in all_reduce for ever: rank 0 does not call it"),
        ("a bool", "cannot be summed"),
        ("other shapes", "different shapes or dtypes"),
        ("for ever", "ten times"),
    ],
)
def test_simulated_ranks_refuse_what_hangs_or_fails_on_real_ones(notebook, leaving, words):
    def program(rank: int, all_reduce) -> None:
        if leaving == "a bool":
            all_reduce(torch.tensor(True))
        elif leaving == "other shapes":
            all_reduce(torch.zeros(rank + 1))
        elif leaving == "for ever":
            while True:
                all_reduce(torch.zeros(1))
        elif rank > 0:
            all_reduce(torch.zeros(1))

    with pytest.raises(RuntimeError, match=words):
        notebook["on_ranks"](program, 3)


def test_simulated_ranks_sum_again_and_again(notebook):
    def program(rank: int, all_reduce) -> list[int]:
        count, total = torch.tensor([rank, 1]), torch.tensor(10)
        all_reduce(count)
        all_reduce(total)
        return [*count.tolist(), total.item()]

    assert notebook["on_ranks"](program, 4) == [[6, 4, 40]] * 4


@pytest.fixture(scope="module")
def with_processes(notebook) -> tuple[dict[str, Any], str]:
    """The notebook with its cell of two real processes run, and what that cell has printed."""
    (cell,) = [cell for cell in variants.source(PUZZLE).cells if cell.id == "two-processes"]
    namespace, printed = dict(notebook), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(cell.source, cell.id, "exec"), namespace)
    return namespace, printed.getvalue()


def test_two_real_processes_agree_in_the_notebook(with_processes):
    """13 items: rank 0 has 7, rank 1 has 6."""
    lines = with_processes[1].splitlines()
    assert [line.partition(" is process ")[0] for line in lines] == [
        "rank 0",
        "rank 1",
        "9 of 13 items are right: 0.6923076923076923",
    ]
    assert all(line.endswith(f"says {9 / 13}") for line in lines[:2])
    assert len({line.split()[4] for line in lines[:2]}) == 2


def test_the_assembled_evaluator_on_two_real_processes(with_processes, tiny):
    """Five items of a schema: each rank scores its own, and both say the accuracy of nanochat."""
    namespace, _ = with_processes
    data = VECTOR["items"]["schema"]
    task_meta = {"task_type": "schema", "num_fewshot": 2, "continuation_delimiter": " "}

    def program(rank: int, all_reduce) -> tuple[float, int]:
        own = namespace["CORE_Evaluator"](tiny, Bytes(), rank=rank, world_size=2, all_reduce=all_reduce)
        return own.evaluate_task(data, task_meta), os.getpid()

    told = namespace["on_two_processes"](program)
    expected = core_eval.evaluate_task(tiny, Bytes(), data, "cpu", task_meta)
    assert [accuracy for _, (accuracy, _) in told] == [pytest.approx(expected)] * 2
    assert len({os.getpid(), *(process_id for _, (_, process_id) in told)}) == 3


def test_a_rank_that_fails_is_told(with_processes):
    def program(rank: int, all_reduce) -> int:
        return 1 // rank

    failed, fine = with_processes[0]["on_two_processes"](program)
    assert failed[1].startswith("ZeroDivisionError")
    assert fine[1] == 1
