"""What a teacher opens: nothing in it may run or pass for something else."""

from typing import Any

from tests.attacks import STUB, Attack

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)><iframe src=//x></iframe>"
SCRIPT += "<a href='javascript:alert(1)'>x</a><style>*{display:none}</style><form action=//x><input></form>"
SCRIPT += "<div style='position:fixed;background:url(javascript:1)' onclick=alert(1)>x</div><base href=//x>"


def markdown(document: dict[str, Any]) -> dict[str, Any]:
    """Scripts in the written answer and in an added cell, some where they look like code."""
    text = f"{SCRIPT}\n\n[x](javascript:alert(1)) \\`{SCRIPT}` ```\n{SCRIPT}\n"
    for cell in document["cells"]:
        if cell["id"] == "why_windows":
            cell["source"] = text
    document["cells"].append({"cell_type": "markdown", "id": "x", "metadata": {}, "source": text})
    return document


def showing(mime: str, value: str = SCRIPT) -> str:
    return f"{STUB}\nfrom IPython.display import display\ndisplay({{'{mime}': {value!r}, 'text/plain': 'x'}}, raw=True)"


ATTACKS = [
    Attack("scripts in HTML", showing("text/html")),
    Attack("scripts in markdown output", showing("text/markdown")),
    Attack("scripts in SVG", showing("image/svg+xml")),
    Attack("scripts as such", showing("application/javascript", "alert(1)")),
    Attack("scripts in a picture that is none", showing("image/png", f'"{SCRIPT}')),
    Attack(
        "scripts behind a picture",
        showing("text/html", f'<img alt="" src="data:image/png;base64,AA" style="max-width:100%">{SCRIPT}'),
    ),
    Attack("scripts in a widget", showing("application/vnd.jupyter.widget-view+json", "{}")),
    Attack("scripts in LaTeX", showing("text/latex", "$\\href{javascript:alert(1)}{x}$")),
    Attack("scripts in markdown cells", STUB, markdown),
    Attack("scripts in an error", f"{STUB}\nraise type({SCRIPT!r}, (Exception,), {{}})({SCRIPT!r})"),
    Attack("scripts in the name of an answer's type", f"T = type({SCRIPT!r}, (), {{}})\n" + STUB.replace("{}", "T()")),
    Attack("scripts in the text of an exception", STUB.replace("return {}", f"raise TypeError({SCRIPT!r})")),
    Attack("terminal commands", f"{STUB}\nprint('\\x1b]0;owned\\x07\\x1b[2J\\x9b2J\\x1b[31mred\\x1b[0m')"),
    Attack(
        "metadata that is markup",
        f"""
from IPython.display import display
{STUB}
display({{"text/plain": "x"}}, metadata={{"text/html": {SCRIPT!r}}}, raw=True)
""",
    ),
]
