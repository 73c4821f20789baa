# %% [markdown]
# Everything spelled out: loops over names, matrices, rows and steps.


# %% hole="param_families"
def param_families(shapes):
    muon, decay, rest = [], [], []
    for name in shapes:
        parts = name.split(".")
        if parts[0] == "transformer" and parts[1] == "h":
            muon += [name]
        elif parts[0] in ("transformer", "lm_head", "value_embeds", "resid_lambdas"):
            decay += [name]
        else:
            rest += [name]
    return {"adam_no_decay": rest, "adam_decay": decay, "muon_matrix": muon}


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
    s = math.sqrt(768 / n_embd)
    groups = []

    def adamw(family, params, lr, beta1, beta2, decay):
        group = {"family": family, "kind": "adamw", "params": params, "lr": lr, "initial_lr": lr}
        groups.append({**group, "betas": [beta1, beta2], "eps": 1e-10, "weight_decay": decay})

    adamw("adam_decay", ["lm_head.weight"], s * unembedding_lr, 0.8, 0.96, 0.01)
    adamw("adam_decay", ["transformer.wte.weight"], s * embedding_lr, 0.8, 0.995, 0.001)
    tables = []
    for name in families["adam_decay"]:
        if "value_embeds" in name:
            tables.append(name)
    adamw("adam_decay", tables, s * 0.5 * embedding_lr, 0.8, 0.995, 0.01)
    adamw("adam_decay", ["resid_lambdas"], 0.01 * scalar_lr, 0.8, 0.95, 0.05)
    adamw("adam_no_decay", ["x0_lambdas"], scalar_lr, 0.96, 0.95, 0)
    adamw("adam_no_decay", ["smear_gate.weight", "smear_lambda", "backout_lambda"], 0.2, 0.8, 0.95, 0)
    for group in groups:
        group["weight_decay"] = float(group["weight_decay"])
    by_shape = {}
    for name in families["muon_matrix"]:
        by_shape.setdefault(tuple(shapes[name]), []).append(name)
    for shape in sorted(by_shape):
        group = {"family": "muon_matrix", "kind": "muon", "params": by_shape[shape], "lr": matrix_lr}
        group.update(initial_lr=matrix_lr, momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=weight_decay)
        groups.append(group)
    return groups


# %% hole="adamw_step"
def adamw_step(p, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay):
    names = (p, grad, exp_avg, exp_avg_sq)
    old = [tensor.float().flatten() for tensor in names]
    new_p, new_m, new_v = torch.empty_like(old[0]), torch.empty_like(old[2]), torch.empty_like(old[3])
    weak, slow = 1.0, 1.0
    for _ in range(step):
        weak, slow = weak * beta1, slow * beta2
    size = 64
    for start in range(0, len(old[0]), size):
        w, g, m, v = (tensor[start : start + size] for tensor in old)
        m = m + (1 - beta1) * (g - m)
        v = v + (1 - beta2) * (g**2 - v)
        w = w - lr * weight_decay * w
        w = w - lr * (m / (1 - weak)) / (torch.sqrt(v / (1 - slow)) + eps)
        new_p[start : start + size], new_m[start : start + size], new_v[start : start + size] = w, m, v
    p[...] = new_p.view(p.shape).to(p.dtype)
    exp_avg[...] = new_m.view(p.shape).to(p.dtype)
    exp_avg_sq[...] = new_v.view(p.shape).to(p.dtype)


# %% hole="orthogonalize"
def orthogonalize(x, coefficients, margin, eps):
    m, n = x.shape[-2], x.shape[-1]
    results = []
    for matrix in x.reshape(-1, m, n):
        y = matrix.t() if m > n else matrix
        size = math.sqrt(float((matrix.float() ** 2).sum()))
        y = y / (margin * size + eps) if margin * size + eps > 0 else y.clone()
        for i in range(len(coefficients)):
            a, b, c = coefficients[i]
            gram = torch.mm(y, y.t())
            once = torch.mm(gram, y)
            twice = torch.mm(gram, once)
            y = a * y + b * once + c * twice
        results.append(y.t() if m > n else y)
    return torch.stack(results).reshape(x.shape)


