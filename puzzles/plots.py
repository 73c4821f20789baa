"""Pictures of what a learner's code does, right or wrong: one figure a cell, with alt text and one line of numbers.

    with picture("Windows by layer", alt="Bars: the window of each layer.") as p:
        p.axes[0].bar(range(4), [512, 512, 512, 2048], color=BLUE)
        p.caption = "The last of 4 layers sees 2048 tokens back."

Neither a hole that is not filled nor a wrong answer makes such a cell fail: it says in a line why there is no picture.
"""

import base64
import html
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any common colour blindness; markers and line styles repeat them.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6e7781"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass
class Picture:
    """A figure being drawn: its panels from left to right, top to bottom, and the line of numbers below it."""

    figure: Figure
    axes: list[Axes]
    caption: str = ""


@contextmanager
def picture(
    title: str, alt: str, rows: int = 1, columns: int = 1, size: tuple[float, float] = (8.0, 3.2)
) -> Iterator[Picture]:
    """Draw in the `with` block, show at its end. `alt` says in words what there is to see; `size` is in inches."""
    # building the font cache, once a machine, would be announced on stderr
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with attempt(title), warnings.catch_warnings():
        # a wrong answer may hold NaN or nothing at all; the picture shows that well enough
        warnings.simplefilter("ignore")
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        figure.suptitle(title, fontweight="bold")
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
        drawn = Picture(figure, axes)
        yield drawn
        _show(drawn, alt)


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """Run a block that uses the learner's holes; if it cannot run, say so in one line and go on."""
    try:
        yield
    except NotImplementedError:
        print(f"{what}: nothing to show yet, a hole it needs is not filled.")
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        print(f"{what}: cannot be shown with the answers your holes give ({reason}).")


def _show(drawn: Picture, alt: str) -> None:
    """HTML, because Jupyter has no other way to give a picture an alt text."""
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="png", dpi=100)
    try:
        from IPython.display import display
    except ImportError:
        print(drawn.caption)
        return
    png = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{png}" style="max-width:100%">'
    display({"text/plain": f"[Picture: {alt}]", "text/html": image}, raw=True)
    print(drawn.caption)
