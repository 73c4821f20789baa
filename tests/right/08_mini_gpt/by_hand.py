# %% [markdown]
# From the formulas, on elementary operations and loops: no rms_norm, no cross_entropy, no softmax of PyTorch's.


# %% hole="norm_and_mlp"
def norm(x):
    wide = x.to(torch.float32)
    mean_square = (wide * wide).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (wide / torch.sqrt(mean_square + torch.finfo(torch.float32).eps)).to(x.dtype)


def mlp(x, c_fc, c_proj):
    hidden = linear(x, c_fc)
    hidden = torch.where(hidden > 0, hidden * hidden, torch.zeros_like(hidden))
    return linear(hidden, c_proj)


# %% hole="rotary_qk_norm"
def rotary_qk_norm(x, cos, sin):
    half = x.shape[-1] // 2
    y = torch.empty_like(x)
    y[..., :half] = x[..., :half] * cos + x[..., half:] * sin
    y[..., half:] = x[..., half:] * cos - x[..., :half] * sin
    wide = y.float()
    rms = (wide.pow(2).mean(dim=-1, keepdim=True) + 2.0**-23).sqrt()
    return (1.2 * wide / rms).to(x.dtype)


# %% hole="value_residual"
def has_ve(i, n_layer):
    layer = n_layer - 1
    while layer > i:
        layer -= 2
    return layer == i


def value_residual(v, x, ve, gate):
    if ve is None:
        return v
    H_kv, D = v.shape[-2:]
    out = []
    for h in range(H_kv):
        z = sum(x[..., c] * gate[h, c].to(x.dtype) for c in range(12))
        g = 3 / (1 + torch.exp(-z))
        out.append(v[:, :, h] + g.unsqueeze(-1) * ve[..., h * D : (h + 1) * D])
    return torch.stack(out, dim=2)


# %% hole="attention_map"
def attention_map(q, k, left):
    B, Tq, H, D = q.shape
    Tk, H_kv = k.shape[1], k.shape[2]
    weights = torch.zeros(B, H, Tq, Tk, device=q.device)
    for h in range(H):
        keys = k[:, :, h // (H // H_kv)]
        for i in range(Tq):
            p = Tk - Tq + i
            first = 0 if left < 0 else max(0, p - left)
            logits = (keys[:, first : p + 1] * q[:, i, h].unsqueeze(1)).sum(dim=-1) / D**0.5
            e = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
            weights[:, h, i, first : p + 1] = e / e.sum(dim=-1, keepdim=True)
    return weights


# %% hole="attend"
def attend(q, k, v, window_size, layer_idx, kv_cache=None):
    B, T, H, D = q.shape
    if kv_cache is not None:
        k_cache, v_cache = kv_cache.k_cache[layer_idx], kv_cache.v_cache[layer_idx]
        lengths = kv_cache.cache_seqlens.clone()
        y = flash_attn.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, lengths, causal=True, window_size=(window_size[0], window_size[1])
        )
    else:
        # the kernel could share the key heads itself; copies of them give the same
        shared = H // k.shape[2]
        y = flash_attn.flash_attn_func(
            q,
            torch.repeat_interleave(k, shared, dim=2),
            torch.repeat_interleave(v, shared, dim=2),
            window_size=list(window_size),
            causal=True,
        )
    return torch.cat([y[:, :, h] for h in range(H)], dim=-1)


# %% hole="smear"
def smear(x, gate, smear_lambda, kv_cache=None):
    before = kv_cache.prev_embedding if kv_cache is not None else None
    out = []
    for t in range(x.shape[1]):
        token = x[:, t]
        if t > 0:
            before = x[:, t - 1 : t]
        if before is None:
            out.append(token)
            continue
        opening = torch.sigmoid((token[:, :24] * gate[0].to(x.dtype)).sum(dim=-1, keepdim=True))
        out.append(token + smear_lambda.item() * opening * before[:, 0])
    if kv_cache is not None:
        kv_cache.prev_embedding = x[:, -1:].clone()
    return torch.stack(out, dim=1)


# %% hole="logits_and_loss"
def logits_and_loss(x, lm_head, vocab_size, targets=None, reduction="mean"):
    # the rows that are no tokens are dropped before the product
    z = linear(x, lm_head[:vocab_size]).float() / 15
    e = torch.exp(-2 * z.abs())
    logits = torch.sign(z) * 15 * (1 - e) / (1 + e)
    if targets is None:
        return logits
    largest = logits.max(dim=-1, keepdim=True).values
    total = (logits - largest).exp().sum(dim=-1).log() + largest[..., 0]
    counts = targets != -1
    losses = total - logits.gather(-1, torch.where(counts, targets, 0).unsqueeze(-1))[..., 0]
    losses = (losses * counts).reshape(-1)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counts.sum()


# %% hole="hidden_states"
def hidden_states(model, idx, kv_cache=None):
    B, T = idx.shape
    positions = list(range(T))
    if kv_cache is not None:
        positions = [kv_cache.get_pos() + t for t in positions]
        if positions[-1] >= kv_cache.max_seq_len:
            raise ValueError("the cache is full")
    elif T < 2:
        raise ValueError("one token, and no cache")
    if positions[-1] >= model.cos.shape[1]:
        raise ValueError("the tables are too short")
    cos, sin = model.cos[:, positions], model.sin[:, positions]
    x0 = model.smear(model.norm(model.embed(idx)), kv_cache)
    after = [x0]
    for i, block in enumerate(model.blocks):
        mixture = after[-1] * model.resid_lambdas[i].item() + x0 * model.x0_lambdas[i].item()
        ve = model.value_embeds[str(i)](idx).type_as(x0) if str(i) in model.value_embeds else None
        after.append(block(mixture, ve, cos, sin, model.window_sizes[i], kv_cache))
    middle = after[1 + len(model.blocks) // 2]
    out = model.norm(after[-1] - middle * model.backout_lambda.item())
    if kv_cache is not None:
        kv_cache.advance(T)
    return out
