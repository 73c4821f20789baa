"""On-policy reinforcement learning on a task with a reward: rollouts, advantages, loss, pass@k.

GRPO (DeepSeekMath, arXiv 2402.03300) stripped down to REINFORCE: a question is answered several times, each answer
is judged against the mean of its group, and nothing is reused, so there is no ratio to clip. The reference KL and the
division by the standard deviation, which nanochat's training leaves out, are here all the same, switched off.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from nanochat.common import InputError, is_ddp_initialized
from nanochat.engine import Engine


@dataclass(frozen=True)
class RolloutBatch:
    """K sampled answers to one question. `sequences` start with the prompt; the tensors are padded on the right."""

    sequences: list[list[int]]
    inputs: torch.Tensor  # (K, T) int64
    targets: torch.Tensor  # (K, T) int64, -1 where no gradient may flow
    rewards: torch.Tensor  # (K,) float32
    advantages: torch.Tensor  # (K,) float32


def rollout_seed(step: int, example_idx: int, sampling_step: int) -> int:
    """A seed (31 bits) that differs for every sampling call of a run and is the same in every run.

    Tuples of ints hash alike in every 64-bit CPython: only strings and bytes are salted by PYTHONHASHSEED.
    """
    return hash((step, example_idx, sampling_step)) & 0x7FFFFFFF


def num_rl_steps(num_train_examples: int, examples_per_step: int, num_epochs: int = 1) -> int:
    """Optimizer steps of a run; what is left over of an epoch is dropped."""
    return num_train_examples // examples_per_step * num_epochs


def sample_rollouts(
    engine: Engine,
    prompt: list[int],
    num_samples: int,
    device_batch_size: int,
    step: int,
    example_idx: int,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = 50,
) -> tuple[list[list[int]], list[list[int]]]:
    """Answer `prompt` `num_samples` times, `device_batch_size` at once, each time with another seed.

    Returns:
        (sequences, masks) as `Engine.generate_batch` gives them: mask 0 on the prompt and on forced tokens.

    Raises:
        InputError: `num_samples` is not a multiple of `device_batch_size`.
    """
    sequences: list[list[int]] = []
    masks: list[list[int]] = []
    for sampling_step in range(num_passes(num_samples, device_batch_size)):
        more_sequences, more_masks = engine.generate_batch(
            prompt,
            num_samples=device_batch_size,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=rollout_seed(step, example_idx, sampling_step),
        )
        sequences += more_sequences
        masks += more_masks
    return sequences, masks


def rewards_of(
    task: Any, tokenizer: Any, conversation: Any, prompt: list[int], sequences: list[list[int]]
) -> list[float]:
    """What the task gives for each answer: all that follows the prompt as one text, what a tool has said included."""
    answers = [tokenizer.decode(sequence[len(prompt) :]) for sequence in sequences]
    return [float(task.reward(conversation, answer)) for answer in answers]


def num_passes(num_samples: int, device_batch_size: int) -> int:
    """How many batches of `device_batch_size` make up `num_samples`; a InputError if they do not come out even."""
    if num_samples < 1 or num_samples % device_batch_size:
        raise InputError(
            f"{num_samples} samples cannot be split into batches of {device_batch_size}: "
            "choose a device batch size that divides the number of samples."
        )
    return num_samples // device_batch_size


def collate_rollouts(
    sequences: list[list[int]], masks: list[list[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad K sequences on the right and shift them: (inputs, targets), each (K, longest - 1) int64.

    A target is -1 (ignored) where its mask is 0: on the prompt, on tokens forced by a tool, and on the padding.
    """
    longest = max(map(len, sequences))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in sequences], device=device)
    mask = torch.tensor([row + [0] * (longest - len(row)) for row in masks], device=device)
    return ids[:, :-1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, -1)


def compute_advantages(rewards: torch.Tensor, normalize: bool = False, eps: float = 1e-6) -> torch.Tensor:
    """How much better each of K answers is than the group: rewards (K,) minus their mean.

    With `normalize`, divided by their standard deviation (over K, not K - 1) plus `eps`, as GRPO does: a question
    that is nearly always right or nearly always wrong then weighs as much as any other (arXiv 2503.20783 argues
    against it). Rewards that are all equal teach nothing: their normalised advantages are exactly zero.
    """
    centred = rewards - rewards.mean()
    if not normalize:
        return centred
    if rewards.max() == rewards.min():
        return torch.zeros_like(rewards)
    return centred / (rewards.std(correction=0) + eps)


