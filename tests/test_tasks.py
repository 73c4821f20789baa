"""Tasks: slicing, mixing, the conversations made of each data set's rows, and who counts as right."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.tasks import common, gsm8k, hub, humaneval
from nanochat.tasks.arc import ARC
from nanochat.tasks.common import HubDataset, Task, TaskMixture, TaskSequence, load_hub_dataset, render_mc
from nanochat.tasks.gsm8k import GSM8K
from nanochat.tasks.humaneval import HumanEval
from nanochat.tasks.mmlu import MMLU
from nanochat.tasks.smoltalk import SmolTalk
from tests.vectors_io import load

MIXTURE = load("mixture")
TASKS = load("tasks")


class Numbers(Task):
    """Example i is [name, i]."""

    def __init__(self, n: int, name: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = n
        self.name = name

    def num_examples(self) -> int:
        return self.n

    def get_example(self, index: int) -> Any:
        return [self.name, index]


def numbers(lengths: list[int]) -> list[Task]:
    return [Numbers(n, name) for name, n in enumerate(lengths)]


def error_name(call: Callable[[], object]) -> str | None:
    """The class of the error a call raises, None for none. InputError counts as the AssertionError that it is."""
    try:
        call()
    except Exception as error:
        assert str(error), "an error must say something"
        return "AssertionError" if isinstance(error, AssertionError) else type(error).__name__
    return None


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


# Views, mixtures, sequences


@pytest.mark.parametrize("case", MIXTURE["slicing"], ids=lambda c: f"{c['n']}-{c['start']}:{c['stop']}:{c['step']}")
def test_slicing(case: dict[str, Any]) -> None:
    task = Numbers(case["n"], start=case["start"], stop=case["stop"], step=case["step"])
    if isinstance(case["length"], str):
        assert error_name(lambda: len(task)) == case["length"]
        return
    assert len(task) == case["length"]
    assert [task[i][1] for i in range(len(task))] == case["items"]  # type: ignore[index]
    assert [item[1] for item in task] == case["items"]  # type: ignore[index]
    assert task[len(task)][1] == case["item_at_length"]  # type: ignore[index]
    assert task[-1][1] == case["item_at_minus1"]  # type: ignore[index]


@pytest.mark.parametrize("case", MIXTURE["mixture"], ids=lambda case: str(case["lengths"]))
def test_mixture(case: dict[str, Any]) -> None:
    mixture = TaskMixture(numbers(case["lengths"]))
    assert len(mixture) == case["length"]
    assert as_json(mixture.index_map) == case["index_map"]
    assert list(mixture) == case["index_map"]
    assert list(mixture) == case["index_map"], "a second epoch has the same order"


def test_sliced_mixtures() -> None:
    case = MIXTURE["mixture_sliced"]
    mixture = TaskMixture(numbers(case["lengths"]), start=case["start"], stop=case["stop"], step=case["step"])
    assert (len(mixture), list(mixture)) == (case["length"], case["items"])
    case = MIXTURE["mixture_of_sliced"]
    mixture = TaskMixture([Numbers(name=name, **view) for name, view in enumerate(case["tasks"])])
    assert (len(mixture), list(mixture)) == (case["length"], case["items"])


@pytest.mark.parametrize("case", MIXTURE["sequence"], ids=lambda case: str(case["lengths"]))
def test_sequence(case: dict[str, Any]) -> None:
    sequence = TaskSequence(numbers(case["lengths"]))
    assert (len(sequence), list(sequence)) == (case["length"], case["items"])


@given(st.lists(st.integers(0, 6), max_size=5), st.integers(1, 3))
def test_mixture_has_every_example_as_often_as_its_task_is_listed(lengths: list[int], times: int) -> None:
    mixture = TaskMixture(numbers(lengths) * times)
    every = [[name, i] for name, n in enumerate(lengths) for i in range(n)]
    assert sorted(mixture) == sorted(every * times)  # type: ignore[type-var]
    assert list(TaskSequence(numbers(lengths) * times)) == every * times


def test_task_errors() -> None:
    task = Numbers(10)
    calls: dict[str, Callable[[], object]] = {
        "negative_start": lambda: Task(start=-1),
        "stop_lt_start": lambda: Task(start=3, stop=2),
        "step_zero": lambda: Task(step=0),
        "index_float": lambda: task[1.0],  # type: ignore[index]
        "index_slice": lambda: task[0:2],  # type: ignore[index]
        "index_str": lambda: task["1"],  # type: ignore[index]
        "index_numpy_int": lambda: task[np.int64(1)],  # type: ignore[index]
        "index_bool": lambda: task[True],
        "mixture_out_of_range": lambda: TaskMixture(numbers([2, 1]))[3],
        "mixture_negative": lambda: TaskMixture(numbers([2, 1]))[-1],
        "sequence_out_of_range": lambda: TaskSequence(numbers([2, 1]))[3],
        "sequence_negative": lambda: TaskSequence(numbers([2, 1]))[-1],
        "base_num_examples": lambda: Task().num_examples(),
        "base_eval_type": lambda: Task().eval_type,
        "base_evaluate": lambda: Task().evaluate({}, ""),
        "base_get_example": lambda: Task().get_example(0),
    }
    assert {name: error_name(call) for name, call in calls.items()} == MIXTURE["errors"]
    assert error_name(lambda: TaskSequence([])[0]) == "AssertionError"


@pytest.mark.parametrize("case", MIXTURE["render_mc"], ids=lambda case: case["question"])
def test_render_mc(case: dict[str, Any]) -> None:
    assert render_mc(case["question"], case["letters"], case["choices"]) == case["text"]


# Data sets


def count_to(n: int) -> HubDataset:
    return HubDataset(pa.table({"i": list(range(n))}))


def order(dataset: HubDataset) -> list[int]:
    return [dataset[i]["i"] for i in range(len(dataset))]


def test_hub_dataset_shuffle() -> None:
    for case in MIXTURE["hub_shuffle"]:
        assert order(count_to(case["n"]).shuffle(case["seed"])) == case["order"]
        assert order(count_to(case["n"]).shuffle(seed=case["seed"])) == case["order"]
    dataset = count_to(10)
    assert order(dataset.shuffle(1).shuffle(2)) == MIXTURE["hub_double_shuffle_1_then_2_n10"]
    assert order(dataset) == MIXTURE["hub_unshuffled_after"]


def test_hub_dataset_rows_are_plain_python() -> None:
    """Also across the chunks that several parquet files make, and counted from the end."""
    row = MIXTURE["hub_row_types"]
    other = {"a": 1, "b": "p", "c": [], "d": {"t": ["x"], "l": ["A"]}}
    schema = pa.Table.from_pylist([other, row]).schema
    table = pa.concat_tables([pa.Table.from_pylist([rows], schema=schema) for rows in (other, row)])
    dataset = HubDataset(table)
    assert [dataset[0], dataset[1], dataset[-1], dataset[-2]] == [other, row, row, other]
    assert [type(value) for value in dataset[1].values()] == [int, str, list, dict]
    for index in (2, -3):
        with pytest.raises(IndexError, match="2 rows"):
            dataset[index]
        with pytest.raises(IndexError, match="2 rows"):
            dataset.shuffle(0)[index]


def put(base: Path, repo: str, subset: str, split: str, *shards: list[dict[str, Any]]) -> None:
    """Put rows where the cache of `load_hub_dataset` has them."""
    folder = base / "task_data" / repo.replace("/", "--") / subset / split
    folder.mkdir(parents=True)
    names = [f"{i:05d}.parquet" for i in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    (folder / "manifest.json").write_text(json.dumps(names))


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base directory with the data sets of the vectors."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    put(tmp_path, "openai/gsm8k", "main", "test", *TASKS["gsm8k"]["rows_by_shard"])
    put(tmp_path, "cais/mmlu", "all", "test", TASKS["mmlu"]["rows"])
    put(tmp_path, "allenai/ai2_arc", "ARC-Easy", "test", TASKS["arc"]["rows"])
    put(tmp_path, "HuggingFaceTB/smol-smoltalk", "default", "test", TASKS["smoltalk"]["rows"])
    put(tmp_path, "openai/openai_humaneval", "openai_humaneval", "test", TASKS["humaneval"]["rows"])
    return tmp_path


def make_tasks() -> dict[str, Task]:
    return {
        "gsm8k": GSM8K("main", "test"),
        "mmlu": MMLU("all", "test"),
        "arc": ARC("ARC-Easy", "test"),
        "smoltalk": SmolTalk("test"),
        "humaneval": HumanEval(),
    }


def test_conversations(base: Path) -> None:
    assert TASKS["cache_layout_note"].startswith("task_data/<repo with / as -->/<subset>/<split>/")
    for name, task in make_tasks().items():
        expected = TASKS[name]
        assert len(task) == expected["length"]
        assert as_json(list(task)) == expected["conversations"]
        if "eval_type" in expected:
            assert task.eval_type == expected["eval_type"]
    assert list(MMLU.letters) == TASKS["mmlu"]["letters"]


def test_tasks_can_be_sliced(base: Path) -> None:
    task = GSM8K(subset="main", split="test", start=1, stop=5, step=2)
    questions = [conversation["messages"][0]["content"] for conversation in task]
    assert questions == TASKS["gsm8k_sliced_1_5_2_questions"]


def test_multiple_choice_evaluation(base: Path) -> None:
    mmlu, arc = MMLU("all", "test"), ARC("ARC-Easy", "test")
    assert [mmlu.evaluate(mmlu[0], letter) for letter in mmlu.letters] == TASKS["mmlu"]["evaluate"]
    assert [[arc.evaluate(row, letter) for letter in row["letters"]] for row in arc] == TASKS["arc"]["evaluate"]


def test_auxiliary_train_rows_are_unwrapped(base: Path) -> None:
    """The hub's auxiliary_train keeps every row one level deeper."""
    rows = [{"train": {**row, "subject": ""}} for row in TASKS["mmlu"]["rows"]]
    put(base, "cais/mmlu", "auxiliary_train", "train", rows)
    wrapped, plain = MMLU("auxiliary_train", "train"), MMLU("all", "test")
    assert [c["messages"] for c in wrapped] == [c["messages"] for c in plain]


