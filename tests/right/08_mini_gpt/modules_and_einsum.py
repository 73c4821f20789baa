# %% [markdown]
# In float32 inside and cast at the end; einsum for every product; subclasses of ValueError; nothing shared.


# %% hole="norm_and_mlp"
def norm(x):
    wide = x.float()
    return (wide * torch.rsqrt(torch.einsum("...c,...c->...", wide, wide)[..., None] / x.size(-1) + 2**-23)).to(x.dtype)


def mlp(x, c_fc, c_proj):
    hidden = torch.einsum("...c,hc->...h", x, c_fc.to(x.dtype)).relu() ** 2
    return torch.einsum("...h,ch->...c", hidden, c_proj.to(x.dtype))


# %% hole="rotary_qk_norm"
def rotary_qk_norm(x, cos, sin):
    pair = x.unflatten(-1, (2, -1))
    turn = torch.stack([torch.stack([cos, sin], dim=-2), torch.stack([-sin, cos], dim=-2)], dim=-3)
    turned = torch.einsum("...oic,...ic->...oc", turn.expand(*pair.shape[:-2], 2, 2, -1), pair).flatten(-2)
    return F.rms_norm(turned, [x.size(-1)], weight=torch.full_like(turned[0, 0, 0], 1.2))


# %% hole="value_residual"
def has_ve(i, n_layer):
    return bool((n_layer ^ i) & 1)


def value_residual(v, x, ve, gate):
    if ve is not None:
        opened = torch.sigmoid(torch.einsum("btc,hc->bth", x[:, :, :12], gate.to(x.dtype)))
        v = v + torch.einsum("bth,bthd->bthd", 3 * opened, ve.reshape_as(v))
    return v


# %% hole="attention_map"
def attention_map(q, k, left):
    from nanochat.flash_attention import visible_mask

    B, Tq, H, D = q.shape
    grouped = q.unflatten(2, (k.size(2), -1))
    logits = torch.einsum("bqgnd,bkgd->bgnqk", grouped * D**-0.5, k).flatten(1, 2)
    mask = visible_mask(Tq, k.size(1), left, device=q.device)
    return torch.softmax(logits + torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf), dim=3)


# %% hole="attend"
def attend(q, k, v, window_size, layer_idx, kv_cache=None):
    B, T, H, D = q.shape
    window = tuple(window_size)
    if kv_cache is None:
        return flash_attn.flash_attn_func(q, k, v, window_size=window, causal=True).contiguous().view(B, T, H * D)
    keys, values = kv_cache.get_layer_cache(layer_idx)
    start = kv_cache.get_pos()
    # written by hand; the kernel then takes all from the cache
    keys[:, start : start + T], values[:, start : start + T] = k, v
    y = flash_attn.flash_attn_with_kvcache(
        q, keys, values, cache_seqlens=kv_cache.cache_seqlens, causal=True, window_size=window
    )
    return y.contiguous().view(B, T, H * D)


# %% hole="smear"
def smear(x, gate, smear_lambda, kv_cache=None):
    before = x.roll(1, dims=1)
    before[:, 0] = 0
    if kv_cache is not None and kv_cache.prev_embedding is not None:
        before[:, :1] = kv_cache.prev_embedding
    if kv_cache is not None:
        kv_cache.prev_embedding = x[:, [-1]]
    opened = torch.sigmoid(torch.einsum("btc,oc->bto", x[:, :, :24].float(), gate))
    return (x.float() + smear_lambda * opened * before.float()).to(x.dtype)


# %% hole="logits_and_loss"
def logits_and_loss(x, lm_head, vocab_size, targets=None, reduction="mean"):
    logits = torch.einsum("btc,vc->btv", x, lm_head[:vocab_size].to(x.dtype)).type(torch.float)
    logits = torch.sigmoid(logits * (2 / 15)) * 30 - 15
    if targets is None:
        return logits
    return F.nll_loss(
        F.log_softmax(logits, dim=-1).reshape(-1, vocab_size), targets.reshape(-1), ignore_index=-1, reduction=reduction
    )


# %% hole="hidden_states"
class PositionError(ValueError):
    pass


def hidden_states(model, idx, kv_cache=None):
    cached = kv_cache is not None
    T = idx.size(-1)
    if not cached and T <= 1:
        raise PositionError("decode with a cache")
    start = int(kv_cache.cache_seqlens[0]) if cached else 0
    if T > model.sin.size(1) - start or (cached and T > kv_cache.k_cache.size(2) - start):
        raise PositionError("too far")
    tables = [table.narrow(1, start, T) for table in (model.cos, model.sin)]
    stream = model.smear(model.norm(model.embed(idx)), kv_cache)
    origin, dtype = stream, stream.dtype
    looked_up = {int(i): model.value_embeds[i](idx).to(dtype) for i in model.value_embeds}
    for i in range(len(model.blocks)):
        stream = (model.resid_lambdas[i].to(dtype) * stream).add(model.x0_lambdas[i].to(dtype) * origin)
        stream = model.blocks[i](stream, looked_up.get(i), *tables, model.window_sizes[i], kv_cache)
        if 2 * i <= len(model.blocks) < 2 * i + 2:
            middle = stream
    result = model.norm((stream - model.backout_lambda * middle).to(dtype))
    if cached:
        kv_cache.advance(T)
    return result
