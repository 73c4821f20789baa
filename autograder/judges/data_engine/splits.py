"""Judge of the two splits."""

import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import dataset

# nanochat finds its data in one place; while it is shown another one, no second thread may look.
_elsewhere = threading.Lock()


def split_cases(rng: Random) -> list[Case]:
    def names(*numbers: int) -> list[str]:
        return [f"shard_{number:05d}.parquet" for number in numbers]

    fixed = [
        (names(0, 1, 2), "train"),
        (names(0, 1, 2), "val"),
        (names(3), "val"),
        (names(3), "train"),
        ([], "train"),
        ([], "val"),
        (["shard_00000.parquet.tmp", "zebra.txt"], "val"),
        ([*names(2, 0, 1), "shard_00003.parquet.tmp"], "val"),
        ([*names(2, 0, 1), "a.parquet.part", "zebra.txt"], "train"),
        (["s_10.parquet", "s_9.parquet", "s_100.parquet"], "train"),
        (["s_10.parquet", "s_9.parquet", "s_8.parquet"], "val"),
        (names(0, 1), "test"),
        (names(0, 1), "Train"),
        ([], "validation"),
    ]
    drawn = []
    for _ in range(6):
        numbers = rng.sample(range(7000), rng.randint(3, 9))
        files = [*names(*numbers), f"shard_{rng.randrange(7000):05d}.parquet.{rng.randrange(999)}.tmp"]
        rng.shuffle(files)
        drawn.append((files, rng.choice(("train", "val"))))
    return asked("names split", *fixed, *drawn)


@plain_value_error
def split_shards(names: list[str], split: str) -> list[str]:
    with TemporaryDirectory() as folder:
        for name in names:
            Path(folder, name).touch()
        with _elsewhere, patch.object(dataset, "get_data_dir", lambda: Path(folder)):
            return [path.replace(folder, "FOLDER") for path in dataset.split_files(split)]


def mistaken_split(choose: Callable[[list[str], str], list[str]]) -> Callable[..., list[str]]:
    """The files that `choose(names, split)` takes."""

    def mistake(names: list[str], split: str) -> list[str]:
        if split not in ("train", "val"):
            raise ValueError
        if not (chosen := choose(names, split)):
            raise FileNotFoundError
        return [f"FOLDER/{name}" for name in chosen]

    return mistake


def shards_of(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".parquet"))


def last_or_rest(names: list[str], split: str) -> list[str]:
    return names[-1:] if split == "val" else names[:-1]


def unchecked_split(names: list[str], split: str) -> list[str]:
    return split_shards(names=names, split=split if split == "val" else "train")


def number_in(name: str) -> int:
    return int("".join(filter(str.isdigit, name)) or 0)


SPLIT_SHARDS = Judge(
    split_cases,
    split_shards,
    mistakes={
        "the validation split is the first shard; it is the last one": (
            mistaken_split(lambda names, split: shards_of(names)[:1] if split == "val" else shards_of(names)[1:])
        ),
        "the validation shard is among the training shards, so the validation loss means nothing": (
            mistaken_split(lambda names, split: shards_of(names)[-1:] if split == "val" else shards_of(names))
        ),
        "the two splits are swapped": (
            mistaken_split(lambda names, split: last_or_rest(shards_of(names), "train" if split == "val" else "val"))
        ),
        "the paths are not full: they are to be opened from anywhere, so they need their folder": (
            lambda **case: [path.removeprefix("FOLDER/") for path in split_shards(**case)]
        ),
        "every file counts as a shard; only names that end in .parquet do": (
            mistaken_split(lambda names, split: last_or_rest(sorted(names), split))
        ),
        "a download that is not finished counts as a shard; only names that end in .parquet do": (
            mistaken_split(lambda names, split: last_or_rest(sorted(n for n in names if ".parquet" in n), split))
        ),
        "the shards are sorted by their numbers; they are sorted by name, as text": (
            mistaken_split(lambda names, split: last_or_rest(sorted(shards_of(names), key=number_in), split))
        ),
        "the shards are not sorted": (
            mistaken_split(lambda names, split: last_or_rest([n for n in names if n.endswith(".parquet")], split))
        ),
        "a split other than train and val is not refused; it must raise ValueError": unchecked_split,
    },
)
