# %% [markdown]
# Numbers in numpy, structure from tables, clean-up by ExitStack.


# %% hole="param_families"
def param_families(shapes):
    def family(name):
        if ".h." in name:
            return "muon_matrix"
        kind = name.removeprefix("transformer.").split(".")[0]
        return "adam_decay" if kind in {"wte", "lm_head", "value_embeds", "resid_lambdas"} else "adam_no_decay"

    result = {"muon_matrix": [], "adam_decay": [], "adam_no_decay": []}
    for name in shapes:
        result[family(name)].append(name)
    return result


# %% hole="param_groups"
def param_groups(
    families,
    shapes,
    n_embd,
    unembedding_lr=0.004,
    embedding_lr=0.2,
    matrix_lr=0.02,
    weight_decay=0.0,
    scalar_lr=0.5,
):
    rows = """
        adam_decay    unembedding*s  0.8  0.96  0.01  lm_head.weight
        adam_decay    embedding*s    0.8  0.995 0.001 transformer.wte.weight
        adam_decay    embedding*s/2  0.8  0.995 0.01  -
        adam_decay    scalar/100     0.8  0.95  0.05  resid_lambdas
        adam_no_decay scalar         0.96 0.95  0     x0_lambdas
        adam_no_decay 0.2            0.8  0.95  0     smear_gate.weight,smear_lambda,backout_lambda
    """
    known = {"unembedding": unembedding_lr, "embedding": embedding_lr, "scalar": scalar_lr, "s": (768 / n_embd) ** 0.5}
    value_embeds = ",".join(name for name in families["adam_decay"] if name[:12] == "value_embeds")
    groups = []
    for row in rows.strip().splitlines():
        family, lr, beta1, beta2, decay, names = row.split()
        group = {"family": family, "kind": "adamw", "params": names.replace("-", value_embeds).split(",")}
        group |= {"lr": eval(lr, known.copy()), "betas": (float(beta1), float(beta2)), "eps": 1e-10}
        groups.append(group | {"weight_decay": float(decay)})
    for shape in sorted(set(map(tuple, (shapes[name] for name in families["muon_matrix"])))):
        members = [name for name in families["muon_matrix"] if tuple(shapes[name]) == shape]
        group = {"family": "muon_matrix", "kind": "muon", "params": members, "lr": matrix_lr, "momentum": 0.95}
        groups.append(group | {"ns_steps": 5, "beta2": 0.9, "weight_decay": weight_decay})
    return [{**group, "initial_lr": group["lr"]} for group in groups]


# %% hole="adamw_step"
def adamw_step(p, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay):
    import numpy as np

    w, g, m, v = (np.float32(t.detach().cpu().float().numpy()) for t in (p, grad, exp_avg, exp_avg_sq))
    m = np.float32(beta1) * m + np.float32(1 - beta1) * g
    v = np.float32(beta2) * v + np.float32(1 - beta2) * g * g
    update = m / np.float32(1 - beta1**step) / (np.sqrt(v / np.float32(1 - beta2**step)) + np.float32(eps))
    w = w - np.float32(lr * weight_decay) * w - np.float32(lr) * update
    for tensor, numbers in ((p, w), (exp_avg, m), (exp_avg_sq, v)):
        tensor.copy_(torch.from_numpy(np.asarray(numbers)))


# %% hole="orthogonalize"
def orthogonalize(x, coefficients, margin, eps):
    # on the Gram matrix alone: X times a polynomial of XᵀX stays X times a polynomial of XᵀX
    tall = x.size(-2) >= x.size(-1)
    wide = x.mT if tall else x
    start = wide.double() / (margin * wide.double().norm(dim=(-2, -1), keepdim=True) + eps)
    gram = start @ start.mT
    factor = torch.eye(gram.size(-1), dtype=gram.dtype, device=x.device).expand_as(gram)
    for a, b, c in coefficients:
        now = factor @ gram @ factor
        factor = a * factor + (b * now + c * now @ now) @ factor
    result = (factor @ start).to(x.dtype)
    return result.mT.contiguous() if tall else result


# %% hole="muon_direction"
def muon_direction(grad, momentum_buffer, momentum):
    momentum_buffer.copy_(momentum * momentum_buffer + (1 - momentum) * grad)
    n = (1 - momentum) * grad + momentum * momentum_buffer
    square = n.double().square()
    target = square.sum((1, 2), keepdim=True).div(n.shape[1]).sqrt()
    factor = target / torch.maximum(square.sum(2, keepdim=True).sqrt(), torch.tensor(1e-6, dtype=torch.float64))
    return n * factor.float()


# %% hole="muon_update"
def muon_update(p, direction, second_momentum_buffer, lr, weight_decay, beta2):
    K, m, n = p.shape
    one_a_row = second_momentum_buffer.shape == (K, m, 1) and m >= n
    flat = direction.reshape(K, -1)
    x = flat * (min(m, n) ** 0.5 / flat.norm(dim=1, keepdim=True).clamp(min=1e-6))
    x = x.reshape(K, m, n)
    q = x.pow(2).sum(2, keepdim=True) / n if one_a_row else x.pow(2).sum(1, keepdim=True) / m
    second_momentum_buffer += (1 - beta2) * (q - second_momentum_buffer)
    y = x / torch.where(second_momentum_buffer < 1e-10, 1e-10, second_momentum_buffer) ** 0.5
    longer = y.reshape(K, -1).norm(dim=1) / x.reshape(K, -1).norm(dim=1)
    y = torch.nan_to_num(y / longer[:, None, None])
    rate = lr * max(1, m / n) ** 0.5
    mask = torch.logical_not(torch.logical_or((y > 0) & (p < 0), (y < 0) & (p > 0)))
    p -= rate * y + rate * weight_decay * torch.where(mask, p, 0)


# %% hole="schedules"
def schedules(it, num_iterations, weight_decay, warmup_steps=40, warmdown_ratio=0.65, final_lr_frac=0.05):
    N, w = num_iterations, round(warmdown_ratio * num_iterations)
    left = min(1.0, (N - it) / w) if w else 1.0  # how much of the warmdown is still to come
    return {
        "lr_multiplier": min(it + 1, warmup_steps) / warmup_steps
        if it < warmup_steps
        else left + (1 - left) * final_lr_frac,
        "muon_momentum": [0.90 + 0.07 * left, 0.85 + 0.0003 * it][it < 400],
        "muon_weight_decay": weight_decay / 2 + weight_decay / 2 * math.cos(it * math.pi / N),
    }


# %% hole="fp8_filter"
def fp8_module_filter(module, fqn):
    sizes = module.weight.shape if isinstance(module, nn.Linear) else (0, 0)
    return not any(size % 16 or size < 128 for size in sizes)


# %% hole="disable_fp8"
@contextmanager
def disable_fp8(model):
    from contextlib import ExitStack

    with ExitStack() as undo:
        for path, layer in list(model.named_modules()):
            if isinstance(layer, Float8Linear):
                parent, _, name = path.rpartition(".")
                owner = model.get_submodule(parent)
                plain = nn.Linear(1, 1, bias=False, device="meta")
                plain.in_features, plain.out_features = layer.in_features, layer.out_features
                plain._parameters = layer._parameters
                plain.train(layer.training)
                undo.callback(owner.register_module, name, layer)
                owner.register_module(name, plain)
        yield model
