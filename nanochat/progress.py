"""How far a long run is and how long it still takes: a live bar in a terminal, a line now and then elsewhere."""

import time
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from nanochat.common import get_dist_info, print0

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A context in which `update` shows the share of the work that is done, the time left, and a text. Rank 0 only.

    `done` is the share that was done before (of a resumed run), for an honest time left. Printing goes on as usual: in
    a terminal it comes above the bar.
    """

    def __init__(self, title: str, done: float = 0.0) -> None:
        self.title = title
        self.first_done = done
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f}% | {task.fields[text]}"),
            disable=get_dist_info()[1] != 0,
        )
        self.is_live = self.bar.console.is_terminal and not self.bar.disable

    def __enter__(self) -> "Progress":
        self.started = time.monotonic()
        self.next_line = self.started
        if self.is_live:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=1.0, text="")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.is_live:
            self.bar.stop()

    def update(self, done: float, text: str) -> None:
        """Show that the share `done` (0 to 1) of the work is done."""
        now = time.monotonic()
        text = f"{text} | {self.format_time_left(done, now)}"
        if self.is_live:
            self.bar.update(self.task, completed=done, text=text)
        elif now >= self.next_line or done >= 1:
            self.next_line = now + SECONDS_BETWEEN_LINES
            print0(f"{self.title} {done:4.0%} | {text}", flush=True)

    def format_time_left(self, done: float, now: float) -> str:
        elapsed = now - self.started
        if done >= 1 or done <= self.first_done:
            return f"{format_seconds(elapsed)} so far"
        return f"{format_seconds(elapsed * (1 - done) / (done - self.first_done))} left"


class Watched:
    """A sequence that shows on `progress` how far it has been read, out of its first `total` items."""

    def __init__(self, items: Any, total: int, progress: Progress) -> None:
        self.items, self.total, self.progress = items, total, progress

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.progress.update((index + 1) / self.total, f"{index + 1:,} of {self.total:,}")
        return self.items[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.items, name)


def format_seconds(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
