# %% [markdown]
# # Puzzle 3: The Data Engine
#
# **Turn parquet shards and chats into full rows of tokens, on any number of GPUs, and go on after a crash as if nothing
# had happened.**
#
# ⭐⭐⭐⭐ · about 150 minutes · 100 points in 8 parts · builds on nothing · runs on any CPU, uses a GPU if there is one
#
# | in a terminal | what it does |
# |---|---|
# | `python -m puzzles.03_data_engine` | runs your notebook and shows the visible checks |
# | `python -m puzzles.03_data_engine --verify` | runs the hidden tests and shows your points |
# | `python -m puzzles.03_data_engine --hint pack_sft` | gives hints for a part |
# | `python -m puzzles.03_data_engine --peek pack_sft` | shows nanochat's own lines for a part |
#
# ## Why it matters
#
# A data loader that is wrong still delivers tensors of the right shape, and the loss still falls. Four real ways to
# lose a run in it:
#
# - **The mask of a chat, not shifted.** The answer to a multiple-choice question is one token, `B`, and one that ends
#   the turn. With the mask one position late, the model never trains on a single `B`. It learns what follows it: to
#   end its turn, and then to start a new document.
# - **Files dealt to GPUs.** Nine shards on eight GPUs: one GPU has two files to read and seven have one. By the time
#   it has read its own once, the other seven have read theirs twice.
# - **A resume that only knows its file position.** A thousand documents wait in the packing buffer of each GPU. On
#   eight GPUs 8,000 documents vanish at every restart, and nobody ever notices.
# - **Packing by scanning.** To find the best of 1000 waiting documents, a scan of them all takes 260 µs a row of 2048
#   tokens (measured on one core); a binary search takes 16 µs. At 32 rows a batch, that is 8 ms of every step.
#
# After this puzzle you can
# 1. deal parquet shards to any number of ranks so that each document is read exactly once an epoch, and resume at any
#    batch without losing or repeating one;
# 2. find the best fit among n waiting documents in at most 10 log2(n) comparisons, measured;
# 3. pack pretraining rows with no padding at all and fine-tuning rows with no conversation cut, and say what share of
#    the tokens each of the two costs;
# 4. train on exactly those tokens that the assistant has to say;
# 5. produce nanochat's own batches, token by token, with code of your own.
#
# **How it goes.** Every part has a hole to fill, a check you can see, and a graded cell with hidden tests, which ask
# more of the same with other numbers. The parts do not depend on each other: stuck on one, go on with the next. Letters
# used throughout: a batch has `B` rows of `T` positions; `world_size` processes, one a GPU, read the same data, and
# `rank` counts them from 0. BOS is the token that opens every document.

# %% given="imports"
import itertools
import json
import math
import operator
import random
import signal
import threading
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from puzzles.checks import Checks, expect
from puzzles.compare import FLOAT32
from puzzles.plots import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, RED, attempt, picture

check = Checks("03_data_engine")


patience = 1.0


@contextmanager
def deadline(seconds: float = 4) -> Iterator[None]:
    """Make a loop without end a TimeoutError. Each one shortens the next ones' time, until calls come back again.
    Where there is no alarm signal (Windows, threads) it does nothing."""
    global patience

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no result after {patience * seconds:.1f} s: a loop that never ends, or never yields")

    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, patience * seconds)
    try:
        yield
        patience = min(1.0, 1.2 * patience)
    except TimeoutError:
        patience = max(1 / 16, patience / 2)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# %% [markdown]
# ## Part 1 · Which files: the splits (5 points, 5 minutes)
#
# nanochat's pretraining data are parquet files in one folder, `shard_00000.parquet` and so on, 6543 of them when all
# are there. The **last one by name is the validation split**, all the others are the training split. There is no list
# of names and no second folder: whoever has the last shard can evaluate, and no setting can make a run train on it.
#
# Downloads write to a name with another ending and are renamed when the last byte is there. So a file that does not end
# in `.parquet` is no shard, not yet.
#
# A folder with `shard_00002.parquet`, `shard_00000.parquet`, `shard_00001.parquet.part`, `notes.txt` and
# `shard_00010.parquet`: the training split is shards 0 and 2, the validation split is shard 10.
#
# **Contract.** `folder` is a path (text). Returns the full paths, as text, of the shards of `split` in the order of
# their names (compared as text, so `shard_10` comes before `shard_9`). Raises `ValueError` if `split` is neither
# `"train"` nor `"val"`, whatever is in the folder, and `FileNotFoundError` if the split has no shard: with a single
# file in the folder, there is a validation split but nothing to train on.


# %% hole="split_shards"
def split_shards(folder: str, split: str) -> list[str]:
    """Full paths of the parquet files of `split`, by name: "val" is the last one, "train" all the others.

    Raises ValueError for any other split, FileNotFoundError if the split has no file.
    """
    ### BEGIN SOLUTION
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', not {split!r}")
    shards = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    chosen = shards[-1:] if split == "val" else shards[:-1]
    if not chosen:
        raise FileNotFoundError(f"{folder} has no shard of the split {split}")
    return chosen
    ### END SOLUTION


# %% given="check-split_shards"
def shards_found(names: list[str], split: str) -> list[str]:
    """What you find in a folder of files with these names. The folder itself is shown as FOLDER."""
    with TemporaryDirectory() as folder:
        for name in names:
            Path(folder, name).touch()
        return [str(path).replace(folder, "FOLDER") for path in split_shards(folder, split)]


with check("split_shards"):
    names = [
        "shard_00002.parquet",
        "shard_00000.parquet",
        "shard_00001.parquet.part",
        "notes.txt",
        "shard_00010.parquet",
    ]
    expect(
        shards_found,
        (names, "train"),
        ["FOLDER/shard_00000.parquet", "FOLDER/shard_00002.parquet"],
        "full paths of all files that end in .parquet but the last, sorted by name",
    )
    expect(shards_found, (names, "val"), ["FOLDER/shard_00010.parquet"], "the validation split is the last file alone")
    expect(
        shards_found,
        (["shard_9.parquet", "shard_10.parquet"], "val"),
        ["FOLDER/shard_9.parquet"],
        "names are compared as text, not as numbers",
    )
    expect(shards_found, (["only.parquet"], "val"), ["FOLDER/only.parquet"], "a single file is the validation split")
    expect(shards_found, (["only.parquet"], "train"), FileNotFoundError, "a single file leaves nothing to train on")
    expect(shards_found, (["a.parquet.part"], "val"), FileNotFoundError, "a download that is not done is no shard")
    expect(shards_found, (names, "test"), ValueError, "there is no such split")

# %% graded="split_shards"
# 5 points. The hidden tests are more of the same, with other names; `--verify` runs them.
check.visible("split_shards")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "split_shards", shards_found)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 2 · Who reads what: dealing documents to ranks (20 points, 25 minutes)
#
# A parquet file is made of **row groups**, stretches of rows (in nanochat's shards a thousand or so documents) that can
# be read on their own, without the rest of the file. That makes them the unit to deal out: every rank opens every shard
# but reads only its own row groups. They go round like cards: rank 0 takes row groups 0, `world_size`, 2 `world_size`,
# … of a shard, rank 1 takes 1, 1 + `world_size`, … In the next shard the dealing starts anew, with row group 0 for rank
# 0. After the last shard the next **epoch** begins with the first.
#
# Two shards, of five and three row groups, and two ranks (a pair is shard and row group):
#
# ```
# rank 0   (0,0) (0,2) (0,4) (1,0) (1,2)  then epoch 2: (0,0) ...
# rank 1   (0,1) (0,3) (1,1)              then epoch 2: (0,1) ...
# ```
#
# The documents of a row group are handed out at most `batch_size` at a time (a tokenizer works best on many at once),
# and the last batch of a row group has what is left: batches never cross row groups. Each batch comes with its
# **position**, `{"pq_idx": shard, "rg_idx": row group, "epoch": epoch}`, with epochs counted from 1. All batches of a
# row group have the same.
#
# **Resuming.** A run writes such a position into its checkpoint: rank 0's, for only rank 0 writes it. When the run is
# started again, *every* rank is given that one position. The `world_size` row groups that the ranks read side by side,
# `0 … world_size - 1`, then `world_size … 2 * world_size - 1` and so on, make up a round. The round of the position
# counts as read, by all ranks; each of them continues with its own row group of the next round. If the shard has none,
# it goes on with the next shard as always. In the example, after the position (0,2): rank 0 continues with (0,4), and
# rank 1, which has read (0,3), would continue with (0,5). There is none, so (1,1).
#
# In pyarrow, `pq.ParquetFile(path)` opens a shard, `.num_row_groups` says how many row groups it has, and
# `.read_row_group(i, columns=["text"])` reads a table of them; `.column("text").to_pylist()` is the list of its
# documents. The files have another column besides `text`.
#
# **Contract.** A generator that never ends. `paths` are the shards of the split in order (`pq_idx` counts them from 0).
# Yields `(documents, position)`: a list of at most `batch_size` texts and a dict of its own for each batch. `resume` is
# None or a position of the same shards. Raises `ValueError` when the first documents are asked for, or before, in two
# cases: if `resume` names a shard that is not there, and if no shard has a row group for this rank. (The original
# nanochat searches for ever then, while the other ranks wait for it in their first all-reduce.)

# %% given="shards-on-disk"
COLUMNS = pa.schema([("source", pa.string()), ("text", pa.string())])


def write_shards(folder: str, shards: list[list[list[str]]]) -> list[str]:
    """Write a parquet file for each shard, with a row group for each of its lists of documents. Returns their paths."""
    paths = []
    for number, row_groups in enumerate(shards):
        paths.append(str(Path(folder, f"shard_{number:05d}.parquet")))
        with pq.ParquetWriter(paths[-1], COLUMNS) as writer:
            for documents in row_groups:
                columns = {"source": ["somewhere"] * len(documents), "text": documents}
                writer.write_table(pa.table(columns, schema=COLUMNS))
    return paths


