# %% [markdown]
# Iterators, numpy and whole-array operations; a search tree in the buffer.


# %% hole="split_shards"
def split_shards(folder, split):
    import glob

    cut = {"train": slice(None, -1), "val": slice(-1, None)}
    if split not in cut:
        raise ValueError(split)
    if paths := sorted(glob.glob(f"{folder}/*.parquet"))[cut[split]]:
        return paths
    raise FileNotFoundError(folder)


# %% hole="deal_documents"
def deal_documents(paths, rank, world_size, batch_size, resume=None):
    def row_groups(shard):
        return range(rank, pq.ParquetFile(paths[shard]).metadata.num_row_groups, world_size)

    def after(shard, row_group, epoch):
        if resume is None:
            return True
        here = (epoch, shard, row_group // world_size)
        return here > (resume["epoch"], resume["pq_idx"], resume["rg_idx"] // world_size)

    if resume and resume["pq_idx"] not in range(len(paths)):
        raise ValueError("the shard is gone")
    if not any(row_groups(shard) for shard in range(len(paths))):
        raise ValueError("nothing for this rank")
    places = (
        (shard, row_group, epoch)
        for epoch in itertools.count(resume["epoch"] if resume else 1)
        for shard in range(len(paths))
        for row_group in row_groups(shard)
    )
    for shard, row_group, epoch in itertools.filterfalse(lambda place: not after(*place), places):
        table = pq.ParquetFile(paths[shard]).read_row_group(row_group, columns=["text"])
        for batch in table.combine_chunks().to_batches(max_chunksize=batch_size):
            yield batch.column(0).to_pylist(), {"pq_idx": shard, "rg_idx": row_group, "epoch": epoch}


# %% hole="resume_state"
class Bookmark:
    """Groups the stream by position."""

    def __init__(self, open_documents):
        self.open_documents = open_documents
        self.load_state_dict({"past": [], "skip": 0})

    def load_state_dict(self, state):
        import copy

        state = copy.deepcopy(state)
        self.past = state["past"]  # the position of the row group before, if any
        self.skip = state["skip"]
        resume = self.past[0] if self.past else None
        self.items = self.read(self.open_documents(resume), self.skip)

    def read(self, stream, skip):
        for position, group in itertools.groupby(stream, key=lambda item: dict(item[1])):
            for number, item in enumerate(group, 1):
                if number > skip:
                    self.skip = number
                    yield item
            skip = 0
            # the row group has ended
            self.past, self.skip = [position], 0

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def state_dict(self):
        return {"past": list(self.past), "skip": self.skip}


# %% hole="best_fit_buffer"
class BestFitBuffer:
    """A treap: a binary search tree by (length, later arrival first), a heap by random priorities."""

    def __init__(self):
        self.root = None
        self.random = random.Random(0)
        self.arrivals = 0
        self.items = {}

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter([item for _, item in sorted(self.items.items(), key=lambda pair: pair[0])])

    def split(self, node, length):
        """(nodes with lengths <= length, the others)."""
        if node is None:
            return None, None
        if node["length"] <= length:
            node["right"], rest = self.split(node["right"], length)
            return node, rest
        fitting, node["left"] = self.split(node["left"], length)
        return fitting, node

    def split_before(self, node, length):
        """(nodes with lengths < length, the others)."""
        if node is None:
            return None, None
        if node["length"] < length:
            node["right"], rest = self.split_before(node["right"], length)
            return node, rest
        before, node["left"] = self.split_before(node["left"], length)
        return before, node

    def merge(self, a, b):
        if a is None or b is None:
            return a or b
        if a["priority"] > b["priority"]:
            a["right"] = self.merge(a["right"], b)
            return a
        b["left"] = self.merge(a, b["left"])
        return b

    def add(self, item, length):
        shorter, others = self.split_before(self.root, length)
        node = {
            "length": length,
            "arrival": self.arrivals,
            "priority": self.random.random(),
            "left": None,
            "right": None,
        }
        self.items[self.arrivals] = item
        self.arrivals += 1
        self.root = self.merge(self.merge(shorter, node), others)

    def without_last(self, node):
        """(the last node of a tree, the tree without it)."""
        if node["right"] is None:
            return node, node["left"]
        last, node["right"] = self.without_last(node["right"])
        return last, node

    def pop_largest(self, room):
        fitting, others = self.split(self.root, room)
        if fitting is None:
            self.root = others
            return None
        last, rest = self.without_last(fitting)
        self.root = self.merge(rest, others)
        return self.items.pop(last["arrival"])

    def pop_shortest(self):
        node = self.root
        if node is None:
            raise IndexError
        while node["left"] is not None:
            node = node["left"]
        return self.pop_largest(node["length"])


# %% hole="pack_pretraining"
def pack_pretraining(batches, buffer, bos, B, T, buffer_size):
    import numpy as np

    def chosen(row):
        filled = 0
        while filled < row.size:
            while len(buffer) < buffer_size:
                documents = [np.array([bos, *ids]) for ids in next(batches)]
                for document in documents:
                    buffer.add(document, document.size)
            document = buffer.pop_largest(row.size - filled)
            document = buffer.pop_shortest() if document is None else document
            piece = document[: row.size - filled]
            row[filled : filled + piece.size] = piece
            filled += piece.size

    rows = np.empty((B, T + 1), dtype=np.int64)
    for row in rows:
        chosen(row)
    rows = torch.from_numpy(rows)
    return rows.narrow(1, 0, T), rows.narrow(1, 1, T)


# %% hole="task_mixture"
class TaskMixture:
    def __init__(self, tasks):
        import numpy as np

        self.tasks = tuple(tasks)
        self.starts = np.cumsum([0, *map(len, self.tasks)]).tolist()
        self.order = list(range(self.starts[-1]))
        random.Random(42).shuffle(self.order)

    def __len__(self):
        return self.starts[-1]

    def __getitem__(self, index):
        if index not in range(len(self)):
            raise ValueError(index)
        number = self.order[index]
        task = bisect_right(self.starts, number) - 1
        return self.tasks[task][number - self.starts[task]]


# %% hole="pack_sft"
def pack_sft(conversations, buffer, bos, B, T, buffer_size):
    import numpy as np

    rows = np.zeros((B, 2, T + 1), dtype=np.int64)
    rows[:, 0] = bos
    placed = 0
    for row in rows:
        free = T + 1
        while free:
            for ids, mask in islice(conversations, max(0, buffer_size - len(buffer))):
                if len(ids) > T + 1:
                    raise ValueError(len(ids))
                buffer.add(np.stack([ids, mask]), len(ids))
            conversation = buffer.pop_largest(free)
            if conversation is None:
                break
            start = T + 1 - free
            row[:, start : start + conversation.shape[1]] = conversation
            free -= conversation.shape[1]
            placed += 1
    tokens, mask = torch.from_numpy(rows).unbind(1)
    targets = torch.where(mask[:, 1:].bool(), tokens[:, 1:], -1)
    return tokens[:, :-1].int(), targets, placed


# %% hole="sft_progress"
def sft_progress(batches, placed, waiting, size, rank, world_size, num_iterations):
    consumed, fetched = (len(range(rank + n * world_size)) for n in (placed, placed + waiting))
    epochs, _ = divmod(fetched, size)
    shares = [consumed / size]
    if num_iterations > 0:
        shares.append(batches / num_iterations)
    return {"last_step": max(shares) >= 1, "progress": min(shares[-1], 1.0), "epoch": epochs + 1}
