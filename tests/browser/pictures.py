"""The README's pictures, made from real things: `make pictures` grades a sample class and photographs what comes out.

mask.png    puzzle 1's picture of the learner's attention masks, as a graded notebook keeps it
report.png  the top of the class report
grades.png  what `python -m autograder grade` prints
"""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image
from rich.console import Console
from rich.text import Text

from autograder import demo
from autograder.course import Course
from puzzles import catalog
from tests.browser.chromium import chromium
from tests.browser.jupyterlab import ROOT

PUZZLE = "01_transformer_blueprint"
IMAGES = ROOT / "docs" / "images"
SEED = "7"  # pictures made again differ only where something has changed
SHOWN = ("ada_reference", "ben_blank", "cleo_half_done", "dan_plausible", "eve_cheating", "hal_damaged")
MOST_BYTES = 150_000
COLUMNS = 108


def main() -> None:
    """Make docs/images/*.png."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        course = demo.build(Path(folder) / "course", [PUZZLE])
        for submitted in (course.root / "submitted").iterdir():
            if submitted.name not in SHOWN:
                shutil.rmtree(submitted)
        _autograder(course, "release")
        table = _autograder(course, "grade", "--seed", SEED)
        _autograder(course, "report")
        page = browser.new_page(viewport={"width": 1200, "height": 640})
        _keep("mask", _mask(course))
        page.goto((course.root / "reports" / "index.html").as_uri())
        _keep("report", page.screenshot())
        _keep("grades", _terminal(page, table))


def _autograder(course: Course, *arguments: str) -> str:
    """Run the command and return what it prints, colours included."""
    done = subprocess.run(
        [sys.executable, "-m", "autograder", arguments[0], "--course", str(course.root), *arguments[1:]],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _mask(course: Course) -> bytes:
    """The picture that the cell plot-attention_mask shows in the notebook of someone who has solved everything."""
    graded = course.root / "autograded" / "ada_reference" / PUZZLE / f"{PUZZLE}.ipynb"
    [cell] = [each for each in nbformat.read(graded, as_version=4).cells if each.id == "plot-attention_mask"]
    shown = cell.outputs[0].data["text/html"]
    encoded = re.search(r"base64,([^\"]+)", shown)
    assert encoded, "the cell shows no picture"
    return base64.b64decode(encoded[1])


def _terminal(page: Any, printed: str) -> bytes:
    """What a command has printed, as a terminal shows it; without the progress bar, each state of which is in it."""
    lines = printed.rstrip().splitlines()
    first = next(number for number, text in enumerate(lines) if catalog.puzzle(PUZZLE).title in text)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi("\n".join(lines[first:])))
    page.set_content(f"<body style='margin:0'>{console.export_svg(title='python -m autograder grade')}")
    return page.locator("svg").first.screenshot()


def _keep(name: str, png: bytes) -> None:
    """Save a picture in 64 colours, whole or not at all."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    target, temporary = IMAGES / f"{name}.png", IMAGES / f"{name}.tmp"
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(temporary, format="png", optimize=True)
    size = temporary.stat().st_size
    assert size <= MOST_BYTES, f"{target.name} would take {size} bytes, the README allows {MOST_BYTES}"
    os.replace(temporary, target)
    print(f"{target.relative_to(ROOT)}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
