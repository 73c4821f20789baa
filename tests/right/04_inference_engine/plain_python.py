# %% [markdown]
# Lists, loops and small steps: softmax and top-k written out, states with names, every tensor made anew.


# %% hole="sample_next_token"
def sample_next_token(logits, rng, temperature=1.0, top_k=None):
    if temperature < 0.0:
        raise ValueError("negative temperature")
    B, V = logits.shape
    if temperature == 0.0:
        best = [row.index(max(row)) for row in logits.tolist()]
        return torch.tensor(best, device=logits.device).unsqueeze(1)
    if top_k is None or top_k == 0:
        order = torch.arange(V, device=logits.device).repeat(B, 1)
    else:
        order = torch.sort(logits, dim=1, descending=True).indices[:, :top_k]
    kept = torch.gather(logits, 1, order) / temperature
    weights = torch.exp(kept - kept.max(dim=1, keepdim=True).values)
    place = torch.multinomial(weights / weights.sum(dim=1, keepdim=True), 1, generator=rng)
    return torch.stack([order[row, place[row]] for row in range(B)])


# %% hole="kv_cache"
class KVCache:
    def __init__(self, batch_size, num_heads, seq_len, head_dim, num_layers, device, dtype):
        self.batch_size, self.max_seq_len, self.n_layers = batch_size, seq_len, num_layers
        self.n_heads, self.head_dim = num_heads, head_dim
        self.k_cache = torch.zeros(num_layers, batch_size, seq_len, num_heads, head_dim, dtype=dtype, device=device)
        self.v_cache = torch.zeros_like(self.k_cache)
        self.reset()

    def reset(self):
        self.prev_embedding = None
        self._move_to(0)

    def _move_to(self, position):
        lengths = [position] * self.batch_size
        self.cache_seqlens = torch.tensor(lengths, dtype=torch.int32, device=self.k_cache.device)

    def get_pos(self):
        return self.cache_seqlens.tolist()[0]

    def get_layer_cache(self, layer_idx):
        return self.k_cache.select(0, layer_idx), self.v_cache.select(0, layer_idx)

    def write(self, layer_idx, k, v):
        pos, n = self.get_pos(), k.shape[1]
        if n > self.max_seq_len - pos:
            raise ValueError("the cache is full")
        for i in range(n):
            self.k_cache[layer_idx, :, pos + i] = k[:, i]
            self.v_cache[layer_idx, :, pos + i] = v[:, i]
        return self.k_cache[layer_idx, :, : pos + n].clone(), self.v_cache[layer_idx, :, : pos + n].clone()

    def advance(self, num_tokens):
        self._move_to(self.get_pos() + num_tokens)

    def prefill(self, other):
        trouble = []
        if self.get_pos() > 0:
            trouble.append("this cache is in use")
        if other.batch_size > 1:
            trouble.append("the other has several rows")
        for name in ("n_layers", "n_heads", "head_dim"):
            if getattr(self, name) != getattr(other, name):
                trouble.append(f"{name} differs")
        if other.max_seq_len > self.max_seq_len:
            trouble.append("the other is longer")
        if trouble:
            raise ValueError(", ".join(trouble))
        for row in range(self.batch_size):
            # all of it: what lies behind the position does no harm
            self.k_cache[:, row, : other.max_seq_len] = other.k_cache[:, 0]
            self.v_cache[:, row, : other.max_seq_len] = other.v_cache[:, 0]
        self._move_to(other.get_pos())
        if other.prev_embedding is not None:
            self.prev_embedding = torch.cat([other.prev_embedding] * self.batch_size, dim=0)


# %% hole="tool_state_machine"
class Row:
    def __init__(self, tools):
        self.tools = tools
        self.state = "outside"
        self.collected = []
        self.queue = []
        self.completed = False

    def emit(self, sampled):
        if len(self.queue) == 0:
            token, mask = sampled, 1
        else:
            token, mask = self.queue[0], 0
            self.queue = self.queue[1:]
        self._note(token)
        return token, mask

    def _note(self, token):
        t = self.tools
        for end in t.terminal:
            if token == end:
                self.completed = True
        if token == t.python_start:
            self.state = "inside"
            self.collected = []
            return
        if self.state == "outside":
            return
        if token != t.python_end:
            self.collected.append(token)
            return
        self.state = "outside"
        expression = t.decode(self.collected)
        if expression == "":
            return
        result = t.calculator(expression)
        if result is None:
            return
        self.queue = [t.output_start]
        for each in t.encode(f"{result}"):
            self.queue.append(each)
        self.queue.append(t.output_end)


# %% hole="generate"
def generate(model, tokens, num_samples, max_tokens, sample, new_cache, new_row):
    if type(tokens) is not list:
        raise ValueError("not a list")
    for token in tokens:
        if type(token) is not int:
            raise ValueError("not ids")
    tokens[0]  # IndexError for an empty prompt
    if max_tokens is None:
        if len(tokens) > model.config.sequence_len:
            raise ValueError("too long")
        max_tokens = model.config.sequence_len - len(tokens)
    rows = []
    while len(rows) < num_samples:
        rows.append(new_row())
    made = 0
    while made < max_tokens:
        if made == 0:
            small = new_cache(1, len(tokens))
            last = model.forward(torch.tensor([tokens], device=model.get_device()), kv_cache=small)[0, -1]
            cache = new_cache(num_samples, len(tokens) + max_tokens)
            cache.prefill(small)
            logits = torch.stack([last] * num_samples)
        else:
            ids = torch.tensor([[token] for token in column], device=model.get_device())
            logits = model.forward(ids, kv_cache=cache)[:, 0, :]
        draws = sample(logits)
        column, masks = [], []
        for i in range(num_samples):
            token, mask = rows[i].emit(draws[i, 0].item())
            column.append(token)
            masks.append(mask)
        made += 1
        yield column, masks
        unfinished = [row for row in rows if not row.completed]
        if unfinished == []:
            break


# %% hole="generate_batch"
def generate_batch(columns, tokens, num_samples, terminal):
    columns = list(columns)
    sequences, masks = [], []
    for i in range(num_samples):
        sequence, mask = tokens[:], [0 for _ in tokens]
        for token_column, mask_column in columns:
            if token_column[i] in terminal:
                break
            sequence.append(token_column[i])
            mask.append(mask_column[i])
        sequences.append(sequence)
        masks.append(mask)
    return sequences, masks
