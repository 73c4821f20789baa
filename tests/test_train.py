"""The training loop: what it saves when, how it stops, and what a step does."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nanochat import train
from nanochat.progress import Progress


class Recorded:
    """A run of three steps that records what the loop asks for."""

    def __init__(self, **failures: Exception) -> None:
        self.failures = failures
        self.calls: list[str] = []

    def note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failures:
            raise self.failures[name]

    def run(self, **options: Any) -> int:
        return train.run_steps(
            lambda step: self.note(f"train{step}"),
            lambda step, last: self.note(f"evaluate{step}" + "!" * last),
            lambda step: self.note(f"save{step}"),
            lambda step: step == 3,
            **options,
        )


def test_order_of_evaluation_saving_and_training() -> None:
    run = Recorded()
    assert run.run() == 0
    assert run.calls == ["evaluate0", "train0", "evaluate1", "train1", "evaluate2", "train2", "evaluate3!", "save3"]


def test_periodic_saves_skip_the_step_that_was_resumed() -> None:
    run = Recorded()
    run.run(first_step=1, save_every=1)
    assert [call for call in run.calls if call.startswith("save")] == ["save2", "save3"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_what_was_trained_is_saved_when_evaluation_fails(error: Any) -> None:
    run = Recorded(evaluate2=error)
    with pytest.raises(type(error)):
        run.run()
    assert run.calls[-2:] == ["evaluate2", "save2"]


def test_what_was_trained_is_saved_when_data_cannot_be_read() -> None:
    run = Recorded(train1=train.DataError("damaged"))
    with pytest.raises(train.DataError):
        run.run()
    assert run.calls[-2:] == ["train1", "save1"]


def test_nothing_is_saved_when_weights_may_be_half_updated_or_none_were_trained() -> None:
    for failures in ({"train1": RuntimeError()}, {"train0": train.DataError()}, {"evaluate0": ValueError()}):
        run = Recorded(**failures)
        with pytest.raises(tuple(type(error) for error in failures.values())):
            run.run()
        assert not any(call.startswith("save") for call in run.calls)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Without an evaluation, which may take long, and which the resumed run does."""
    run = Recorded()
    note = run.note

    def interrupted(name: str) -> None:
        if name == "train1":
            os.kill(os.getpid(), number)
        note(name)

    run.note = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(number)
    assert run.run() == train.STOPPED
    assert run.calls[-3:] == ["evaluate1", "train1", "save2"]
    assert "--resume-from-step 2" in capfd.readouterr().out
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_but_not_the_echo_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 12.0])
    with train.stop_requests() as stop_requested:
        monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


class Counting:
    """A loader of the numbers 0, 1, ... whose state is the number yielded last; it breaks at `end`."""

    def __init__(self, start: int = 0, end: int = 100) -> None:
        self.number, self.end = start - 1, end

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        self.number += 1
        if self.number == self.end:
            raise ValueError("number missing")
        return torch.tensor([float(self.number)]), torch.zeros(1), self.number

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}


def test_batches_are_fetched_one_ahead_and_the_state_is_that_of_the_next_one_to_train_on() -> None:
    loader = Counting()
    ahead = train.Ahead(loader)
    seen = []
    for inputs, _ in ahead.take(3):
        seen.append((int(inputs), loader.number))
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert ahead.latest == 3
    assert ahead.state_dict() == {"number": 3}


def test_a_loader_that_fails_within_a_step_leaves_the_state_of_its_start() -> None:
    """So that the step can be repeated when the data are mended."""
    ahead = train.Ahead(Counting(end=5))
    list(ahead.take(3))
    with pytest.raises(train.DataError, match="number missing"):
        list(ahead.take(3))
    assert ahead.state_dict() == {"number": 3}


def square_loss(weight: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda inputs, targets: ((weight * inputs - targets) ** 2).mean()


def test_gradients_are_those_of_the_mean_loss() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ahead = train.Ahead(Counting(start=1))
    loss = train.accumulate_gradients(square_loss(weight), ahead, 3, scaler)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx((4 * 1 + 4 * 4 + 4 * 9) / 3)
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(2 * 2 * (1 + 4 + 9) / 3)


def test_loss_scaling_cancels_out_and_skips_an_overflow() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loss = train.accumulate_gradients(square_loss(weight), train.Ahead(Counting(start=1)), 1, scaler)  # type: ignore[arg-type]
    train.update_weights(optimizer, scaler)
    assert loss.item() == pytest.approx(4.0)
    assert weight.item() == pytest.approx(2 - 0.1 * 4)
    assert weight.grad is None
    weight.grad = torch.tensor(torch.inf)
    scaler.scale(torch.zeros(()))  # as a backward pass would
    train.update_weights(optimizer, scaler)
    assert weight.item() == pytest.approx(1.6)
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize(
    ("step", "every", "last", "due"),
    [
        (0, 5, False, True),
        (4, 5, False, False),
        (10, 5, False, True),
        (4, 5, True, True),
        (5, -1, True, False),
        (0, 0, True, False),
    ],
)
def test_when_something_is_due(step: int, every: int, last: bool, due: bool) -> None:
    assert train.is_due(step, every, last) == due


def test_progress_tells_the_time_left_by_the_work_done_in_this_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run resumed at 60 % that has done 10 % of all in 50 s needs 150 s more. A line every ten seconds at most."""
    clock: Iterator[float] = iter([0.0, 50.0, 51.0, 60.0, 61.0, 200.0, 200.0])
    monkeypatch.setattr("nanochat.progress.time.monotonic", lambda: next(clock))
    with Progress("run", done=0.6) as progress:
        progress.update(0.7, "loss 3")
        progress.update(0.71, "soon after")
        progress.update(0.72, "ten seconds later")
        progress.update(0.73, "soon after")
        progress.update(1.0, "loss 2")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "run  70% | loss 3 | 0:02:30 left",
        "run  72% | ten seconds later | 0:02:20 left",
        "run 100% | loss 2 | 0:03:20 so far",
    ]


def test_only_rank_0_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with Progress("run") as progress:
        progress.update(0.5, "loss 3")
    assert capsys.readouterr().out == ""
