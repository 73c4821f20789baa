"""A small synthetic world, made from a seed: data for every stage of nanochat with nothing to download.

`write_world` lays its documents and its evaluation bundle where nanochat looks for the real ones; `tasks` has its
chats, sums and multiple-choice questions as Task objects.
"""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nanochat.common import InputError, write_atomically
from nanochat.dataset import DATA_DIR_NAME, index_to_filename
from nanochat.toyworld.documents import write_documents
from nanochat.toyworld.world import Fact, evaluated_facts, make_facts

SHARDS = 4  # the last is the validation split
DOCUMENTS_A_SHARD = 3000
ROW_GROUP_SIZE = 64


def write_world(base_dir: str | Path, seed: int = 0) -> None:
    """Write the world `seed` under a base directory: parquet shards and an evaluation bundle. What is there already is
    left alone."""
    base_dir = Path(base_dir)
    for index in range(SHARDS):
        target = base_dir / DATA_DIR_NAME / index_to_filename(index)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            count = DOCUMENTS_A_SHARD if index < SHARDS - 1 else DOCUMENTS_A_SHARD // 10
            table = pa.table({"text": list(write_documents(count, f"shard {index} of {seed}", seed))})
            write_atomically(target, partial(pq.write_table, table, row_group_size=ROW_GROUP_SIZE))
    bundle = base_dir / "eval_bundle"
    for name, text in _bundle(seed).items():
        if not (bundle / name).exists():
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(bundle / name, partial(_write_text, text=text))


def assets_dir() -> Path:
    """The folder of the toy models that come with the package, laid out like a base directory."""
    return Path(__file__).parent.parent / "assets" / "toy"


def load_toy(source: str = "sft", device: torch.device | str = "cpu") -> tuple[Any, Any, dict[str, Any]]:
    """(model, tokenizer, meta) of the toy model of a stage, "base", "sft" or "rl", ready for evaluation.

    Raises:
        FileNotFoundError: the package comes without it.
    """
    from nanochat.checkpoint_manager import SOURCE_DIRS, build_model, locate
    from nanochat.tokenizer import RustBPETokenizer

    if source not in SOURCE_DIRS:
        raise InputError(f'unknown model source "{source}": choose one of {", ".join(SOURCE_DIRS)}.')
    folder = assets_dir() / SOURCE_DIRS[source]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no toy model of the stage {source} comes with this nanochat: make one with "
            "`python -m nanochat.scripts.toy_pipeline --assets nanochat/assets/toy`."
        )
    tokenizer = RustBPETokenizer.from_directory(assets_dir() / "tokenizer")
    checkpoint_dir, step = locate(folder, None, None)
    return build_model(checkpoint_dir, step, device, "eval", tokenizer)


def _bundle(seed: int) -> dict[str, str]:
    """The files of the evaluation bundle: one multiple-choice, one schema and one language-modeling task."""
    rng = random.Random(f"bundle {seed}")
    facts = make_facts(seed)
    items = {
        "toy_choice": [_choice(rng, fact) for fact in evaluated_facts(seed)],
        "toy_schema": [_schema(rng, fact, facts) for fact in evaluated_facts(seed)],
        "toy_recall": [_recall(fact) for fact in evaluated_facts(seed)],
    }
    kinds = {"toy_choice": "multiple_choice", "toy_schema": "schema", "toy_recall": "language_modeling"}
    baselines = {"toy_choice": 25, "toy_schema": 50, "toy_recall": 0}
    tasks = "".join(
        f"- label: {name}\n  dataset_uri: {name}.jsonl\n  num_fewshot: [2]\n  icl_task_type: {kind}\n"
        for name, kind in kinds.items()
    )
    rows = "".join(f"{name},world knowledge,{baseline}\n" for name, baseline in baselines.items())
    header = "Eval Task,Task Category,Random baseline\n"
    files = {"core.yaml": f"icl_tasks:\n{tasks}", "eval_meta_data.csv": header + rows}
    for name, rows_of_task in items.items():
        files[f"eval_data/{name}.jsonl"] = "".join(f"{json.dumps(item)}\n" for item in rows_of_task)
    return files


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _stem(fact: Fact) -> str:
    """The fact's first statement up to its value, which every such statement ends with."""
    return fact.say(fact.relation.statements[0]).partition(fact.value)[0].strip()


def _choice(rng: random.Random, fact: Fact) -> dict[str, Any]:
    choices = [fact.value, *rng.sample([value for value in fact.relation.values if value != fact.value], 3)]
    rng.shuffle(choices)
    return {"query": _stem(fact), "choices": choices, "gold": choices.index(fact.value)}


def _schema(rng: random.Random, fact: Fact, facts: list[Fact]) -> dict[str, Any]:
    """Which of two subjects the value belongs to."""
    others = [each for each in facts if each.relation == fact.relation and each.value != fact.value]
    options = [_stem(fact), _stem(rng.choice(others))]
    rng.shuffle(options)
    return {"context_options": options, "continuation": f"{fact.value}.", "gold": options.index(_stem(fact))}


def _recall(fact: Fact) -> dict[str, str]:
    return {"context": _stem(fact), "continuation": fact.value}
