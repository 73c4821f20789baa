"""Rollouts, advantages, policy-gradient loss and pass@k, against the original's numbers."""

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from nanochat import recipe, rl
from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import InputError
from nanochat.gpt import GPT, GPTConfig
from tests.vectors_io import VECTORS, arrays, close, load

VECTOR = load("rl")
ARRAYS = arrays("rl")
EXAMPLES = VECTOR["examples"]
K, BATCH = VECTOR["num_samples"], VECTOR["device_batch_size"]


@pytest.fixture
def model() -> GPT:
    state, _, meta = load_checkpoint(VECTORS / "checkpoint", 10, "cpu")
    model = recipe.build_model(GPTConfig(**meta["model_config"]), "cpu")
    model.load_state_dict(state)
    return model


def recorded_batch(e: int) -> rl.RolloutBatch:
    example = EXAMPLES[e]
    inputs, targets = rl.collate_rollouts(example["sequences"], example["masks"], VECTOR["pad_id"])
    rewards = torch.tensor(example["rewards"])
    return rl.RolloutBatch(example["sequences"], inputs, targets, rewards, rl.compute_advantages(rewards))


# Rollouts


@pytest.mark.parametrize("case", load("train_recipe")["rl_rollout_seeds"], ids=lambda c: str(c["seed"]))
def test_rollout_seeds(case: dict[str, int]) -> None:
    assert rl.rollout_seed(case["step"], case["example_idx"], case["sampling_step"]) == case["seed"]


@pytest.mark.parametrize("case", load("train_recipe")["rl_num_steps"], ids=str)
def test_number_of_steps(case: dict[str, int]) -> None:
    steps = rl.num_rl_steps(case["num_train_examples"], case["examples_per_step"], case["num_epochs"])
    assert steps == case["num_steps"]


class RecordedEngine:
    """Answers with the recorded rollouts, a device batch at a call, and remembers what it was asked."""

    model = SimpleNamespace(get_device=lambda: torch.device("cpu"))

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.served = [0] * len(EXAMPLES)

    def generate_batch(self, tokens: list[int], num_samples: int = 1, **kwargs: Any) -> Any:
        self.calls.append({"num_samples": num_samples, **kwargs})
        e = next(e for e, example in enumerate(EXAMPLES) if example["prompt"] == tokens)
        first = self.served[e] % K
        self.served[e] += num_samples
        rows = slice(first, first + num_samples)
        return EXAMPLES[e]["sequences"][rows], EXAMPLES[e]["masks"][rows]


class RecordedTask:
    """The recorded questions and rewards; an answer is recognised by its tokens, which `decode` writes out."""

    def __len__(self) -> int:
        return len(EXAMPLES)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"example": index}

    def reward(self, conversation: dict[str, int], answer: str) -> float:
        example = EXAMPLES[conversation["example"]]
        n = len(example["prompt"])
        return example["rewards"][[str(s[n:]) for s in example["sequences"]].index(answer)]

    def evaluate(self, conversation: dict[str, int], answer: str) -> int:
        return int(self.reward(conversation, answer))


TOKENIZER = SimpleNamespace(
    encode_special={"<|assistant_end|>": VECTOR["pad_id"]}.__getitem__,
    render_for_completion=lambda conversation: list(EXAMPLES[conversation["example"]]["prompt"]),
    decode=str,
)


def test_batches_and_sampling_calls_are_the_recorded_ones() -> None:
    engine: Any = RecordedEngine()
    batches = rl.rollout_batches(RecordedTask(), TOKENIZER, engine, K, BATCH, VECTOR["examples_per_rank"])
    for e in range(len(EXAMPLES)):
        batch = next(batches)
        assert batch.sequences == EXAMPLES[e]["sequences"]
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        close(batch.inputs, ARRAYS[f"ex{e}_inputs"], "E")
        close(batch.targets, ARRAYS[f"ex{e}_targets"], "E")
        close(batch.rewards, ARRAYS[f"ex{e}_rewards"], "E")
        close(batch.advantages, ARRAYS[f"ex{e}_advantages"], "F")
    assert engine.calls == VECTOR["generate_calls"]
    next(batches)  # the third question is the first again, at the next step: a new seed
    assert engine.calls[-1]["seed"] == rl.rollout_seed(1, 0, 1)


def test_questions_are_dealt_to_the_ranks() -> None:
    engine: Any = RecordedEngine()
    batches = rl.rollout_batches(RecordedTask(), TOKENIZER, engine, K, BATCH, 1, rank=1, world_size=2)
    assert next(batches).sequences == next(batches).sequences == EXAMPLES[1]["sequences"]
    assert [call["seed"] for call in engine.calls] == [rl.rollout_seed(s, 1, p) for s in (0, 1) for p in (0, 1)]
    with pytest.raises(InputError, match="rank 2"):
        next(rl.rollout_batches(RecordedTask(), TOKENIZER, engine, K, BATCH, 1, rank=2, world_size=3))


