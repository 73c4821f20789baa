"""Puzzle 5's judges: the oracle agrees with the golden vectors, and the cases ask what they should."""

import random

import pytest
import torch

from autograder.judges import rl_loop
from autograder.judges.rl_loop import rollouts, step
from nanochat import rl
from tests import vectors_io

JUDGES = rl_loop.JUDGES
VECTOR = vectors_io.load("rl")
ARRAYS = vectors_io.arrays("rl")


# the cases ask what they should ask


@pytest.mark.parametrize("seed", range(3))
def test_batches_have_targets_of_every_kind(seed):
    """Token 0, ignored ones, rows of which nothing counts, rows of different counts, and a batch with nothing."""
    for part in ("policy_gradient_loss", "kl_penalty"):
        counts = [(case["targets"] >= 0).sum(dim=1) for case in JUDGES[part].cases(random.Random(seed))]
        assert any((case["targets"] == 0).any() for case in JUDGES[part].cases(random.Random(seed)))
        assert any(len(set(rows.tolist())) > 1 for rows in counts)
        assert any((rows == 0).any() and (rows > 0).any() for rows in counts)
        assert any(not rows.any() for rows in counts)


@pytest.mark.parametrize("seed", range(3))
def test_equal_rewards_are_asked_for_with_their_rounding(seed):
    """Some equal rewards have a mean that is not quite them."""
    cases = JUDGES["compute_advantages"].cases(random.Random(seed))
    equal = [case["rewards"] for case in cases if len(set(case["rewards"].tolist())) == 1 and case["normalize"]]
    assert any((rewards - rewards.mean()).any() for rewards in equal)
    assert any(not (rewards - rewards.mean()).any() for rewards in equal)


# the oracle against the golden vectors


def test_advantages_and_batches_agree_with_the_vectors():
    for e, example in enumerate(VECTOR["examples"]):
        rewards = torch.tensor(example["rewards"])
        told = JUDGES["compute_advantages"].oracle(rewards=rewards, normalize=False, eps=1e-6)
        vectors_io.close(told["advantages"], ARRAYS[f"ex{e}_advantages"], "F")
        case = {"sequences": example["sequences"], "masks": example["masks"], "pad_id": VECTOR["pad_id"]}
        batch = JUDGES["collate_rollouts"].oracle(**case, device="cpu")
        vectors_io.close(batch["inputs"], ARRAYS[f"ex{e}_inputs"], "E")
        vectors_io.close(batch["targets"], ARRAYS[f"ex{e}_targets"], "E")


def test_losses_agree_with_the_vectors():
    """The loss of each pass, from the recorded log-probabilities; a step's factor is nanochat's own."""
    rows, questions = VECTOR["device_batch_size"], VECTOR["examples_per_rank"]
    passes = VECTOR["num_samples"] // rows
    losses = []
    for e in range(len(VECTOR["examples"])):
        arrays = [torch.from_numpy(ARRAYS[f"ex{e}_{name}"]) for name in ("nll", "targets", "advantages")]
        arrays[0] = arrays[0].view_as(arrays[1])
        for nll, targets, advantages in zip(*(each.split(rows) for each in arrays), strict=True):
            told = JUDGES["policy_gradient_loss"].oracle(logprobs=-nll, targets=targets, advantages=advantages)
            losses.append(told["loss"].item() / (passes * questions))
    vectors_io.close(losses, [expected["loss"] for expected in VECTOR["losses"]], "L")


def test_rollouts_use_the_vectors_seeds():
    for case in vectors_io.load("train_recipe")["rl_rollout_seeds"]:
        told = JUDGES["rollout"].oracle(
            question="q",
            wanted="a",
            num_samples=case["sampling_step"] + 1,
            device_batch_size=1,
            step=case["step"],
            example_idx=case["example_idx"],
            max_new_tokens=3,
            temperature=1.0,
            top_k=None,
        )
        assert told["calls"][-1].endswith(f"seed {case['seed']}")


def test_a_step_is_nanochats_with_another_loss():
    """The toys replace the loss and the penalty of a copy of nanochat.rl, and nothing of nanochat.rl itself."""
    assert step.toys.accumulate_gradients is not rl.accumulate_gradients
    assert step.toys.policy_gradient_loss is step.toy_loss
    assert rl.policy_gradient_loss is not step.toy_loss
    assert rollouts.seed_of is rl.rollout_seed
