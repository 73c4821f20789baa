"""How a check or a verdict looks: text for a terminal or a file, HTML for JupyterLab, and data for programs."""

import html
from typing import Any

MIME = "application/vnd.nanochat-puzzles+json"

# Symbol and word carry the meaning; colour only repeats it.
LOOKS = {
    "passed": ("✓", "passed", "#1a7f37"),
    "wrong": ("✗", "not yet right", "#b35900"),
    "crashed": ("✗", "stopped with an error", "#b35900"),
    "unsolved": ("○", "not solved yet", "#57606a"),
    "missing": ("○", "no answer arrived", "#57606a"),
}


def line(status: str, title: str, score: str = "") -> str:
    """One line of text: symbol, title, what it means, points."""
    symbol, word, _ = LOOKS[status]
    return f"{symbol} {title}: {word}{f' ({score})' if score else ''}"


def show(data: dict[str, Any], hints: tuple[str, ...] = ()) -> None:
    """Display a verdict: a dict with status, title, message, and, for graded parts, score and max; `next`, if it is
    there, says what to do now. `hints` fold out one by one under a result that is not right. Outside IPython it is
    printed."""
    score = f"{data['score']:g} of {data['max']:g} points" if "max" in data else ""
    head = line(data["status"], data["title"], score)
    text = "\n  ".join(filter(None, [head, data["message"], data.get("next")]))
    try:
        from IPython.display import display
    except ImportError:
        print(text)
        return
    display({"text/plain": text, "text/html": _html(data, score, hints), MIME: data}, raw=True)


def folded_hints(hints: tuple[str, ...]) -> str:
    """Hints that a click, or Enter, opens one by one."""
    return "".join(
        f"<details><summary>Hint {i} of {len(hints)}</summary>"
        f"<div style='margin:.2em 1em'>{html.escape(hint)}</div></details>"
        for i, hint in enumerate(hints, 1)
    )


def _html(data: dict[str, Any], score: str, hints: tuple[str, ...]) -> str:
    symbol, word, colour = LOOKS[data["status"]]
    said = "".join(
        f"<div style='margin-top:.3em'>{html.escape(text)}</div>"
        for text in (data["message"], data.get("next"))
        if text
    )
    points = f" · {html.escape(score)}" if score else ""
    return (
        f"<div role='status' style='border-left:4px solid {colour};padding:.4em .8em;margin:.3em 0'>"
        f"<b>{symbol} {html.escape(data['title'])}</b>: {word}{points}{said}{folded_hints(hints)}</div>"
    )