# %% hole="deal_documents"
def deal_documents(
    paths: list[str], rank: int, world_size: int, batch_size: int, resume: dict[str, int] | None = None
) -> Iterator[tuple[list[str], dict[str, int]]]:
    """Yield this rank's documents for ever, at most `batch_size` at a time, each batch with its position.

    The rank reads row groups rank, rank + world_size, ... of each shard. A position is {"pq_idx": ..., "rg_idx": ...,
    "epoch": ...}, epochs from 1; `resume`, any rank's position, continues with this rank's row group of the next round.
    Raises ValueError if `resume` names a shard that is not there, or if no shard has a row group for this rank.
    """
    ### BEGIN SOLUTION
    pq_idx, rg_idx, epoch = 0, rank, 1
    if resume is not None:
        pq_idx, epoch = resume["pq_idx"], resume["epoch"]
        rg_idx = (resume["rg_idx"] // world_size + 1) * world_size + rank
        if pq_idx >= len(paths):
            raise ValueError(f"cannot resume at shard {pq_idx}: there are {len(paths)}")
    if all(pq.read_metadata(path).num_row_groups <= rank for path in paths):
        raise ValueError(f"no shard has a row group for rank {rank} of {world_size}")
    while True:
        for shard_number in range(pq_idx, len(paths)):
            with pq.ParquetFile(paths[shard_number]) as shard:
                for row_group in range(rg_idx, shard.num_row_groups, world_size):
                    documents = shard.read_row_group(row_group, columns=["text"]).column("text").to_pylist()
                    for start in range(0, len(documents), batch_size):
                        position = {"pq_idx": shard_number, "rg_idx": row_group, "epoch": epoch}
                        yield documents[start : start + batch_size], position
            rg_idx = rank
        pq_idx = 0
        epoch += 1
    ### END SOLUTION


# %% given="check-deal_documents"
def dealt(
    shards: list[list[list[str]]], rank: int, world_size: int, batch_size: int, resume: dict[str, int] | None, n: int
) -> list[tuple[list[str], dict[str, int]]]:
    """The first n batches that you deal to a rank from real parquet files of these shards."""
    with TemporaryDirectory() as folder, deadline():
        return list(islice(deal_documents(write_shards(folder, shards), rank, world_size, batch_size, resume), n))


def at(pq_idx: int, rg_idx: int, epoch: int = 1) -> dict[str, int]:
    """A position."""
    return {"pq_idx": pq_idx, "rg_idx": rg_idx, "epoch": epoch}


with check("deal_documents"):
    five_and_three = [[["a"], ["b"], ["c"], ["d"], ["e"]], [["f"], ["g"], ["h"]]]
    expect(
        dealt,
        (five_and_three, 0, 1, 10, None, 3),
        [(["a"], at(0, 0)), (["b"], at(0, 1)), (["c"], at(0, 2))],
        "a rank alone reads one row group after the other; epochs count from 1",
    )
    expect(
        dealt,
        (five_and_three, 0, 2, 10, None, 6),
        [
            (["a"], at(0, 0)),
            (["c"], at(0, 2)),
            (["e"], at(0, 4)),
            (["f"], at(1, 0)),
            (["h"], at(1, 2)),
            (["a"], at(0, 0, 2)),
        ],
        "of two ranks, rank 0 reads every other row group of each shard; then epoch 2 begins",
    )
    expect(
        dealt,
        (five_and_three, 1, 2, 10, None, 4),
        [(["b"], at(0, 1)), (["d"], at(0, 3)), (["g"], at(1, 1)), (["b"], at(0, 1, 2))],
        "rank 1 starts at row group 1 in every shard",
    )
    expect(
        dealt,
        ([[["a", "b", "c", "d", "e"], ["f"]]], 0, 1, 2, None, 4),
        [(["a", "b"], at(0, 0)), (["c", "d"], at(0, 0)), (["e"], at(0, 0)), (["f"], at(0, 1))],
        "at most batch_size documents at a time, and a batch ends where its row group ends",
    )
    expect(
        dealt,
        (five_and_three, 0, 2, 10, at(0, 2, 3), 5),
        [(["e"], at(0, 4, 3)), (["f"], at(1, 0, 3)), (["h"], at(1, 2, 3)), (["a"], at(0, 0, 4)), (["c"], at(0, 2, 4))],
        "resuming goes on with the next row group in the same epoch; later shards and epochs are read from their start",
    )
    expect(
        dealt,
        (five_and_three, 1, 2, 10, at(0, 0), 2),
        [(["d"], at(0, 3)), (["g"], at(1, 1))],
        "rank 0 stood at row group 0, so rank 1 had read row group 1 of the same round and goes on with 3",
    )
    expect(
        dealt,
        (five_and_three, 1, 2, 10, at(0, 2), 1),
        [(["g"], at(1, 1))],
        "the next round has no row group for rank 1 in this shard",
    )
    expect(dealt, (five_and_three, 0, 1, 10, at(2, 0), 1), ValueError, "there are only shards 0 and 1")
    expect(dealt, (five_and_three, 5, 6, 10, None, 1), ValueError, "no shard has a row group 5, for rank 5 of 6")

# %% graded="deal_documents"
# 20 points. The hidden tests are more of the same, with other shards and ranks; `--verify` runs them.
check.visible("deal_documents")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "deal_documents", dealt)
### END HIDDEN TESTS

# %% given="plot-deal_documents" tags=["plot"]
SIZES = (9, 6, 8)


def readers(resume: dict[str, int] | None) -> dict[tuple[int, int], list[int]]:
    """Which of 3 ranks read each (shard, row group) in the first epoch, from the start or after `resume`."""
    shards = [[[f"{shard} {row_group}"] for row_group in range(size)] for shard, size in enumerate(SIZES)]
    read = defaultdict(list)
    for rank in range(3):
        for (document,), position in dealt(shards, rank, 3, 1, resume, 30):
            if position["epoch"] == 1:
                shard, row_group = map(int, document.split())
                read[shard, row_group].append(rank)
    return read


with picture(
    "Who reads which row group: 3 ranks, 3 shards",
    alt="Two grids of row groups by shard, coloured by the rank that reads them: all of them, and after a resume.",
    columns=2,
    size=(10.0, 2.9),
) as p:
    for axis, resume in zip(p.axes, (None, at(0, 3)), strict=True):
        read = readers(resume)
        for shard, size in enumerate(SIZES):
            for row_group in range(size):
                ranks = read[shard, row_group]
                colour = COLOURS[ranks[0]] if len(ranks) == 1 else RED if ranks else "white"
                axis.barh(shard, 0.92, left=row_group - 0.46, color=colour, edgecolor=GREY)
                label = "+".join(map(str, ranks))
                style = {"ha": "center", "va": "center", "fontsize": 10 - len(label)}
                bbox = {"facecolor": "white", "edgecolor": "none", "pad": 1} if label else None
                axis.text(row_group, shard, label, bbox=bbox, **style)
        axis.set(
            title="from the start" if resume is None else "resumed after (0, 3)", xlabel="row group", ylabel="shard"
        )
        axis.set_yticks(range(3))
        axis.invert_yaxis()
    counts = Counter(len(ranks) for ranks in readers(None).values())
    p.caption = (
        f"The number is the rank. {counts[1]} of {sum(SIZES)} row groups are read by exactly one rank in an epoch; "
        f"after resuming at (0, 3), {sum(map(bool, readers(at(0, 3)).values()))} are left to read."
    )

# %% [markdown]
# ## Part 3 · A bookmark: resuming exactly (10 points, 20 minutes)
#
# A position names a row group, and resuming after it skips what is left of that row group: of 1000 documents in batches
# of 128, up to seven batches. Better to have a bookmark that remembers the batch. This is the protocol which PyTorch's
# data loaders use for it (`StatefulDataLoader` of torchdata): an iterator with two methods more, `state_dict()`, which
# says where it stands, and `load_state_dict(state)`, which goes there.
#
# You get `open_documents(resume)`, which is part 2 with all but its last argument filled in: it opens a fresh stream of
# `(documents, position)`, from the very beginning for `resume=None`, else from this rank's next row group after the
# position `resume`, which has to be one that the stream has given with some batch. Skipping all batches from the very
# beginning would be exact too, but weeks of reading may lie in between. A bookmark may read **the row group it stands
# in** again, up to where it stands, and nothing before that.
#
# For example: a rank's row groups hold 3, 2 and 3 batches. After the fourth batch, the first of the second row group,
# the state is saved. Loaded into another bookmark, it opens the stream at the second row group, skips one batch, and
# the next one it gives is the fifth.
#
# **Contract.** `Bookmark(open_documents)` is an iterator of what the stream yields, each item as it is. `state_dict()`
# returns plain data (None, numbers, text, lists, dicts with text as keys), so that it can be written as JSON. What it
# has returned does not change when reading goes on. `load_state_dict(state)` takes such a state, also after a round
# trip through JSON, also in a bookmark that has read something already; the next item is then the one that was next
# when the state was saved. A state may be saved at any time: before the first item, and at the end or in the middle of
# a row group. The batches of a row group follow each other and have equal positions; two row groups never have the same
# one. When the stream ends (yours of part 2 never does), so does the bookmark.


