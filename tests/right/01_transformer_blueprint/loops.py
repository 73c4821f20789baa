# %% [markdown]
# Everything spelled out: integers, loops, one entry after the other.


# %% hole="widths"
def widths(depth, aspect_ratio, head_dim, n_kv_head=None):
    wanted = depth * aspect_ratio
    n_head = 0
    while n_head * head_dim < wanted:
        n_head += 1
    if n_kv_head is not None and n_head != n_head // n_kv_head * n_kv_head:
        raise ValueError("the query heads cannot be shared out evenly")
    return {"n_kv_head": n_kv_head or n_head, "n_head": n_head, "n_embd": n_head * head_dim}


# %% hole="window_sizes"
def window_sizes(n_layer, sequence_len, window_pattern):
    if window_pattern == "":
        raise ValueError("empty pattern")
    for letter in window_pattern:
        if letter not in "SsLl":
            raise ValueError(f"unknown letter {letter}")
    short = 0
    while 4 * short < sequence_len:
        short += 128
    windows = []
    for layer in range(n_layer):
        letter = window_pattern[layer % len(window_pattern)]
        is_long = letter in "Ll" or layer == n_layer - 1
        windows.append([sequence_len if is_long else short, 0])
    return windows


# %% hole="rotary"
def rotary(seq_len, head_dim, dtype):
    cos = torch.empty(1, seq_len, 1, head_dim // 2)
    sin = torch.empty(1, seq_len, 1, head_dim // 2)
    for c in range(head_dim // 2):
        angle = torch.arange(seq_len).float() / 100000 ** (2 * c / head_dim)
        cos[0, :, 0, c] = torch.cos(angle)
        sin[0, :, 0, c] = torch.sin(angle)
    return [cos.to(dtype), sin.to(dtype)]


# %% hole="attention_mask"
def attention_mask(Tq, Tk, left):
    mask = torch.zeros(Tq, Tk, dtype=torch.bool)
    for i in range(Tq):
        position = i + Tk - Tq
        first = 0 if left < 0 else max(0, position - left)
        mask[i, first : position + 1] = True
    return mask


# %% hole="parameter_shapes"
def parameter_shapes(n_layer, n_embd, n_head, n_kv_head, vocab_size):
    rows = vocab_size
    while rows % 64 != 0:
        rows += 1
    head_dim = n_embd // n_head
    kv = n_kv_head * head_dim
    shapes = {}
    for i in range(n_layer):
        prefix = "transformer.h." + str(i) + "."
        shapes[prefix + "mlp.c_proj.weight"] = [n_embd, 4 * n_embd]
        shapes[prefix + "mlp.c_fc.weight"] = [4 * n_embd, n_embd]
        shapes[prefix + "attn.c_proj.weight"] = [n_embd, n_head * head_dim]
        shapes[prefix + "attn.c_q.weight"] = [n_head * head_dim, n_embd]
        for kind in "kv":
            shapes[prefix + "attn.c_" + kind + ".weight"] = [kv, n_embd]
    i = n_layer - 1
    while i >= 0:
        shapes[f"value_embeds.{i}.weight"] = [rows, kv]
        shapes[f"transformer.h.{i}.attn.ve_gate.weight"] = [n_kv_head, 12]
        i -= 2
    shapes["transformer.wte.weight"] = shapes["lm_head.weight"] = [rows, n_embd]
    shapes["smear_gate.weight"] = [1, 24]
    for name, length in [("resid", n_layer), ("x0", n_layer)]:
        shapes[name + "_lambdas"] = [length]
    for name in ("smear", "backout"):
        shapes[name + "_lambda"] = [1]
    return shapes


# %% hole="param_counts"
def param_counts(shapes):
    wte = value_embeds = lm_head = blocks = scalars = 0
    for name, shape in shapes.items():
        size = 1
        for length in shape:
            size *= length
        if "wte" in name:
            wte += size
        elif "value_embeds" in name:
            value_embeds += size
        elif "lm_head" in name:
            lm_head += size
        elif ".h." in name:
            blocks += size
        else:
            scalars += size
    return {
        "total": wte + value_embeds + lm_head + blocks + scalars,
        "wte": wte,
        "value_embeds": value_embeds,
        "lm_head": lm_head,
        "transformer_matrices": blocks,
        "scalars": scalars,
    }


# %% hole="flops_per_token"
def flops_per_token(matmul_params, n_head, head_dim, window_sizes, sequence_len):
    forward = 2 * matmul_params
    for window in window_sizes:
        keys = window[0] if window[0] < sequence_len else sequence_len
        for _ in range(n_head):
            forward += 2 * head_dim * keys  # scores
            forward += 2 * head_dim * keys  # values
    return forward + 2 * forward


# %% hole="build"
def build(shapes, n_layer, n_embd, device):
    with torch.device("meta"):
        tree = ParameterTree(shapes)
    tree.to_empty(device=device)
    for name, parameter in tree.named_parameters():
        data = parameter.data
        if name == "transformer.wte.weight":
            data.copy_(0.8 * torch.randn(data.shape))
        elif name == "lm_head.weight":
            data.copy_(0.001 * torch.randn(data.shape))
        elif "c_proj" in name or name == "smear_lambda":
            data.zero_()
        elif "gate" in name:
            data.copy_(0.02 * torch.rand(data.shape))
        elif name == "backout_lambda":
            data[0] = 0.2
        elif name in ("resid_lambdas", "x0_lambdas"):
            first, last = (1.15, 1.05) if name == "resid_lambdas" else (0.20, 0.05)
            for i in range(n_layer):
                data[i] = first + (last - first) * i / max(1, n_layer - 1)
        else:
            bound = 3**0.5 * n_embd**-0.5 * (0.4 if "c_fc" in name else 1.0)
            data.copy_(bound * (2 * torch.rand(data.shape) - 1))
    return tree