# %% hole="muon_direction"
def muon_direction(grad, momentum_buffer, momentum):
    result = torch.empty_like(grad)
    for k in range(grad.shape[0]):
        momentum_buffer[k] += (1 - momentum) * (grad[k] - momentum_buffer[k])
        n = grad[k] + momentum * (momentum_buffer[k] - grad[k])
        wanted = torch.sqrt((n**2).sum() / n.shape[0])
        for row in range(n.shape[0]):
            length = torch.sqrt((n[row] ** 2).sum())
            result[k, row] = n[row] * wanted / max(length.item(), 1e-6)
    return result


# %% hole="muon_update"
def muon_update(p, direction, second_momentum_buffer, lr, weight_decay, beta2):
    count, m, n = p.shape
    if m > n:
        lr = lr * math.sqrt(m / n)
    for k in range(count):
        x = direction[k].double()
        x = x * math.sqrt(min(m, n)) / max(1e-6, float(x.norm()))
        length = float(x.norm())
        V = second_momentum_buffer[k]
        if m >= n:
            for row in range(m):
                V[row, 0] = beta2 * V[row, 0] + (1 - beta2) * float((x[row] ** 2).mean())
        else:
            for column in range(n):
                V[0, column] = beta2 * V[0, column] + (1 - beta2) * float((x[:, column] ** 2).mean())
        floor = torch.full_like(V, 1e-10)
        x = x / torch.sqrt(torch.maximum(V, floor))
        x = (x * length / max(1e-10, float(x.norm()))).float()
        same_sign = ((x >= 0) & (p[k] >= 0)) | ((x <= 0) & (p[k] <= 0)) | (x * p[k] == 0)
        decayed = torch.where(same_sign, p[k] * (1 - lr * weight_decay), p[k])
        p[k] = decayed - lr * x


# %% hole="schedules"
def schedules(it, num_iterations, weight_decay, warmup_steps=40, warmdown_ratio=0.65, final_lr_frac=0.05):
    w = round(warmdown_ratio * num_iterations)
    remaining = num_iterations - it
    if it < warmup_steps:
        multiplier = (it + 1) / warmup_steps
    elif remaining >= w:
        multiplier = 1.0
    else:
        multiplier = final_lr_frac + (1.0 - final_lr_frac) * remaining / w
    if it < 400:
        momentum = 0.85 * (1 - it / 400) + 0.97 * it / 400
    elif remaining >= w:
        momentum = 0.97
    else:
        momentum = 0.90 + (0.97 - 0.90) * remaining / w
    decay = weight_decay * math.cos(math.pi / 2 * it / num_iterations) ** 2
    return {"muon_weight_decay": decay, "muon_momentum": momentum, "lr_multiplier": multiplier}


# %% hole="fp8_filter"
def fp8_module_filter(module, fqn):
    if isinstance(module, nn.Linear):
        if module.in_features < 128 or module.out_features < 128:
            return False
        return module.in_features % 16 == 0 and module.out_features % 16 == 0
    return False


# %% hole="disable_fp8"
class disable_fp8:
    def __init__(self, model):
        self.model = model
        self.places = []

    def __enter__(self):
        waiting = [self.model]
        while waiting:
            parent = waiting.pop()
            for name, child in list(parent.named_children()):
                if type(child) is Float8Linear:
                    with torch.device("meta"):
                        plain = nn.Linear(child.in_features, child.out_features, child.bias is not None)
                    plain.weight = child.weight
                    if child.bias is not None:
                        plain.bias = child.bias
                    plain.training = child.training
                    self.places.append((parent, name, child))
                    setattr(parent, name, plain)
                else:
                    waiting.append(child)
        return self.model

    def __exit__(self, *error):
        while self.places:
            parent, name, child = self.places.pop()
            setattr(parent, name, child)
        return False