# %% hole="resume_state"
class Bookmark:
    """The stream that `open_documents(None)` opens, which can be left and taken up again between any two items.

    `open_documents(resume)` yields (documents, position) of the row groups after the position `resume`.
    """

    def __init__(self, open_documents: Callable[[dict[str, int] | None], Iterator]) -> None:
        """Stand before the first item."""
        ### BEGIN SOLUTION
        self.open_documents = open_documents
        self.load_state_dict({"finished": None, "current": None, "read": 0})
        ### END SOLUTION

    def __iter__(self) -> "Bookmark":
        return self

    def __next__(self) -> tuple[list[str], dict[str, int]]:
        """The next item of the stream."""
        ### BEGIN SOLUTION
        documents, position = next(self.stream)
        if position != self.current:
            self.finished, self.current, self.read = self.current, dict(position), 0
        self.read += 1
        return documents, position
        ### END SOLUTION

    def state_dict(self) -> dict[str, Any]:
        """Where this bookmark stands, as plain data."""
        ### BEGIN SOLUTION
        return {"finished": self.finished, "current": self.current, "read": self.read}
        ### END SOLUTION

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where the bookmark stood that `state` came from."""
        ### BEGIN SOLUTION
        self.finished, self.current, self.read = state["finished"], state["current"], state["read"]
        self.stream = islice(self.open_documents(self.finished), self.read, None)
        ### END SOLUTION


# %% given="check-resume_state"
def place(position: dict[str, int]) -> tuple[int, int, int]:
    """A position as something to compare: the later, the larger."""
    return position["epoch"], position["pq_idx"], position["rg_idx"]


def left_and_taken_up(batches: list, stop: int) -> dict[str, Any]:
    """Read `stop` of the batches of a rank, a list of (documents, position), save, and load into another bookmark.
    "then": what that one reads. "read_again": the positions before the last batch's that it opened."""
    opened = []

    def open_documents(resume: dict[str, int] | None) -> Iterator:
        if resume is not None and all(position != resume for _, position in batches):
            raise ValueError(f"the stream has never given the position {resume}")
        for documents, position in batches:
            if resume is None or place(position) > place(resume):
                opened.append(position)
                yield documents, dict(position)

    with deadline():
        bookmark, other = Bookmark(open_documents), Bookmark(open_documents)
        for _ in range(stop):
            next(bookmark)
        state = bookmark.state_dict()
        next(bookmark, None)
        next(other, None)
        opened.clear()
        other.load_state_dict(json.loads(json.dumps(state)))
        then = list(other)
    before = place(batches[stop - 1][1]) if stop else (0, 0, 0)
    return {"then": then, "read_again": [position for position in opened if place(position) < before]}


with check("resume_state"):
    # a rank's row groups: three batches, two batches, three batches
    ABC = [(["a"], at(0, 0)), (["b"], at(0, 0)), (["c"], at(0, 0))]
    DE = [(["d"], at(0, 2)), (["e"], at(0, 2))]
    FGH = [(["f"], at(1, 0)), (["g"], at(1, 0)), (["h"], at(1, 0))]
    eight = ABC + DE + FGH
    expect(
        left_and_taken_up,
        (eight, 0),
        {"then": eight, "read_again": []},
        "nothing was read yet, so it starts at the start",
    )
    expect(
        left_and_taken_up,
        (eight, 1),
        {"then": eight[1:], "read_again": []},
        "one batch of the first row group was read; the next one is b",
    )
    expect(
        left_and_taken_up,
        (eight, 4),
        {"then": eight[4:], "read_again": []},
        "d was read, so e comes next; a, b and c must not be read again",
    )
    expect(
        left_and_taken_up,
        ([(["a"], at(0, 1)), (["b"], at(0, 1)), (["c"], at(0, 1, 2)), (["d"], at(0, 1, 2))], 3),
        {"then": [(["d"], at(0, 1, 2))], "read_again": []},
        "the only row group of this rank comes round in epoch 2, which makes it another one",
    )
    expect(
        left_and_taken_up,
        (eight, 5),
        {"then": eight[5:], "read_again": []},
        "the second row group was read to its end, so f comes next",
    )
    expect(
        left_and_taken_up,
        (eight, 7),
        {"then": eight[7:], "read_again": []},
        "g, the second batch of the third row group, was read last",
    )

# %% graded="resume_state"
# 10 points. The hidden tests are more of the same, with other row groups and stops; `--verify` runs them.
check.visible("resume_state")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "resume_state", left_and_taken_up)
### END HIDDEN TESTS

# %% [markdown]
# ## Part 4 · The best fit, fast: the buffer (20 points, 30 minutes)
#
# Rows have a fixed length and documents do not, so something has to give. The more documents there are to choose from,
# the better a row can be filled: nanochat keeps 1000 of them waiting, and for the room that is left in a row takes the
# **longest document that fits**. When none fits, it takes the **shortest** (and cuts it; that is part 5). Among
# documents of the same length, the one that has waited longest goes first.
#
# With documents of 3, 7, 5, 7 and 5 tokens waiting, added in this order as items 0 to 4:
#
# - room for 6: the longest that fits has 5 tokens. There are two, and item 2 has waited longer. Then item 4, then item
#   0, then None;
# - the shortest: item 0. Then item 2, item 4, item 1, item 3.
#
# The next cell has a buffer that does this and is easy to read. It looks at every document for each choice: n waiting
# documents, at least n comparisons. Yours gives the same answers with **O(log n) comparisons of lengths**: at most
# 10 log2(n) for each of `add`, `pop_largest` and `pop_shortest`, on average over many calls. Comparisons are counted,
# not milliseconds, so the check says the same on any machine; moving entries inside a list is not counted. For the
# count, the lengths you are handed are objects (`Counted`, in the same cell) that can be compared with each other and
# hashed, but not added, negated or turned into an int. So keep lengths as they come.
#
# **Contract.**
# - `add(item, length)`: `item` waits from now on. Items can be anything, and need not be comparable.
# - `pop_largest(room)`: take out and return the longest item with `length <= room`; None if there is none.
# - `pop_shortest()`: take out and return the shortest item; `IndexError` if nothing waits.
# - In both, equal lengths go first come, first served.
# - `len(buffer)` is how many wait. Iterating yields the waiting items, the earliest added first, and takes nothing out.
#   (This is for saving: added to an empty buffer in that order they make an equal one. Any number of comparisons will
#   do.)


