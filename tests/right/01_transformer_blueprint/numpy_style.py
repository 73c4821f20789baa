# %% [markdown]
# NumPy and comprehensions; arrays and NumPy numbers come back where tensors and ints would.


# %% hole="widths"
def widths(depth, aspect_ratio, head_dim, n_kv_head=None):
    import numpy as np

    n_head = np.int64(np.ceil(np.float64(depth) * aspect_ratio / head_dim))
    n_kv_head = n_head if n_kv_head is None else n_kv_head
    whole, rest = divmod(n_head, n_kv_head)
    if rest or not whole:
        raise ValueError(f"{n_kv_head} key/value heads do not divide {n_head}")
    return dict(n_embd=n_head * head_dim, n_head=n_head, n_kv_head=n_kv_head)


# %% hole="window_sizes"
def window_sizes(n_layer, sequence_len, window_pattern):
    import itertools
    import re

    if not re.fullmatch("[SL]+", window_pattern, re.IGNORECASE):
        raise ValueError(window_pattern)
    length = {"S": -(-sequence_len // 512) * 128, "L": sequence_len}
    letters = itertools.islice(itertools.cycle(window_pattern.upper()), n_layer - 1)
    return [(length[letter], 0) for letter in letters] + [(sequence_len, 0)]


# %% hole="rotary"
def rotary(seq_len, head_dim, dtype):
    import numpy as np

    frequency = np.exp(-np.log(1e5) * np.arange(0, head_dim, 2) / head_dim).astype(np.float32)
    angle = np.arange(seq_len, dtype=np.float32).reshape(1, -1, 1, 1) * frequency
    return torch.tensor(np.cos(angle)).to(dtype), torch.tensor(np.sin(angle)).to(dtype)


# %% hole="attention_mask"
def attention_mask(Tq, Tk, left):
    import numpy as np

    back = np.arange(Tk - Tq, Tk).reshape(-1, 1) - np.arange(Tk)
    return np.logical_and(back >= 0, back <= (left if left >= 0 else Tk))


# %% hole="parameter_shapes"
def parameter_shapes(n_layer, n_embd, n_head, n_kv_head, vocab_size):
    rows, kv = (vocab_size + 63) // 64 * 64, n_embd * n_kv_head // n_head
    with_ve = range((n_layer - 1) % 2, n_layer, 2)
    block = {
        "attn.c_q": (n_embd, n_embd),
        "attn.c_k": (kv, n_embd),
        "attn.c_v": (kv, n_embd),
        "attn.c_proj": (n_embd, n_embd),
        "mlp.c_fc": (4 * n_embd, n_embd),
        "mlp.c_proj": (n_embd, 4 * n_embd),
    }
    return {
        **{f"transformer.h.{i}.{name}.weight": shape for i in range(n_layer) for name, shape in block.items()},
        **{f"transformer.h.{i}.attn.ve_gate.weight": (n_kv_head, 12) for i in with_ve},
        **{f"value_embeds.{i}.weight": (rows, kv) for i in with_ve},
        **dict.fromkeys(["transformer.wte.weight", "lm_head.weight"], (rows, n_embd)),
        **dict.fromkeys(["resid_lambdas", "x0_lambdas"], (n_layer,)),
        **dict.fromkeys(["smear_lambda", "backout_lambda"], (1,)),
        "smear_gate.weight": (1, 24),
    }


# %% hole="param_counts"
def param_counts(shapes):
    import numpy as np

    def below(prefix):
        return int(sum(np.prod(shape) for name, shape in shapes.items() if name.startswith(prefix)))

    families = {
        "wte": below("transformer.wte"),
        "value_embeds": below("value_embeds"),
        "lm_head": below("lm_head"),
        "transformer_matrices": below("transformer.h."),
    }
    total = below("")
    return {**families, "scalars": total - sum(families.values()), "total": total}


# %% hole="flops_per_token"
def flops_per_token(matmul_params, n_head, head_dim, window_sizes, sequence_len):
    import numpy as np

    keys = np.minimum(np.array(window_sizes)[:, 0], sequence_len).sum()
    return 3 * (2 * matmul_params + 4 * n_head * head_dim * keys)


# %% hole="build"
def build(shapes, n_layer, n_embd, device):
    import numpy as np

    with torch.device("meta"):
        tree = ParameterTree(shapes)
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    s = (3 / n_embd) ** 0.5
    rules = {
        "wte": lambda shape: rng.normal(0, 0.8, shape),
        "lm_head": lambda shape: rng.normal(0, 0.001, shape),
        "c_q": lambda shape: rng.uniform(-s, s, shape),
        "c_k": lambda shape: rng.uniform(-s, s, shape),
        "c_v": lambda shape: rng.uniform(-s, s, shape),
        "value_embeds": lambda shape: rng.uniform(-s, s, shape),
        "c_fc": lambda shape: rng.uniform(-0.4 * s, 0.4 * s, shape),
        "c_proj": np.zeros,
        "ve_gate": lambda shape: rng.uniform(0, 0.02, shape),
        "smear_gate": lambda shape: rng.uniform(0, 0.02, shape),
        "resid_lambdas": lambda shape: np.linspace(1.15, 1.05, n_layer),
        "x0_lambdas": lambda shape: np.linspace(0.2, 0.05, n_layer),
        "smear_lambda": np.zeros,
        "backout_lambda": lambda shape: np.full(shape, 0.2),
    }
    state = {}
    for name, shape in shapes.items():
        key = next(part for part in name.split(".") if part in rules)
        state[name] = torch.tensor(rules[key](shape), dtype=torch.float32, device=device)
    tree.load_state_dict(state, assign=True)
    return tree
