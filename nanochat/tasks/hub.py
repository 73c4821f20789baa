"""Data sets from the Hugging Face hub, kept as parquet files in the base directory and read with pyarrow alone."""

import json
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import download_file_with_lock, get_base_dir, write_atomically

# Lists the URLs of the parquet files of one split, as JSON.
PARQUET_API = "https://huggingface.co/api/datasets/{repo}/parquet/{subset}/{split}"


class HubDataset:
    """The rows of an arrow table as plain Python dicts, in the table's order or shuffled."""

    def __init__(self, table: pa.Table, order: np.ndarray | None = None) -> None:
        self.table = table
        self.order = order

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`, counted from the end if negative. IndexError outside the data set."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"the data set has {len(self)} rows, no number {index}")
        row = index % len(self) if self.order is None else int(self.order[index])
        return self.table.slice(row, 1).to_pylist()[0]

    def shuffle(self, seed: int) -> "HubDataset":
        """The same rows in a random order that depends on `seed` alone, also if this one is shuffled already."""
        return HubDataset(self.table, np.random.default_rng(seed).permutation(len(self)))


def load_hub_dataset(repo: str, subset: str, split: str) -> HubDataset:
    """One split of a data set of the Hugging Face hub, downloaded on first use.

    It is kept in task_data/<repo with / as -->/<subset>/<split>/ of the base directory: 00000.parquet, ... and
    manifest.json, which is written last and so says that the others are complete.

    Raises:
        ConnectionError: it isn't there yet, and the hub cannot be reached or does not have it.
        ValueError: the files are damaged.
    """
    relative = Path("task_data", repo.replace("/", "--"), subset, split)
    folder = get_base_dir() / relative
    if not (folder / "manifest.json").exists():
        _download(PARQUET_API.format(repo=repo, subset=subset, split=split), relative)
    try:
        shards = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
        return HubDataset(pa.concat_tables(shards))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{folder} is damaged ({error}): delete it, and it will be downloaded again") from error


def _download(api_url: str, relative: Path) -> None:
    folder = get_base_dir() / relative
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(api_url, timeout=60) as response:
            urls = json.load(response)
        names = [f"{i:05d}.parquet" for i in range(len(urls))]
        for url, name in zip(urls, names, strict=True):
            download_file_with_lock(url, str(relative / name))
    except (OSError, HTTPException, json.JSONDecodeError) as error:
        raise ConnectionError(
            f"cannot download {api_url} ({error}): connect to the internet, or copy its files into {folder}"
        ) from error
    write_atomically(folder / "manifest.json", lambda path: path.write_text(json.dumps(names)))