# %% given="scan-buffer"
class ScanBuffer:
    """The waiting documents in a list, searched from end to end: right, but at least n comparisons a search."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Any]] = []  # (item, length), the earliest added first

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[Any]:
        return iter([item for item, _ in self.waiting])

    def add(self, item: Any, length: Any) -> None:
        self.waiting.append((item, length))

    def pop_largest(self, room: Any) -> Any:
        fitting = [length for _, length in self.waiting if length <= room]
        return self.take(max(fitting)) if fitting else None

    def pop_shortest(self) -> Any:
        if not self.waiting:
            raise IndexError("nothing is waiting")
        return self.take(min(length for _, length in self.waiting))

    def take(self, wanted: Any) -> Any:
        """Take out the earliest item of the length `wanted`."""
        place = next(i for i, (_, length) in enumerate(self.waiting) if length == wanted)
        return self.waiting.pop(place)[0]


def counting(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    """A comparison of Counted numbers that counts itself."""

    def counted(self: "Counted", other: object) -> Any:
        if not isinstance(other, Counted):
            return NotImplemented
        Counted.comparisons += 1
        return compare(self.number, other.number)

    return counted


class Counted:
    """A number that can be compared with its like, and hashed. `Counted.comparisons` counts all comparisons."""

    comparisons = 0
    __lt__, __le__, __gt__ = counting(operator.lt), counting(operator.le), counting(operator.gt)
    __ge__, __eq__, __ne__ = counting(operator.ge), counting(operator.eq), counting(operator.ne)

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return hash(self.number)


def replay(buffer: Any, operations: list[list], counted: bool = False) -> dict[str, Any]:
    """Do the operations (["add", length], ["pop_largest", room], ["pop_shortest"], ["len"], ["items"]) one by one.

    Items are numbered from 0 as they are added. "answers": what came back; "comparisons": if counted, the average
    number of comparisons of each kind of operation.
    """
    numbers, answers, done, spent = itertools.count(), [], Counter(), Counter()

    def call(name: str, *arguments: Any) -> list:
        if name == "len":
            return [len(buffer)]
        if name == "items":
            return [[item["number"] for item in buffer]]
        answer = getattr(buffer, name)(*arguments)
        return [] if name == "add" else [answer and answer["number"]]

    with deadline(10):
        for name, *values in operations:
            # an item must never be compared, and a dict cannot be
            item = [{"number": next(numbers)}] if name == "add" else []
            before = Counted.comparisons
            try:
                answers += call(name, *item, *(Counted(value) if counted else value for value in values))
            except IndexError:
                answers.append("IndexError")
            done[name] += 1
            spent[name] += Counted.comparisons - before
    averages = {name: spent[name] / done[name] for name in done if name not in ("len", "items")}
    return {"answers": answers, "comparisons": averages if counted else None}


# %% hole="best_fit_buffer"
class BestFitBuffer:
    """Waiting items by length: the longest that fits or the shortest, in O(log n) comparisons of lengths.

    Among equal lengths the earliest added comes first. Iterating yields the items, earliest added first.
    """

    def __init__(self) -> None:
        """An empty buffer."""
        ### BEGIN SOLUTION
        # (length, -arrival, item), sorted: within a length the latest comes first, so the best fit is always the
        # last entry that is not too long. Arrivals differ, so items are never compared.
        self.entries: list[tuple[Any, int, Any]] = []
        self.arrivals = 0
        ### END SOLUTION

    def __len__(self) -> int:
        """How many items wait."""
        ### BEGIN SOLUTION
        return len(self.entries)
        ### END SOLUTION

    def __iter__(self) -> Iterator[Any]:
        """The waiting items, earliest added first."""
        ### BEGIN SOLUTION
        by_arrival = sorted(self.entries, key=lambda entry: entry[1], reverse=True)
        return iter([item for _, _, item in by_arrival])
        ### END SOLUTION

    def add(self, item: Any, length: Any) -> None:
        """`item`, of `length`, waits from now on."""
        ### BEGIN SOLUTION
        insort(self.entries, (length, -self.arrivals, item))
        self.arrivals += 1
        ### END SOLUTION

    def pop_largest(self, room: Any) -> Any:
        """Take out the longest item of at most `room` (equal lengths: the earliest added), or None if none fits."""
        ### BEGIN SOLUTION
        fitting = bisect_right(self.entries, (room, 1))  # no arrival is above 0, so this is after all of length `room`
        return self.entries.pop(fitting - 1)[2] if fitting else None
        ### END SOLUTION

    def pop_shortest(self) -> Any:
        """Take out the shortest item (equal lengths: the earliest added); IndexError if nothing waits."""
        ### BEGIN SOLUTION
        shortest = self.entries[0][0]
        return self.pop_largest(shortest)
        ### END SOLUTION


# %% given="check-best_fit_buffer"
def answers(script: str) -> list:
    """What your buffer answers to "add 3 7, pop_largest 6": a word for each call, - for a call without a number."""
    operations = []
    for name, *values in map(str.split, script.split(", ")):
        operations += [[name] if value == "-" else [name, int(value)] for value in values]
    return replay(BestFitBuffer(), operations)["answers"]


def too_many_comparisons(n: int) -> list[str]:
    """With n documents waiting: the operations of your buffer that take more than 10 log2(n) comparisons."""
    rng = random.Random(n)
    lengths = iter(lambda: rng.randint(1, 3 * n), 0)
    operations = [["add", length] for length in islice(lengths, n)]
    for room in islice(lengths, 60):
        operations += [["pop_largest", room], ["pop_shortest"], ["add", room], ["add", room + 1]]
    averages = replay(BestFitBuffer(), operations, counted=True)["comparisons"]
    most = 10 * math.log2(n)
    return [f"{name} takes {k:.0f}, at most {most:.0f}" for name, k in averages.items() if k > most]


with check("best_fit_buffer"):
    expect(
        answers,
        ("add 3 7 5 7 5, pop_largest 6 6 6 6",),
        [2, 4, 0, None],
        "the longest with length <= room, and of two equal ones the one added first; None if none fits",
    )
    expect(answers, ("add 3 7 5 7 5, pop_largest 7 7 7",), [1, 3, 2], "a document of 7 tokens fits into room for 7")
    expect(
        answers,
        ("add 3 7 5 7 5, pop_shortest - - - - -",),
        [0, 2, 4, 1, 3],
        "the shortest first, and of two equal ones the one added first",
    )
    expect(
        answers,
        ("add 5 5, pop_largest 5, add 5, pop_largest 5, pop_shortest -",),
        [0, 1, 2],
        "who comes later waits behind those of equal length, also after others have left",
    )
    expect(
        answers,
        ("len -, add 3 7 5 7 5, pop_largest 6, len -, items -, len -",),
        [0, 2, 4, [0, 1, 3, 4], 4],
        "len counts the waiting items; iterating yields them in the order in which they came, and takes none out",
    )
    expect(answers, ("len -, pop_largest 9, pop_shortest -",), [0, None, "IndexError"], "what an empty buffer answers")
    expect(
        too_many_comparisons,
        (512,),
        [],
        "all waiting documents are looked at, or sorted again; keep them sorted, and halve what is left to search",
    )

# %% graded="best_fit_buffer"
# 20 points. The hidden tests are more of the same: other operations, and 2048 documents waiting; `--verify` runs them.
check.visible("best_fit_buffer")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "best_fit_buffer", lambda **case: replay(BestFitBuffer(), **case))
### END HIDDEN TESTS

# %% given="plot-best_fit_buffer" tags=["plot"]
with picture(
    "Comparisons for one choice, by the number of documents waiting",
    alt="Log-log: the comparisons of the scan grow with the documents waiting; yours stay low and flat.",
    size=(7.0, 3.4),
) as p:
    sizes = [2**k for k in range(4, 12)]
    counts = defaultdict(list)
    for name, make_buffer in (("a scan of them all", ScanBuffer), ("yours", BestFitBuffer)):
        for n in sizes:
            rng = random.Random(n)
            operations = [["add", rng.randint(1, 3 * n)] for _ in range(n)]
            operations += [[kind, rng.randint(1, 3 * n)] for _ in range(10) for kind in ("pop_largest", "add")]
            counts[name].append(replay(make_buffer(), operations, counted=True)["comparisons"]["pop_largest"])
    for (name, row), colour, marker in zip(counts.items(), (ORANGE, BLUE), MARKERS, strict=False):
        p.axes[0].loglog(sizes, row, color=colour, marker=marker, label=name, base=2)
    p.axes[0].loglog(sizes, [10 * math.log2(n) for n in sizes], ":", color=GREY, label="10 log2(n), the most", base=2)
    p.axes[0].set(xlabel="documents waiting", ylabel="comparisons")
    p.axes[0].legend()
    p.caption = (
        f"pop_largest with 2048 waiting: {counts['yours'][-1]:.0f} comparisons, the scan "
        f"{counts['a scan of them all'][-1]:,.0f}."
    )

# %% [markdown]
# ## Part 5 · No padding at all: pretraining rows (15 points, 20 minutes)
#
# A pretraining row has `T + 1` tokens, one more than the model reads, because each position's target is the token after
# it. Every document starts with BOS, and every row starts with a document, so no token ever looks back at half a
# document whose beginning it cannot see. Padding would waste compute, so there is none. What gives is the end of some
# documents:
#
# 1. Before each choice: as long as fewer than `buffer_size` documents are waiting, read the next batch of them, put BOS
#    before each document, and add all of them to the buffer.
# 2. If a waiting document fits into the room that is left in the row, the longest that fits goes in whole.
# 3. If none fits, the shortest is cut to the room that is left. Its first tokens go in; the rest is thrown away, since
#    it could not start with BOS.
# 4. When the row is full, the next one begins. What is waiting stays for it, and for the next batch too.
#
# An example. `T = 7`, so rows of 8; three documents wait, and they are read one by one. With BOS the documents have 5,
# 3, 2, 6, 4, … tokens.
#
# ```
# waiting 5 3 2    room 8    5 goes in
# waiting 3 2 6    room 3    3 goes in, and the row is full:        B a a a a B b b
# waiting 2 6 4    room 8    6 goes in
# waiting 2 4 …    room 2    2 goes in, and the row is full:        B d d d d d B c
# ```
#
# If only documents of 6 and 4 tokens had been waiting for the room of 3 in the first row, it would have got the first
# three tokens of the one with 4.
#
# So that this part stands alone, you get the buffer: `len(buffer)`, `add(item, length)`, `pop_largest(room)` and
# `pop_shortest()` are those of part 4 (the checks hand in the scanning one).
#
# **Contract.** Returns one batch `(inputs, targets)`, both `(B, T)` int64 on the CPU: of each row the first `T` tokens
# and the last `T`. `batches` is an iterator of lists of documents, each a list of token ids without BOS, possibly
# empty; it never ends. A document waits in `buffer` as the list of its tokens, BOS first, with that list's length. The
# buffer is empty at the first call; the next calls get it with what was left waiting. Only step 1 reads: after the last
# choice nothing more is read.

# %% given="drawing-rows"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def stretches(row: list[int], bos: int) -> list[tuple[int, int]]:
    """The documents in a row, (start, end) each, as told by BOS."""
    starts = [i for i, token in enumerate(row) if token == bos or i == 0]
    return list(zip(starts, [*starts[1:], len(row)], strict=True))


def second_token(tokens: list[int]) -> int:
    """What a document looks like in a picture, if its second token is not the second token of any other."""
    return tokens[1] if len(tokens) > 1 else 0


def draw_rows(
    axis: Any,
    rows: list[list[int]],
    bos: int,
    whole: dict[int, int] | None = None,
    looks: Callable[[list[int]], int] = second_token,
) -> tuple[int, int]:
    """A bar for each row; padding (BOS alone) is white with dots. `looks(tokens)` is a document's colour and hatch.

    `whole`: for rows that are not padded, the length of each document by its second token. One that is shorter in the
    row is marked as cut. Returns how many tokens are padding, and how many documents are cut.
    """
    padding = cuts = 0
    for y, row in enumerate(rows):
        for start, end in stretches(row, bos):
            if end - start == 1 and row[start] == bos and (whole is None or end < len(row)):
                axis.barh(y, 1, left=start, color="white", hatch="..", edgecolor=GREY)
                padding += 1
                continue
            look = looks(row[start:end])
            colour, hatch = COLOURS[look % 6], HATCHES[look // 6 % 6]
            axis.barh(y, end - start, left=start, color=colour, hatch=hatch, edgecolor="white")
            if whole and end - start < whole.get(second_token(row[start:end]), end):
                cuts += 1
                axis.plot([end, end], [y - 0.4, y + 0.4], color=BLACK, linewidth=4, solid_capstyle="butt")
    axis.set(xlabel="position in the row (tokens)", ylabel="row", xlim=(0, max(map(len, rows), default=1) + 0.5))
    axis.set_yticks(range(len(rows)))
    axis.invert_yaxis()
    return padding, cuts


def draw_trained(axis: Any, targets: torch.Tensor) -> None:
    """A black line under every input at which the model is trained."""
    y, x = (targets >= 0).nonzero().T.cpu()
    axis.hlines(y + 0.45, x, x + 1, color=BLACK, linewidth=2)


# %% hole="pack_pretraining"
def pack_pretraining(
    batches: Iterator[list[list[int]]], buffer: Any, bos: int, B: int, T: int, buffer_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch (inputs, targets), (B, T) int64 each, of rows of T + 1 tokens packed best-fit without padding.

    Before each choice documents are read until `buffer_size` wait. The longest that fits goes in; if none fits, the
    beginning of the shortest fills the row and its rest is dropped.
    """
    ### BEGIN SOLUTION
    rows = []
    for _ in range(B):
        row: list[int] = []
        while len(row) < T + 1:
            while len(buffer) < buffer_size:
                for tokens in next(batches):
                    buffer.add([bos, *tokens], 1 + len(tokens))
            room = T + 1 - len(row)
            document = buffer.pop_largest(room)
            if document is None:
                document = buffer.pop_shortest()[:room]
            row += document
        rows.append(row)
    tokens = torch.tensor(rows)
    return tokens[:, :-1], tokens[:, 1:]
    ### END SOLUTION


