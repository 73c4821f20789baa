# %% [markdown]
# Short ways: complex rotation, attention weights read off FlashAttention with unit vectors as values, recursion.


# %% hole="norm_and_mlp"
def norm(x):
    return nn.RMSNorm(x.shape[-1], elementwise_affine=False, device=x.device)(x)


def mlp(x, c_fc, c_proj):
    hidden = linear(x, c_fc)
    return linear(hidden * hidden.clamp(min=0), c_proj)


# %% hole="rotary_qk_norm"
def rotary_qk_norm(x, cos, sin):
    x1, x2 = x.float().tensor_split(2, dim=-1)
    turned = torch.complex(x1, x2) * torch.complex(cos.float(), -sin.float())
    y = torch.cat([turned.real, turned.imag], dim=-1)
    return F.rms_norm(y, y.shape[-1:], eps=2**-23).mul(1.2).to(x.dtype)


# %% hole="value_residual"
def has_ve(i, n_layer):
    return i in range(n_layer - 1, -1, -2)


def value_residual(v, x, ve, gate):
    if gate is None:
        return v
    share = linear(x.narrow(-1, 0, 12), gate).sigmoid() * 3
    return torch.addcmul(v, share.unsqueeze(-1), ve.unflatten(-1, (v.size(2), v.size(3))))


# %% hole="attention_map"
def attention_map(q, k, left):
    B, Tk, H_kv, _ = k.shape
    units = torch.eye(Tk, device=k.device).view(1, Tk, 1, Tk).repeat(B, 1, H_kv, 1)
    return flash_attn.flash_attn_func(q, k, units, causal=True, window_size=(left, 0)).permute(0, 2, 1, 3)


# %% hole="attend"
def attend(q, k, v, window_size, layer_idx, kv_cache=None):
    how = {"causal": True, "window_size": window_size}
    if kv_cache is None:
        return flash_attn.flash_attn_func(q=q, k=k, v=v, **how).reshape(*q.shape[:2], -1)
    caches = dict(zip(("k_cache", "v_cache"), kv_cache.get_layer_cache(layer_idx), strict=True))
    new = {"k": k, "v": v, "cache_seqlens": kv_cache.cache_seqlens}
    return flash_attn.flash_attn_with_kvcache(q=q, **caches, **new, **how).reshape(*q.shape[:2], -1)


# %% hole="smear"
def smear(x, gate, smear_lambda, kv_cache=None):
    if kv_cache is None:
        return smear(x, gate, smear_lambda, SimpleCache())
    known = [] if kv_cache.prev_embedding is None else [kv_cache.prev_embedding]
    kv_cache.prev_embedding = x[:, -1:]
    # one row more, in front, which is dropped again; of a sequence's first token the predecessor is nothing
    longer = torch.cat([*known, x], dim=1)
    shifted = F.pad(longer, (0, 0, 1, 0))[:, -x.size(1) - 1 : -1]
    weight = gate.squeeze(0).to(x.dtype)
    return x + (smear_lambda.to(x.dtype) * (x[..., :24] @ weight).sigmoid()).unsqueeze(-1) * shifted


class SimpleCache:
    prev_embedding = None


# %% hole="logits_and_loss"
def logits_and_loss(x, lm_head, vocab_size, targets=None, reduction="mean"):
    logits = linear(x, lm_head).narrow(-1, 0, vocab_size).to(torch.float32).div(15).tanh().mul(15)
    if targets is None:
        return logits
    by_class = logits.transpose(1, 2)
    return nn.CrossEntropyLoss(ignore_index=-1, reduction=reduction)(by_class, targets).flatten().squeeze(
        0 if reduction != "none" else ()
    )


# %% hole="hidden_states"
def hidden_states(model, idx, kv_cache=None):
    T, n_layer = idx.shape[-1], len(model.window_sizes)
    start, room = (0, model.cos.size(1)) if kv_cache is None else (kv_cache.get_pos(), kv_cache.max_seq_len)
    end = start + T
    if end > min(room, model.cos.size(1)) or (kv_cache is None and T == 1):
        raise ValueError(f"positions {start} to {end - 1} are not to be had")
    rows = slice(start, end)
    first = model.smear(model.norm(model.embed(idx)), kv_cache)
    backed_out = []

    def after(i, x):
        """The stream after layer i and all that follow."""
        if i == n_layer:
            return x
        mixed = torch.lerp(torch.zeros_like(x), x, model.resid_lambdas[i].to(x.dtype)) + model.x0_lambdas[i] * first
        table = model.value_embeds[str(i)] if str(i) in model.value_embeds else None
        ve = table(idx).to(first) if table else None
        y = model.blocks[i](mixed, ve, model.cos[:, rows], model.sin[:, rows], model.window_sizes[i], kv_cache)
        if i == n_layer // 2:
            backed_out.append(model.backout_lambda[0] * y)
        return after(i + 1, y)

    out = model.norm(after(0, first) - backed_out[0])
    if kv_cache is not None:
        kv_cache.advance(T)
    return out
