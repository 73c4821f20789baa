# %% [markdown]
# Generators for state: the row is a coroutine, the loop pulls logits from another generator.


# %% hole="sample_next_token"
def sample_next_token(logits, rng, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.max(dim=-1, keepdim=True).indices if not _tied(logits) else logits.argmax(-1, keepdim=True)
    if not temperature > 0:
        raise ValueError("temperature")
    # multinomial normalises by itself, so the k largest of all the probabilities will do
    p = torch.softmax(logits / temperature, dim=-1, dtype=torch.float64).float()
    if top_k:
        ids = logits.topk(min(top_k, logits.shape[1])).indices
        p = torch.take_along_dim(torch.log_softmax(logits / temperature, dim=-1), ids, dim=1)
        p = torch.softmax(p, dim=1)
        return torch.take_along_dim(ids, torch.multinomial(p, 1, generator=rng), dim=1)
    return torch.multinomial(p, 1, generator=rng)


def _tied(logits):
    return bool(((logits == logits.amax(-1, keepdim=True)).sum(-1) > 1).any())


# %% hole="kv_cache"
class KVCache:
    def __init__(self, batch_size, num_heads, seq_len, head_dim, num_layers, device, dtype):
        # one piece of memory for both
        both = torch.zeros(2, num_layers, batch_size, seq_len, num_heads, head_dim, device=device, dtype=dtype)
        self.k_cache, self.v_cache = both.unbind(0)
        self.cache_seqlens = torch.full((batch_size,), 0, dtype=torch.int32, device=device)
        self.prev_embedding = None

    n_layers = property(lambda self: self.k_cache.shape[0])
    batch_size = property(lambda self: self.k_cache.shape[1])
    max_seq_len = property(lambda self: self.k_cache.shape[2])
    n_heads = property(lambda self: self.k_cache.shape[3])
    head_dim = property(lambda self: self.k_cache.shape[4])

    def reset(self):
        self.k_cache.zero_(), self.v_cache.zero_(), self.cache_seqlens.zero_()
        self.prev_embedding = None

    def get_pos(self):
        return int(self.cache_seqlens.max())

    def get_layer_cache(self, layer_idx):
        return self.k_cache[layer_idx, :, :], self.v_cache[layer_idx, :, :]

    def write(self, layer_idx, k, v):
        pos = self.get_pos()
        if pos + k.shape[1] > self.k_cache.shape[2]:
            raise ValueError("full")
        where = torch.arange(pos, pos + k.shape[1], device=k.device)
        self.k_cache[layer_idx].index_copy_(1, where, k)
        self.v_cache[layer_idx].index_copy_(1, where, v)
        return tuple(cache.narrow(1, 0, pos + k.shape[1]) for cache in self.get_layer_cache(layer_idx))

    def advance(self, num_tokens):
        self.cache_seqlens = self.cache_seqlens + num_tokens

    def prefill(self, other):
        shapes = [cache.k_cache.shape[:1] + cache.k_cache.shape[3:] for cache in (self, other)]
        fits = shapes[0] == shapes[1] and other.k_cache.shape[1] == 1
        if not fits or self.cache_seqlens.any() or other.k_cache.shape[2] > self.k_cache.shape[2]:
            raise ValueError("these caches do not fit")
        n = other.k_cache.shape[2]
        self.k_cache.narrow(2, 0, n).copy_(other.k_cache.expand(-1, self.batch_size, -1, -1, -1))
        self.v_cache.narrow(2, 0, n).copy_(other.v_cache.expand(-1, self.batch_size, -1, -1, -1))
        self.cache_seqlens += other.get_pos()
        if other.prev_embedding is not None:
            self.prev_embedding = other.prev_embedding.repeat_interleave(self.batch_size, dim=0)


# %% hole="tool_state_machine"
class Row:
    def __init__(self, tools):
        self.completed = False
        self._emitted = self._life(tools)
        next(self._emitted)

    def emit(self, sampled):
        return self._emitted.send(sampled)

    def _life(self, tools):
        answer, block = None, None
        while True:
            token = yield answer
            answer = token, 1
            self.completed |= token in tools.terminal
            match token:
                case tools.python_start:
                    block = ()
                case tools.python_end if block is not None:
                    value = tools.calculator(tools.decode(list(block)))
                    block = None
                    if value is None:
                        continue
                    for forced in (tools.output_start, *tools.encode(str(value)), tools.output_end):
                        yield answer
                        answer = forced, 0
                case _ if block is not None:
                    block = (*block, token)


# %% hole="generate"
def generate(model, tokens, num_samples, max_tokens, sample, new_cache, new_row):
    match tokens:
        case []:
            raise IndexError("no prompt")
        case list() if {type(token) for token in tokens} == {int}:
            pass
        case _:
            raise ValueError("a list of ints is wanted")
    room = model.config.sequence_len - len(tokens)
    if max_tokens is None and room < 0:
        raise ValueError("the prompt is too long")
    steps = room if max_tokens is None else max_tokens
    rows = tuple(new_row() for _ in range(num_samples))
    logits = _logits(model, tokens, num_samples, steps, new_cache)
    column = None
    while steps > 0:
        sampled = sample(logits.send(column)).flatten().tolist()
        column, masks = map(
            list, zip(*(row.emit(token) for row, token in zip(rows, sampled, strict=True)), strict=False)
        )
        yield list(column), masks
        steps = 0 if all(row.completed for row in rows) else steps - 1


def _logits(model, tokens, num_samples, steps, new_cache):
    """Logits (num_samples, V) for each column; is sent the column they led to."""
    device = model.get_device()
    prompt = new_cache(1, len(tokens))
    logits = model.forward(torch.tensor(tokens, device=device)[None], kv_cache=prompt)[:, -1].repeat(num_samples, 1)
    # what is emitted last need not be read
    cache = new_cache(num_samples, len(tokens) + steps - 1)
    cache.prefill(prompt)
    while True:
        column = yield logits
        logits = model.forward(torch.tensor(column, device=device).view(-1, 1), kv_cache=cache).squeeze(1)


# %% hole="generate_batch"
def generate_batch(columns, tokens, num_samples, terminal):
    alive = dict.fromkeys(range(num_samples))
    pairs = [[(token, 0) for token in tokens] for _ in alive]
    for column in columns:
        for i, pair in enumerate(zip(*column, strict=True)):
            if pair[0] in terminal:
                alive.pop(i, None)
            if i in alive:
                pairs[i].append(pair)
    return [[token for token, _ in row] for row in pairs], [[mask for _, mask in row] for row in pairs]
