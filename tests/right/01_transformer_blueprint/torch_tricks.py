# %% [markdown]
# Let PyTorch do it: tril and triu, polar, named tables, init functions.


# %% hole="widths"
def widths(depth: int, aspect_ratio: int, head_dim: int, n_kv_head: int | None = None) -> dict[str, int]:
    n_embd = (depth * aspect_ratio + head_dim - 1) // head_dim * head_dim
    n_head = n_embd // head_dim
    if n_kv_head is None:
        return {"n_embd": n_embd, "n_head": n_head, "n_kv_head": n_head}
    if n_head % n_kv_head == 0:
        return {"n_embd": n_embd, "n_head": n_head, "n_kv_head": n_kv_head}
    raise ValueError("n_head must be a multiple of n_kv_head")


# %% hole="window_sizes"
def window_sizes(n_layer: int, sequence_len: int, window_pattern: str) -> list[tuple[int, int]]:
    tiles, rest = divmod(sequence_len, 4 * 128)
    lengths = {"S": (tiles + (rest > 0)) * 128, "L": sequence_len}
    try:
        cycle = [lengths[letter.upper()] for letter in window_pattern]
        lefts = (cycle * (n_layer // len(cycle) + 1))[: n_layer - 1]
    except (KeyError, ZeroDivisionError):
        raise ValueError(f"bad window pattern {window_pattern!r}") from None
    return list(zip([*lefts, sequence_len], [0] * n_layer, strict=True))


# %% hole="rotary"
def rotary(seq_len: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    # float64 is finer still than the float32 asked for
    exponent = torch.linspace(0, 1, head_dim // 2 + 1, dtype=torch.float64)[:-1]
    angle = torch.einsum("t,c->tc", torch.arange(seq_len).double(), torch.pow(100000.0, exponent).reciprocal())
    unit = torch.polar(torch.ones_like(angle), angle).view(1, seq_len, 1, -1)
    return unit.real.to(dtype), unit.imag.to(dtype)


# %% hole="attention_mask"
def attention_mask(Tq: int, Tk: int, left: int) -> torch.Tensor:
    square = torch.ones(Tk, Tk, dtype=torch.bool).tril()
    if left != -1:
        square = square.triu(-left)
    return square[Tk - Tq :]


# %% hole="parameter_shapes"
def parameter_shapes(
    n_layer: int, n_embd: int, n_head: int, n_kv_head: int, vocab_size: int
) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        rows = vocab_size + (-vocab_size) % 64
        kv_dim = n_embd // n_head * n_kv_head
        model = nn.Module()
        model.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, n_embd), "h": nn.ModuleList()})
        model.lm_head = nn.Linear(n_embd, rows, bias=False)
        model.value_embeds = nn.ModuleDict()
        model.smear_gate = nn.Linear(24, 1, bias=False)
        for name, length in {"resid_lambdas": n_layer, "x0_lambdas": n_layer}.items():
            model.register_parameter(name, nn.Parameter(torch.empty(length)))
        for name in ("smear_lambda", "backout_lambda"):
            model.register_parameter(name, nn.Parameter(torch.empty(1)))
        for i in range(n_layer):
            block = nn.Module()
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.c_q = nn.Linear(n_embd, n_embd, bias=False)
            block.attn.c_k = nn.Linear(n_embd, kv_dim, bias=False)
            block.attn.c_v = nn.Linear(n_embd, kv_dim, bias=False)
            block.attn.c_proj = nn.Linear(n_embd, n_embd, bias=False)
            block.mlp.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=False)
            block.mlp.c_proj = nn.Linear(4 * n_embd, n_embd, bias=False)
            if i % 2 != n_layer % 2:
                block.attn.ve_gate = nn.Linear(12, n_kv_head, bias=False)
                model.value_embeds[str(i)] = nn.Embedding(rows, kv_dim)
            model.transformer["h"].append(block)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


# %% hole="param_counts"
def param_counts(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    from collections import Counter

    counts: Counter = Counter(wte=0, value_embeds=0, lm_head=0, transformer_matrices=0, scalars=0, total=0)
    for name, shape in shapes.items():
        match name.split("."):
            case ["transformer", "h", *_]:
                family = "transformer_matrices"
            case ["transformer", "wte", _]:
                family = "wte"
            case ["value_embeds" | "lm_head" as family, *_]:
                pass
            case _:
                family = "scalars"
        n = torch.empty(shape, device="meta").numel()
        counts.update({family: n, "total": n})
    return counts


# %% hole="flops_per_token"
def flops_per_token(
    matmul_params: int, n_head: int, head_dim: int, window_sizes: list[tuple[int, int]], sequence_len: int
) -> int:
    attention = sum(12 * n_head * head_dim * sorted((left, sequence_len))[0] for left, _ in window_sizes)
    return 6 * matmul_params + attention


# %% hole="build"
def build(shapes: dict[str, tuple[int, ...]], n_layer: int, n_embd: int, device: torch.device | str) -> ParameterTree:
    with torch.device("meta"):
        tree = ParameterTree(shapes)
    tree = tree.to_empty(device=device)
    bound = (3 / n_embd) ** 0.5
    for prefix, module in tree.named_modules():
        weight = getattr(module, "weight", None)
        kind = prefix.rpartition(".")[2]
        if weight is None:
            continue
        if kind in ("wte", "lm_head"):
            nn.init.normal_(weight, 0.0, 0.8 if kind == "wte" else 0.001)
        elif kind == "c_proj":
            nn.init.zeros_(weight)
        elif kind.endswith("gate"):
            nn.init.uniform_(weight, 0.0, 0.02)
        else:
            scale = 0.4 if kind == "c_fc" else 1.0
            nn.init.uniform_(weight, -bound * scale, bound * scale)
    with torch.no_grad():
        tree.resid_lambdas.copy_(torch.linspace(1.15, 1.05, n_layer))
        tree.x0_lambdas.copy_(torch.linspace(0.2, 0.05, n_layer))
    nn.init.constant_(tree.smear_lambda, 0.0)
    nn.init.constant_(tree.backout_lambda, 0.2)
    return tree
