"""MuonAdamW over real gloo processes: ranks with gradients of their own do what one process does with the average."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import MuonAdamW

STEPS = 3
WORLD_SIZES = (2, 3)
BF16_TABLE = (64, 32)


def mixed_optimizer() -> MuonAdamW:
    """Shapes that don't divide by 2 or 3 ranks, both sides of the size limit, stacks smaller than the world."""
    rng = torch.Generator().manual_seed(0)

    def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(shape, generator=rng).to(dtype))

    adamw = {"kind": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    muon = {"kind": "muon", "lr": 0.02, "momentum": 0.9, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.1}
    return MuonAdamW(
        [
            adamw | {"params": [parameter(96, 16), parameter(97, 16), parameter(2, 1000), parameter(1, 1100)]},
            adamw | {"params": [parameter(*BF16_TABLE, dtype=torch.bfloat16)]},
            adamw | {"params": [parameter(32, 32), parameter(31, 33), parameter(5), parameter()]},  # 1024, 1023, 5, 1
            muon | {"params": [parameter(6, 4)]},
            muon | {"params": [parameter(4, 6) for _ in range(3)]},
            muon | {"params": [parameter(5, 5) for _ in range(4)]},
            muon | {"params": [parameter(2, 12) for _ in range(5)]},
        ]
    )


def gpt_optimizer() -> MuonAdamW:
    torch.manual_seed(0)
    config = GPTConfig(sequence_len=32, vocab_size=40, n_layer=3, n_head=2, n_kv_head=1, n_embd=32)
    model = GPT(config)
    model.init_weights()
    return model.setup_optimizer(weight_decay=0.1)


BUILDERS: dict[str, Callable[[], MuonAdamW]] = {"mixed": mixed_optimizer, "gpt": gpt_optimizer}


def parameters_of(optimizer: MuonAdamW) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients(optimizer: MuonAdamW, step: int, rank: int) -> list[torch.Tensor]:
    """This rank's gradients: multiples of 1/8, whose sums are exact in bfloat16 too."""
    rng = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randint(-16, 17, p.shape, generator=rng).to(p.dtype) / 8 for p in parameters_of(optimizer)]


def train_one_process(build: Callable[[], MuonAdamW], world_size: int) -> MuonAdamW:
    optimizer = build()
    for step in range(STEPS):
        by_rank = [gradients(optimizer, step, rank) for rank in range(world_size)]
        for p, *grads in zip(parameters_of(optimizer), *by_rank, strict=True):
            p.grad = torch.stack(grads).float().mean(0).to(p.dtype)
        optimizer.step()
    return optimizer


def run_process(rank: int, folder: str) -> None:
    """What one process does: it is a rank of each world that is large enough; results go to files."""
    torch.set_num_threads(1)
    for world_size in WORLD_SIZES:
        if rank < world_size:
            store = dist.FileStore(f"{folder}/store{world_size}", world_size)
            timeout = timedelta(seconds=300)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
            torch.save(train_rank(rank, Path(folder)), Path(folder, f"world{world_size}_rank{rank}.pt"))
            dist.destroy_process_group()


def train_rank(rank: int, folder: Path) -> dict[str, dict[str, Any]]:
    """STEPS steps of one rank, saved and resumed before the last one; its parameters, state and last step's events."""
    results = {}
    for name, build in BUILDERS.items():
        optimizer = build()
        for step in range(STEPS):
            grads = gradients(optimizer, step, rank)
            for p, grad in zip(parameters_of(optimizer), grads, strict=True):
                p.grad = grad.clone()
            if step == STEPS - 1:
                checkpoint = folder / f"optim_rank{rank}.pt"
                torch.save(optimizer.state_dict(), checkpoint)
                optimizer = MuonAdamW(optimizer.param_groups)
                optimizer.load_state_dict(torch.load(checkpoint, weights_only=True))
            events = record_events(optimizer.step)
            for p, grad in zip(parameters_of(optimizer), grads, strict=True):
                assert p.grad is not None
                assert torch.equal(p.grad, grad), "step changed a gradient"
        results[name] = {
            "params": [p.detach() for p in parameters_of(optimizer)],
            "state": optimizer.state_dict()["state"],
            "events": events,
        }
    return results


