"""Facts that stand in two places must agree."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_environment_yml_lists_what_pyproject_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.strip().removeprefix("- ") for line in (ROOT / "environment.yml").read_text().splitlines()]
    listed = lines[lines.index("pip:") + 1 : lines.index("--editable .")]
    assert listed == project["dependencies"]
    assert f"python{project['requires-python']}" in lines


def test_constraints_pin_every_direct_dependency_to_an_allowed_version():
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, _, least = requirement.partition(">=")
        version = pins[name.lower()]
        if least:
            assert _numbers(version) >= _numbers(least), f"{name} is pinned to {version}, below {least}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
