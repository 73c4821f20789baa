"""The pretraining documents: parquet shards with a `text` column, and how to download them.

`python -m nanochat.dataset -n 8` downloads eight training shards and the validation shard.
"""

import argparse
import os
import sys
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from time import sleep

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import InputError, download, get_base_dir

BASE_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
DATA_DIR_NAME = "base_data_climbmix"
MAX_SHARD = 6542  # the last of 6543 shards; always downloaded, because it is the validation split
DOWNLOAD_COMMAND = "python -m nanochat.dataset -n 8"


def get_data_dir() -> Path:
    """Where the shards live, under the base directory; it may not exist yet."""
    return Path(get_base_dir()) / DATA_DIR_NAME


def index_to_filename(index: int) -> str:
    """File name of shard `index`: 7 is shard_00007.parquet."""
    return f"shard_{index:05d}.parquet"


def list_parquet_files(data_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Full paths of the finished shards in `data_dir` (default: the data directory), sorted by name."""
    directory = get_data_dir() if data_dir is None else Path(data_dir)
    return sorted(str(path) for path in directory.glob("*.parquet"))


def split_files(split: str) -> list[str]:
    """Paths of the shards of `split`: "val" is the last shard by name, "train" all the others.

    Raises InputError for any other split, FileNotFoundError if the split has no shard.
    """
    if split not in ("train", "val"):
        raise InputError(f'The split is {split!r}: it must be "train" or "val".')
    files = list_parquet_files()
    chosen = files[-1:] if split == "val" else files[:-1]
    if not chosen:
        found = "the only shard is the validation split" if files else "there are no parquet shards"
        raise FileNotFoundError(f"No {split} data in {get_data_dir()}: {found}; run `{DOWNLOAD_COMMAND}`.")
    return chosen


def read_row_groups(path: str, start: int = 0, step: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Yield (index, documents) of the row groups start, start + step, ... of one shard.

    Raises ValueError if the shard has no `text` column or is not a complete parquet file.
    """
    try:
        with pq.ParquetFile(path) as shard:
            if "text" not in shard.schema_arrow.names:
                columns = ", ".join(shard.schema_arrow.names)
                raise ValueError(f"Shard {path} has no `text` column (its columns: {columns}); a shard needs one.")
            for index in range(start, shard.num_row_groups, step):
                yield index, shard.read_row_group(index, columns=["text"]).column("text").to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"Shard {path} cannot be read ({error}); if it is cut short, delete it and run `{DOWNLOAD_COMMAND}`."
        ) from error


def parquets_iter_batched(split: str, start: int = 0, step: int = 1) -> Iterator[list[str]]:
    """One pass over the documents of `split` ("train" or "val"), a row group at a time.

    `start` and `step` pick row groups within each shard; a rank passes its rank and the world size.
    Raises as `split_files` and `read_row_groups` do.
    """
    for path in split_files(split):
        for _, documents in read_row_groups(path, start, step):
            yield documents


def download_shard(
    index: int,
    data_dir: str | os.PathLike[str] | None = None,
    base_url: str = BASE_URL,
    attempts: int = 5,
    backoff: float = 1.0,
) -> Path:
    """Download shard `index` unless it is there, and return its path.

    A failed attempt is repeated after `backoff` seconds, doubled each time; a refusal (HTTP 4xx other than 408 and
    429) is not repeated. The shard appears under its own name only when every byte has arrived.
    Raises ConnectionError naming the shard and the last failure.
    """
    directory = get_data_dir() if data_dir is None else Path(data_dir)
    path = directory / index_to_filename(index)
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    url = f"{base_url}/{path.name}"
    for attempt in range(1, attempts + 1):
        try:
            download(url, path, timeout=30)
            return path
        # HTTPError and URLError are OSErrors, and so are timeouts and dropped connections.
        except (OSError, HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)
            if refused or attempt == attempts:
                raise ConnectionError(f"Could not download {url} in {attempt} attempt(s): {error}.") from error
            sleep(backoff * 2 ** (attempt - 1))
    raise InputError(f"`attempts` is {attempts}: it must be at least 1.")


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 when every shard is there, 1 if a download failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m nanochat.dataset", description="Download the pretraining shards.")
    parser.add_argument("-n", "--num-files", type=int, default=8, help=f"training shards, -1 for all {MAX_SHARD}")
    parser.add_argument("-w", "--num-workers", type=int, default=4, help="parallel downloads")
    args = parser.parse_args(argv)
    count = MAX_SHARD if args.num_files == -1 else args.num_files
    if not 0 <= count <= MAX_SHARD:
        parser.error(f"--num-files is {args.num_files}: there are {MAX_SHARD} training shards (-1 for all of them).")
    if args.num_workers < 1:
        parser.error(f"--num-workers is {args.num_workers}: it must be at least 1.")

    def attempt(index: int) -> bool:
        try:
            print(download_shard(index), flush=True)
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
            return False
        return True

    with ThreadPoolExecutor(args.num_workers) as pool:
        done = list(pool.map(attempt, [*range(count), MAX_SHARD]))
    print(f"{sum(done)} of {len(done)} shards are in {get_data_dir()}")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