def test_task_specific_errors(base: Path) -> None:
    smol = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    put(base, "HuggingFaceTB/smol-smoltalk", "default", "train", [smol])
    gsm, mmlu, arc = GSM8K("main", "test"), MMLU("all", "test"), ARC("ARC-Easy", "test")
    calls: dict[str, Callable[[], object]] = {
        "gsm_subset": lambda: GSM8K("other", "test"),
        "gsm_split": lambda: GSM8K("main", "validation"),
        "mmlu_subset": lambda: MMLU("other", "test"),
        "mmlu_split": lambda: MMLU("all", "other"),
        "arc_subset": lambda: ARC("ARC-Hard", "test"),
        "arc_split": lambda: ARC("ARC-Easy", "other"),
        "smol_split": lambda: SmolTalk("validation"),
        "mmlu_bad_letter": lambda: mmlu.evaluate(mmlu[0], "E"),
        "arc_bad_letter": lambda: arc.evaluate(arc[1], "A"),
        "gsm_non_string": lambda: gsm.evaluate(gsm[0], 7),  # type: ignore[arg-type]
        "smoltalk_bad_roles": lambda: SmolTalk("train")[0],
    }
    assert {name: error_name(call) for name, call in calls.items()} == TASKS["errors"]


# GSM8K


def test_extract_answer() -> None:
    for case in TASKS["extract_answer"]:
        assert gsm8k.extract_answer(case["text"]) == case["result"], case["text"]


