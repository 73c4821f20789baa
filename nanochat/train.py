"""What pretraining, fine-tuning and reinforcement learning share: the loop over steps, and the work of a step.

Ctrl-C ends a run after the step it is in, with a checkpoint from which `nanochat.resume` continues it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from nanochat import common
from nanochat.common import InputError, get_dist_info, is_ddp_initialized, print0

STOPPED = 130  # exit code of a run that Ctrl-C ended, 128 + SIGINT


# The loop


def run_steps(
    train_step: Callable[[int], None],
    evaluate: Callable[[int, bool], None],
    save: Callable[[int], None],
    is_last: Callable[[int], bool],
    first_step: int = 0,
    save_every: int = -1,
    device: torch.device | str = "cpu",
) -> int:
    """Evaluate, save, train, and again, until `is_last(step)` or a signal to stop; the exit code: 0 or STOPPED.

    `step` counts the optimizer steps done. `evaluate(step, last)` comes before every step and at the end. `save(step)`
    is called at the end, every `save_every` steps (never for -1), and when any rank has received SIGINT or SIGTERM.
    What was trained is also saved when an evaluation fails or data cannot be read; with several ranks only at the end,
    because a rank that fails alone cannot make the others save.
    """
    alone = not is_ddp_initialized()
    step = first_step
    with stop_requests() as stop_requested:
        while True:
            last = is_last(step)
            stopping = max_over_ranks(float(stop_requested()), device) > 0
            has_new_weights = step > first_step
            if not stopping:
                if has_new_weights and last and not alone:
                    save(step)
                try:
                    evaluate(step, last)
                except BaseException:
                    if has_new_weights and alone:
                        save(step)
                    raise
            if has_new_weights and (last or stopping or (save_every > 0 and step % save_every == 0)):
                save(step)
            if stopping:
                print0(f"Stopped. To go on where this ended: --resume-from-step {step}" if step else "Stopped.")
                return STOPPED
            if last:
                return 0
            try:
                train_step(step)
            except DataError:
                if has_new_weights and alone:
                    save(step)
                raise
            step += 1


def is_due(step: int, every: int, last: bool = False) -> bool:
    """Whether something done every `every` steps, and at the last one, is to be done at `step`; never if every <= 0."""
    return every > 0 and (last or step % every == 0)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """In the context SIGINT and SIGTERM only set a flag; yields the function that reads it.

    A second SIGINT raises KeyboardInterrupt, unless it comes within a second: torchrun repeats to its processes the
    Ctrl-C that the terminal has already sent them.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield lambda: False
        return
    received: list[float] = []

    def handle(signum: int, frame: Any) -> None:
        now = time.monotonic()
        if received and signum == signal.SIGINT and now > received[0] + 1:
            raise KeyboardInterrupt
        if not received:
            # print() is not safe in a signal handler: it may have been interrupted itself.
            os.write(2, b"\nStopping after this step, with a checkpoint. Ctrl-C again stops at once.\n")
        received.append(now)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# A step


class DataError(InputError):
    """The next batch cannot be made. The weights are those of the last whole step."""


class Ahead:
    """A loader read one batch ahead, so that the next batch is packed while the device works on this one.

    `latest` is the state that came with the batch fetched last.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.batch = next(loader)
        self.step_start: dict[str, Any] | None = None

    @property
    def latest(self) -> Any:
        return self.batch[2]

    def take(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the `count` pairs (inputs, targets) of a step, fetching the next one when the caller is done with one.

        Raises DataError if the loader fails for a reason that is the user's to mend.
        """
        for i in range(count):
            inputs, targets, _ = self.batch
            yield inputs, targets
            if i == 0:
                self.step_start = self.loader.state_dict()  # here it costs nothing: the device is still computing
            try:
                self.batch = next(self.loader)
            except (ValueError, OSError, AssertionError) as error:
                raise DataError(str(error)) from error
        self.step_start = None

    def state_dict(self) -> dict[str, Any]:
        """The loader's state at the last whole step: its next batch is the first that was not trained on."""
        return self.step_start or self.loader.state_dict()


def accumulate_gradients(
    model: torch.nn.Module, batches: Ahead, grad_accum_steps: int, scaler: torch.amp.GradScaler
) -> torch.Tensor:
    """Forward and backward over `grad_accum_steps` batches: adds the gradients of their mean loss, and returns it.

    It stays on the device: reading it waits for the device, so launch the optimizer first.
    """
    total = torch.zeros((), device=batches.batch[0].device)
    for inputs, targets in batches.take(grad_accum_steps):
        loss = model(inputs, targets) / grad_accum_steps
        scaler.scale(loss).backward()
        total += loss.detach()
    return total


def update_weights(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Step the optimizer and drop the gradients. In float16 a step with an infinite gradient on any rank is skipped."""
    if scaler.is_enabled():
        scaler.unscale_(optimizer)
        if is_ddp_initialized():
            for found_inf in scaler._found_inf_per_device(optimizer).values():
                dist.all_reduce(found_inf, dist.ReduceOp.MAX)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def make_grad_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which only float16 needs: its small gradients would vanish."""
    return torch.amp.GradScaler(device.type, enabled=common.COMPUTE_DTYPE is torch.float16)


def compile_model(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`model` compiled for fixed shapes where that is supported (CUDA capability 7.0 and up), elsewhere as it is."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return torch.compile(model, dynamic=False)  # type: ignore[return-value]
    return model


# Ranks


def max_over_ranks(value: float, device: torch.device | str) -> float:
    """The largest `value` of any rank; all of them must call this."""
    return _over_ranks(value, dist.ReduceOp.MAX, device)


def mean_over_ranks(value: float, device: torch.device | str) -> float:
    """The mean of the `value` of all ranks; all of them must call this."""
    return _over_ranks(value, dist.ReduceOp.SUM, device) / get_dist_info()[3]


def _over_ranks(value: float, op: Any, device: torch.device | str) -> float:
    if not is_ddp_initialized():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op)
    return tensor.item()
