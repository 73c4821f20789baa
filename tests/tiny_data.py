"""Every real data set in miniature, in the places where the commands look for it, and how to run the commands on it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.scripts import base_train, tok_train

COLOURS = ("red", "blue", "green", "white")
THINGS = ("cat", "dog", "hat", "cup", "fish", "leaf", "boat", "door")
RESPOND = "Respond only with the letter of the correct answer."


def write_documents(base_dir: Path, seed: int = 0) -> None:
    """Three shards of four row groups of 16 short documents; the last shard is the validation split."""
    rng = random.Random(seed)
    for shard in range(3):
        write_shard(base_dir, shard, [[document(rng) for _ in range(16)] for _ in range(4)])


def write_shard(base_dir: Path, index: int, row_groups: list[list[str]]) -> None:
    path = base_dir / "base_data_climbmix" / f"shard_{index:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for group in row_groups:
            writer.write_table(pa.table({"text": group}))


def document(rng: random.Random) -> str:
    return " ".join(sentence(rng) for _ in range(rng.randint(1, 9)))


def sentence(rng: random.Random) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        return f"The {rng.choice(THINGS)} is {rng.choice(COLOURS)}."
    if kind == 1:
        return f"{rng.randint(1, 9)} plus {rng.randint(1, 9)} makes 10."
    return f"Multiple Choice question: - {rng.choice(COLOURS)}=A. {RESPOND}"


def write_tasks(base_dir: Path) -> None:
    """The data sets of fine-tuning, evaluation and reinforcement learning."""
    questions: list[dict[str, Any]] = [
        {"question": f"What colour is the {thing}?", "answer": i % 4} for i, thing in enumerate(THINGS)
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": q["question"]},
                {"role": "assistant", "content": COLOURS[q["answer"]]},
            ]
        }
        for q in questions
    ]
    mmlu = [q | {"choices": list(COLOURS), "subject": "colours"} for q in questions]
    letters = {"text": list(COLOURS), "label": list("ABCD")}
    arc = [{"question": q["question"], "choices": letters, "answerKey": "ABCD"[q["answer"]]} for q in questions]
    sums = [(a, a + 3) for a in range(1, 9)]
    gsm8k = [{"question": f"{a} plus {b}?", "answer": f"<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"} for a, b in sums]
    human_eval = [
        {
            "prompt": "def one():\n",
            "canonical_solution": "    return 1\n",
            "entry_point": "one",
            "test": "def check(f):\n    assert f() == 1\n",
        }
    ]
    for split in ("train", "test"):
        write_hub(base_dir, "HuggingFaceTB/smol-smoltalk", "default", split, chats)
        write_hub(base_dir, "openai/gsm8k", "main", split, gsm8k)
    for split in ("auxiliary_train", "test"):
        write_hub(base_dir, "cais/mmlu", "all", split, mmlu)
    for subset in ("ARC-Easy", "ARC-Challenge"):
        write_hub(base_dir, "allenai/ai2_arc", subset, "test", arc)
    write_hub(base_dir, "openai/openai_humaneval", "openai_humaneval", "test", human_eval)


def write_hub(base_dir: Path, repo: str, subset: str, split: str, rows: list[dict[str, Any]]) -> None:
    folder = base_dir / "task_data" / repo.replace("/", "--") / subset / split
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "manifest.json").write_text('["00000.parquet"]')


def write_eval_bundle(base_dir: Path) -> None:
    """A bundle of one CORE task."""
    bundle = base_dir / "eval_bundle"
    (bundle / "eval_data").mkdir(parents=True)
    (bundle / "core.yaml").write_text(
        "icl_tasks:\n- {label: colours, icl_task_type: multiple_choice, num_fewshot: [1], dataset_uri: colours.jsonl}\n"
    )
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Task Category,Random baseline\ncolours,world,25\n")
    items = [{"query": f"The {thing} is", "choices": list(COLOURS), "gold": i % 4} for i, thing in enumerate(THINGS)]
    (bundle / "eval_data" / "colours.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


TRAIN = ["--device-batch-size", "4", "--total-batch-size", "256", "--eval-tokens", "256"]
MODEL = ["--depth", "2", "--aspect-ratio", "16", "--head-dim", "16", "--max-seq-len", "64", *TRAIN]
BASE_TRAIN = [*MODEL, "--num-iterations", "8", "--eval-every", "4", "--core-metric-every", "-1", "--sample-every", "-1"]
CHAT_SFT = ["--max-seq-len", "128", "--device-batch-size", "2", "--total-batch-size", "256", "--eval-tokens", "256"]
CHAT_RL = ["--device-batch-size", "2", "--num-samples", "4", "--examples-per-step", "2", "--max-new-tokens", "8"]


def write_all(base_dir: Path) -> None:
    write_documents(base_dir)
    write_tasks(base_dir)
    write_eval_bundle(base_dir)


def environment(base_dir: Path) -> dict[str, str]:
    """The environment of a command that works in `base_dir`, on one core."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return kept | {"NANOCHAT_BASE_DIR": str(base_dir), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(base_dir: Path, name: str, *arguments: str, ranks: int = 1, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m nanochat.scripts.NAME`, under torchrun if there is to be more than one rank."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", f"nanochat.scripts.{name}", *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment(base_dir), **pipes, **options)


def run(base_dir: Path, name: str, *arguments: str, ranks: int = 1, stdin: str = "") -> tuple[int, str, str]:
    """Run a command to its end: (exit code, stdout, stderr)."""
    process = start(base_dir, name, *arguments, ranks=ranks)
    stdout, stderr = process.communicate(stdin, timeout=300)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with all data, a tokenizer and a base model after 8 steps."""
    base_dir = tmp_path_factory.mktemp("tiny") / "base"
    write_all(base_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
        tok_train.main(["--vocab-size", "400"])
        base_train.main(BASE_TRAIN)
    return base_dir