def test_gsm8k_evaluation(base: Path) -> None:
    task = GSM8K("main", "test")
    for case in TASKS["gsm8k_evaluate"]:
        right, reward = (judge(task[case["index"]], case["response"]) for judge in (task.evaluate, task.reward))
        assert (right, type(right).__name__) == (case["evaluate"], case["evaluate_type"])
        assert (reward, type(reward).__name__) == (case["reward"], case["reward_type"])
    markerless = {"messages": [{"content": "?"}, {"content": [{"type": "text", "text": "no marker"}]}]}
    assert task.evaluate(markerless, "none either") == TASKS["gsm8k_no_marker_both"]


@given(st.lists(st.text("ab<>=7 \n", max_size=8)).map("<<1+1=2>>".join))
def test_solution_parts_lose_nothing(solution: str) -> None:
    """Text and calculations alternate, and put back together they are the solution."""
    parts = gsm8k.split_solution(solution)
    kinds = [part["type"] for part in parts]
    assert kinds == ["text", *["python", "python_output", "text"] * (len(kinds) // 3)]
    rebuilt = ""
    for part in parts:
        if part["type"] == "text":
            rebuilt += part["text"]
        elif part["type"] == "python":
            rebuilt += "<<" + part["text"]
        else:
            rebuilt += ("=" + part["text"] if part["text"] else "") + ">>"
    assert rebuilt.replace("=>>", ">>") == solution.replace("=>>", ">>")


# HumanEval


def test_extract_imports_and_program() -> None:
    for case in TASKS["extract_imports"]:
        assert humaneval.extract_imports(case["prompt"]) == case["result"], case["prompt"]
    for case in TASKS["extract_program"]:
        assert humaneval.extract_program(case["completion"]) == case["result"], case["completion"]


def test_humaneval_evaluation(base: Path) -> None:
    """Through the real sandboxed interpreter."""
    task = HumanEval()
    for case in TASKS["humaneval_evaluate"]:
        assert task.evaluate(task[case["index"]], case["response"]) is case["success"], case["response"]


# Download


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `files` by path and remembers what was asked for."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, with a data set of two parquet files."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        Hub.asked = []
        Hub.files = {"/org/set/main/test": json.dumps([f"{address}/0.parquet", f"{address}/1.parquet"]).encode()}
        for i, rows in enumerate([[{"i": 0}, {"i": 1}], [{"i": 2}]]):
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shard")
            Hub.files[f"/{i}.parquet"] = (tmp_path / "shard").read_bytes()
        monkeypatch.setattr(hub, "PARQUET_API", address + "/{repo}/{subset}/{split}")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Hub
        server.shutdown()


def test_download_once(hub_server: type[Hub], tmp_path: Path) -> None:
    assert order(load_hub_dataset("org/set", "main", "test")) == [0, 1, 2]
    assert hub_server.asked == ["/org/set/main/test", "/0.parquet", "/1.parquet"]
    folder = tmp_path / "base/task_data/org--set/main/test"
    assert json.loads((folder / "manifest.json").read_text()) == ["00000.parquet", "00001.parquet"]
    assert not list(folder.glob("*.tmp"))
    hub_server.asked.clear()
    assert order(load_hub_dataset("org/set", "main", "test")) == [0, 1, 2]
    assert hub_server.asked == []


def test_interrupted_download_is_taken_up_again(hub_server: type[Hub], tmp_path: Path) -> None:
    """Without a manifest the folder does not count as a data set, and what is already there is kept."""
    second = hub_server.files.pop("/1.parquet")
    with pytest.raises(ConnectionError, match="404"):
        load_hub_dataset("org/set", "main", "test")
    assert not (tmp_path / "base/task_data/org--set/main/test/manifest.json").exists()
    hub_server.files["/1.parquet"] = second
    hub_server.asked.clear()
    assert order(load_hub_dataset("org/set", "main", "test")) == [0, 1, 2]
    assert hub_server.asked == ["/org/set/main/test", "/1.parquet"]


def test_hub_failures_are_told_in_one_sentence(hub_server: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"cannot download .*connect to the internet, or copy"):
        load_hub_dataset("org/absent", "main", "test")
    hub_server.files["/org/odd/main/test"] = b"<html>"
    with pytest.raises(ConnectionError, match="cannot download"):
        load_hub_dataset("org/odd", "main", "test")
    load_hub_dataset("org/set", "main", "test")
    (tmp_path / "base/task_data/org--set/main/test/00000.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(ValueError, match="delete it"):
        load_hub_dataset("org/set", "main", "test")


def test_common_offers_the_hub_too() -> None:
    assert common.load_hub_dataset is hub.load_hub_dataset
    assert common.HubDataset is hub.HubDataset