class RecordedWork:
    """A communication handle that notes when it is waited for."""

    def __init__(self, work: dist.Work, events: list[str]) -> None:
        self.work, self.events = work, events

    def wait(self) -> None:
        self.events.append("wait")
        self.work.wait()


def record_events(step: Callable[[], None]) -> list[str]:
    """Run `step`; the order in which it starts communication, waits for it and computes."""
    events: list[str] = []
    find_collective = optim._collective

    def recorded(event: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            events.append(event)
            result = f(*args, **kwargs)
            return None if result is None else RecordedWork(result, events)

        return call

    def recorded_collective(name: str, older_name: str) -> Callable[..., Any]:
        return recorded("reduce" if "reduce" in name else "gather", find_collective(name, older_name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "_collective", recorded_collective)
        patch.setattr(dist, "all_reduce", recorded("reduce", dist.all_reduce))
        patch.setattr(optim, "adamw_step_fused", recorded("compute", optim.adamw_step_fused))
        patch.setattr(optim, "muon_step_fused", recorded("compute", optim.muon_step_fused))
        step()
    return events


@dataclass(frozen=True)
class Run:
    """Training on `world_size` ranks, and the same in one process."""

    world_size: int
    ranks: list[dict[str, dict[str, Any]]]
    reference: dict[str, MuonAdamW]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the processes have left their results."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_process, (str(folder),), nprocs=max(WORLD_SIZES))
    return folder


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=lambda n: f"{n} ranks")
def run(request: pytest.FixtureRequest, results: Path) -> Run:
    world_size = request.param
    ranks = [torch.load(results / f"world{world_size}_rank{rank}.pt") for rank in range(world_size)]
    return Run(world_size, ranks, {name: train_one_process(build, world_size) for name, build in BUILDERS.items()})


@pytest.mark.parametrize("name", BUILDERS)
def test_ranks_agree_with_one_process_and_each_other(run: Run, name: str) -> None:
    for i, expected in enumerate(parameters_of(run.reference[name])):
        first, *others = (rank[name]["params"][i] for rank in run.ranks)
        rtol, atol = (2**-7, 0.0) if expected.dtype == torch.bfloat16 else (1e-5, 2e-6)
        torch.testing.assert_close(first, expected.detach(), rtol=rtol, atol=atol, msg=f"parameter {i} is wrong")
        assert all(torch.equal(first, other) for other in others), f"parameter {i} differs between ranks"


@pytest.mark.parametrize("name", BUILDERS)
def test_each_rank_keeps_the_state_of_its_share_only(run: Run, name: str) -> None:
    """State is cut along dim 0 in equal shares, the last ones zero-padded; small AdamW parameters have it whole."""
    reference = run.reference[name].state_dict()["state"]
    kinds = {
        index: group["kind"] for group in run.reference[name].state_dict()["param_groups"] for index in group["params"]
    }
    assert all(rank[name]["state"].keys() == reference.keys() for rank in run.ranks)
    for index, state in reference.items():
        for key, whole in state.items():
            shares = [rank[name]["state"][index][key] for rank in run.ranks]
            if key == "step":
                assert shares == [STEPS] * run.world_size
                continue
            if kinds[index] == "adamw" and whole.numel() < 1024:
                joined = shares[0]
                assert all(torch.equal(share, joined) for share in shares)
            else:
                rows = math.ceil(len(whole) / run.world_size)
                assert [share.shape for share in shares] == [(rows, *whole.shape[1:])] * run.world_size
                joined = torch.cat(shares)
                assert not joined[len(whole) :].any(), "padding must stay zero"
                joined = joined[: len(whole)]
            torch.testing.assert_close(joined, whole, rtol=2**-7 if whole.dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_communication_runs_ahead_of_compute(run: Run, name: str) -> None:
    """All reductions start before the first is awaited; shares are sent off at once and awaited at the very end."""
    sharded = [
        group["kind"] == "muon" or p.numel() >= 1024
        for group in run.reference[name].param_groups
        for p in (group["params"][:1] if group["kind"] == "muon" else group["params"])
    ]
    expected = ["reduce"] * len(sharded)
    for is_sharded in sharded:
        expected += ["wait", "compute", "gather"] if is_sharded else ["wait", "compute"]
    expected += ["wait"] * sum(sharded)
    for rank in run.ranks:
        assert rank[name]["events"] == expected
