"""The CORE metric of a base model: 22 in-context tasks, from the bundle of their data to one number."""

import csv
import json
import logging
import random
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from nanochat.common import download_file_with_lock, get_base_dir
from nanochat.core_eval import evaluate_task

EVAL_BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"

logger = logging.getLogger(__name__)


def evaluate_core(
    model: Any, tokenizer: Any, device: torch.device | str, max_per_task: int = -1
) -> dict[str, float | dict[str, float]]:
    """Evaluate a model on every task of the bundle in `<base directory>/eval_bundle`, downloaded if missing.

    Returns {"results": accuracy by task, "centered_results": the same with a random guess at 0 and perfection at 1,
    "core_metric": the mean of these}. With `max_per_task` > 0 a task is a sample of at most so many items. `model` and
    `tokenizer` are those of `nanochat.core_eval.evaluate_examples`; under torch.distributed all ranks call this.
    """
    bundle = ensure_eval_bundle()
    baselines = read_baselines(bundle / "eval_meta_data.csv")
    results, centered_results = {}, {}
    for task in yaml.safe_load((bundle / "core.yaml").read_text())["icl_tasks"]:
        label = task["label"]
        data = read_items(bundle / "eval_data" / task["dataset_uri"], max_per_task)
        task_meta = {
            "task_type": task["icl_task_type"],
            "num_fewshot": task["num_fewshot"][0],
            "continuation_delimiter": task.get("continuation_delimiter", " "),
        }
        results[label] = evaluate_task(model, tokenizer, data, device, task_meta)
        centered_results[label] = center(results[label], baselines[label])
        logger.info("%s: accuracy %.4f, centered %.4f", label, results[label], centered_results[label])
    core_metric = sum(centered_results.values()) / len(centered_results)
    return {"results": results, "centered_results": centered_results, "core_metric": core_metric}


def center(accuracy: float, baseline: float) -> float:
    """Rescale an accuracy so that a random guess, right with probability `baseline`, is 0 and perfection 1."""
    return (accuracy - baseline) / (1 - baseline)


def read_baselines(path: Path) -> dict[str, float]:
    """The probability of a right guess by task. The file has percentages."""
    with path.open(newline="") as file:
        return {row["Eval Task"]: 0.01 * float(row["Random baseline"]) for row in csv.DictReader(file)}


def read_items(path: Path, max_items: int = -1) -> list[Mapping[str, Any]]:
    """The items of a .jsonl file, in an order that is shuffled but always the same; the first `max_items` if > 0.

    The files are sorted by topic or answer, so that the first items alone would not be a fair sample.
    """
    with path.open(encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    random.Random(1337).shuffle(items)
    return items[:max_items] if max_items > 0 else items


def ensure_eval_bundle() -> Path:
    """The directory of the evaluation bundle, downloaded and unpacked if it is not there."""
    bundle = get_base_dir() / "eval_bundle"
    if bundle.exists():
        return bundle
    archive = download_file_with_lock(EVAL_BUNDLE_URL, "eval_bundle.zip")
    with FileLock(f"{bundle}.lock"):
        if not bundle.exists():
            with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch, zipfile.ZipFile(archive) as file:
                file.extractall(scratch)
                (Path(scratch) / "eval_bundle").rename(bundle)
    return bundle
