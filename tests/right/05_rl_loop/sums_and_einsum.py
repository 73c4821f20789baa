# %% [markdown]
# Products with masks in place of selections, einsum and dot products, generators, numpy.


# %% hole="compute_advantages"
def compute_advantages(rewards, normalize=False, eps=1e-6):
    K = len(rewards)
    centre = torch.eye(K, device=rewards.device) - 1 / K
    advantages = centre @ rewards
    if not normalize:
        return advantages
    varied = float(rewards.max() > rewards.min())
    return varied * advantages / (torch.linalg.vector_norm(advantages) / K**0.5 + eps)


# %% hole="rollout"
def rollout(
    engine,
    tokenizer,
    task,
    conversation,
    num_samples,
    device_batch_size,
    step,
    example_idx,
    max_new_tokens=256,
    temperature=1.0,
    top_k=50,
):
    if not (num_samples > 0 and num_samples % device_batch_size == 0):
        raise ValueError(f"{num_samples} / {device_batch_size}")
    prompt = tokenizer.render_for_completion(conversation)

    def answers():
        for first in range(0, num_samples, device_batch_size):
            sequences, masks = engine.generate_batch(
                tokens=list(prompt),
                num_samples=device_batch_size,
                max_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                seed=hash((step, example_idx, first // device_batch_size)) & 0x7FFFFFFF,
            )
            for sequence, mask in zip(sequences, masks, strict=True):
                text = tokenizer.decode(sequence[len(prompt) :])
                yield sequence, mask, task.reward(conversation, text)

    columns = zip(*answers(), strict=True)
    return tuple(list(column) for column in columns)


# %% hole="collate_rollouts"
def collate_rollouts(sequences, masks, pad_id, device="cpu"):
    import numpy as np

    shape = (len(sequences), max(map(len, sequences)))
    ids, own = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        ids[row, : len(sequence)] = sequence
        own[row, : len(mask)] = mask
    inputs, targets = ids[:, :-1], np.where(own, ids, -1)[:, 1:]
    return torch.from_numpy(inputs.copy()).to(device), torch.from_numpy(targets.copy()).to(device)


# %% hole="policy_gradient_loss"
def policy_gradient_loss(logprobs, targets, advantages):
    counted = (targets > -1).float()
    total = torch.einsum("bt,bt,b->", logprobs, counted, advantages.detach())
    return total / -max(1.0, counted.sum().item())


# %% hole="kl_penalty"
def kl_penalty(logprobs, reference_logprobs, targets):
    counted = (targets > -1).float()
    rho = (reference_logprobs.detach() - logprobs).exp()
    k3 = rho - 1 - rho.log()
    return (k3 * counted).sum() / max(1.0, counted.sum().item())


# %% hole="train_step"
def train_step(model, optimizer, questions, device_batch_size, loss_of, reference=None, kl_of=None, kl_coef=0.0):
    for question in questions:
        if question[0].size(0) % device_batch_size:
            raise ValueError("uneven")
    pieces = [
        (piece, len(question[0]) // device_batch_size * len(questions))
        for question in questions
        for piece in zip(*map(lambda each: torch.split(each, device_batch_size), question), strict=True)
    ]
    if reference is not None:
        with torch.no_grad():
            frozen = [-reference(x, y, loss_reduction="none").unflatten(0, x.shape) for (x, y, _), _ in pieces]
    losses = []
    for number, ((x, y, a), divisor) in enumerate(pieces):
        logprobs = model(x, y, loss_reduction="none").unflatten(0, x.shape).neg()
        loss = loss_of(logprobs, y, a)
        if reference is not None:
            loss = loss + kl_of(logprobs, frozen[number], y) * kl_coef
        (loss / divisor).backward()
        losses.append(loss.item() / divisor)
    optimizer.step()
    model.zero_grad(set_to_none=False)
    return losses


# %% hole="pass_at_k"
def pass_at_k(outcomes, over_subsets=False):
    N, K = outcomes.shape
    if not over_subsets:
        all_wrong = (1.0 - outcomes.float()).cumprod(dim=1)
        return 1 - all_wrong.sum(dim=0) / N
    wrong = K - outcomes.float().sum(dim=1)
    chance, shares = torch.ones(N, device=outcomes.device), []
    for taken in range(K):
        chance = chance * torch.relu(wrong - taken) / (K - taken)
        shares.append(1 - chance.mean())
    return torch.stack(shares)
