"""The optimizer step against a plain loop over the parameters of the same model: how much faster?

`python -m benchmarks.optim [--depth 4] [--widths 32 64 128 256] [--device cpu]`: `MuonAdamW` stacks matrices of one
shape and, on CUDA, compiles its steps; the loop takes parameters one at a time, with the same formulas, eagerly. Both
run turn by turn in one process, and the best time of each counts. Stacking saves calls, so it pays for small matrices
and on GPUs. On a CPU it is not done where a stack would overflow the cache: there both do the same, and the ratio is 1.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nanochat import common, optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.recipe import build_model


class PlainLoop:
    """One eager step per parameter, by the formulas of nanochat.optim."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.groups = groups
        self.state: dict[Tensor, dict[str, Any]] = {p: {} for group in groups for p in group["params"]}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter from its `.grad`."""
        for group in self.groups:
            for p in group["params"]:
                assert p.grad is not None
                if group["kind"] == "muon":
                    optim._apply_muon(group, self.state[p], [p], [p.grad])
                else:
                    optim._apply_adamw(group, self.state[p], [p], [p.grad])


def build(depth: int, width: int, device: str) -> GPT:
    """A model with random gradients."""
    model = build_model(GPTConfig(n_layer=depth, n_embd=width, n_head=2, n_kv_head=2, vocab_size=512), device)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def clock_of(device: str) -> Callable[[], float]:
    """CPU time where one thread does all the work, so that a busy machine does not blur the figures; else wall time."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def seconds(step: Callable[[], None], device: str) -> float:
    """Time of one call, the device's work included."""
    clock = clock_of(device)
    synchronize(device)
    start = clock()
    step()
    synchronize(device)
    return clock() - start


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def without_compile(step: Callable[[], None]) -> Callable[[], None]:
    """`step` with the eager formulas in place of those that CUDA compiles."""
    fused = {name: getattr(optim, name) for name in ("adamw_step_fused", "muon_step_fused")}

    def eager_step() -> None:
        try:
            for name, function in fused.items():
                setattr(optim, name, function.__wrapped__)
            step()
        finally:
            for name, function in fused.items():
                setattr(optim, name, function)

    return eager_step


def measure(depth: int, widths: list[int], device: str, repeats: int) -> Table:
    """The table: one row per width, seconds of loop and optimizer, and their ratio."""
    table = Table(
        title=f"optimizer step, depth {depth}, {device}, CPU threads {torch.get_num_threads()}, best of {repeats}, "
        f"{clock_of(device).__name__}"
    )
    for column in ("width", "tensors", "parameters", "loop ms", "MuonAdamW ms", "loop / MuonAdamW"):
        table.add_column(column, justify="right")
    for width in widths:
        optimizer = build(depth, width, device).setup_optimizer()
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        loop = without_compile(PlainLoop(optimizer.param_groups).step)
        times: dict[Callable[[], None], list[float]] = {loop: [], optimizer.step: []}
        for _ in range(1 + repeats):
            for step, measured in times.items():
                measured.append(seconds(step, device))
        # The first round makes state and, on CUDA, compiles.
        loop_best, optimizer_best = (min(measured[1:]) for measured in times.values())
        table.add_row(
            f"{width}",
            f"{len(tensors)}",
            f"{sum(p.numel() for p in tensors):,}",
            f"{1e3 * loop_best:.2f}",
            f"{1e3 * optimizer_best:.2f}",
            f"{loop_best / optimizer_best:.2f}x",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4, help="layers of the models (default: %(default)s)")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[32, 64, 128, 256], help="n_embd of the models (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    args = parser.parse_args()
    device = args.device or ("cuda" if common.autodetect_device_type() == "cuda" else "cpu")
    torch.manual_seed(0)
    Console().print(measure(args.depth, args.widths, device, args.repeats))


if __name__ == "__main__":
    main()
