# %% [markdown]
# Loops over rows and tokens, written out; gradients flow through stacked scalars.


# %% hole="compute_advantages"
def compute_advantages(rewards, normalize=False, eps=1e-6):
    numbers = rewards.tolist()
    mean = sum(numbers) / len(numbers)
    if not normalize:
        return torch.tensor([number - mean for number in numbers], device=rewards.device)
    if len(set(numbers)) == 1:
        return torch.tensor([0.0] * len(numbers), device=rewards.device)
    deviation = (sum((number - mean) ** 2 for number in numbers) / len(numbers)) ** 0.5
    return torch.tensor([(number - mean) / (deviation + eps) for number in numbers], device=rewards.device)


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
    if num_samples <= 0:
        raise ValueError("at least one answer")
    passes, left = divmod(num_samples, device_batch_size)
    if left:
        raise ValueError("uneven")
    all_sequences, all_masks, all_rewards = [], [], []
    for number in range(passes):
        prompt = tokenizer.render_for_completion(conversation)
        seed = hash((step, example_idx, number)) % 2**31
        found = engine.generate_batch(
            prompt, device_batch_size, max_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        for sequence, mask in zip(*found, strict=True):
            all_sequences.append(list(sequence))
            all_masks.append(list(mask))
            all_rewards.append(float(task.reward(conversation, tokenizer.decode(sequence[len(prompt) :]))))
    return all_sequences, all_masks, all_rewards


# %% hole="collate_rollouts"
def collate_rollouts(sequences, masks, pad_id, device="cpu"):
    T = max(len(sequence) for sequence in sequences) - 1
    inputs = torch.full((len(sequences), T), pad_id, dtype=torch.int64)
    targets = torch.full((len(sequences), T), -1, dtype=torch.int64)
    for k, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        for t in range(min(T, len(sequence))):
            inputs[k, t] = sequence[t]
            if t + 1 < len(sequence) and mask[t + 1] == 1:
                targets[k, t] = sequence[t + 1]
    return inputs.to(device), targets.to(device)


# %% hole="policy_gradient_loss"
def policy_gradient_loss(logprobs, targets, advantages):
    total, count = logprobs.sum() * 0.0, 0
    for row, row_targets, advantage in zip(logprobs, targets, advantages.tolist(), strict=True):
        for logprob, target in zip(row, row_targets.tolist(), strict=True):
            if target >= 0:
                total = total - advantage * logprob
                count += 1
    return total / max(count, 1)


# %% hole="kl_penalty"
def kl_penalty(logprobs, reference_logprobs, targets):
    total, count = logprobs.sum() * 0.0, 0
    for b in range(targets.size(0)):
        for t in range(targets.size(1)):
            if targets[b, t] < 0:
                continue
            ratio = reference_logprobs[b, t].item() - logprobs[b, t]
            total = total + torch.exp(ratio) - 1 - ratio
            count += 1
    return total / max(count, 1)


# %% hole="train_step"
def train_step(model, optimizer, questions, device_batch_size, loss_of, reference=None, kl_of=None, kl_coef=0.0):
    if any(len(inputs) % device_batch_size for inputs, _, _ in questions):
        raise ValueError("uneven passes")
    optimizer.zero_grad()
    told = []
    for inputs, targets, advantages in questions:
        for start in range(0, len(inputs), device_batch_size):
            rows = slice(start, start + device_batch_size)
            share = device_batch_size / len(inputs) / len(questions)
            shape = inputs[rows].shape
            if reference is not None:
                with torch.no_grad():
                    old = -reference(inputs[rows], targets[rows], loss_reduction="none").reshape(shape)
            new = -model(inputs[rows], targets[rows], loss_reduction="none").reshape(shape)
            loss = share * loss_of(new, targets[rows], advantages[rows])
            if reference is not None:
                loss += share * kl_coef * kl_of(new, old, targets[rows])
            loss.backward()
            told.append(float(loss))
    optimizer.step()
    return told


# %% hole="pass_at_k"
def pass_at_k(outcomes, over_subsets=False):
    from math import comb

    rows, K = outcomes.tolist(), outcomes.size(1)
    shares = []
    for k in range(1, K + 1):
        if over_subsets:
            solved = [1 - comb(K - sum(row), k) / comb(K, k) for row in rows]
        else:
            solved = [any(row[:k]) for row in rows]
        shares.append(sum(solved) / len(rows))
    return torch.tensor(shares, device=outcomes.device)
