"""What a submission put out, made fit to be kept and shown: its form checked, its size bounded, its HTML defused.

Instructors open graded notebooks in pages that may change grades, so nothing in them may run.
"""

import re
from typing import Any

from bleach import Cleaner
from bleach.css_sanitizer import CSSSanitizer
from nbformat import NotebookNode
from nbformat.v4 import new_output

from autograder.rebuild import without_html
from puzzles.show import MIME

MAX_OUTPUTS = 100
MAX_CHARACTERS = 300_000
MAX_IMAGE_CHARACTERS = 4 * 2**20
_IMAGES = ("image/png", "image/jpeg", "image/gif")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
# what puzzles.plots makes: too long for a parser in Python to read again and again
_PICTURE = re.compile(r'<img alt="[^"<>]*" src="data:image/png;base64,[A-Za-z0-9+/=]*" style="max-width:100%">')
# everything below a blank but tab, line ends, backspace and the escape of a colour; the C1 controls
_CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_CLEANER = Cleaner(
    tags={
        *("a", "abbr", "b", "blockquote", "br", "caption", "code", "dd", "details", "div", "dl", "dt", "em"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "li", "ol", "p", "pre", "small", "span", "strong"),
        *("sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul"),
    },
    attributes={"*": ["style", "title", "role"], "a": ["href"], "img": ["src", "alt", "width", "height"]},
    protocols={"http", "https", "data"},
    css_sanitizer=CSSSanitizer(
        allowed_css_properties=(
            *("border", "border-left", "color", "background-color", "font-weight", "font-family", "font-size"),
            *("margin", "margin-top", "padding", "max-width", "text-align", "width"),
        )
    ),
    strip=True,
)


def clean(found: Any) -> list[NotebookNode]:
    """The outputs of one cell as nbformat's nodes; what is not of that form is left out."""
    if not isinstance(found, list):
        return []
    kept = [output for item in found[:MAX_OUTPUTS] if isinstance(item, dict) and (output := _output(item))]
    if len(found) > MAX_OUTPUTS:
        kept.append(new_output("stream", name="stderr", text=f"[{len(found) - MAX_OUTPUTS} more outputs left out]\n"))
    return kept


def _output(item: dict[str, Any]) -> NotebookNode | None:
    match item:
        case {"output_type": "stream", "name": ("stdout" | "stderr") as name, "text": str(text)}:
            return new_output("stream", name=name, text=_text(text))
        case {"output_type": "error", "ename": str(name), "evalue": str(value), "traceback": list(lines)}:
            shown = [_text(line) for line in lines[:200] if isinstance(line, str)]
            return new_output("error", ename=_text(name)[:200], evalue=_text(value)[:2000], traceback=shown)
        case {"output_type": "display_data", "data": dict(data)}:
            return new_output("display_data", data=_bundle(data))
        case {"output_type": "execute_result", "data": dict(data), "execution_count": int(count)}:
            return new_output("execute_result", data=_bundle(data), execution_count=count)
    return None


def _bundle(data: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for mime, value in data.items():
        if mime in _IMAGES and isinstance(value, str) and len(value) <= MAX_IMAGE_CHARACTERS:
            if _BASE64.fullmatch(value):
                kept[mime] = value
        elif mime == "text/html" and isinstance(value, str) and _PICTURE.fullmatch(value[:MAX_IMAGE_CHARACTERS]):
            kept[mime] = value
        elif mime == "text/html" and isinstance(value, str):
            kept[mime] = _CLEANER.clean(_text(value))
        elif mime in ("text/markdown", "text/latex") and isinstance(value, str):
            kept[mime] = without_html(_text(value))
        elif mime == "text/plain" and isinstance(value, str):
            kept[mime] = _text(value)
        elif mime == MIME and isinstance(value, dict):
            kept[mime] = {str(k): v for k, v in value.items() if isinstance(v, (str, float, int))}
    return kept or {"text/plain": ""}


def _text(text: str) -> str:
    """Bounded, and without what a file in UTF-8 cannot hold or a terminal obeys (colours stay)."""
    text = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return _CONTROL.sub("\ufffd", text)
