# %% [markdown]
# Helper functions, recursion and a sorted list in blocks.


# %% hole="split_shards"
def split_shards(folder, split):
    import os

    *train, val = sorted(e.path for e in os.scandir(folder) if Path(e.path).suffix == ".parquet") or [None]
    shards = {"train": train, "val": [val]}.get(split)
    if shards is None:
        raise ValueError(f"unknown split: {split}")
    if not shards or shards == [None]:
        raise FileNotFoundError(f"no {split} shard")
    return shards


# %% hole="deal_documents"
def rounds(path, rank, world_size, first):
    """The row groups of a shard for `rank`, from round `first` on: (number, documents)."""
    shard = pq.ParquetFile(path)
    number = first * world_size + rank
    while number < shard.num_row_groups:
        yield number, shard.read_row_group(number, ["text"]).to_pydict()["text"]
        number += world_size


def deal_documents(paths, rank, world_size, batch_size, resume=None):
    if resume:
        shard, first, epoch = resume["pq_idx"], 1 + resume["rg_idx"] // world_size, resume["epoch"]
    else:
        shard, first, epoch = 0, 0, 1
    if shard > len(paths) - 1:
        raise ValueError(f"there is no shard {shard}")
    if max(pq.read_metadata(path).num_row_groups for path in paths) <= rank:
        raise ValueError(f"rank {rank} has nothing to read")
    return dealing(paths, rank, world_size, batch_size, shard, first, epoch)


def dealing(paths, rank, world_size, batch_size, shard, first, epoch):
    while True:
        for number, documents in rounds(paths[shard], rank, world_size, first):
            numbered = iter(documents)
            while batch := list(islice(numbered, batch_size)):
                yield batch, {"epoch": epoch, "pq_idx": shard, "rg_idx": number}
        shard, first = shard + 1, 0
        if shard == len(paths):
            shard, epoch = 0, epoch + 1


# %% hole="resume_state"
class Bookmark:
    """Remembers the last position of the row group before, and the batches read since."""

    def __init__(self, open_documents):
        self.open = open_documents
        self.history = [None]  # positions of the row groups entered, oldest first; only the last two count
        self.since = 0
        self.stream = iter(self.open(None))

    def __iter__(self):
        return self

    def __next__(self):
        documents, position = next(self.stream)
        if self.history[-1] == position:
            self.since += 1
        else:
            self.history = [self.history[-1], dict(position)]
            self.since = 1
        return documents, position

    def state_dict(self):
        return {"history": json.dumps(self.history), "since": self.since}

    def load_state_dict(self, state):
        self.history, self.since = json.loads(state["history"]), state["since"]
        self.stream = iter(self.open(self.history[0]))
        for _ in range(self.since):
            next(self.stream)


# %% hole="best_fit_buffer"
class BestFitBuffer:
    """Sorted blocks of at most 64 entries; a search halves the blocks, then the block."""

    class Key:
        """(length, later arrivals first) as one thing to compare."""

        def __init__(self, length, arrival, item=None):
            self.length, self.arrival, self.item = length, arrival, item

        def __lt__(self, other):
            if self.length == other.length:
                return self.arrival > other.arrival
            return self.length < other.length

    def __init__(self):
        self.blocks = []
        self.added = 0
        self.size = 0

    def __len__(self):
        return self.size

    def __iter__(self):
        entries = [entry for block in self.blocks for entry in block]
        return (entry.item for entry in sorted(entries, key=lambda entry: entry.arrival))

    def add(self, item, length):
        entry = self.Key(length, self.added, item)
        self.added += 1
        self.size += 1
        if not self.blocks:
            self.blocks.append([entry])
            return
        number = min(bisect_right(self.blocks, entry, key=lambda block: block[-1]), len(self.blocks) - 1)
        block = self.blocks[number]
        insort(block, entry)
        if len(block) > 64:
            self.blocks[number : number + 1] = [block[:32], block[32:]]

    def pop_largest(self, room):
        key = self.Key(room, -1)
        number = bisect_right(self.blocks, key, key=lambda block: block[0]) - 1
        if number < 0:
            return None
        block = self.blocks[number]
        entry = block.pop(bisect_right(block, key) - 1)
        if not block:
            del self.blocks[number]
        self.size -= 1
        return entry.item

    def pop_shortest(self):
        return self.pop_largest(self.blocks[0][0].length)


# %% hole="pack_pretraining"
def pack_pretraining(batches, buffer, bos, B, T, buffer_size):
    def refill():
        if len(buffer) >= buffer_size:
            return
        for tokens in next(batches):
            buffer.add((bos,) + tuple(tokens), 1 + len(tokens))
        refill()

    def fill(room):
        if room == 0:
            return ()
        refill()
        document = buffer.pop_largest(room)
        if document is None:
            return buffer.pop_shortest()[:room]
        return document + fill(room - len(document))

    rows = [fill(T + 1) for _ in range(B)]
    inputs = torch.tensor([row[:T] for row in rows], dtype=torch.int64)
    targets = torch.tensor([row[1:] for row in rows], dtype=torch.int64)
    return inputs, targets


# %% hole="task_mixture"
class TaskMixture:
    def __init__(self, tasks):
        lazy = []
        for task in tasks:
            lazy += [lambda task=task, i=i: task[i] for i in range(len(task))]
        random.Random(42).shuffle(lazy)
        self.lazy = lazy

    def __len__(self):
        return len(self.lazy)

    def __getitem__(self, index):
        if -1 < index < len(self):
            return self.lazy[index]()
        raise ValueError(f"{index} is not in the mixture")


# %% hole="pack_sft"
def checked(conversation, most):
    ids, mask = conversation
    if len(ids) > most:
        raise ValueError("this conversation can never be placed")
    return {"ids": ids, "say": [token if bit == 1 else -1 for token, bit in zip(ids, mask)]}


def pack_sft(conversations, buffer, bos, B, T, buffer_size):
    inputs, targets, placed = [], [], 0
    for _ in range(B):
        ids, say = [], []
        while len(ids) <= T:
            while len(buffer) < buffer_size:
                conversation = checked(next(conversations), T + 1)
                buffer.add(conversation, len(conversation["ids"]))
            conversation = buffer.pop_largest(T + 1 - len(ids))
            if conversation is None:
                padding = T + 1 - len(ids)
                ids, say = ids + [bos] * padding, say + [-1] * padding
                break
            ids, say = ids + conversation["ids"], say + conversation["say"]
            placed += 1
        inputs.append(ids[:-1])
        targets.append(say[1:])
    return torch.IntTensor(inputs), torch.LongTensor(targets), placed


# %% hole="sft_progress"
def sft_progress(batches, placed, waiting, size, rank, world_size, num_iterations):
    read = placed + waiting
    seen = rank + placed * world_size
    limit = num_iterations if num_iterations > 0 else None
    progress = seen / size if limit is None else batches / limit
    over = seen >= size
    return {
        "last_step": over if limit is None else over or batches >= limit,
        "progress": progress if progress < 1 else 1.0,
        "epoch": (rank + read * world_size + size) // size,
    }
