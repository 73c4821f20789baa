"""Facts that stand in two places must agree."""

import ast
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
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["dev"], *extras["browser"]]:
        name, _, least = re.sub(r"\[.*\]", "", requirement).partition(">=")
        version = pins[name.lower()]
        if least:
            assert _numbers(version) >= _numbers(least), f"{name} is pinned to {version}, below {least}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def test_every_picture_says_in_words_what_it_shows():
    """`picture` puts `alt` into the page; a notebook that showed a figure in another way would have none."""
    for script in [*(ROOT / "source").glob("*/*.py"), *(ROOT / "notebooks").glob("*.py")]:
        code = script.read_text()
        assert not re.search(r"\bplt\b|display\((fig|p\.)|\.savefig\(", code), f"{script.name} shows a figure by itself"
        for call in ast.walk(ast.parse(code)):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "picture":
                alts = [each.value for each in call.keywords if each.arg == "alt"] or call.args[1:2]
                assert alts, f"{script.name}, line {call.lineno}: a picture without words"
                if isinstance(alts[0], ast.Constant):
                    said = str(alts[0].value)
                    assert len(said.split()) > 4, f"{script.name}, line {call.lineno}: {said}"