@pytest.mark.parametrize("num_samples", [0, 3, 6])
def test_samples_must_fill_whole_device_batches(num_samples: int) -> None:
    engine: Any = RecordedEngine()
    with pytest.raises(InputError, match="device batch"):
        rl.sample_rollouts(engine, EXAMPLES[0]["prompt"], num_samples, BATCH, step=0, example_idx=0)


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=9), min_size=1, max_size=5))
def test_only_sampled_tokens_are_targets(masks: list[list[bool]]) -> None:
    """Exactly the tokens of mask 1 (bar a first one, which nothing predicts) are targets, each after its past."""
    sequences = [[10 * r + t for t in range(len(mask))] for r, mask in enumerate(masks)]
    inputs, targets = rl.collate_rollouts(sequences, [list(map(int, mask)) for mask in masks], pad_id=99)
    assert inputs.shape == targets.shape == (len(masks), max(map(len, masks)) - 1)
    for r, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        sampled = [t for t in range(1, len(sequence)) if mask[t]]
        assert (targets[r] >= 0).nonzero().flatten().tolist() == [t - 1 for t in sampled]
        assert targets[r, [t - 1 for t in sampled]].tolist() == [sequence[t] for t in sampled]
        padding = inputs.size(1) - len(sequence)
        assert inputs[r].tolist() == (sequence + [99] * padding if padding >= 0 else sequence[:-1])


# Advantages


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=16))
def test_advantages(rewards: list[float]) -> None:
    r = np.array(rewards)
    plain = rl.compute_advantages(torch.tensor(rewards, dtype=torch.float64))
    np.testing.assert_allclose(plain, r - r.mean(), atol=1e-9)
    normalized = rl.compute_advantages(torch.tensor(rewards, dtype=torch.float64), normalize=True)
    np.testing.assert_allclose(normalized, (r - r.mean()) / (r.std() + 1e-6), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_equal_rewards_teach_nothing(value: float, k: int) -> None:
    """float32 rounding of the mean must not be blown up by the division."""
    assert rl.compute_advantages(torch.full((k,), value), normalize=True).tolist() == [0.0] * k


# Loss


@pytest.mark.parametrize("e", range(len(EXAMPLES)))
def test_token_logprobs(model: GPT, e: int) -> None:
    batch = recorded_batch(e)
    close(-rl.token_logprobs(model, batch.inputs, batch.targets), ARRAYS[f"ex{e}_nll"], "L")


def test_losses_and_gradients_of_a_step(model: GPT) -> None:
    losses = []
    for e in range(VECTOR["examples_per_rank"]):
        losses += rl.accumulate_gradients(model, recorded_batch(e), BATCH, VECTOR["examples_per_rank"])
    close(losses, [expected["loss"] for expected in VECTOR["losses"]], "L")
    gradients = {name: p.grad for name, p in model.named_parameters()}
    recorded = {name.removeprefix("grad:"): array for name, array in ARRAYS.items() if name.startswith("grad:")}
    assert recorded
    for name, array in recorded.items():
        close(gradients[name], array, "G")
    for name, norm in VECTOR["grad_norms"].items():
        gradient = gradients[name]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name


def test_number_of_counted_tokens() -> None:
    counts = [int((rows >= 0).sum()) for e in range(len(EXAMPLES)) for rows in recorded_batch(e).targets.split(BATCH)]
    assert counts == [expected["num_valid"] for expected in VECTOR["losses"]]


def test_a_pass_with_nothing_to_learn(model: GPT) -> None:
    batch = recorded_batch(0)
    ignored = torch.full_like(batch.targets[:BATCH], -1)
    loss = rl.policy_gradient_loss(
        rl.token_logprobs(model, batch.inputs[:BATCH], ignored), ignored, batch.advantages[:BATCH]
    )
    loss.backward()
    assert loss.item() == VECTOR["all_ignored_pass"]["loss"]
    gradient = model.lm_head.weight.grad
    assert gradient is not None
    assert gradient.norm().item() == VECTOR["all_ignored_pass"]["grad_norm_lm_head"]


def test_advantages_get_no_gradient() -> None:
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0], requires_grad=True)
    rl.policy_gradient_loss(logprobs, torch.zeros(2, 3, dtype=torch.long), advantages).backward()
    assert advantages.grad is None
    close(logprobs.grad, [[-1 / 6] * 3, [1 / 6] * 3], "F")


