"""Judges of `rollout` and `collate_rollouts`: nanochat's functions, the first on toys."""

import random
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from autograder.judges import Judge
from autograder.judges.cases import Case, asked, plain_value_error
from nanochat import rl
from puzzles.compare import FLOAT32

Rows = list[list[int]]
LETTERS, DIGITS = "abcd", "0123456789"

# rollout


class ToyEngine:
    """Samples letters and forces digits, from the seed alone. Notes what it is asked; `vary` changes the arguments."""

    def __init__(self, vary: Callable[[dict], dict]) -> None:
        self.calls: list[str] = []
        self.vary = vary

    def generate_batch(self, tokens: list[int], **asked_for: Any) -> tuple[Rows, Rows]:
        default = {"max_tokens": None, "temperature": 1.0, "top_k": None, "seed": 42}
        number, told = asked_for["num_samples"], default | self.vary(asked_for)
        named = " ".join(f"{name} {told[name]}" for name in default)
        self.calls.append(f"{number} x {decode(tokens)} {named}")
        rng = random.Random(told["seed"])
        sequences, masks = [], []
        for _ in range(number):
            forced = []
            text = ""
            for _ in range(rng.randint(1, told["max_tokens"] or 8)):
                forced.append(rng.random() < 0.25)
                text += rng.choice(DIGITS if forced[-1] else LETTERS)
            sequences.append([*tokens, *encode(text)])
            masks.append([0] * len(tokens) + [int(not each) for each in forced])
        return sequences, masks


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def decode(ids: list[int]) -> str:
    return "".join(map(chr, ids))


class ToyTokenizer:
    decode = staticmethod(decode)


