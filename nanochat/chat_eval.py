"""How good a chat model is at tasks with right answers: choosing a letter, or writing an answer that is checked."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pad_sequence

from nanochat.common import InputError, get_dist_info, is_ddp_initialized
from nanochat.tasks.arc import ARC
from nanochat.tasks.common import Task
from nanochat.tasks.gsm8k import GSM8K
from nanochat.tasks.humaneval import HumanEval
from nanochat.tasks.mmlu import MMLU

# name -> (makes the task, accuracy of a random guess)
CHAT_TASKS: dict[str, tuple[Callable[[], Task], float]] = {
    "ARC-Easy": (lambda: ARC("ARC-Easy", "test"), 0.25),
    "ARC-Challenge": (lambda: ARC("ARC-Challenge", "test"), 0.25),
    "MMLU": (lambda: MMLU("all", "test"), 0.25),
    "GSM8K": (lambda: GSM8K("main", "test"), 0.0),
    "HumanEval": (HumanEval, 0.0),
}


@torch.no_grad()
def run_categorical_eval(
    task_object: Task, tokenizer: Any, model: Any, batch_size: int, max_problems: int | None = None
) -> float:
    """Share of multiple-choice questions in which the right letter is the likeliest of the question's letters.

    Nothing is sampled: one forward for `batch_size` questions, padded on the right (a causal model does not see that),
    and of the logits that follow each prompt only those of its letters are compared; the first wins a tie.
    Batches go round robin over the ranks, and every rank returns the accuracy over all.

    Args:
        task_object: its conversations have `letters`, each a single token.
        tokenizer: offers render_for_completion, encode and get_bos_token_id.
        model: called with token ids (B, T) int64, gives logits (B, T, vocab_size); has get_device().
        batch_size: questions in a forward.
        max_problems: take only the first so many questions.

    Raises:
        InputError: there is no question to ask, or a letter is not a single token.
    """
    _, rank, _, world_size = get_dist_info()
    num_problems = _count_problems(task_object, max_problems)
    device = model.get_device()
    num_passed = 0
    for start in range(rank * batch_size, num_problems, world_size * batch_size):
        conversations = [task_object[i] for i in range(start, min(start + batch_size, num_problems))]
        prompts = [torch.tensor(tokenizer.render_for_completion(conversation)) for conversation in conversations]
        padded = pad_sequence(prompts, batch_first=True, padding_value=tokenizer.get_bos_token_id())
        rows, last_positions = range(len(prompts)), [len(prompt) - 1 for prompt in prompts]
        answer_logits = model(padded.to(device))[rows, last_positions].cpu()
        for conversation, logits in zip(conversations, answer_logits, strict=True):
            letters = conversation["letters"]
            letter_logits = logits[[_letter_id(tokenizer, letter) for letter in letters]]
            num_passed += int(task_object.evaluate(conversation, letters[int(letter_logits.argmax())]))
    return _sum_over_ranks(num_passed, device) / num_problems


def run_generative_eval(
    task_object: Task,
    tokenizer: Any,
    model: Any,
    engine: Any,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    max_problems: int | None = None,
) -> float:
    """Share of problems that at least one of `num_samples` sampled answers solves.

    Problems go round robin over the ranks, and every rank returns the accuracy over all. `engine` (an `Engine` of
    `model`) samples up to `max_new_tokens` tokens an answer; `temperature` 0 takes the likeliest token.
    `max_problems` takes only the first so many. InputError if there is no problem to pose.
    """
    _, rank, _, world_size = get_dist_info()
    num_problems = _count_problems(task_object, max_problems)
    num_passed = 0
    for i in range(rank, num_problems, world_size):
        conversation = task_object[i]
        prompt = tokenizer.render_for_completion(conversation)
        sequences, _ = engine.generate_batch(
            prompt, num_samples=num_samples, max_tokens=max_new_tokens, temperature=temperature, top_k=top_k
        )
        answers = [tokenizer.decode(sequence[len(prompt) :]) for sequence in sequences]
        num_passed += any(task_object.evaluate(conversation, answer) for answer in answers)
    return _sum_over_ranks(num_passed, model.get_device()) / num_problems


def run_chat_eval(
    task_object: Task,
    model: Any,
    tokenizer: Any,
    engine: Any,
    batch_size: int = 1,
    num_samples: int = 1,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = 50,
    max_problems: int | None = None,
) -> float:
    """Accuracy on a task of either kind: `run_categorical_eval` or `run_generative_eval` by its `eval_type`."""
    if task_object.eval_type == "categorical":
        return run_categorical_eval(task_object, tokenizer, model, batch_size, max_problems)
    return run_generative_eval(
        task_object, tokenizer, model, engine, num_samples, max_new_tokens, temperature, top_k, max_problems
    )


def chatcore_metric(
    accuracies: Mapping[str, float], tasks: Mapping[str, tuple[Callable[[], Task], float]] = CHAT_TASKS
) -> float:
    """Mean over tasks (names of `tasks`) of the accuracy rescaled so that guessing is 0 and perfection 1."""
    from nanochat.base_eval import center

    return sum(center(accuracy, tasks[name][1]) for name, accuracy in accuracies.items()) / len(accuracies)


def _count_problems(task: Task, max_problems: int | None) -> int:
    num_problems = len(task) if max_problems is None else min(max_problems, len(task))
    if num_problems <= 0:
        raise InputError(f"no problems to evaluate: the task has {len(task)} and max_problems is {max_problems}")
    return num_problems


def _letter_id(tokenizer: Any, letter: str) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise InputError(f"the letter {letter!r} must be one token to be compared with others, it is {len(ids)}")
    return ids[0]


def _sum_over_ranks(count: int, device: torch.device | str) -> int:
    if not is_ddp_initialized():
        return count
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    return int(total)
