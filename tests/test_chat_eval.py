"""Chat evaluation: vectors of the original, batching that changes nothing, ranks that share the work."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from nanochat import chat_eval, common
from nanochat.chat_eval import run_categorical_eval, run_chat_eval, run_generative_eval
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.tasks.common import Task
from tests.vectors_io import VECTORS, load

CONVERSATIONS = load("tasks")["categorical"]["conversations"]
CATEGORICAL_RUNS = load("tasks")["categorical"]["runs"]
GENERATIVE_RUNS = load("tasks")["generative"]


class ToyTask(Task):
    """The conversations of the vectors; remembers which answers it was asked to judge."""

    eval_type = "categorical"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judged: list[tuple[int, str]] = []

    def num_examples(self) -> int:
        return len(CONVERSATIONS)

    def get_example(self, index: int) -> dict[str, Any]:
        return {**CONVERSATIONS[index], "index": index}

    def evaluate(self, conversation: Any, assistant_response: str) -> bool:
        self.judged.append((conversation["index"], assistant_response))
        return assistant_response == conversation["messages"][-1]["content"]


class ToyTokenizer:
    """Bytes, and 256 and 257 around the user's text."""

    def get_bos_token_id(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()

    def render_for_completion(self, conversation: Any) -> list[int]:
        return [256, *conversation["messages"][0]["content"].encode(), 257]


class ToyModel:
    """Logits that depend on the sum of the tokens so far, as the vectors' README has them."""

    def __init__(self) -> None:
        self.input_shapes: list[list[int]] = []

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.input_shapes.append(list(ids.shape))
        return ((ids.cumsum(dim=1)[..., None] * torch.arange(1, 259)) % 97).float()

    __call__ = forward


class ToyEngine:
    """The n-th call answers with one letter a sample, in the order of the vectors."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def generate_batch(self, prompt: list[int], **kwargs: Any) -> tuple[list[list[int]], list[list[int]]]:
        self.calls.append(kwargs)
        n = len(self.calls)
        letters = [b"ABCD"[n * (s + 1) % 4] for s in range(kwargs["num_samples"])]
        return [[*prompt, letter] for letter in letters], [[0] * len(prompt) + [1] for _ in letters]


@pytest.mark.parametrize("run", CATEGORICAL_RUNS, ids=lambda run: f"{run['batch_size']}-{run['max_problems']}")
def test_categorical(run: dict[str, Any]) -> None:
    model = ToyModel()
    accuracy = run_categorical_eval(
        ToyTask(), ToyTokenizer(), model, run["batch_size"], max_problems=run["max_problems"]
    )
    assert accuracy == run["accuracy"]
    assert model.input_shapes == run["input_shapes"]


@pytest.mark.parametrize("run", GENERATIVE_RUNS, ids=lambda run: f"{run['num_samples']}-{run['max_problems']}")
def test_generative(run: dict[str, Any]) -> None:
    engine = ToyEngine()
    settings = (run["num_samples"], run["max_new_tokens"], run["temperature"], run["top_k"])
    accuracy = run_generative_eval(
        ToyTask(), ToyTokenizer(), ToyModel(), engine, *settings, max_problems=run["max_problems"]
    )
    assert accuracy == run["accuracy"]
    assert len(engine.calls) == run["n_calls"]
    assert engine.calls[0] == run["first_call"]


def test_eval_type_picks_the_kind_of_evaluation() -> None:
    model, tokenizer, engine, task = ToyModel(), ToyTokenizer(), ToyEngine(), ToyTask()
    categorical = run_chat_eval(task, model, tokenizer, engine, batch_size=4)
    assert (categorical, engine.calls, len(model.input_shapes)) == (CATEGORICAL_RUNS[2]["accuracy"], [], 3)
    task.eval_type = "generative"
    generative = run_chat_eval(task, model, tokenizer, engine, num_samples=3, max_new_tokens=9)
    assert generative == GENERATIVE_RUNS[1]["accuracy"]
    assert engine.calls[0] == {"num_samples": 3, "max_tokens": 9, "temperature": 0.0, "top_k": 50}


def test_nothing_to_evaluate_is_an_error() -> None:
    """Not a division by zero, and not an accuracy."""
    task, tokenizer, model = ToyTask(stop=0), ToyTokenizer(), ToyModel()
    with pytest.raises(ValueError, match="no problems to evaluate"):
        run_categorical_eval(task, tokenizer, model, 2)
    with pytest.raises(ValueError, match="no problems to evaluate"):
        run_generative_eval(ToyTask(), tokenizer, model, ToyEngine(), 1, 8, 0.0, None, max_problems=0)


def test_letters_must_be_single_tokens() -> None:
    class TwoTokens(ToyTokenizer):
        def encode(self, text: str) -> list[int]:
            return [*super().encode(text), 0]

    with pytest.raises(AssertionError, match="must be one token"):
        run_categorical_eval(ToyTask(), TwoTokens(), ToyModel(), 2)


class CheckpointTokenizer(ToyTokenizer):
    """The vectors' tiny model knows 97 tokens, 95 is its BOS."""

    specials = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>", "<|assistant_end|>")

    def get_bos_token_id(self) -> int:
        return 95

    def encode(self, text: str) -> list[int]:
        return [byte % 90 for byte in text.encode()]

    def encode_special(self, text: str) -> int:
        return 90 + self.specials.index(text)

    def decode(self, ids: list[int]) -> str:
        return ".".join(map(str, ids))

    def render_for_completion(self, conversation: Any) -> list[int]:
        return [95, *self.encode(conversation["messages"][0]["content"])]


@pytest.fixture(scope="module")
def tiny_model() -> GPT:
    checkpoint = VECTORS / "checkpoint"
    meta = json.loads((checkpoint / "meta_000010.json").read_text())
    model = GPT(GPTConfig(**meta["model_config"]))
    model.init_weights()
    model.load_state_dict(torch.load(checkpoint / "model_000010.pt", weights_only=True))
    return model.eval()


def test_padding_and_batching_change_no_answer(tiny_model: GPT) -> None:
    """On a real model: right padding is invisible to a causal model, and each row is read at its own last token."""
    tokenizer = CheckpointTokenizer()
    judged = []
    for batch_size in (1, 2, 5, 9):
        task = ToyTask()
        run_categorical_eval(task, tokenizer, tiny_model, batch_size)
        judged.append(task.judged)
    assert judged[0] == judged[1] == judged[2] == judged[3]
    assert [index for index, _ in judged[0]] == list(range(9))
    for index, letter in judged[0]:
        ids = torch.tensor([tokenizer.render_for_completion(CONVERSATIONS[index])])
        with torch.no_grad():
            logits = tiny_model(ids)[0, -1]
        best = max(CONVERSATIONS[index]["letters"], key=lambda letter: logits[tokenizer.encode(letter)[0]].item())
        assert letter == best
    assert len({letter for _, letter in judged[0]}) > 1


def test_generative_with_a_real_engine(tiny_model: GPT) -> None:
    """Answers are what the engine generates, without the prompt and without the token that ends them."""
    tokenizer, task = CheckpointTokenizer(), ToyTask()
    engine = Engine(tiny_model, tokenizer)
    accuracy = run_generative_eval(task, tokenizer, tiny_model, engine, 2, 5, 1.0, 10, max_problems=3)
    assert accuracy == 0.0
    assert [index for index, _ in task.judged] == [0, 0, 1, 1, 2, 2]
    for index, answer in task.judged:
        prompt = tokenizer.render_for_completion(CONVERSATIONS[index])
        sequences, _ = engine.generate_batch(prompt, num_samples=2, max_tokens=5, temperature=1.0, top_k=10)
        assert answer in [tokenizer.decode(sequence[len(prompt) :]) for sequence in sequences]


def test_chatcore() -> None:
    perfect = dict.fromkeys(chat_eval.CHAT_TASKS, 1.0)
    guessing = {name: baseline for name, (_, baseline) in chat_eval.CHAT_TASKS.items()}
    assert chat_eval.chatcore_metric(perfect) == 1.0
    assert chat_eval.chatcore_metric(guessing) == 0.0
    assert chat_eval.chatcore_metric({"MMLU": 0.4, "GSM8K": 0.1}) == pytest.approx((0.2 + 0.1) / 2)


def evaluate_on_one_rank(rank: int, world_size: int, port: int, out: str) -> None:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    common.compute_init("cpu")
    results = []
    for batch_size, max_problems in [(1, None), (2, 5), (100, None)]:
        task = ToyTask()
        accuracy = run_categorical_eval(task, ToyTokenizer(), ToyModel(), batch_size, max_problems)
        results.append([accuracy, [index for index, _ in task.judged]])
    task = ToyTask()
    accuracy = run_generative_eval(task, ToyTokenizer(), ToyModel(), ToyEngine(), 1, 8, 0.0, None)
    results.append([accuracy, [index for index, _ in task.judged]])
    Path(out, f"rank{rank}.json").write_text(json.dumps(results))
    common.compute_cleanup()


def test_ranks_share_the_problems_and_agree_on_the_accuracy(tmp_path: Path) -> None:
    """Two real processes: every problem judged once, and each rank told the accuracy over all of them."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(evaluate_on_one_rank, args=(2, port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    categorical = CATEGORICAL_RUNS[0]["accuracy"], CATEGORICAL_RUNS[4]["accuracy"], CATEGORICAL_RUNS[0]["accuracy"]
    assert [accuracy for accuracy, _ in first[:3]] == list(categorical)
    assert [accuracy for accuracy, _ in first] == [accuracy for accuracy, _ in second]
    assert [judged for _, judged in first] == [[0, 2, 4, 6, 8], [0, 1, 4], list(range(9)), [0, 2, 4, 6, 8]]
    assert [judged for _, judged in second] == [[1, 3, 5, 7], [2, 3], [], [1, 3, 5, 7]]
    expected = sum("ABCD"[(i // 2 + 1) % 4] == CONVERSATIONS[i]["messages"][-1]["content"] for i in range(9)) / 9
    assert first[3][0] == expected
