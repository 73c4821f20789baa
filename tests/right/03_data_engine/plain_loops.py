# %% [markdown]
# Everything spelled out: loops, lists, one step after the other; queues for each length in the buffer.


# %% hole="split_shards"
def split_shards(folder, split):
    if split != "train" and split != "val":
        raise ValueError("no such split")
    import os

    names = []
    for name in os.listdir(folder):
        if name[-8:] == ".parquet":
            names.append(name)
    names.sort()
    if split == "val":
        if not names:
            raise FileNotFoundError("nothing to validate on")
        return [os.path.join(folder, names[len(names) - 1])]
    if len(names) < 2:
        raise FileNotFoundError("nothing to train on")
    paths = []
    for name in names[: len(names) - 1]:
        paths.append(os.path.join(folder, name))
    return paths


# %% hole="deal_documents"
def deal_documents(paths, rank, world_size, batch_size, resume=None):
    if resume is not None and resume["pq_idx"] + 1 > len(paths):
        raise ValueError("no such shard")
    epoch = 1 if resume is None else resume["epoch"]
    last_round = None if resume is None else resume["rg_idx"] // world_size
    first_pass = True
    while True:
        found = False
        for shard in range(len(paths)):
            file = pq.ParquetFile(paths[shard])
            for row_group in range(file.num_row_groups):
                if row_group % world_size != rank:
                    continue
                found = True
                if first_pass and resume is not None:
                    if shard < resume["pq_idx"]:
                        continue
                    if shard == resume["pq_idx"] and row_group // world_size <= last_round:
                        continue
                texts = [str(text) for text in file.read_row_group(row_group)["text"]]
                while texts:
                    batch = texts[:batch_size]
                    texts = texts[batch_size:]
                    yield batch, dict(pq_idx=shard, rg_idx=row_group, epoch=epoch)
            file.close()
        if not found:
            raise ValueError("nothing to read for this rank")
        first_pass = False
        epoch = epoch + 1


# %% hole="resume_state"
class Bookmark:
    def __init__(self, open_documents):
        self.open_documents = open_documents
        self.before = None
        self.here = None
        self.count = 0
        self.stream = None

    def __iter__(self):
        return self

    def __next__(self):
        if self.stream is None:
            self.stream = self.open_documents(self.before)
            for _ in range(self.count):
                next(self.stream)
        item = next(self.stream)
        if self.here is None or self.here != list(item[1].items()):
            if self.here is not None:
                self.before = {key: value for key, value in self.here}
            self.here = list(item[1].items())
            self.count = 0
        self.count = self.count + 1
        return item

    def state_dict(self):
        return [self.before, self.here, self.count]

    def load_state_dict(self, state):
        before, here, count = state
        self.before = before
        self.here = None if here is None else [tuple(pair) for pair in here]
        self.count = count
        self.stream = None


# %% hole="best_fit_buffer"
class BestFitBuffer:
    def __init__(self):
        self.lengths = []  # those that are there, sorted
        self.queues = {}  # length -> [(arrival, item), ...]
        self.arrivals = 0
        self.size = 0

    def __len__(self):
        return self.size

    def __iter__(self):
        everything = []
        for queue in self.queues.values():
            everything.extend(queue)
        everything.sort(key=lambda pair: pair[0])
        for _, item in everything:
            yield item

    def place(self, length):
        """How many of the lengths are <= length."""
        low = 0
        high = len(self.lengths)
        while low < high:
            middle = (low + high) // 2
            if self.lengths[middle] <= length:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, item, length):
        if length not in self.queues:
            self.lengths.insert(self.place(length), length)
            self.queues[length] = []
        self.queues[length].append((self.arrivals, item))
        self.arrivals += 1
        self.size += 1

    def take(self, place):
        length = self.lengths[place]
        queue = self.queues[length]
        item = queue.pop(0)[1]
        if not queue:
            del self.queues[length]
            del self.lengths[place]
        self.size -= 1
        return item

    def pop_largest(self, room):
        place = self.place(room)
        if place == 0:
            return None
        return self.take(place - 1)

    def pop_shortest(self):
        if self.size == 0:
            raise IndexError("empty")
        return self.take(0)


# %% hole="pack_pretraining"
def pack_pretraining(batches, buffer, bos, B, T, buffer_size):
    inputs = torch.empty(B, T, dtype=torch.long)
    targets = torch.empty(B, T, dtype=torch.long)
    for b in range(B):
        row = []
        while True:
            while not len(buffer) >= buffer_size:
                for tokens in next(batches):
                    document = [bos]
                    for token in tokens:
                        document.append(token)
                    buffer.add(document, len(document))
            best = buffer.pop_largest(T + 1 - len(row))
            if best is None:
                best = buffer.pop_shortest()
            for token in best:
                if len(row) < T + 1:
                    row.append(token)
            if len(row) == T + 1:
                break
        for t in range(T):
            inputs[b, t] = row[t]
            targets[b, t] = row[t + 1]
    return inputs, targets


# %% hole="task_mixture"
class TaskMixture:
    def __init__(self, tasks):
        self.tasks = tasks
        self.places = []
        for number in range(len(tasks)):
            for i in range(len(tasks[number])):
                self.places.append([number, i])
        generator = random.Random(42)
        generator.shuffle(self.places)

    def __len__(self):
        total = 0
        for task in self.tasks:
            total += len(task)
        return total

    def __getitem__(self, index):
        if index < 0 or index > len(self) - 1:
            raise ValueError("no such example")
        number = self.places[index][0]
        return self.tasks[number][self.places[index][1]]


# %% hole="pack_sft"
def pack_sft(conversations, buffer, bos, B, T, buffer_size):
    inputs = torch.zeros(B, T, dtype=torch.int32)
    targets = torch.zeros(B, T, dtype=torch.int64)
    placed = 0
    for b in range(B):
        tokens, bits = [], []
        while len(tokens) != T + 1:
            while len(buffer) < buffer_size:
                ids, mask = next(conversations)
                if len(ids) - 1 > T:
                    raise ValueError("too long")
                buffer.add((ids, mask), len(ids))
            chosen = buffer.pop_largest(T + 1 - len(tokens))
            if chosen is None:
                while len(tokens) < T + 1:
                    tokens.append(bos)
                    bits.append(0)
            else:
                tokens.extend(chosen[0])
                bits.extend(chosen[1])
                placed += 1
        for t in range(T):
            inputs[b, t] = tokens[t]
            targets[b, t] = tokens[t + 1] if bits[t + 1] else -1
    return inputs, targets, placed


# %% hole="sft_progress"
def sft_progress(batches, placed, waiting, size, rank, world_size, num_iterations):
    consumed = fetched = rank
    for _ in range(placed):
        consumed += world_size
        fetched += world_size
    for _ in range(waiting):
        fetched += world_size
    epoch = 1
    while fetched >= size:
        fetched -= size
        epoch += 1
    last_step = consumed >= size
    if num_iterations > 0:
        if batches >= num_iterations:
            last_step = True
        progress = batches / num_iterations
    else:
        progress = consumed / size
    if progress > 1:
        progress = 1.0
    return {"epoch": epoch, "progress": progress, "last_step": last_step}
