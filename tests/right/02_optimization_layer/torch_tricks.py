# %% [markdown]
# As torch's own functions would have it: lerp, addcdiv, foreach, einsum, swapped classes.


# %% hole="param_families"
def param_families(shapes):
    import re

    patterns = {
        "muon_matrix": r"transformer\.h\.",
        "adam_decay": r"lm_head|transformer\.wte|value_embeds|resid_lambdas",
        "adam_no_decay": r"x0_lambdas|smear_|backout_",
    }
    return {family: [n for n in shapes if re.match(pattern, n)] for family, pattern in patterns.items()}


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
    from itertools import groupby

    table_lr = [rate / (n_embd / 768) ** 0.5 for rate in (unembedding_lr, embedding_lr, embedding_lr / 2)]
    params = [
        ["lm_head.weight"],
        ["transformer.wte.weight"],
        list(filter(lambda name: name.startswith("value_embeds"), families["adam_decay"])),
        ["resid_lambdas"],
        ["x0_lambdas"],
        ["smear_gate.weight", "smear_lambda", "backout_lambda"],
    ]
    lrs = [*table_lr, scalar_lr * 0.01, scalar_lr, 0.2]
    betas = zip((0.8, 0.8, 0.8, 0.8, 0.96, 0.8), (0.96, 0.995, 0.995, 0.95, 0.95, 0.95))
    decays = (0.01, 0.001, 0.01, 0.05, 0.0, 0.0)
    groups = [
        dict(
            family="adam_decay" if d else "adam_no_decay",
            kind="adamw",
            params=p,
            lr=r,
            betas=b,
            eps=1e-10,
            weight_decay=d,
        )
        for p, r, b, d in zip(params, lrs, betas, decays)
    ]
    matrices = sorted(families["muon_matrix"], key=lambda name: tuple(shapes[name]))  # a stable sort
    for _, names in groupby(matrices, key=lambda name: tuple(shapes[name])):
        muon = dict(momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=weight_decay)
        groups.append(dict(family="muon_matrix", kind="muon", params=list(names), lr=matrix_lr, **muon))
    for group in groups:
        group["initial_lr"] = group["lr"]
    return groups


# %% hole="adamw_step"
def adamw_step(p, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay):
    w, g, m, v = (t.to(torch.float32, copy=True) for t in (p, grad, exp_avg, exp_avg_sq))
    w.mul_(1 - lr * weight_decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = v.div(1 - beta2**step).sqrt_().add_(eps)
    w.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))
    torch._foreach_copy_([p, exp_avg, exp_avg_sq], [w, m, v])
    return p


# %% hole="orthogonalize"
def orthogonalize(x, coefficients, margin, eps):
    norm = torch.linalg.matrix_norm(x.float(), keepdim=True)
    y = x / (norm * margin + eps).to(x.dtype)
    for a, b, c in coefficients:
        if x.shape[-2] > x.shape[-1]:
            gram = torch.einsum("...ij,...ik->...jk", y, y)
            y = a * y + y @ (b * gram + c * torch.einsum("...ij,...jk->...ik", gram, gram))
        else:
            gram = torch.einsum("...ij,...kj->...ik", y, y)
            y = torch.add(a * y, (b * gram + c * (gram @ gram)) @ y)
    return y


# %% hole="muon_direction"
def muon_direction(grad, momentum_buffer, momentum):
    torch.lerp(momentum_buffer, grad, 1 - momentum, out=momentum_buffer)
    ahead = torch.lerp(grad, momentum_buffer, momentum)
    rows = torch.linalg.vector_norm(ahead, dim=2, keepdim=True)
    target = rows.square().mean(dim=1, keepdim=True).sqrt()
    return ahead * target / rows.clamp_min(1e-6)


# %% hole="muon_update"
def muon_update(p, direction, second_momentum_buffer, lr, weight_decay, beta2):
    m, n = direction.shape[1:]
    dim = 2 if m >= n else 1
    frobenius = lambda t: torch.linalg.matrix_norm(t, keepdim=True)
    x = direction * min(m, n) ** 0.5 / torch.clamp(frobenius(direction), min=1e-6)
    second_momentum_buffer.lerp_(torch.mean(x * x, dim, keepdim=True), 1 - beta2)
    y = x * torch.rsqrt(second_momentum_buffer.clamp_min(1e-10))
    y = y * frobenius(x) / frobenius(y).clamp_min(1e-10)
    step = lr * (m / n if m > n else 1) ** 0.5
    disagrees = torch.sign(y) * torch.sign(p) < 0
    p.add_(y + (weight_decay * p).masked_fill(disagrees, 0), alpha=-step)


# %% hole="schedules"
def schedules(it, num_iterations, weight_decay, warmup_steps=40, warmdown_ratio=0.65, final_lr_frac=0.05):
    import numpy as np

    start = num_iterations - round(num_iterations * warmdown_ratio)

    def line(high, low):
        return float(np.interp(it, [start, num_iterations], [high, low])) if start < num_iterations else high

    multiplier = (it + 1) / warmup_steps if it < warmup_steps else line(1.0, final_lr_frac)
    momentum = float(np.interp(it, [0, 400], [0.85, 0.97])) if it < 400 else line(0.97, 0.90)
    decay = weight_decay * (0.5 + 0.5 * np.cos(np.pi * it / num_iterations))
    return dict(lr_multiplier=multiplier, muon_momentum=momentum, muon_weight_decay=decay)


# %% hole="fp8_filter"
def fp8_module_filter(module, fqn):
    match module:
        case nn.Linear(in_features=i, out_features=o):
            return math.gcd(i, o, 16) == 16 and not min(i, o) < 128
    return False


# %% hole="disable_fp8"
@contextmanager
def disable_fp8(model):
    # no module is replaced at all: for a while the FP8 layers are of another class
    layers = [module for module in model.modules() if isinstance(module, Float8Linear)]
    for layer in layers:
        layer.__class__ = nn.Linear
    try:
        yield model
    finally:
        for layer in layers:
            layer.__class__ = Float8Linear