class ToyTask:
    """Rewards the share of characters that are wanted. Notes what it is asked to judge."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def reward(self, conversation: dict, answer: str) -> float:
        self.answers.append(answer)
        return sum(character in conversation["wanted"] for character in answer) / max(1, len(answer))


def rollout_cases(rng: Random) -> list[Case]:
    keys = "question wanted num_samples device_batch_size step example_idx max_new_tokens temperature top_k"
    fixed = asked(
        keys,
        ("q", "a", 1, 1, 0, 0, 4, 1.0, 50),
        ("q?", "ab1", 2, 2, 0, 0, 4, 1.0, 50),
        ("q?", "ab1q", 2, 1, 0, 0, 4, 1.0, 50),
        ("abc", "a", 6, 2, 0, 7, 8, 1.0, 50),
        ("abc", "a", 6, 2, 1, 7, 8, 1.0, 50),
        ("abc", "a", 6, 2, 7, 1, 8, 1.0, 50),
        ("abc", "b05", 4, 4, 12, 3, 9, 0.7, None),
        ("1a1a", "1a", 9, 3, 2, 11, 5, 0.0, 3),
        ("q", "a", 5, 2, 0, 0, 4, 1.0, 50),
        ("q", "a", 0, 2, 0, 0, 4, 1.0, 50),
        ("q", "a", 2, 4, 0, 0, 4, 1.0, 50),
    )
    drawn = []
    for _ in range(8):
        rows, passes = rng.randint(1, 5), rng.randint(1, 4)
        question = "".join(rng.choice(LETTERS + DIGITS) for _ in range(rng.randint(1, 6)))
        wanted = "".join(rng.sample(LETTERS + DIGITS, 5))
        sampling = (rng.randint(2, 20), rng.choice((0.6, 1.0, 1.3)), rng.choice((None, 5, 50)))
        drawn.append((question, wanted, rows * passes, rows, rng.randint(0, 500), rng.randint(0, 7000), *sampling))
    return fixed + asked(keys, *drawn)


def judged_part(sequence: list[int], mask: list[int], start: int) -> list[int]:
    """What the task is to judge: all that follows the prompt."""
    return sequence[start:]


def rolled_out(
    vary: Callable[[dict], dict] = lambda arguments: arguments,
    passes: Callable[[Rows, int], Rows] = lambda listed, rows: listed,
    judged: Callable[[list[int], list[int], int], list[int]] = judged_part,
    seed: Callable[[int, int, int], int] | None = None,
    split: bool = True,
) -> Callable[..., Case]:
    """What the graded cell reports of nanochat's rollouts, with changes: `vary` of an engine call's
    arguments, `passes` of the joined lists, what is `judged`, the `seed` of (step, example, pass), and whether answers
    are `split` into passes at all, even or not."""

    @plain_value_error
    def roll_out(
        question: str,
        wanted: str,
        num_samples: int,
        device_batch_size: int,
        step: int,
        example_idx: int,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
    ) -> Case:
        made = 0

        def varied(arguments: dict) -> dict:
            nonlocal made
            made += 1
            return vary(arguments | ({"seed": seed(step, example_idx, made - 1)} if seed else {}))

        engine, task, prompt = ToyEngine(varied), ToyTask(), encode(question)
        rl.num_passes(num_samples, device_batch_size)
        sequences, masks = rl.sample_rollouts(
            engine,  # type: ignore[arg-type]
            prompt,
            num_samples,
            device_batch_size if split else num_samples,
            step,
            example_idx,
            max_new_tokens,
            temperature,
            top_k,
        )
        sequences, masks = passes(sequences, device_batch_size), passes(masks, device_batch_size)
        texts = [[*prompt, *judged(row, mask, len(prompt))] for row, mask in zip(sequences, masks, strict=True)]
        rewards = rl.rewards_of(task, ToyTokenizer(), {"wanted": wanted}, prompt, texts)
        return {
            "sequences": [decode(row) for row in sequences],
            "masks": ["".join(map(str, row)) for row in masks],
            "rewards": rewards,
            "calls": engine.calls,
            "judged": task.answers,
        }

    return roll_out


def without(name: str) -> Callable[..., Case]:
    """The engine is not given the argument `name`."""
    return rolled_out(vary=lambda arguments: {key: arguments[key] for key in arguments if key != name})


def any_split(**case: Any) -> Any:
    """What is left over of an uneven split is dropped."""
    passes = case["num_samples"] // case["device_batch_size"]
    return rolled_out()(**case | {"num_samples": passes * case["device_batch_size"]})


seed_of = rl.rollout_seed

ROLLOUT = Judge(
    rollout_cases,
    rolled_out(),
    FLOAT32,
    mistakes={
        "all passes have the same seed, so they give the same answers": rolled_out(
            seed=lambda s, e, p: seed_of(s, e, 0)
        ),
        "the seed does not depend on the step": rolled_out(seed=lambda s, e, p: seed_of(0, e, p)),
        "the seed does not depend on the question": rolled_out(seed=lambda s, e, p: seed_of(s, 0, p)),
        "the passes are counted from 1; the first is 0": rolled_out(seed=lambda s, e, p: seed_of(s, e, p + 1)),
        "the seed is not cut to 31 bits": rolled_out(seed=lambda s, e, p: hash((s, e, p))),
        "the seed is of (example_idx, step, pass); the step comes first": rolled_out(
            seed=lambda s, e, p: seed_of(e, s, p)
        ),
        "the engine is given no seed": without("seed"),
        "the engine is not given the temperature": without("temperature"),
        "the engine is not given top_k": without("top_k"),
        "the engine is not given max_tokens": without("max_tokens"),
        "all answers are sampled in one call; device_batch_size at a time was asked for": rolled_out(split=False),
        "only the last pass's answers are returned": rolled_out(passes=lambda listed, rows: listed[-rows:]),
        "the task judges the prompt as well": rolled_out(judged=lambda sequence, mask, start: sequence),
        "the task does not see what was forced; it is part of the answer": rolled_out(
            judged=lambda sequence, mask, start: [token for token, own in zip(sequence, mask, strict=True) if own]
        ),
        "an uneven split is accepted; it must raise ValueError": any_split,
    },
)

# collate_rollouts


def collate_cases(rng: Random) -> list[Case]:
    keys = "sequences masks pad_id"
    fixed = asked(
        keys,
        ([[3, 1, 4, 1, 5]], [[0, 0, 1, 0, 1]], 9),
        ([[1, 2]], [[0, 1]], 9),
        ([[1, 2]], [[1, 0]], 9),
        ([[3, 1, 4, 1]], [[0, 0, 1, 1]], 9),
        ([[3, 1, 4], [3, 1, 4, 1, 5]], [[0, 0, 1], [0, 0, 1, 0, 1]], 9),
        ([[3, 1, 4, 1, 5], [3, 1], [3, 1, 7]], [[0, 0, 1, 1, 0], [0, 0], [0, 0, 1]], 2),
        ([[3, 0, 0, 9], [3, 0, 9]], [[0, 0, 1, 1], [0, 0, 1]], 9),
        ([[3, 0, 0, 9], [3, 0, 9]], [[0, 1, 1, 1], [0, 1, 1]], 0),
        ([[5], [5, 6, 7]], [[0], [0, 1, 1]], 6),
        ([[5, 6, 7], [5, 6, 7]], [[0, 0, 0], [0, 0, 0]], 1),
    )
    drawn = []
    for _ in range(8):
        prompt = [rng.randrange(12) for _ in range(rng.randint(1, 5))]
        sequences: Rows = []
        masks: Rows = []
        for _ in range(rng.randint(1, 5)):
            n = rng.randint(1, 9)
            sequences.append([*prompt, *(rng.randrange(12) for _ in range(n))])
            masks.append([0] * len(prompt) + [int(rng.random() < 0.7) for _ in range(n)])
        drawn.append((sequences, masks, rng.randrange(12)))
    return [case | {"device": "cpu"} for case in fixed + asked(keys, *drawn)]


Collate = Callable[[Rows, Rows, int], tuple[Tensor, Tensor]]


def collated_by(collate: Collate, unchanged: bool = True) -> Callable[..., Case]:
    """What the graded cell reports of a function of (sequences, masks, pad_id)."""

    def report(sequences: Rows, masks: Rows, pad_id: int, device: Any) -> Case:
        inputs, targets = collate(sequences, masks, pad_id)
        return {
            "inputs": inputs,
            "targets": targets,
            "on the device": [True, True],
            "lists unchanged": unchanged,
        }

    return report


def masked_as(change: Callable[[list[int], list[int]], list[int]]) -> Collate:
    """nanochat's tensors, with each row's mask changed by `change(sequence, mask)`."""
    return lambda sequences, masks, pad_id: rl.collate_rollouts(
        sequences, [change(*row) for row in zip(sequences, masks, strict=True)], pad_id
    )


def retouched(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., Case]:
    return collated_by(lambda *case: change(*rl.collate_rollouts(*case)))


def padded(rows: Rows, value: int) -> Rows:
    longest = max(map(len, rows))
    return [row + [value] * (longest - len(row)) for row in rows]


def left_padded(rows: Rows, value: int) -> Rows:
    longest = max(map(len, rows))
    return [[value] * (longest - len(row)) + row for row in rows]


def first_sampled(mask: list[int]) -> int:
    return mask.index(1) if 1 in mask else len(mask)


def unshifted(sequences: Rows, masks: Rows, pad_id: int) -> tuple[Tensor, Tensor]:
    inputs, _ = rl.collate_rollouts(sequences, masks, pad_id)
    _, targets = rl.collate_rollouts([[0, *row] for row in sequences], [[0, *row] for row in masks], pad_id)
    return inputs, targets[:, :-1]


COLLATE_ROLLOUTS = Judge(
    collate_cases,
    collated_by(rl.collate_rollouts),
    mistakes={
        "the targets are not shifted: the target is the token after the input": collated_by(unshifted),
        "the mask is not shifted: it belongs to the target, not to the input": (
            collated_by(masked_as(lambda sequence, mask: [0, *mask[:-1]]))
        ),
        "the prompt carries gradient": (
            collated_by(masked_as(lambda sequence, mask: [1] * first_sampled(mask) + mask[first_sampled(mask) :]))
        ),
        "forced tokens carry gradient": collated_by(
            masked_as(lambda sequence, mask: [0] * first_sampled(mask) + [1] * (len(mask) - first_sampled(mask)))
        ),
        "the masks have no effect: every token but the padding carries gradient": (
            collated_by(masked_as(lambda sequence, mask: [1] * len(mask)))
        ),
        "the padding carries gradient": collated_by(
            lambda sequences, masks, pad_id: rl.collate_rollouts(padded(sequences, pad_id), padded(masks, 1), pad_id)
        ),
        "padded on the left; it must be on the right": collated_by(
            lambda sequences, masks, pad_id: rl.collate_rollouts(
                left_padded(sequences, pad_id), left_padded(masks, 0), pad_id
            )
        ),
        "the padding is 0; it should be pad_id": collated_by(
            lambda sequences, masks, pad_id: rl.collate_rollouts(sequences, masks, 0)
        ),
        "a sampled token is ignored because its id is that of the padding; only the mask decides": collated_by(
            lambda sequences, masks, pad_id: masked_as(
                lambda sequence, mask: [int(own and token != pad_id) for token, own in zip(sequence, mask, strict=True)]
            )(sequences, masks, pad_id)
        ),
        "a sampled token 0 is ignored; only the mask decides": collated_by(
            masked_as(
                lambda sequence, mask: [int(own and token != 0) for token, own in zip(sequence, mask, strict=True)]
            )
        ),
        "ignored targets are -100; nanochat's are -1": retouched(lambda x, y: (x, y.masked_fill(y == -1, -100))),
        "the sequences are cut to the shortest": collated_by(
            lambda sequences, masks, pad_id: rl.collate_rollouts(
                [row[: min(map(len, sequences))] for row in sequences],
                [row[: min(map(len, sequences))] for row in masks],
                pad_id,
            )
        ),
        "inputs and targets are int32; they should be int64": retouched(lambda x, y: (x.int(), y.int())),
        "the inputs still have their last token, which predicts nothing": collated_by(
            lambda sequences, masks, pad_id: (
                torch.tensor(padded(sequences, pad_id)),
                rl.collate_rollouts(sequences, masks, pad_id)[1],
            )
        ),
        "the lists are changed": collated_by(rl.collate_rollouts, unchanged=False),
    },
)
