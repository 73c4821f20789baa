"""Whether this Python can run the course, told before an import fails in the middle of something.

Runs on Pythons that are too old, so it uses nothing newer than they know.
"""

import re
import sys
from pathlib import Path

LEAST_PYTHON = (3, 11)
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
REMEDY = "use .venv/bin/python, which `make lab` sets up, or install what pyproject.toml lists."
NOT_FOR_COMMANDS = ("jupyterlab",)


def trouble() -> str:
    """What is missing or too old, in a sentence that says what to do; "" if nothing is."""
    if sys.version_info < LEAST_PYTHON:
        needed = ".".join(map(str, LEAST_PYTHON))
        return f"Python {needed} or newer is needed, this is {sys.version.split()[0]} ({sys.executable}): {REMEDY}"
    import tomllib

    if not PYPROJECT.exists():  # installed as a package: the installer has seen to it
        return ""
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    found = [wrong for requirement in requirements if (wrong := problem(requirement))]
    return f"This Python ({sys.executable}) {'; '.join(found)}: {REMEDY}" if found else ""


def problem(requirement: str) -> str:
    """What is wrong with a package, given as "name>=version"; "" if nothing is."""
    from importlib.metadata import PackageNotFoundError, version

    name, _, least = requirement.partition(">=")
    if name in NOT_FOR_COMMANDS:
        return ""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return f"has no {name}"
    return f"has {name} {installed}, and {least} or newer is needed" if _older(installed, least) else ""


def _older(installed: str, least: str) -> bool:
    release = re.match(r"[\d.]*", installed)
    assert release is not None
    return _numbers(release[0]) < _numbers(least)


def _numbers(version: str) -> tuple:
    """A release as numbers, without zeros at the end: 3.0 is 3."""
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