# %% given="check-pack_pretraining"
def packed(
    documents: list[list[int]], batch_size: int, bos: int, B: int, T: int, buffer_size: int, n: int = 1
) -> list[list]:
    """Your first n batches of these documents, which come round again for ever: inputs, targets, and how many lists of
    `batch_size` documents have been read by then."""
    read = 0

    def batches() -> Iterator[list[list[int]]]:
        nonlocal read
        for start in itertools.cycle(range(0, len(documents), batch_size)):
            read += 1
            yield documents[start : start + batch_size]

    stream, buffer = batches(), ScanBuffer()
    with deadline():
        return [[*pack_pretraining(stream, buffer, bos, B, T, buffer_size), read] for _ in range(n)]


with check("pack_pretraining"):
    example = [[11, 12, 13, 14], [21, 22], [31], [41, 42, 43, 44, 45], [51, 52, 53]]
    expect(
        packed,
        ([[11, 12, 13]], 1, 99, 1, 3, 1),
        [[torch.tensor([[99, 11, 12]]), torch.tensor([[11, 12, 13]]), 1]],
        "a document of 3 tokens and BOS fills a row of T + 1 = 4; targets are the row without its first token; int64",
    )
    expect(
        packed,
        (example, 1, 0, 2, 7, 3),
        [
            [
                torch.tensor([[0, 11, 12, 13, 14, 0, 21], [0, 41, 42, 43, 44, 45, 0]]),
                torch.tensor([[11, 12, 13, 14, 0, 21, 22], [41, 42, 43, 44, 45, 0, 31]]),
                6,
            ]
        ],
        "the example above: the longest that fits goes in, and before each choice there are three to choose from",
    )
    expect(
        packed,
        ([[11, 12, 13, 14, 15], [21, 22, 23]], 2, 0, 2, 4, 2),
        [
            [
                torch.tensor([[0, 21, 22, 23], [0, 11, 12, 13]]),
                torch.tensor([[21, 22, 23, 0], [11, 12, 13, 14]]),
                2,
            ]
        ],
        "the documents have 6 and 4 tokens with BOS: 4 fit into 5; the room of 1 gets the BOS of the shortest one "
        "waiting, and the rest of that is dropped; 6 do not fit into 5 and are cut",
    )
    expect(
        packed,
        ([[11, 12, 13], [21]], 1, 0, 1, 2, 2, 2),
        [
            [torch.tensor([[0, 21]]), torch.tensor([[21, 0]]), 3],
            [torch.tensor([[0, 21]]), torch.tensor([[21, 0]]), 5],
        ],
        "the next batch goes on with what was left waiting",
    )
    expect(
        packed,
        ([[], [11, 12, 13, 14]], 1, 7, 1, 5, 2),
        [[torch.tensor([[7, 11, 12, 13, 14]]), torch.tensor([[11, 12, 13, 14, 7]]), 3]],
        "an empty document is a lone BOS, one token long",
    )

# %% graded="pack_pretraining"
# 15 points. The hidden tests are more of the same, with other documents and sizes; `--verify` runs them.
check.visible("pack_pretraining")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "pack_pretraining", packed)
### END HIDDEN TESTS

# %% given="plot-pack_pretraining" tags=["plot"]
with picture(
    "Pretraining rows of 65 tokens, 4 and 40 documents waiting",
    alt="Two stacks of eight bars, divided into documents by colour and hatch; black edges mark those that were cut.",
    columns=2,
    size=(11.0, 3.2),
) as p:
    rng = random.Random(1)
    # every token of document k is k, so that the picture can tell them apart
    documents = [[k] * min(100, int(rng.lognormvariate(3, 0.8))) for k in range(1, 200)]
    whole = {tokens[0]: 1 + len(tokens) for tokens in documents if tokens}
    found = []
    for axis, buffer_size in zip(p.axes, (4, 40), strict=True):
        ((inputs, targets, _),) = packed(documents, 1, 0, 8, 64, buffer_size)
        found.append(draw_rows(axis, torch.cat([inputs, targets[:, -1:]], 1).tolist(), 0, whole))
        axis.set(title=f"{buffer_size} waiting: {found[-1][1]} documents cut (black edge)")
    p.caption = f"Documents cut: {found[0][1]} and {found[1][1]}. Tokens of padding: {found[0][0]} and {found[1][0]}."

# %% [markdown]
# ## Part 6 · One curriculum of many: the mixture (10 points, 10 minutes)
#
# Fine-tuning mixes tasks: chats, multiple choice, arithmetic. A task is anything with `len(task)` and `task[i]`. The
# mixture is again such a thing: all examples of all tasks, in one order. What the order has to be:
#
# - **random**, or the model forgets the first task while it learns the last;
# - **the same on every rank**, or two ranks train on the same example and nobody on another; and the same after a
#   resume. So it is shuffled **once**, when the mixture is made, and then stays as it is;
# - **made of numbers, not examples**: an example costs time and memory when it is made (rendering, downloads), so none
#   is made before somebody asks for it.
#
# nanochat writes down the pairs (task, i) in order: all of the first task from i = 0, then all of the second, and so
# on. That list is shuffled by `random.Random(42).shuffle(...)`, a generator of its own: the global random state of the
# program is none of its business. For two tasks of 3 and 5 examples, the shuffled pairs are
#
# ```
# (1,0) (1,1) (1,3) (1,4) (0,2) (1,2) (0,0) (0,1)
# ```
#
# **Oversampling** is done by listing a task twice: each of its examples is then in the mixture twice.
#
# **Contract.** `mixture[index]` is the example at `index` of the shuffled order; any index may be asked for, in any
# order, any number of times. Raises `ValueError` for an index outside `0 … len(mixture) - 1`. A negative one is not
# counted from the end: it would be a mistake of the caller's, and go unnoticed.


# %% hole="task_mixture"
class TaskMixture:
    """All examples of several tasks in one order, shuffled once; a task listed twice counts twice."""

    def __init__(self, tasks: list) -> None:
        """Decide on the order: the pairs (task, i), task by task, shuffled by random.Random(42). Makes no example."""
        ### BEGIN SOLUTION
        self.order = [(task, i) for task in tasks for i in range(len(task))]
        random.Random(42).shuffle(self.order)
        ### END SOLUTION

    def __len__(self) -> int:
        """How many examples there are in all."""
        ### BEGIN SOLUTION
        return len(self.order)
        ### END SOLUTION

    def __getitem__(self, index: int) -> Any:
        """The example at `index`. Raises ValueError unless 0 <= index < len(self)."""
        ### BEGIN SOLUTION
        if not 0 <= index < len(self.order):
            raise ValueError(f"the mixture has no example {index}, only 0 to {len(self.order) - 1}")
        task, i = self.order[index]
        return task[i]
        ### END SOLUTION


# %% given="check-task_mixture"
class Shelf:
    """A task of ready examples that counts how many of them have been taken."""

    def __init__(self, examples: list[str]) -> None:
        self.examples = examples
        self.taken = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> str:
        self.taken += 1
        return self.examples[i]


def mixed(tasks: list[list[str]], listed: list[int], indices: list[int]) -> dict[str, Any]:
    """Your mixture of the tasks with the numbers `listed`, asked for examples at `indices`."""
    shelves = [Shelf(examples) for examples in tasks]
    before = random.getstate()
    mixture = TaskMixture([shelves[number] for number in listed])
    made_at_once = sum(shelf.taken for shelf in shelves)
    examples = []
    for index in indices:
        try:
            examples.append(mixture[index])
        except ValueError:
            examples.append("ValueError")
    return {
        "length": len(mixture),
        "examples": examples,
        "made before anybody asked": made_at_once,
        "global random state untouched": random.getstate() == before,
    }


def mixture_of(length: int, *examples: str) -> dict[str, Any]:
    """What `mixed` should say."""
    quiet = {"made before anybody asked": 0, "global random state untouched": True}
    return {"length": length, "examples": list(examples), **quiet}


with check("task_mixture"):
    two_tasks = [["a0", "a1", "a2"], ["b0", "b1", "b2", "b3", "b4"]]
    expect(
        mixed,
        (two_tasks, [0, 1], list(range(8))),
        mixture_of(8, "b0", "b1", "b3", "b4", "a2", "b2", "a0", "a1"),
        "the order is that of the pairs, shuffled by random.Random(42)",
    )
    expect(
        mixed,
        (two_tasks, [0, 1], [7, 0, 0, 7, 4]),
        mixture_of(8, "a1", "b0", "b0", "a1", "a2"),
        "an index means the same example whenever it is asked for",
    )
    expect(
        mixed,
        (two_tasks, [0, 0], list(range(6))),
        mixture_of(6, "a0", "a1", "a2", "a1", "a0", "a2"),
        "a task listed twice has each example in the mixture twice",
    )
    expect(
        mixed,
        (two_tasks, [0, 1], [8, -1, -8]),
        mixture_of(8, "ValueError", "ValueError", "ValueError"),
        "8 and negative numbers are no index of 8 examples",
    )

# %% graded="task_mixture"
# 10 points. The hidden tests are more of the same, with other tasks; `--verify` runs them.
check.visible("task_mixture")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "task_mixture", mixed)
### END HIDDEN TESTS