def token_logprobs(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of each target given what comes before it, (B, T) float32; 0 where the target is ignored."""
    return -model(inputs, targets, loss_reduction="none").view_as(inputs)


def policy_gradient_loss(logprobs: torch.Tensor, targets: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """REINFORCE at the token level: minus the mean over counted tokens of log-probability times advantage.

    The mean is over the tokens of all rows together (DAPO, arXiv 2503.14476), so that a long answer weighs more
    than a short one. Shapes: logprobs and targets (B, T), advantages (B,). No gradient flows into the advantages.
    """
    weighted = logprobs * advantages.detach().unsqueeze(-1)
    return -_mean_over_counted(weighted, targets)


def kl_penalty(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference), estimated on the sampled tokens, as a mean over the counted ones. All (B, T).

    Schulman's k3 estimator r - 1 - log r with r = reference / policy probability (the one GRPO uses): unbiased on
    tokens drawn from the policy, never negative. No gradient flows into the reference.
    """
    log_ratio = reference_logprobs.detach() - logprobs
    return _mean_over_counted(log_ratio.exp() - 1 - log_ratio, targets)


def _mean_over_counted(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean of values (B, T) where the target is not ignored; 0 if all are."""
    counted = targets >= 0
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def accumulate_gradients(
    model: torch.nn.Module,
    batch: RolloutBatch,
    device_batch_size: int,
    examples_per_rank: int,
    reference: torch.nn.Module | None = None,
    kl_coef: float = 0.0,
) -> list[float]:
    """Backward over one question's rollouts, `device_batch_size` rows at a time; the loss of each pass.

    Each pass is scaled by 1 / (passes · examples_per_rank), so that the gradient summed over a step is a mean over
    its passes. Call it for each of the step's `examples_per_rank` questions, then step the optimizer. With a
    `reference`, a model that stays as it is, `kl_coef` times the KL from it is part of the loss.

    Raises:
        InputError: the rows cannot be split evenly into passes.
    """
    passes = num_passes(len(batch.inputs), device_batch_size)
    losses = []
    for rows in torch.arange(len(batch.inputs)).split(device_batch_size):
        inputs, targets = batch.inputs[rows], batch.targets[rows]
        logprobs = token_logprobs(model, inputs, targets)
        loss = policy_gradient_loss(logprobs, targets, batch.advantages[rows])
        if reference is not None:
            with torch.no_grad():
                reference_logprobs = token_logprobs(reference, inputs, targets)
            loss = loss + kl_coef * kl_penalty(logprobs, reference_logprobs, targets)
        loss = loss / (passes * examples_per_rank)
        loss.backward()
        losses.append(loss.item())
    return losses


def rollout_batches(
    task: Any,
    tokenizer: Any,
    engine: Engine,
    num_samples: int,
    device_batch_size: int,
    examples_per_rank: int,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = 50,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
) -> Iterator[RolloutBatch]:
    """Endless batches, one a question, from the model as it is when the batch is asked for (on-policy).

    Questions go round robin over the ranks, epoch after epoch; every `examples_per_rank` batches count as a step,
    which is part of the sampling seed; a resumed run starts at `first_step`. `task[i]` is a conversation,
    `task.reward(conversation, answer)` a float.

    Raises:
        InputError: this rank gets no question.
    """
    if rank >= len(task):
        raise InputError(f"rank {rank} gets no question: the task has only {len(task)}, use fewer ranks.")
    pad_id = tokenizer.encode_special("<|assistant_end|>")
    device = engine.model.get_device()
    questions = enumerate(itertools.cycle(range(rank, len(task), world_size)))
    for count, example_idx in itertools.islice(questions, first_step * examples_per_rank, None):
        conversation = task[example_idx]
        prompt = tokenizer.render_for_completion(conversation)
        sequences, masks = sample_rollouts(
            engine,
            prompt,
            num_samples,
            device_batch_size,
            step=count // examples_per_rank,
            example_idx=example_idx,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
        )
        rewards = torch.tensor(rewards_of(task, tokenizer, conversation, prompt, sequences), device=device)
        inputs, targets = collate_rollouts(sequences, masks, pad_id, device)
        yield RolloutBatch(sequences, inputs, targets, rewards, compute_advantages(rewards))


def pass_at_k(outcomes: torch.Tensor, over_subsets: bool = False) -> torch.Tensor:
    """Share of questions solved by at least one of the first k samples, for k = 1..K.

    With `over_subsets`, by at least one of k samples taken from the K in every possible way: the same on average, and
    far less noisy (Codex, arXiv 2107.03374).

    Args:
        outcomes: (N, K) bool, whether sample k of question n is right.

    Returns:
        (K,) float32.
    """
    if not over_subsets:
        return (outcomes.cumsum(dim=1) > 0).float().mean(dim=0)
    K = outcomes.size(1)
    taken = torch.arange(K, device=outcomes.device)
    wrong_left = (~outcomes).sum(dim=1, keepdim=True) - taken  # (N, K): after so many wrong ones
    next_is_wrong = wrong_left.clamp(min=0) / (K - taken)
    return 1 - next_is_wrong.cumprod(dim=1).mean(dim=0)


def evaluate_pass_at_k(
    task: Any,
    tokenizer: Any,
    engine: Engine,
    num_samples: int,
    max_examples: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = 50,
    rank: int = 0,
    world_size: int = 1,
) -> torch.Tensor:
    """pass@k of the model on `task` for k = 1..num_samples, over all ranks: (num_samples,) float32.

    `task.evaluate(conversation, answer)` is true for a right answer. `max_examples` takes only the first questions.
    """
    num_examples = len(task) if max_examples is None else min(max_examples, len(task))
    solved = torch.zeros(num_samples, device=engine.model.get_device())
    for example_idx in range(rank, num_examples, world_size):
        conversation = task[example_idx]
        prompt = tokenizer.render_for_completion(conversation)
        sequences, _ = engine.generate_batch(
            prompt, num_samples=num_samples, max_tokens=max_new_tokens, temperature=temperature, top_k=top_k
        )
        answers = [tokenizer.decode(sequence[len(prompt) :]) for sequence in sequences]
        outcomes = torch.tensor([[bool(task.evaluate(conversation, answer)) for answer in answers]])
        solved += pass_at_k(outcomes).to(solved.device)
    if is_ddp_initialized():
        dist.all_reduce(solved)
    return solved / max(num_examples, 1)
