# %% [markdown]
# Only what counts is picked out, by indexing; log-probabilities from logits; probabilities by lgamma.


# %% hole="compute_advantages"
def compute_advantages(rewards, normalize=False, eps=1e-6):
    advantages = rewards - rewards.sum() / rewards.numel()
    if normalize:
        scale = ((rewards - rewards.mean()) ** 2).mean().sqrt() + eps
        equal = (rewards == rewards[0]).all()
        advantages = torch.where(equal, 0.0, advantages / scale)
    return advantages


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
    class Uneven(ValueError):
        pass

    if num_samples < device_batch_size or num_samples % device_batch_size != 0:
        raise Uneven
    prompt = tokenizer.render_for_completion(conversation)
    arguments = {"max_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
    arguments["num_samples"] = device_batch_size
    batches = [
        engine.generate_batch(prompt, seed=hash((step, example_idx, i)) & (2**31 - 1), **arguments)
        for i in range(num_samples // device_batch_size)
    ]
    sequences = [row for batch in batches for row in batch[0]]
    masks = [row for batch in batches for row in batch[1]]
    rewards = [task.reward(conversation, tokenizer.decode(row[len(prompt) :])) for row in sequences]
    return sequences, masks, rewards


# %% hole="collate_rollouts"
def collate_rollouts(sequences, masks, pad_id, device="cpu"):
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(row) for row in sequences], batch_first=True, padding_value=pad_id)
    own = pad_sequence([torch.tensor(row) for row in masks], batch_first=True, padding_value=0).bool()
    targets = ids.clone()
    targets[~own] = -1
    return ids.narrow(1, 0, ids.size(1) - 1).to(device), targets[:, 1:].to(device)


# %% hole="policy_gradient_loss"
def policy_gradient_loss(logprobs, targets, advantages):
    row, column = torch.nonzero(targets != -1, as_tuple=True)
    if len(row) == 0:
        return (logprobs * 0).sum()
    with torch.no_grad():
        weights = advantages[row].clone()
    return -(weights @ logprobs[row, column]) / len(row)


# %% hole="kl_penalty"
def kl_penalty(logprobs, reference_logprobs, targets):
    counted = targets >= 0
    with torch.no_grad():
        reference = reference_logprobs[counted]
    difference = logprobs[counted] - reference
    return (torch.expm1(-difference) + difference).sum() / max(1, int(counted.sum()))


# %% hole="train_step"
def train_step(model, optimizer, questions, device_batch_size, loss_of, reference=None, kl_of=None, kl_coef=0.0):
    def logprobs_of(network, x, y):
        logits = network(x)
        picked = logits.log_softmax(-1).gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(y >= 0, picked, 0.0)

    def passes_of(question):
        number, left = divmod(len(question[0]), device_batch_size)
        if left:
            raise ValueError("uneven")
        return zip(*(each.chunk(number) for each in question), strict=True), number

    losses = []
    for question in questions:
        passes, number = passes_of(question)
        for x, y, a in passes:
            new = logprobs_of(model, x, y)
            objective = loss_of(new, y, a)
            if reference is not None and kl_coef:
                with torch.no_grad():
                    old = logprobs_of(reference, x, y)
                objective = objective + kl_coef * kl_of(new, old, y)
            objective = objective / number / len(questions)
            objective.backward()
            losses.append(objective.item())
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    return losses


# %% hole="pass_at_k"
def pass_at_k(outcomes, over_subsets=False):
    N, K = outcomes.shape
    if not over_subsets:
        return outcomes.int().cummax(dim=1).values.double().mean(dim=0).float()
    k = torch.arange(1, K + 1, dtype=torch.float64, device=outcomes.device)
    wrong = (K - outcomes.sum(dim=1, dtype=torch.float64)).unsqueeze(1)
    left = (wrong - k).clamp(min=0)

    def log_factorial(x):
        return torch.lgamma(x + 1)

    log_all_wrong = log_factorial(wrong) - log_factorial(left) + log_factorial(K - k)
    log_all_wrong = log_all_wrong - torch.lgamma(torch.tensor(K + 1.0, dtype=torch.float64, device=k.device))
    all_wrong = torch.where(wrong >= k, log_all_wrong.exp(), 0.0)
    return (1 - all_wrong).mean(dim=0).float()