def test_kl_penalty_is_the_divergence_on_average() -> None:
    """Over the policy's own distribution the estimator averages to KL(policy || reference), never below zero."""
    rng = torch.Generator().manual_seed(1)
    policy, reference = torch.randn(2, 11, generator=rng).log_softmax(dim=-1)
    counted = torch.zeros(1, 1, dtype=torch.long)
    values = torch.stack(
        [rl.kl_penalty(p.view(1, 1), r.view(1, 1), counted) for p, r in zip(policy, reference, strict=True)]
    )
    assert bool((values >= 0).all())
    assert (policy.exp() * values).sum().item() == pytest.approx((policy.exp() * (policy - reference)).sum().item())


def test_kl_penalty_ignores_uncounted_tokens_and_spares_the_reference() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -9.0]], requires_grad=True)
    kl = rl.kl_penalty(logprobs, reference, torch.tensor([[4, -1]]))
    assert kl.item() == pytest.approx(np.exp(-0.5) - 1 + 0.5)
    kl.backward()
    assert reference.grad is None
    close(logprobs.grad, [[1 - np.exp(-0.5), 0.0]], "F")
    assert rl.kl_penalty(logprobs, reference, torch.tensor([[-1, -1]])).item() == 0


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_a_reference_adds_its_penalty_to_every_pass_and_stays_as_it_is(model: GPT, kl_coef: float) -> None:
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.lm_head.weight *= 1.1
    before = {name: weight.clone() for name, weight in reference.state_dict().items()}
    batch = recorded_batch(0)
    plain = rl.accumulate_gradients(model, batch, BATCH, 2)
    with_reference = rl.accumulate_gradients(model, batch, BATCH, 2, reference, kl_coef)
    for rows, loss, penalised in zip(torch.arange(K).split(BATCH), plain, with_reference, strict=True):
        inputs, targets = batch.inputs[rows], batch.targets[rows]
        logprobs, frozen = (rl.token_logprobs(each, inputs, targets).detach() for each in (model, reference))
        penalty = rl.kl_penalty(logprobs, frozen, targets).item()
        assert penalty > 1e-4
        assert penalised == pytest.approx(loss + kl_coef * penalty / (K // BATCH * 2), abs=1e-7)
    assert all(weight.grad is None for weight in reference.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in reference.state_dict().items())


@pytest.mark.parametrize("ignored", [7.0, -100.0, float("inf"), float("nan")])
def test_what_stands_at_ignored_targets_does_not_matter(ignored: float) -> None:
    targets = torch.tensor([[4, -1]])
    logprobs, reference, advantages = torch.tensor([[-1.0, ignored]]), torch.tensor([[-1.5, 0.0]]), torch.tensor([2.0])
    assert rl.policy_gradient_loss(logprobs, targets, advantages).item() == 2
    assert rl.kl_penalty(logprobs, reference, targets).item() == pytest.approx(np.exp(-0.5) - 1 + 0.5)


# pass@k


def test_pass_at_k_counts_the_first_k_samples() -> None:
    outcomes = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    assert rl.pass_at_k(outcomes).tolist() == [0.25, 0.5, 0.75, 0.75]


@given(st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1)))
def test_pass_at_k_over_subsets_is_the_mean_over_all_of_them(outcomes: list[list[bool]]) -> None:
    table, samples = torch.tensor(outcomes), range(len(outcomes[0]))
    by_hand = [
        np.mean([table[:, list(chosen)].any(dim=1).float().mean() for chosen in itertools.combinations(samples, k)])
        for k in range(1, len(samples) + 1)
    ]
    close(rl.pass_at_k(table, over_subsets=True), np.array(by_hand, dtype=np.float32), "F")
    assert rl.pass_at_k(table, over_subsets=True).dtype == torch.float32


def expected_pass_at_k(examples: list[dict[str, Any]]) -> list[float]:
    return [float(np.mean([max(example["rewards"][: k + 1]) for example in examples])) for k in range(K)]


def test_evaluate_pass_at_k() -> None:
    engine: Any = RecordedEngine()
    assert rl.evaluate_pass_at_k(RecordedTask(), TOKENIZER, engine, K).tolist() == expected_pass_at_k(EXAMPLES)
    first = rl.evaluate_pass_at_k(RecordedTask(), TOKENIZER, engine, K, max_examples=1)
    assert first.tolist() == expected_pass_at_k(EXAMPLES[:1])


def _rank_pass_at_k(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=3)
    engine: Any = RecordedEngine()
    result = rl.evaluate_pass_at_k(RecordedTask(), TOKENIZER, engine, K, rank=rank, world_size=3)
    torch.save(result, Path(directory) / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_pass_at_k_over_ranks_one_of_which_has_no_question(tmp_path: Path) -> None:
    mp.spawn(_rank_pass_at_k, args=(str(tmp_path),), nprocs=3)
    for rank in range(3):
        assert torch.load(tmp_path / f"rank{rank}.pt").tolist() == expected_pass_at_k(EXAMPLES)
