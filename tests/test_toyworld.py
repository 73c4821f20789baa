"""The toy world: the same from the same seed, its splits apart, and laid where the real data would lie."""

import json

import pytest

from nanochat import dataset
from nanochat.base_eval import read_baselines, read_items
from nanochat.chat_eval import run_chat_eval
from nanochat.core_eval import TASK_TYPES, render_prompts_lm, render_prompts_mc, render_prompts_schema
from nanochat.engine import Engine
from nanochat.toyworld import assets_dir, load_toy, write_world
from nanochat.toyworld.arithmetic import extract_answer, is_held_out, make_problem, solve
from nanochat.toyworld.documents import write_documents
from nanochat.toyworld.tasks import ToyArithmetic, ToyChat, ToyChoice
from nanochat.toyworld.world import evaluated_facts, make_facts, split_questions

SEED = "a test"


def test_a_seed_makes_the_same_world_and_another_seed_another():
    assert make_facts(1) == make_facts(1)
    assert make_facts(1) != make_facts(2)
    assert list(write_documents(20, SEED)) == list(write_documents(20, SEED))
    assert ToyChat("train", seed=3)[5] == ToyChat("train", seed=3)[5]


def test_the_splits_share_no_question_and_both_ask_about_every_fact():
    train, test = split_questions("train"), split_questions("test")
    assert not set(train) & set(test)
    for pairs in (train, test):
        assert {fact for fact, _ in pairs} == set(make_facts())
    for phrasing in {question for _, question in train}:
        assert any(question == phrasing for _, question in test), "every phrasing is met in training and in test"


def test_every_fact_stands_in_the_documents():
    text = " ".join(write_documents(2000, SEED))
    for fact in make_facts():
        assert any(fact.say(statement) in text for statement in fact.relation.statements), fact


def test_test_operands_never_occur_in_training():
    import random

    rng = random.Random(0)
    for split in ("train", "test"):
        for _ in range(200):
            problem = make_problem(rng, split)
            assert is_held_out(problem.a, problem.b) == (split == "test")


def test_solutions_call_the_calculator_and_end_in_its_answer():
    import random

    problem = make_problem(random.Random(0), "train")
    call, output, text = solve(problem)
    assert (call["type"], output["type"]) == ("python", "python_output")
    assert output["text"] == str(eval(call["text"]))
    assert extract_answer(text["text"]) == int(output["text"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_tasks_judge_their_own_answers_right_and_others_wrong(split):
    chat, arithmetic, choice = ToyChat(split), ToyArithmetic(split), ToyChoice(split)
    for index in (0, 1, 20, 60):
        conversation = chat[index]
        assert chat.evaluate(conversation, conversation["messages"][-1]["content"])
        assert not chat.evaluate(conversation, "I do not know.")
        conversation = arithmetic[index]
        right = conversation["messages"][-1]["content"][-1]["text"]
        assert arithmetic.reward(conversation, right) == 1.0
        assert arithmetic.reward(conversation, "That makes 1234567.") == 0.0
        conversation = choice[index]
        letter = conversation["messages"][-1]["content"]
        assert choice.evaluate(conversation, letter)
        assert not choice.evaluate(conversation, next(other for other in "ABCD" if other != letter))


def test_the_world_lies_where_nanochat_looks_and_is_not_written_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    write_world(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert len(dataset.split_files("train")) == 3
    assert len(dataset.split_files("val")) == 1
    assert next(dataset.parquets_iter_batched("val"))
    write_world(tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_the_evaluation_bundle_has_a_task_of_each_kind(tmp_path):
    write_world(tmp_path)
    bundle = tmp_path / "eval_bundle"
    baselines = read_baselines(bundle / "eval_meta_data.csv")
    render = {"toy_choice": render_prompts_mc, "toy_schema": render_prompts_schema, "toy_recall": render_prompts_lm}
    assert baselines.keys() == render.keys()
    assert len(TASK_TYPES) == len(render)
    for name, prompts_of in render.items():
        items = read_items(bundle / "eval_data" / f"{name}.jsonl")
        assert len(items) == len(evaluated_facts())
        prompts = prompts_of(items[0], " ", items[1:3])
        assert len(set(prompts)) == len(prompts) > 1


@pytest.mark.parametrize("source", ["base", "sft", "rl"])
def test_the_shipped_models_load(source):
    model, tokenizer, _ = load_toy(source)
    assert model.config.vocab_size == tokenizer.get_vocab_size()


def test_the_shipped_models_are_small_and_work():
    """The figures that README shows are those of the record, and far from chance where the model should be good."""
    assert sum(path.stat().st_size for path in assets_dir().rglob("*")) < 8 * 2**20
    figures = json.loads((assets_dir() / "figures.json").read_text())["figures"]
    assert figures["sft"]["ToyChat"] > 0.9
    assert figures["sft"]["ToyChoice"] > 0.9
    assert figures["sft"]["ToyArithmetic"] > 0.9 > 0.1 > figures["sft"]["ToyArithmetic without calculator"]
    assert figures["rl"]["RL questions, sampled"] > figures["sft"]["RL questions, sampled"] + 0.1


def test_the_recorded_figures_are_what_the_shipped_model_does():
    """A part of the exam, sat again."""
    model, tokenizer, _ = load_toy("sft")
    engine = Engine(model, tokenizer)
    settings = {"max_new_tokens": 40, "max_problems": 24}
    assert run_chat_eval(ToyChat("test"), model, tokenizer, engine, 24, **settings) > 0.8
    assert run_chat_eval(ToyChoice("test"), model, tokenizer, engine, 24, **settings) > 0.8
    assert run_chat_eval(ToyArithmetic("test"), model, tokenizer, engine, 24, **settings) > 0.8
