# %% [markdown]
# Row by row and all at once: draws one row at a time, caches that are filled by where and scatter, queues of pairs.


# %% hole="sample_next_token"
def sample_next_token(logits, rng, temperature=1.0, top_k=None):
    if temperature < 0:
        raise ValueError("temperature must not be negative")
    greedy, V = temperature == 0, logits.shape[-1]
    k = 1 if greedy else min(top_k, V) if top_k else None
    if greedy:
        # argmax by hand: the first place where the largest value stands
        is_best = logits == logits.amax(dim=-1, keepdim=True)
        place = torch.where(is_best, torch.arange(V, device=logits.device), V)
        return place.amin(dim=-1, keepdim=True)
    ids = logits.topk(k).indices if k else torch.arange(V, device=logits.device).expand(len(logits), V)
    p = (logits.gather(1, ids) / temperature).log_softmax(dim=-1).exp()
    return ids.gather(1, p.multinomial(1, generator=rng))


# %% hole="kv_cache"
class KVCache:
    def __init__(self, batch_size, num_heads, seq_len, head_dim, num_layers, device, dtype):
        self.__dict__.update(batch_size=batch_size, n_heads=num_heads, max_seq_len=seq_len, head_dim=head_dim)
        self.n_layers = num_layers
        empty = torch.zeros((num_layers, batch_size, seq_len, num_heads, head_dim), dtype=dtype).to(device)
        self.k_cache, self.v_cache = empty.clone(), empty
        self.cache_seqlens = torch.zeros(batch_size).int().to(device)
        self.prev_embedding = None

    def reset(self):
        self.cache_seqlens *= 0
        self.prev_embedding = None

    def get_pos(self):
        return self.cache_seqlens[-1].item()

    def get_layer_cache(self, layer_idx):
        return self.k_cache.unbind()[layer_idx], self.v_cache.unbind()[layer_idx]

    def write(self, layer_idx, k, v):
        new = slice(self.get_pos(), self.get_pos() + k.size(1))
        if new.stop > self.max_seq_len:
            raise ValueError(f"no room for {k.size(1)} more")
        layer = self.get_layer_cache(layer_idx)
        for cached, fresh in zip(layer, (k, v), strict=True):
            cached[:, new].copy_(fresh)
        return [cached[:, : new.stop] for cached in layer]

    def advance(self, num_tokens):
        self.cache_seqlens.add_(num_tokens)

    def prefill(self, other):
        if self.get_pos() or other.batch_size - 1 or self.max_seq_len < other.max_seq_len:
            raise ValueError("an empty cache, one row, enough room")
        if any(vars(self)[name] != vars(other)[name] for name in ("n_layers", "n_heads", "head_dim")):
            raise ValueError("other shapes")
        for mine, theirs in ((self.k_cache, other.k_cache), (self.v_cache, other.v_cache)):
            mine[:, :, : other.get_pos()] = theirs[:, :, : other.get_pos()].repeat(1, self.batch_size, 1, 1, 1)
        self.cache_seqlens[:] = other.cache_seqlens[0]
        last = other.prev_embedding
        self.prev_embedding = None if last is None else torch.stack([last[0].clone() for _ in range(self.batch_size)])


# %% hole="tool_state_machine"
class Row:
    completed = False

    def __init__(self, tools):
        self.tools = tools
        self.upcoming = iter(())
        self.inside, self.block = False, []

    def emit(self, sampled):
        forced = next(self.upcoming, None)
        token = sampled if forced is None else forced
        if token in self.tools.terminal:
            self.completed = True
        if self.inside and token == self.tools.python_end:
            self.inside = False
            self.upcoming = iter(self.answer(self.tools.decode(self.block)))
        elif token == self.tools.python_start:
            self.inside, self.block = True, []
        elif self.inside:
            self.block += [token]
        return token, int(forced is None)

    def answer(self, expression):
        value = self.tools.calculator(expression)
        return [] if value is None else [self.tools.output_start, *self.tools.encode(str(value)), self.tools.output_end]


# %% hole="generate"
def generate(model, tokens, num_samples, max_tokens, sample, new_cache, new_row):
    if isinstance(tokens, list) and len(tokens) == 0:
        raise IndexError("empty")
    if not isinstance(tokens, list) or any(not isinstance(token, int) for token in tokens):
        raise ValueError("ids")
    if max_tokens is None and len(tokens) > model.config.sequence_len:
        raise ValueError("long")
    end = model.config.sequence_len if max_tokens is None else len(tokens) + max_tokens
    # errors come at the call, columns when they are asked for
    return _columns(model, tokens, num_samples, end, sample, new_cache, new_row)


def _columns(model, tokens, num_samples, end, sample, new_cache, new_row):
    rows = [new_row() for _ in range(num_samples)]
    ids = torch.tensor(tokens, device=model.get_device()).unsqueeze(0)
    cache, position = new_cache(1, len(tokens)), len(tokens)
    while position < end and not all(row.completed for row in rows):
        logits = model.forward(ids, kv_cache=cache)[:, -1, :]
        if position == len(tokens):
            logits = logits.tile(num_samples, 1)
            prompt, cache = cache, new_cache(num_samples, end)
            cache.prefill(prompt)
        pairs = [row.emit(int(token)) for row, token in zip(rows, sample(logits).squeeze(1), strict=True)]
        position += 1
        yield [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        ids = torch.tensor(pairs, device=model.get_device())[:, :1]


# %% hole="generate_batch"
def generate_batch(columns, tokens, num_samples, terminal):
    token_rows, mask_rows = [[] for _ in range(num_samples)], [[] for _ in range(num_samples)]
    for token_column, mask_column in columns:
        for row in range(num_samples):
            token_rows[row].append(token_column[row])
            mask_rows[row].append(mask_column[row])
    lengths = [next((i for i, t in enumerate(row) if t in terminal), len(row)) for row in token_rows]
    sequences = [[*tokens, *row[:n]] for row, n in zip(token_rows, lengths, strict=True)]
    masks = [[*(0 for _ in tokens), *row[:n]] for row, n in zip(mask_rows, lengths, strict=True)]
    return sequences, masks