# %% given="plot-task_mixture" tags=["plot"]
with picture(
    "A mixture: 60 chats, 20 choices, and 10 sums listed twice",
    alt="Left: ticks in three lanes, evenly spread over the mixture. Right: how often each task has come by then.",
    columns=2,
    size=(10.0, 2.9),
) as p:
    sizes = {"chat": 60, "choice": 20, "sum": 10}
    chats, choices, sums = ([name] * size for name, size in sizes.items())
    mixture = TaskMixture([chats, choices, sums, sums])
    order = [mixture[i] for i in range(len(mixture))]
    for lane, (name, colour, marker) in enumerate(zip(sizes, COLOURS, MARKERS, strict=False)):
        positions = [i for i, task in enumerate(order) if task == name]
        p.axes[0].plot(positions, [lane] * len(positions), "|", color=colour, markersize=16)
        reached = list(itertools.accumulate(task == name for task in order))
        p.axes[1].plot(reached, color=colour, marker=marker, markevery=20, label=name)
    p.axes[0].set(title="Which task comes when", xlabel="index in the mixture", ylim=(-0.6, 2.6))
    p.axes[0].set_yticks(range(3), list(sizes))
    p.axes[1].set(title="Examples so far", xlabel="index in the mixture", ylabel="examples")
    p.axes[1].legend()
    half = Counter(order[: len(order) // 2])
    p.caption = (
        f"{len(order)} examples; the first half has " + ", ".join(f"{half[name]} {name}" for name in sizes) + "."
    )

# %% [markdown]
# ## Part 7 · Nothing cut: fine-tuning rows (15 points, 20 minutes)
#
# A conversation cannot be cut like a document: its last words are the answer, the only thing to learn from it. So
# fine-tuning rows are packed the same way, with one change: when no waiting conversation fits into the room that is
# left, the row is **filled with BOS**. With a hundred conversations to choose from, that is little.
#
# A conversation comes rendered as two lists of equal length: the token ids, the first of which is BOS, and a mask, 1
# for each token that the assistant has to say and 0 for all others. The mask belongs to the **token**, not to the
# position where the model stands: to learn to say the token at `t + 1`, the model is trained at position `t`. Where the
# token to say has mask 0, or is padding, the target is **-1**, which the loss ignores.
#
# `What is 2+2?` in seven tokens, in a row of `T + 1 = 10`:
#
# ```
# token       BOS  user  what  /user  assistant    4   /assistant  BOS  BOS  BOS
# mask          0     0     0      0          0    1            1    (padding)
#
# inputs      BOS  user  what  /user  assistant    4   /assistant  BOS  BOS
# targets      -1    -1    -1     -1          4  /a            -1   -1   -1
# ```
#
# The model reads `assistant` and learns to say `4`, reads `4` and learns to say `/assistant` (`/a`). It is not trained
# to say what follows its turn.
#
# The steps, again for each row of `T + 1` tokens:
#
# 1. Before each choice: as long as fewer than `buffer_size` conversations are waiting, read the next one and add it.
#    One that has more than `T + 1` tokens would wait for ever; that is a `ValueError`, at once.
# 2. The longest that fits goes in. If none fits, the row is done, and the rest of it is BOS.
#
# A full row is done too: nothing is read after it. The buffer is as in part 5.
#
# **Contract.** Returns `(inputs, targets, placed)`: `(B, T)` int32 and `(B, T)` int64 on the CPU, and the number of
# conversations that went into this batch. `conversations` is an iterator of pairs `(ids, mask)`; it never ends. A
# conversation waits in `buffer` as that pair, with its number of tokens.


# %% hole="pack_sft"
def pack_sft(
    conversations: Iterator[tuple[list[int], list[int]]], buffer: Any, bos: int, B: int, T: int, buffer_size: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """One batch (inputs int32, targets int64), (B, T) each, of rows of T + 1 tokens, and how many conversations it has.

    Whole conversations are packed best-fit and the row is padded with BOS. A target is -1 where its token has mask 0 or
    is padding. Raises ValueError when a conversation is read that is longer than a row.
    """
    ### BEGIN SOLUTION
    tokens = torch.full((B, T + 1), bos)
    trained = torch.zeros(B, T + 1, dtype=torch.bool)
    placed = 0
    for row in range(B):
        end = 0
        while end < T + 1:
            while len(buffer) < buffer_size:
                ids, mask = next(conversations)
                if len(ids) > T + 1:
                    raise ValueError(f"a conversation has {len(ids)} tokens, and a row only {T + 1}")
                buffer.add((ids, mask), len(ids))
            conversation = buffer.pop_largest(T + 1 - end)
            if conversation is None:
                break
            ids, mask = conversation
            tokens[row, end : end + len(ids)] = torch.tensor(ids)
            trained[row, end : end + len(ids)] = torch.tensor(mask) == 1
            end += len(ids)
            placed += 1
    targets = tokens[:, 1:].masked_fill(~trained[:, 1:], -1)
    return tokens[:, :-1].to(torch.int32), targets, placed
    ### END SOLUTION


# %% given="check-pack_sft"
def packed_chats(
    conversations: list[tuple[list[int], list[int]]], bos: int, B: int, T: int, buffer_size: int, n: int = 1
) -> list[list]:
    """Your first n batches of these conversations, which come round again for ever: inputs, targets, conversations
    placed, and how many have been read by then."""
    read = 0

    def endless() -> Iterator[tuple[list[int], list[int]]]:
        nonlocal read
        for ids, mask in itertools.cycle(conversations):
            read += 1
            yield ids, mask

    stream, buffer = endless(), ScanBuffer()
    with deadline():
        return [[*pack_sft(stream, buffer, bos, B, T, buffer_size), read] for _ in range(n)]


def sft_batch(inputs: list, targets: list, placed: int, read: int) -> list:
    """What `packed_chats` should say of a batch."""
    return [torch.tensor(inputs, dtype=torch.int32), torch.tensor(targets), placed, read]


with check("pack_sft"):
    sum_of_two = ([50, 1, 20, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1, 1])
    expect(
        packed_chats,
        ([sum_of_two], 50, 1, 9, 1),
        [sft_batch([[50, 1, 20, 2, 3, 4, 5, 50, 50]], [[-1, -1, -1, -1, 4, 5, -1, -1, -1]], 1, 2)],
        "the example above, with BOS 50: a target is the next token if that token has mask 1, else -1; inputs are "
        "int32, targets int64; padding is BOS and never a target",
    )
    three = [([9, 11, 12], [0, 1, 0]), ([9, 21, 22, 23, 24], [0, 0, 1, 1, 1]), ([9, 31], [0, 1])]
    expect(
        packed_chats,
        (three, 9, 1, 7, 3),
        [sft_batch([[9, 21, 22, 23, 24, 9, 11]], [[-1, 22, 23, 24, -1, 11, -1]], 2, 4)],
        "5 of 8 tokens, then the 3 that fit exactly; the BOS of the second conversation is no target; before each "
        "choice three are waiting",
    )
    expect(
        packed_chats,
        (three, 9, 2, 5, 2),
        [
            sft_batch(
                [[9, 21, 22, 23, 24], [9, 11, 12, 9, 11]],
                [[-1, 22, 23, 24, -1], [11, -1, -1, 11, -1]],
                3,
                4,
            )
        ],
        "rows of 6: after the conversation of 5 there is room for 1, and none fits; conversations are never cut",
    )
    expect(
        packed_chats,
        ([([9, 31], [0, 1]), ([9, 41, 42], [0, 1, 1])], 9, 1, 2, 1, 2),
        [sft_batch([[9, 31]], [[31, -1]], 1, 2), sft_batch([[9, 41]], [[41, 42]], 1, 2)],
        "the conversation of 3 tokens did not fit behind the first one; it was waiting for the next batch",
    )
    expect(packed_chats, ([sum_of_two], 50, 1, 5, 1), ValueError, "7 tokens never fit into a row of 6")

# %% graded="pack_sft"
# 15 points. The hidden tests are more of the same, with other conversations and sizes; `--verify` runs them.
check.visible("pack_sft")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "pack_sft", packed_chats)
### END HIDDEN TESTS

# %% given="plot-pack_sft" tags=["plot"]
with picture(
    "Fine-tuning rows of 65 tokens, 4 and 40 conversations waiting",
    alt="Two stacks of eight bars of whole conversations by colour and hatch; dotted white ends are padding.",
    columns=2,
    size=(11.0, 3.2),
) as p:
    rng = random.Random(2)
    lengths = [min(64, 3 + int(rng.lognormvariate(2.6, 0.7))) for _ in range(200)]
    chats = [([0] + [k] * n, [0] * (n // 2 + 1) + [1] * (n - n // 2)) for k, n in enumerate(lengths, 1)]
    padding = []
    for axis, buffer_size in zip(p.axes, (4, 40), strict=True):
        ((inputs, targets, placed, _),) = packed_chats(chats, 0, 8, 64, buffer_size)
        padding.append(draw_rows(axis, inputs.tolist(), 0)[0])
        draw_trained(axis, targets)
        axis.set(title=f"{buffer_size} waiting: {placed} conversations placed")
    p.caption = (
        f"Padding (dotted): {padding[0]} and {padding[1]} of 512 inputs. Black lines: where the model is trained."
    )

# %% given="plot-utilisation" tags=["plot"]
SIZES_OF_BUFFER = (1, 2, 4, 8, 16, 32, 64, 128, 256)


DOCUMENTS = [[1] * min(1000, int(random.Random(seed).lognormvariate(4.2, 0.9))) for seed in range(1000)]
BEYOND_A_ROW = sum(max(0, len(tokens) - 256) for tokens in DOCUMENTS) / sum(1 + len(tokens) for tokens in DOCUMENTS)


def share_thrown_away(buffer_size: int) -> float:
    """Of the tokens that 128 of your pretraining rows of 257 take from the buffer, the share that is cut off."""
    read, buffer = [], ScanBuffer()

    def one_by_one() -> Iterator[list[list[int]]]:
        for tokens in itertools.cycle(DOCUMENTS):
            read.append(1 + len(tokens))
            yield [tokens]

    def taken() -> int:
        return sum(read) - sum(map(len, buffer))

    stream = one_by_one()
    with deadline(10):
        pack_pretraining(stream, buffer, 0, 8 * buffer_size, 256, buffer_size)  # until the buffer is what it will be
        before = taken()
        inputs, _ = pack_pretraining(stream, buffer, 0, 128, 256, buffer_size)
    tokens = taken() - before
    return 1 - len(inputs) * 257 / tokens if tokens else math.nan


def share_of_padding(buffer_size: int) -> float:
    """The share of padding in 128 of your fine-tuning rows of 257 tokens."""
    rng = random.Random(4)
    lengths = [min(256, 3 + int(rng.lognormvariate(4.0, 0.7))) for _ in range(1000)]
    chats = (([0] + [1] * n, [1] * (n + 1)) for n in itertools.cycle(lengths))
    with deadline(10):
        inputs, _, placed = pack_sft(chats, ScanBuffer(), 0, 128, 256, buffer_size)
    # of a conversation only its first token is BOS
    return (int((inputs == 0).sum()) - placed) / inputs.numel()


with picture(
    "What packing costs, by the number of documents waiting",
    alt="Padding in fine-tuning rows falls to nothing; the tokens cut off in pretraining stay above a dotted line.",
    size=(7.0, 3.4),
) as p:
    curves = {"pretraining: tokens cut off": share_thrown_away, "fine-tuning: padding": share_of_padding}
    costs = {}
    for (label, cost), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        costs[label] = [100 * cost(buffer_size) for buffer_size in SIZES_OF_BUFFER]
        p.axes[0].semilogx(SIZES_OF_BUFFER, costs[label], color=colour, marker=marker, label=label, base=2)
    p.axes[0].axhline(100 * BEYOND_A_ROW, color=GREY, linestyle=":", label="in documents beyond the length of a row")
    p.axes[0].set(xlabel="documents or conversations waiting", ylabel="share of the tokens (%)", ylim=(0, None))
    p.axes[0].legend()
    p.caption = "With 1, 16 and 256 waiting: " + "; ".join(
        f"{label} {row[0]:.1f}, {row[4]:.1f}, {row[8]:.1f} %" for label, row in costs.items()
    )

# %% [markdown]
# **What just happened?** For fine-tuning, a hundred waiting conversations make the padding vanish. For pretraining,
# waiting helps little, and it cannot: a document longer than a row never fits, so only a cut takes it out of the
# buffer, and before long the buffer holds hardly anything else. (Every sixteenth of these documents is longer than a
# row.) About a quarter of the tokens is the price here. It buys rows without padding that all begin where a document
# begins, and pretraining documents are plentiful. Of instructions there are few, so there the trade goes the other way.

# %% [markdown]
# ## Part 8 · Are we there yet: progress (5 points, 10 minutes)
#
# A fine-tuning run ends after one pass over the conversations, or earlier, after `num_iterations` batches, if that is
# given. The loader has to say when, and how far the run is, because the learning rate goes by it. Ranks pack different
# conversations, so each counts for itself. A rank reads the conversations `rank`, `rank + world_size`,
# `rank + 2 * world_size`, … of the mixture, and after its end goes round to the start. So a counter that starts at
# `rank` and moves by `world_size` for each conversation counts for all ranks together:
#
# - **consumed**: the counter over the conversations that this rank has *placed* in rows so far;
# - **fetched**: the counter over those it has *read* so far: the ones placed and the ones still waiting in the buffer.
#
# From these and the number of `batches` delivered so far (with the present one):
#
# - `last_step`: whether this is the last batch: `num_iterations` batches are done, or `consumed` has reached `size`,
#   the number of conversations; whichever comes first. A `num_iterations` of 0 or less means that there is no such
#   limit.
# - `progress`: from 0 to 1 and never more. If there is a limit, the share of its batches that are done; else `consumed`
#   as a share of `size`.
# - `epoch`: which pass over the conversations the next one to be read belongs to, from 1. Every `size` conversations
#   fetched, a new pass begins.
#
# Rank 1 of 2 has delivered 3 batches with 20 conversations, and 10 more are waiting; `size` is 100 and there is no
# limit. consumed = 1 + 2 · 20 = 41, fetched = 1 + 2 · 30 = 61: not the last step, progress 0.41, epoch 1.
#
# **Contract.** Returns `{"last_step": bool, "progress": float, "epoch": int}`.


# %% hole="sft_progress"
def sft_progress(
    batches: int, placed: int, waiting: int, size: int, rank: int, world_size: int, num_iterations: int
) -> dict[str, bool | float | int]:
    """Where a rank stands after `batches` batches: {"last_step": ..., "progress": ..., "epoch": ...}.

    It has `placed` conversations in rows and has `waiting` more in its buffer, out of `size` for all ranks.
    num_iterations <= 0: no limit but one pass over the conversations.
    """
    ### BEGIN SOLUTION
    consumed = rank + world_size * placed
    fetched = consumed + world_size * waiting
    limited = num_iterations > 0
    done = batches / num_iterations if limited else consumed / size
    return {
        "last_step": (limited and batches >= num_iterations) or consumed >= size,
        "progress": min(1.0, done),
        "epoch": 1 + fetched // size,
    }
    ### END SOLUTION


# %% given="check-sft_progress"
def standing(last_step: bool, progress: float, epoch: int) -> dict[str, bool | float | int]:
    """What your progress should say."""
    return {"last_step": last_step, "progress": progress, "epoch": epoch}


with check("sft_progress"):
    # batches, placed, waiting, size, rank, world_size, num_iterations
    expect(sft_progress, (3, 20, 10, 100, 1, 2, -1), standing(False, 0.41, 1), "the example above", FLOAT32)
    expect(sft_progress, (3, 20, 10, 100, 0, 1, 12), standing(False, 0.25, 1), "3 of 12 batches", FLOAT32)
    expect(sft_progress, (39, 20, 10, 100, 0, 1, 40), standing(False, 0.975, 1), "one more batch is to come", FLOAT32)
    expect(sft_progress, (12, 20, 10, 100, 0, 1, 12), standing(True, 1.0, 1), "batch 12 is the last of 12", FLOAT32)
    expect(
        sft_progress, (1, 20, 10, 100, 0, 1, 1), standing(True, 1.0, 1), "1 is a limit: batch 1 is the last", FLOAT32
    )
    expect(sft_progress, (5, 99, 1, 100, 0, 1, 0), standing(False, 0.99, 2), "0 is no limit; 100 were fetched", FLOAT32)
    expect(
        sft_progress, (5, 100, 40, 100, 0, 1, 50), standing(True, 0.1, 2), "all were placed before batch 50", FLOAT32
    )
    expect(sft_progress, (9, 30, 40, 50, 3, 4, -1), standing(True, 1.0, 6), "progress stops at 1; 283 fetched", FLOAT32)

# %% graded="sft_progress"
# 5 points. The hidden tests are more of the same, with other numbers; `--verify` runs them.
check.visible("sft_progress")
### BEGIN HIDDEN TESTS
from puzzles.submit import grade

grade("03_data_engine", "sft_progress", sft_progress)
### END HIDDEN TESTS

# %% [markdown]
# ## All of it in one piece
#
# This cell puts your eight pieces together; there is nothing to fill in. A `UniversalDataLoader` is given either a
# `folder` of shards or a list of `tasks`, and delivers batches for pretraining or for fine-tuning, for ever. What is
# waiting in the buffer is part of its state, so it resumes exactly.


# %% given="universal-data-loader"
class UniversalDataLoader:
    """Batches of one rank, for ever: of the shards in `folder` for pretraining, else of `tasks` for fine-tuning.

    Each is (inputs, targets, state): two tensors (B, T) on `device`, and the position that was read last or the
    progress. Between two batches, `state_dict` and `load_state_dict` save and resume.
    """

    def __init__(
        self,
        tokenizer: Any,
        B: int,
        T: int,
        *,
        folder: str | None = None,
        split: str = "train",
        tasks: list | None = None,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 128,
        buffer_size: int | None = None,
        num_iterations: int = -1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokenizer, self.B, self.T, self.device = tokenizer, B, T, device
        self.rank, self.world_size, self.num_iterations = rank, world_size, num_iterations
        self.pretraining = folder is not None
        self.buffer_size = buffer_size or (1000 if self.pretraining else 100)
        self.buffer = BestFitBuffer()
        self.position: dict[str, int] = {}
        self.batches = self.placed = self.read = 0
        if folder is not None:
            paths = split_shards(folder, split)
            self.bookmark = Bookmark(lambda resume: deal_documents(paths, rank, world_size, batch_size, resume))
            self.stream = self.tokenized()
        else:
            self.mixture = TaskMixture(tasks or [])
            self.stream = self.rendered()

    def tokenized(self) -> Iterator[list[list[int]]]:
        """Batches of documents as token ids."""
        for documents, position in self.bookmark:
            self.position = position
            yield self.tokenizer.encode(documents)

    def rendered(self) -> Iterator[tuple[list[int], list[int]]]:
        """This rank's conversations as (ids, mask), round and round."""
        while True:
            index = (self.rank + self.world_size * self.read) % len(self.mixture)
            self.read += 1
            yield self.tokenizer.render_conversation(self.mixture[index])

    def __iter__(self) -> "UniversalDataLoader":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        bos = self.tokenizer.get_bos_token_id()
        shape = (self.B, self.T, self.buffer_size)
        self.batches += 1
        if self.pretraining:
            inputs, targets = pack_pretraining(self.stream, self.buffer, bos, *shape)
            state: dict[str, Any] = dict(self.position)
        else:
            inputs, targets, placed = pack_sft(self.stream, self.buffer, bos, *shape)
            self.placed += placed
            counts = (self.batches, self.placed, len(self.buffer), len(self.mixture))
            state = sft_progress(*counts, self.rank, self.world_size, self.num_iterations)
        return inputs.contiguous().to(self.device), targets.contiguous().to(self.device), state

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, as plain data: the place in the stream, the counters, and what is waiting."""
        place = self.bookmark.state_dict() if self.pretraining else self.read
        counters = {"batches": self.batches, "placed": self.placed, "position": self.position}
        return {"place": place, "waiting": list(self.buffer), **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.batches, self.placed, self.position = state["batches"], state["placed"], state["position"]
        if self.pretraining:
            self.bookmark.load_state_dict(state["place"])
        else:
            self.read = state["place"]
        self.buffer = BestFitBuffer()
        for item in state["waiting"]:
            self.buffer.add(item, len(item) if self.pretraining else len(item[0]))


# %% [markdown]
# ## On real data: two ranks and a crash
#
# The toy world that ships with this course has parquet shards, a tokenizer and conversations. Two of your loaders read
# its training shards as rank 0 and rank 1 of 2; no second GPU is needed for that, since all that makes a rank is its
# number. In the middle, rank 1 crashes. A new loader takes its state from a file and goes on; another one goes on
# without, from nothing but the position that came with the last batch.

# %% given="two-ranks" tags=["oracle"]
from nanochat import toyworld

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
toy_folder = TemporaryDirectory()
SHARDS = str(Path(toy_folder.name, "base_data_climbmix"))
with attempt("The toy world"):
    toyworld.write_world(toy_folder.name)
    toy_model, tokenizer, _ = toyworld.load_toy("base")


def rank_of_two(rank: int) -> UniversalDataLoader:
    """Your loader of the toy world's training documents."""
    return UniversalDataLoader(tokenizer, 4, 128, folder=SHARDS, rank=rank, world_size=2, batch_size=16, device=DEVICE)


with attempt("Two ranks on the toy world's shards"), deadline(60):
    paths = split_shards(SHARDS, "train")
    written = Counter(text for path in paths for text in pq.read_table(path).column("text").to_pylist())
    dealt_out = Counter()
    for rank in range(2):
        for documents, position in deal_documents(paths, rank, 2, 128):
            if position["epoch"] > 1:
                break
            dealt_out.update(documents)
    row_groups = [pq.read_metadata(path).num_row_groups for path in paths]
    print(f"{len(paths)} training shards with {row_groups} row groups, {written.total():,} documents")
    once, twice = (written & dealt_out).total(), (dealt_out - written).total()
    print(f"in one epoch the two ranks read {once:,} of them, and {twice:,} twice")

with attempt("A crash of rank 1"), deadline(60):
    loader = rank_of_two(1)
    for _ in range(6):
        _, _, position = next(loader)
    saved = Path(toy_folder.name, "rank_1.json")
    saved.write_text(json.dumps(loader.state_dict()))
    resumed, from_position = rank_of_two(1), rank_of_two(1)
    resumed.load_state_dict(json.loads(saved.read_text()))
    from_position.bookmark = Bookmark(lambda resume: deal_documents(paths, 1, 2, 16, resume or position))
    expected = [next(loader)[0] for _ in range(6)]
    exact = [torch.equal(next(resumed)[0], inputs) for inputs in expected]
    inexact = [torch.equal(next(from_position)[0], inputs) for inputs in expected]
    size = saved.stat().st_size / 1e6
    print(f"resumed from {size:.1f} MB of state: {sum(exact)} of 6 batches are those that were to come")
    print(
        f"resumed from the position {position}: {sum(inexact)} of 6, {len(loader.buffer):,} waiting documents are lost"
    )

# %% given="two-ranks-of-nanochat" tags=["oracle"]
import os
from unittest.mock import patch

from nanochat.dataloader import BestFitLoader

with attempt("Your two ranks beside nanochat's"), deadline(60):
    equal = 0
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NANOCHAT_BASE_DIR": toy_folder.name}
        with patch.dict(os.environ, place):
            theirs = BestFitLoader(tokenizer, 4, 128, "train", tokenizer_batch_size=16, device=DEVICE)
            yours = rank_of_two(rank)
            for _ in range(20):
                (x, y, state), (inputs, targets, position) = next(theirs), next(yours)
                equal += torch.equal(x, inputs) and torch.equal(y, targets) and state == position
    print(f"{equal} of 40 batches of both ranks equal nanochat's, every token and the position")

# %% [markdown]
# ## On real data: one batch for fine-tuning
#
# A mixture of the toy world's chats and its multiple-choice questions, the questions listed twice; your `TaskMixture`,
# your packing, your buffer. The batch is compared with the one that nanochat's own `SFTLoader` makes of nanochat's own
# `TaskMixture`, token by token.

# %% given="plot-sft-batch" tags=["plot", "oracle"]
from nanochat.sft import SFTLoader
from nanochat.tasks.common import TaskMixture as TheirMixture
from nanochat.toyworld.tasks import ToyChat, ToyChoice

TASKS = [ToyChat("train"), ToyChoice("train"), ToyChoice("train")]


def conversation_looks(tokens: list[int]) -> int:
    """Blue for a chat, orange for a multiple-choice question; the hatch tells neighbours apart."""
    return ("Multiple Choice" in tokenizer.decode(tokens)) + 6 * (sum(tokens) % 6)


with picture(
    "A real fine-tuning batch, packed by you",
    alt="Eight bars of 256 tokens of whole conversations, blue chats and orange choices; black lines: trained on.",
    size=(11.0, 3.6),
) as p:
    inputs, targets, progress = next(UniversalDataLoader(tokenizer, 8, 256, tasks=TASKS, device=DEVICE))
    x, y, state = next(SFTLoader(TheirMixture(TASKS), tokenizer, 8, 256, device=DEVICE))
    draw_rows(p.axes[0], inputs.tolist(), tokenizer.get_bos_token_id(), looks=conversation_looks)
    draw_trained(p.axes[0], targets)
    for name, colour in (("chat", COLOURS[0]), ("multiple choice", COLOURS[1])):
        p.axes[0].bar(0, 0, color=colour, label=name)
    p.axes[0].plot([], [], color=BLACK, linewidth=2, label="trained on")
    p.axes[0].legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    same = int((inputs == x).sum() + (targets == y).sum())
    p.caption = (
        f"{same:,} of {x.numel() + y.numel():,} inputs and targets equal nanochat's. The model is trained on "
        f"{(targets >= 0).float().mean():.0%} of the positions. Progress after this batch: {progress['progress']:.2%} "
        f"(nanochat's: {state.progress:.2%})."
    )

# %% [markdown]
# ## What you have built
#
# Your loader takes the place of nanochat's own in nanochat's training loop: the toy base model, nanochat's optimizer,
# gradient accumulation and schedule. It is fine-tuned for a few steps on your batches, and once more, from the same
# weights, on nanochat's. Then both loaders read the validation shard for bits per byte.

# %% given="what-you-have-built" tags=["oracle"]
import copy

from nanochat import schedules, train
from nanochat.loss_eval import evaluate_bpb
from nanochat.tokenizer import compute_token_bytes


def fine_tune(loader: Any, progress_of: Callable[[Any], float]) -> list[float]:
    """Losses of eight steps from the toy base model on, the way chat_sft takes them. On the CPU, where nanochat does
    not compile its optimizer first."""
    model = copy.deepcopy(toy_model).cpu()
    optimizer = model.setup_optimizer(embedding_lr=0.3, weight_decay=0.0)
    schedules.scale_initial_lr(optimizer, 0.8)
    scaler = train.make_grad_scaler(torch.device("cpu"))
    batches = train.Ahead(loader)
    losses = []
    for step in range(8):
        losses.append(train.accumulate_gradients(model, batches, 1, scaler))
        multiplier = schedules.sft_lr_multiplier(progress_of(batches.latest), 0.0, 0.5, 0.0)
        schedules.apply_schedules(optimizer, multiplier, schedules.sft_muon_momentum(step))
        train.update_weights(optimizer, scaler)
    return losses


with attempt("Your loader in nanochat's training loop"), deadline(120):
    yours = fine_tune(
        UniversalDataLoader(tokenizer, 4, 192, tasks=TASKS, num_iterations=9), lambda state: state["progress"]
    )
    theirs = fine_tune(
        SFTLoader(TheirMixture(TASKS), tokenizer, 4, 192, num_iterations=9), lambda state: state.progress
    )
    print(f"fine-tuning on your batches: loss {yours[0]:.3f}, at the eighth step {yours[-1]:.3f}")
    print(f"on nanochat's:               loss {theirs[0]:.3f}, at the eighth step {theirs[-1]:.3f}")

with attempt("Bits per byte, read by your loader"), deadline(120):
    token_bytes = compute_token_bytes(tokenizer).to(DEVICE)
    model = toy_model.to(DEVICE)
    loader = UniversalDataLoader(tokenizer, 4, 256, folder=SHARDS, split="val", device=DEVICE)
    bpb = evaluate_bpb(model, ((x, y) for x, y, _ in loader), 4, token_bytes)
    with patch.dict(os.environ, NANOCHAT_BASE_DIR=toy_folder.name):
        their_loader = BestFitLoader(tokenizer, 4, 256, "val", device=DEVICE)
        their_bpb = evaluate_bpb(model, ((x, y) for x, y, _ in their_loader), 4, token_bytes)
    print(f"validation bits per byte of the toy base model: {bpb:.5f}, by nanochat's loader {their_bpb:.5f}")
toy_folder.cleanup()

# %% [markdown]
# ## In your own words
#
# A run on 8 GPUs crashed. Its last checkpoint holds rank 0's position, `{"pq_idx": 3, "rg_idx": 40, "epoch": 1}`, and
# nothing else about the data. You can get only 4 GPUs, and start it again with `deal_documents(..., resume=position)`
# on each of them. In about ten sentences: (a) with which row groups does it go on, and is a row group read twice or
# never; (b) what would have happened from 4 to 8 GPUs, with a position in row group 8; and (c) which documents are lost
# in any case, also with 8 GPUs again, and what would have to be saved to lose none?

# %% [markdown] written="another_world_size"
# ### BEGIN SOLUTION
# **Mark scheme**: one point each for (a), (b) and (c); half of it for a statement that is right but not argued.
#
# (a) Row group 40 lies in round 10 of 4 ranks (40 to 43), so reading goes on with round 11: row groups 44, 45, 46, 47
# for ranks 0 to 3. Of 8 ranks, it was in round 5, row groups 40 to 47, which were all read. So 44 to 47 are read twice,
# by other ranks than before; none is skipped. (The ranks need not have been in the same round: a rank with longer
# documents is behind. Full marks with or without this remark.)
#
# (b) Row group 8 is in round 2 of 4 ranks, 8 to 11, which counts as read. For 8 ranks it is in round 1, 8 to 15, so
# reading goes on at 16: row groups 12 to 15 are never read in this epoch. So resuming with more ranks can skip, with
# fewer it repeats.
#
# (c) The documents that were waiting in the buffers, a thousand on each rank, and what was left of the row group that
# each rank was reading. A position names only what was read, not what was used. To lose none, every rank (not only rank
# 0) has to save its own state: the place in its row group and the waiting documents. Such a state fits only the same
# number of ranks.
# ### END SOLUTION
