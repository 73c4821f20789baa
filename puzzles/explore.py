"""Pictures that answer: sliders over a picture, and a picture that grows while something runs.

    explore(draw_masks, layers=slider("layers", 1, 24, 12), pattern=choice("pattern", ["L", "SSSL"]))
    losses = watch(train(model), draw_losses)

The picture is an ordinary output of its cell, replaced in place when something changes. So it is there in a saved
notebook, on a page made from one and wherever widgets are not; a running kernel only adds the sliders.
"""

import html
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import ipywidgets
from IPython.display import display
from IPython.utils.capture import capture_output

from puzzles.plots import attempt

T = TypeVar("T")

WIDE = {"description_width": "initial"}
SHARE_OF_WORK = 10  # a picture of something that runs may cost a tenth of its time


def slider(label: str, low: float, high: float, value: float, step: float = 1) -> ipywidgets.ValueWidget:
    """A number from `low` to `high`: an int if `step` is one. It counts when it is let go."""
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return kind(value, min=low, max=high, step=step, description=label, continuous_update=False, style=WIDE)


def powers(label: str, low: float, high: float, value: float, step: float = 0.5) -> ipywidgets.ValueWidget:
    """A number from 10**low to 10**high, in factors of 10**step."""
    return ipywidgets.FloatLogSlider(
        value,
        min=low,
        max=high,
        step=step,
        description=label,
        continuous_update=False,
        style=WIDE,
        readout_format=".1e",
    )


def choice(label: str, options: Sequence[Any], value: Any = None) -> ipywidgets.ValueWidget:
    """One of `options`, each a value or a pair (text, value); without `value` the first."""
    chosen = {} if value is None else {"value": value}
    return ipywidgets.Dropdown(options=options, description=label, style=WIDE, **chosen)


def tick(label: str, value: bool) -> ipywidgets.ValueWidget:
    """A box to tick."""
    return ipywidgets.Checkbox(value, description=label, indent=False)


def text(label: str, value: str) -> ipywidgets.ValueWidget:
    """A line to type in; it counts when Enter is pressed."""
    wide = ipywidgets.Layout(width="32em")
    return ipywidgets.Text(value, description=label, continuous_update=False, style=WIDE, layout=wide)


class Slot:
    """A place in the output of a cell. What `show` is given to run fills it: its pictures, then the lines it prints."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, draw: Callable[[], object]) -> None:
        """Run `draw` and put what it shows here, in place of what was here before."""
        with capture_output(stderr=False) as shown:
            draw()
        pictures = [output.data for output in shown.outputs]
        html_parts = [data.get("text/html") or f"<pre>{html.escape(data['text/plain'])}</pre>" for data in pictures]
        if shown.stdout:
            html_parts.append(f"<pre style='white-space:pre-wrap'>{html.escape(shown.stdout)}</pre>")
        bundle = {
            "text/html": "\n".join(html_parts),
            "text/plain": "\n".join([*(data["text/plain"] for data in pictures), shown.stdout]),
        }
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def explore(draw: Callable[..., object], **controls: ipywidgets.ValueWidget) -> None:
    """Show `draw(**values)`, a function that makes a `picture`, below the controls of its arguments, and again when
    one of them is moved."""
    box = ipywidgets.HBox(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
    names = ", ".join(control.description for control in controls.values())
    without_widgets = f"<p><em>Run this notebook to change: {html.escape(names)}.</em></p>"
    display({**box._repr_mimebundle_(), "text/html": without_widgets}, raw=True)
    slot = Slot()

    def draw_now() -> None:
        draw(**{name: control.value for name, control in controls.items()})

    def redraw(_: Any) -> None:
        def guarded() -> None:
            with attempt("This picture"):  # an error in a callback would go to a log that nobody looks at
                draw_now()

        slot.show(guarded)

    slot.show(draw_now)
    for control in controls.values():
        control.observe(redraw, names="value")


def watch(steps: Iterable[T], draw: Callable[[list[T]], object], seconds: float = 2.0) -> list[T]:
    """Take what `steps` yields until it ends or the kernel is interrupted, and return it. About every `seconds` (less
    often where drawing is slow), and at the end, `draw` is shown with what has come so far."""
    seen: list[T] = []
    slot = Slot()
    due = time.monotonic()
    try:
        for item in steps:
            seen.append(item)
            started = time.monotonic()
            if started >= due:
                slot.show(lambda: draw(seen))
                finished = time.monotonic()
                due = finished + max(seconds, SHARE_OF_WORK * (finished - started))
    except KeyboardInterrupt:
        print(f"Stopped after {len(seen)} steps; the notebook goes on with what there is.")
    slot.show(lambda: draw(seen))
    return seen
